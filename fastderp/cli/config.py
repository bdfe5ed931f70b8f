"""What `fastderp-relay` is told: derper's flags, checked and turned into one `RelayConfig` (PROTOCOL §12).

Reads flags and environment only; files are opened and sockets bound by whoever uses the result.
"""

from __future__ import annotations

import os
import posixpath
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastderp.cli.certificates import CERT_MODES, acme_settings, manual_hostname
from fastderp.cli.flags import Flag, boolean, duration, integer, number, parse, printable, size
from fastderp.errors import UsageError
from fastderp.server.accept.login_memory import LOGIN_MEMORY_BYTES
from fastderp.server.certificates.acme.settings import VENDOR_HOSTNAME, AcmeSettings
from fastderp.util import bounds

SYSTEM_KEY_FILE = "/var/lib/derper/derper.key"
DEV_ADDRESS = ":3340"
DEV_MESH_KEY = "TAILSCALE_DERPER_MESH_KEY"
MAX_BURST = 2**63 - 1

LISTEN, KEYS, CERTS, ADMISSION, SERVE, LIMITS, OTHER = (
    "Listen",
    "Key",
    "Certificates",
    "Who may use it",
    "Serve",
    "Sockets and threads",
    "Other",
)
MESH = "Region"
CERTIFICATE_FLAGS = (
    "certmode",
    "certdir",
    "hostname",
    "acme-email",
    "acme-ip-certs",
    "acme-eab-kid",
    "acme-eab-key",
    "acme-ca-file",
)


def flag_table(environment: Mapping[str, str]) -> list[Flag]:
    """Return every flag of the command, in the order `-help` shows them."""
    return [
        Flag(
            "a",
            str,
            ":443",
            "address to serve on; HTTPS when the port is 443, -certmode is manual or there is an -acme-directory, else HTTP",
            "[HOST]:PORT",
            LISTEN,
        ),
        Flag(
            "http-port",
            integer,
            "80",
            "port of the plain HTTP helper beside HTTPS; -1 for none",
            "PORT",
            LISTEN,
            bounds.Bounds(-1, 65535),
        ),
        Flag(
            "stun", boolean, "true", "answer STUN, so that clients learn their address", "", LISTEN
        ),
        Flag("stun-port", integer, "3478", "UDP port of STUN", "PORT", LISTEN, bounds.PORT),
        Flag(
            "dev",
            boolean,
            "false",
            "try it out: plain HTTP on :3340, a key that is forgotten at exit",
            "",
            LISTEN,
        ),
        Flag(
            "c", str, "", f"key file, made when absent (for root: {SYSTEM_KEY_FILE})", "FILE", KEYS
        ),
        Flag(
            "certmode",
            str,
            "letsencrypt",
            "where certificates come from: letsencrypt, gcp (Google's CA), or manual for files of your own",
            "MODE",
            CERTS,
        ),
        Flag(
            "certdir",
            str,
            default_cert_dir(environment),
            "where they are kept; manual: HOSTNAME.crt and HOSTNAME.key, read again on SIGHUP, for an address made when absent",
            "DIR",
            CERTS,
        ),
        Flag(
            "hostname",
            str,
            VENDOR_HOSTNAME,
            "name or address the certificate is for",
            "NAME",
            CERTS,
        ),
        Flag("acme-email", str, "", "where the CA reaches you", "ADDRESS", CERTS),
        Flag(
            "acme-ip-certs",
            boolean,
            "false",
            "letsencrypt: get certificates for the addresses that clients connect to, too",
            "",
            CERTS,
        ),
        Flag(
            "acme-eab-kid",
            str,
            "",
            "account with the CA that orders belong to; gcp wants one",
            "ID",
            CERTS,
        ),
        Flag("acme-eab-key", str, "", "its MAC key, base64", "KEY", CERTS),
        Flag(
            "acme-directory",
            str,
            "",
            "another CA's ACME directory; then HTTPS on any port",
            "URL",
            CERTS,
        ),
        Flag(
            "acme-ca-file",
            str,
            "",
            "certificates (PEM) to trust the CA's server by, instead of the system's",
            "FILE",
            CERTS,
        ),
        Flag(
            "verify-clients",
            boolean,
            "false",
            "let in only the nodes that this machine's tailscaled knows",
            "",
            ADMISSION,
        ),
        Flag(
            "socket",
            str,
            "",
            "where -verify-clients finds tailscaled, when not at its usual place",
            "FILE",
            ADMISSION,
        ),
        Flag(
            "verify-client-url",
            str,
            "",
            "ask a service at this URL about every client",
            "URL",
            ADMISSION,
        ),
        Flag(
            "verify-client-url-fail-open",
            boolean,
            "true",
            "let everybody in while -verify-client-url cannot be reached",
            "",
            ADMISSION,
        ),
        Flag(
            "verify-interval",
            duration,
            "36s",
            "ask again about connected clients this often, so that the revoked have to go; 0 never",
            "TIME",
            ADMISSION,
            bounds.RECHECK,
        ),
        Flag(
            "allow-keys",
            str,
            "",
            "let in only the keys in this file, one nodekey: per line; followed when it changes",
            "FILE",
            ADMISSION,
        ),
        Flag(
            "deny-keys",
            str,
            "",
            "keep out the keys in this file; followed when it changes",
            "FILE",
            ADMISSION,
        ),
        Flag(
            "disallow-app-names",
            str,
            "",
            "refuse clients that call their program by one of these names; commas between",
            "NAMES",
            ADMISSION,
        ),
        Flag(
            "mesh-psk-file",
            str,
            default_mesh_psk_file(environment),
            "file with the secret of the region's relays, 64 hex digits; read again on SIGHUP",
            "FILE",
            MESH,
        ),
        Flag(
            "secrets-url",
            str,
            "",
            "setec server that has the secret, instead of -mesh-psk-file; asked again on SIGHUP",
            "URL",
            MESH,
        ),
        Flag(
            "secrets-path-prefix",
            str,
            "prod/derp",
            "the secret is called PREFIX/meshkey there",
            "PREFIX",
            MESH,
        ),
        Flag(
            "secrets-cache-dir",
            str,
            os.path.join(environment.get("HOME", "/root"), ".cache/derper-secrets"),
            "file, or directory of a file, that keeps a copy for the time that server cannot be reached",
            "PATH",
            MESH,
        ),
        Flag(
            "mesh-with",
            str,
            "",
            "the region's relays, separated by commas: HOST[:PORT] or HOST[:PORT]/DIALHOST, with =CERTNAME (sha256-raw:…) for a "
            "certificate of its own making, or an http:// or https:// URL; or @FILE with one a line, read again on SIGHUP",
            "HOSTS",
            MESH,
        ),
        Flag(
            "home",
            str,
            "",
            "what / shows: empty for a small page, blank, or a URL to redirect to",
            "PAGE",
            SERVE,
        ),
        Flag(
            "bootstrap-dns-names",
            str,
            "",
            "tell clients without DNS the addresses of these names, at /bootstrap-dns; commas between",
            "NAMES",
            SERVE,
        ),
        Flag(
            "unpublished-bootstrap-dns-names",
            str,
            "",
            "the same for those who ask for the name; NAME/TXT looks up there which percentage of them is told",
            "NAMES",
            SERVE,
        ),
        Flag(
            "derp", boolean, "true", "relay packets; false keeps only the other services", "", SERVE
        ),
        Flag(
            "ace",
            boolean,
            "false",
            "take HTTPS clients that send CONNECT to hosts of tailscale.com that are no relays",
            "",
            SERVE,
        ),
        Flag(
            "login-memory",
            size,
            f"{LOGIN_MEMORY_BYTES >> 20}MiB",
            "memory that all connections together may hold before their login",
            "SIZE",
            LIMITS,
            bounds.LOGIN_MEMORY,
        ),
        Flag(
            "workers",
            integer,
            "0",
            "threads that move packets; 0 for one per core",
            "N",
            LIMITS,
            bounds.WORKERS,
        ),
        Flag(
            "tcp-write-timeout",
            duration,
            "2s",
            "drop a client that takes no data for this long; 0 never",
            "TIME",
            LIMITS,
            bounds.WRITE_TIMEOUT,
        ),
        Flag(
            "tcp-user-timeout",
            duration,
            "15s",
            "drop a connection whose data stays unacknowledged this long",
            "TIME",
            LIMITS,
            bounds.USER_TIMEOUT,
        ),
        Flag(
            "tcp-keepalive-time",
            duration,
            "10m",
            "probe a connection silent for this long",
            "TIME",
            LIMITS,
            bounds.KEEPALIVE,
        ),
        Flag(
            "rate-config",
            str,
            "",
            "JSON file that limits what each client may send; read again on SIGHUP",
            "FILE",
            LIMITS,
        ),
        Flag(
            "accept-connection-limit",
            number,
            "+Inf",
            "accept so many HTTPS connections per second on average, close the rest",
            "N",
            LIMITS,
            bounds.ACCEPTS_PER_S,
        ),
        Flag(
            "accept-connection-burst",
            integer,
            str(MAX_BURST),
            "and so many at once",
            "N",
            LIMITS,
            bounds.ACCEPT_BURST,
        ),
        Flag("version", boolean, "false", "print the version", "", OTHER),
        Flag("help", boolean, "false", "print this", "", OTHER),
        Flag("h", boolean, "false", "", "", ""),
    ]


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """Who may use the relay; all that is given must agree."""

    tailscaled: bool = False
    socket: str = ""  # "": tailscaled's usual one
    url: str = ""
    url_fail_open: bool = True
    recheck_s: float = 0.0  # 0: never
    allow_file: Path | None = None
    deny_file: Path | None = None
    disallowed_app_names: tuple[str, ...] = ()

    @property
    def everybody(self) -> bool:
        """Whether there is nothing to check."""
        return not (self.tailscaled or self.url or self.allow_file or self.deny_file)


@dataclass(frozen=True, slots=True)
class SecretsConfig:
    """Where the region's secret is, if not in a file."""

    url: str
    name: str
    cache: Path


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """Everything a relay needs to start, checked. Times in seconds."""

    host: str  # "" for every address
    port: int
    tls: bool
    http_port: int | None
    stun_port: int | None
    key_file: Path | None  # None: a key in memory
    cert_dir: Path
    hostname: str
    acme: AcmeSettings | None  # None: no TLS, or certificates from files
    home: str
    bootstrap_names: tuple[str, ...]  # as given, split
    unpublished_bootstrap_names: tuple[str, ...]
    derp: bool
    ace: bool
    admission: AdmissionConfig
    rate_file: Path | None
    accept_per_s: float  # infinite: no limit
    accept_burst: int
    login_memory_bytes: int
    workers: int  # 0: one per core
    write_timeout_s: float  # 0: none
    user_timeout_s: float
    keepalive_s: float
    mesh_psk_file: Path | None
    secrets: SecretsConfig | None
    mesh_with: str  # as given
    dev: bool
    address_overridden: bool  # -dev took the place of an explicit -a
    idle_certificate_flags: tuple[str, ...]  # given, but there is no TLS


def relay_config(values: Mapping[str, Any], given: set[str], *, is_root: bool) -> RelayConfig:
    """Turn the values of the flags into a configuration.

    given names the flags that were on the command line. Raises UsageError when a value, or their combination, makes
    no sense.
    """
    dev = values["dev"]
    host, port = parse_address(DEV_ADDRESS if dev else values["a"])
    if values["certmode"] not in CERT_MODES:
        raise UsageError(
            f'unknown -certmode "{printable(values["certmode"])}": use {", ".join(CERT_MODES)}'
        )
    manual = values["certmode"] == "manual"
    tls = port == 443 or ((manual or values["acme-directory"] != "") and not dev)
    if tls and not values["certdir"]:
        raise UsageError("missing required -certdir: the directory of the certificates")
    http = tls and values["http-port"] != -1
    return RelayConfig(
        host=host,
        port=port,
        tls=tls,
        http_port=values["http-port"] if http else None,
        stun_port=values["stun-port"] if values["stun"] else None,
        key_file=None if dev else _key_file(values["c"], is_root),
        cert_dir=Path(values["certdir"]),
        hostname=manual_hostname(values["hostname"]) if tls and manual else values["hostname"],
        acme=acme_settings(values, http=http) if tls and not manual else None,
        home=_home(values["home"]),
        bootstrap_names=_list(values["bootstrap-dns-names"]),
        unpublished_bootstrap_names=_list(values["unpublished-bootstrap-dns-names"]),
        derp=values["derp"],
        ace=values["ace"],
        admission=_admission(values),
        rate_file=Path(values["rate-config"]) if values["rate-config"] else None,
        accept_per_s=values["accept-connection-limit"],
        accept_burst=values["accept-connection-burst"],
        login_memory_bytes=values["login-memory"],
        workers=values["workers"],
        write_timeout_s=values["tcp-write-timeout"],
        user_timeout_s=values["tcp-user-timeout"],
        keepalive_s=values["tcp-keepalive-time"],
        mesh_psk_file=Path(values["mesh-psk-file"])
        if values["mesh-psk-file"] and not dev
        else None,
        secrets=_secrets(values) if values["secrets-url"] and not dev else None,
        mesh_with=values["mesh-with"].strip(),
        dev=dev,
        address_overridden=dev and "a" in given,
        idle_certificate_flags=()
        if tls or dev
        else tuple(name for name in CERTIFICATE_FLAGS if name in given),
    )


def read_flags(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """Parse the command line by the relay's table of flags. Raises UsageError."""
    return parse(flag_table(environment), arguments)


def parse_address(text: str) -> tuple[str, int]:
    """Split `[host]:port` into host ("" for all) and port; the port may be a service name. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if (
        not port
        or not colon
        or host.endswith(":")
        or (host.startswith("[") and not host.endswith("]"))
    ):
        raise UsageError(
            f'invalid address "{printable(text)}" for -a: missing port; write it as :443 or 192.0.2.1:443'
        )
    if host.startswith("["):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(
            f'invalid address "{printable(text)}" for -a: write IPv6 in brackets, as [2001:db8::1]:443'
        )
    return host, _port_or_service(port, text)


def _port_or_service(port: str, address: str) -> int:
    if port.isascii() and port.isdigit():
        if int(port) < 65536:
            return int(port)
    else:
        try:
            return socket.getservbyname(port, "tcp")
        except (OSError, UnicodeError):
            pass
    raise UsageError(
        f'invalid address "{printable(address)}" for -a: unknown port "{printable(port)}"'
    )


def _key_file(text: str, is_root: bool) -> Path:
    if text:
        return Path(text)
    if is_root:
        return Path(SYSTEM_KEY_FILE)
    raise UsageError(
        "-c FILE is missing: where the relay keeps its key (made when absent); or try -dev"
    )


def _admission(values: Mapping[str, Any]) -> AdmissionConfig:
    return AdmissionConfig(
        tailscaled=values["verify-clients"],
        socket=values["socket"],
        url=values["verify-client-url"],
        url_fail_open=values["verify-client-url-fail-open"],
        recheck_s=values["verify-interval"],
        allow_file=Path(values["allow-keys"]) if values["allow-keys"] else None,
        deny_file=Path(values["deny-keys"]) if values["deny-keys"] else None,
        disallowed_app_names=_literal_list(values["disallow-app-names"]),
    )


def _secrets(values: Mapping[str, Any]) -> SecretsConfig:
    if not values["secrets-cache-dir"]:
        raise UsageError(
            "-secrets-url needs -secrets-cache-dir: where a copy of the secret is kept"
        )
    return SecretsConfig(
        url=values["secrets-url"],
        name=posixpath.join(values["secrets-path-prefix"], "meshkey"),
        cache=Path(values["secrets-cache-dir"]),
    )


def _home(text: str) -> str:
    is_url = (
        text.startswith(("http://", "https://"))
        and text.isascii()
        and text.isprintable()
        and " " not in text
    )
    if text in ("", "blank") or is_url:
        return text
    raise UsageError(
        f'unknown -home value "{printable(text)}": leave it empty, or use blank or a URL'
    )


def _list(text: str) -> tuple[str, ...]:
    """Split a list with commas."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _literal_list(text: str) -> tuple[str, ...]:
    """Split a list with commas as derper does: spaces count, and an empty item is one (PROTOCOL §22)."""
    return tuple(text.split(",")) if text else ()


def default_mesh_psk_file(environment: Mapping[str, str]) -> str:
    """Return derper's default for -mesh-psk-file: where Tailscale keeps it; "" when no such file can be seen."""
    places = [
        "/home/derp/keys/derp-mesh.key",
        os.path.join(environment.get("HOME", ""), "keys/derp-mesh.key"),
    ]
    # Not Path.exists: it raises where a folder may not be searched, such as /home with ProtectHome=yes.
    return next((place for place in places if os.path.exists(place)), "")


def default_cert_dir(environment: Mapping[str, str]) -> str:
    """Return derper's default for -certdir: below the user's cache directory."""
    cache = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME", ""), ".cache")
    return os.path.join(cache, "tailscale", "derper-certs")
