"""Turns flags and environment variables into the sections of `RelaySettings` (PROTOCOL §12).

Reads flags and environment only; the components open files and bind sockets.
"""

from __future__ import annotations

import base64
import posixpath
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastderp.cli.environment import Environment
from fastderp.cli.flag_table import CERT_MODES, LOG_FORMATS, SYSTEM_KEY_FILE
from fastderp.errors import UsageError
from fastderp.server.admission.limits import AddressLimit
from fastderp.server.certificates.acme.settings import (
    GOOGLE,
    LETS_ENCRYPT,
    AcmeSettings,
    ExternalAccount,
)
from fastderp.server.components.mesh import DEV_MESH_KEY
from fastderp.server.http.client_address import TrustedProxies
from fastderp.server.http.debug import DebugAccess
from fastderp.server.net.listen import UNIX
from fastderp.server.settings import (
    Address,
    AdmissionSettings,
    BootstrapSettings,
    KeySettings,
    LimitSettings,
    ListenSettings,
    ManualSettings,
    MeshSettings,
    ObserveSettings,
    PageSettings,
    ProxySettings,
    RelaySettings,
    SecretsSettings,
    StunSettings,
)
from fastderp.util.net import IpAddress, host_bytes, is_address, parse_ip
from fastderp.util.text import printable

_PATH_PREFIX = re.compile("(/[A-Za-z0-9._~-]+)+")
# Linux's sun_path without its final zero.
MAX_UNIX_PATH_BYTES = 107
DEV_ADDRESS = ":3340"
# Container images often have no /etc/services.
_PORTS = {"http": 80, "https": 443}
# Clients also request names with underscores, although no CA issues certificates for them.
_SNI_LABEL = re.compile("[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
CERTIFICATE_FLAGS = (
    "certmode",
    "certdir",
    "hostname",
    "acme-email",
    "acme-ip-certs",
    "public-ip",
    "acme-dns-hook",
    "acme-eab-kid",
    "acme-eab-key",
    "acme-ca-file",
)


def relay_settings(
    values: Mapping[str, Any],
    given: set[str],
    *,
    environment: Mapping[str, str],
    is_root: bool,
) -> RelaySettings:
    """Turn the values of the flags and derper's variables into sections.

    `given` has the names of the flags that were set. Raises UsageError for an invalid value or
    combination of values, ConfigError for a variable.
    """
    variables = Environment.read(environment)
    listen = _listen(values)
    dev = values["dev"]
    manual = values["certmode"] == "manual"
    hostname = values["hostname"]
    if listen.tls and manual:
        hostname = manual_hostname(hostname)
    return RelaySettings(
        key=KeySettings(None if dev else _key_file(values["c"], is_root)),
        listen=listen,
        manual=ManualSettings(Path(values["certdir"]), hostname) if listen.tls and manual else None,
        acme=acme_settings(values, http=listen.http_port is not None)
        if listen.tls and not manual
        else None,
        admission=_admission(values),
        mesh=_mesh(values, environment),
        limits=LimitSettings(
            rate_file=Path(values["rate-config"]) if values["rate-config"] else None,
            address=AddressLimit(
                values["connections-per-address"],
                values["logins-per-address"],
                values["logins-per-address-burst"],
            ),
            workers=values["workers"],
            login_memory_bytes=values["login-memory"],
            write_timeout_s=values["tcp-write-timeout"],
            queue_packets=variables.queue_packets,
            drain_s=values["drain-time"],
        ),
        stun=_stun(values, listen) if values["stun"] else None,
        bootstrap_dns=BootstrapSettings(
            published=_list(values["bootstrap-dns-names"]),
            unpublished=_list(values["unpublished-bootstrap-dns-names"]),
        ),
        pages=PageSettings(
            hostname=hostname,
            home=_home(values["home"]),
            derp=values["derp"],
            ace=values["ace"],
            dev=dev,
        ),
        observe=ObserveSettings(
            log_format=_log_format(values["log-format"]),
            debug_logs=variables.debug_logs,
            prober_logs=variables.prober_logs,
            rtt_stats=variables.rtt_stats,
            sender_cardinality=variables.sender_cardinality,
            watched_drops=variables.watched_drops,
            debug_access=DebugAccess.from_environment(environment),
        ),
        warnings=tuple(_warnings(values, given, listen)),
    )


def _log_format(text: str) -> str:
    if text not in LOG_FORMATS:
        raise UsageError(f'unknown -log-format "{printable(text)}": use {", ".join(LOG_FORMATS)}')
    return text


def _listen(values: Mapping[str, Any]) -> ListenSettings:
    dev, mode = values["dev"], values["certmode"]
    host, port = parse_address(DEV_ADDRESS if dev else values["a"])
    if mode not in CERT_MODES:
        raise UsageError(f'unknown -certmode "{printable(mode)}": use {", ".join(CERT_MODES)}')
    on_any_port = mode == "manual" or values["acme-directory"] != ""
    tls = port == 443 or (on_any_port and not dev)
    if host.startswith(UNIX) and tls:
        raise UsageError(
            "-a unix: is for proxies on this machine, which terminate TLS: leave -certmode and "
            "-acme-directory out"
        )
    if tls and not values["certdir"]:
        raise UsageError("missing required -certdir DIR: the directory of the certificates")
    return ListenSettings(
        host=host,
        port=port,
        tls=tls,
        http_port=values["http-port"] if tls and values["http-port"] != -1 else None,
        debug=_debug_address(values["debug-addr"]),
        keepalive_s=values["tcp-keepalive-time"],
        user_timeout_s=values["tcp-user-timeout"],
        reuse_port=values["reuse-port"],
        accept_per_s=values["accept-connection-limit"],
        accept_burst=values["accept-connection-burst"],
        proxies=_proxies(values),
    )


def _debug_address(text: str) -> Address | None:
    return Address(*parse_address(text, "debug-addr")) if text else None


def _stun(values: Mapping[str, Any], listen: ListenSettings) -> StunSettings:
    host, port = "" if listen.is_unix else listen.host, values["stun-port"]
    if values["stun-addr"]:
        host, port = parse_address(values["stun-addr"], "stun-addr", "udp")
    return StunSettings(host, port, values["reuse-port"])


def _proxies(values: Mapping[str, Any]) -> ProxySettings:
    try:
        trusted = TrustedProxies.parse(values["trusted-proxies"])
    except ValueError as error:
        raise UsageError(f"-trusted-proxies: {error}") from None
    if values["proxy-protocol"] and not trusted:
        raise UsageError(
            "-proxy-protocol needs -trusted-proxies: the addresses of the proxies that send PROXY "
            "headers"
        )
    prefix = values["path-prefix"].rstrip("/")
    if prefix and not _PATH_PREFIX.fullmatch(prefix):
        raise UsageError(
            f'-path-prefix "{printable(values["path-prefix"])}": want a path such as /derp-relay, '
            "of letters, digits and - . _ ~"
        )
    return ProxySettings(trusted, values["proxy-protocol"], prefix)


def _warnings(values: Mapping[str, Any], given: set[str], listen: ListenSettings) -> Iterator[str]:
    """Yield a warning for each flag that was set without effect."""
    idle = [name for name in CERTIFICATE_FLAGS if name in given]
    if idle and not (listen.tls or values["dev"]):
        yield (
            f"the relay serves plain HTTP, and -{', -'.join(idle)} has no effect: certificates "
            "from a CA are for port 443; -acme-directory, or -certmode manual, gives HTTPS on any "
            "port"
        )
    if values["stun-addr"] and "stun-port" in given:
        yield "-stun-addr names the port of STUN: -stun-port has no effect"
    if values["dev"] and "a" in given:
        yield f"-dev listens on {DEV_ADDRESS}: -a has no effect"
    if values["reuse-port"]:
        unix = ["a"] if listen.is_unix else []
        unix += ["debug-addr"] if listen.debug is not None and listen.debug.is_unix else []
        for name in unix:
            yield f"two relays cannot share a unix socket: -reuse-port has no effect on -{name}"
    if listen.is_unix and not listen.proxies.trusted.unix:
        yield (
            "clients have no address: the proxy on the unix socket is not trusted; add "
            "-trusted-proxies unix"
        )
    if listen.proxies.trusted.unix and not listen.is_unix:
        yield "unix in -trusted-proxies has no effect without -a unix:PATH"


def parse_address(text: str, flag: str = "a", protocol: str = "tcp") -> tuple[str, int]:
    """Split `[host]:port` into host ("" for all) and port. Raises UsageError that names the flag.

    The port may be a service name. A unix socket's address, `unix:PATH`, is a host with port 0.
    """
    if text.startswith(UNIX) and protocol == "tcp":
        _check_path(text, flag)
        return text, 0
    host, colon, port = text.rpartition(":")
    if (
        not port
        or not colon
        or host.endswith(":")
        or (host.startswith("[") and not host.endswith("]"))
    ):
        raise UsageError(
            f'invalid address "{printable(text)}" for -{flag}: missing port; write it as :443 or '
            "192.0.2.1:443"
        )
    if host.startswith("["):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(
            f'invalid address "{printable(text)}" for -{flag}: write IPv6 in brackets, as '
            "[2001:db8::1]:443"
        )
    number = _port_or_service(port, protocol)
    if number is None:
        raise UsageError(
            f'invalid address "{printable(text)}" for -{flag}: unknown port "{printable(port)}"'
        )
    return host, number


def _check_path(address: str, flag: str) -> None:
    path = address.removeprefix(UNIX)
    if not path.startswith("/") or len(path.encode()) > MAX_UNIX_PATH_BYTES:
        raise UsageError(
            f'invalid address "{printable(address)}" for -{flag}: want unix: and an absolute path '
            f"of up to {MAX_UNIX_PATH_BYTES} bytes"
        )


def _port_or_service(port: str, protocol: str) -> int | None:
    if port.isascii() and port.isdigit():
        return int(port) if int(port) < 65536 else None
    try:
        return socket.getservbyname(port, protocol)
    except (OSError, UnicodeError):
        return _PORTS.get(port)


def _key_file(text: str, is_root: bool) -> Path:
    if text:
        return Path(text)
    if is_root:
        return Path(SYSTEM_KEY_FILE)
    raise UsageError(
        "missing required -c FILE: the file of the relay's key, created when absent; or try -dev"
    )


def _admission(values: Mapping[str, Any]) -> AdmissionSettings:
    return AdmissionSettings(
        tailscaled=values["verify-clients"],
        socket=values["socket"],
        url=values["verify-client-url"],
        url_fail_open=values["verify-client-url-fail-open"],
        recheck_s=values["verify-interval"],
        allow_file=Path(values["allow-keys"]) if values["allow-keys"] else None,
        deny_file=Path(values["deny-keys"]) if values["deny-keys"] else None,
        disallowed_app_names=_literal_list(values["disallow-app-names"]),
    )


def _mesh(values: Mapping[str, Any], environment: Mapping[str, str]) -> MeshSettings:
    members = values["mesh-with"].strip()
    if values["dev"]:
        return MeshSettings(dev_key=environment.get(DEV_MESH_KEY, ""), members=members)
    secrets = _secrets(values) if values["secrets-url"] else None
    # A setec server takes precedence over the file.
    psk_file = Path(values["mesh-psk-file"]) if values["mesh-psk-file"] and not secrets else None
    return MeshSettings(psk_file=psk_file, secrets=secrets, members=members)


def _secrets(values: Mapping[str, Any]) -> SecretsSettings:
    if not values["secrets-cache-dir"]:
        raise UsageError(
            "-secrets-url needs -secrets-cache-dir: the place for a copy of the secret"
        )
    return SecretsSettings(
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
    """Split a comma-separated list."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _literal_list(text: str) -> tuple[str, ...]:
    """Split a list at commas as derper does, keeping spaces and empty items (PROTOCOL §22)."""
    return tuple(text.split(",")) if text else ()


# Certificates


def acme_settings(values: Mapping[str, Any], *, http: bool) -> AcmeSettings:
    """Turn the flags of `-certmode letsencrypt` or `gcp` into settings.

    http is true when the plain port is served. Raises UsageError for values that no CA accepts.
    """
    mode, hostname, ip_certs = values["certmode"], values["hostname"], values["acme-ip-certs"]
    if ip_certs and mode != "letsencrypt":
        raise UsageError(f"-acme-ip-certs needs -certmode letsencrypt, not {mode}")
    if ip_certs and not http:
        raise UsageError(
            "-acme-ip-certs needs the plain port for the CA's challenges: leave -http-port -1 out"
        )
    return AcmeSettings(
        directory_url=_directory(values["acme-directory"])
        or (GOOGLE if mode == "gcp" else LETS_ENCRYPT),
        cert_dir=Path(values["certdir"]),
        hostname="" if ip_certs and is_address(hostname) else _name(hostname, mode),
        ip_certs=ip_certs,
        http=http,
        email=_email(values["acme-email"]),
        external_account=_external_account(values),
        public_ips=_public_ips(values["public-ip"], ip_certs),
        dns_hook=_dns_hook(values["acme-dns-hook"]),
        ca_file=Path(values["acme-ca-file"]) if values["acme-ca-file"] else None,
    )


def _public_ips(text: str, ip_certs: bool) -> tuple[IpAddress, ...]:
    if text and not ip_certs:
        raise UsageError(
            "-public-ip needs -acme-ip-certs; for -certmode manual, -hostname is the address"
        )
    found: dict[int, IpAddress] = {}
    for item in _list(text):
        address = parse_ip(item)
        if address is None or getattr(address, "scope_id", None):
            raise UsageError(f'-public-ip "{printable(item)}": want an address such as 203.0.113.7')
        if address.version in found:
            raise UsageError(f"-public-ip {printable(text)}: two addresses of one family")
        found[address.version] = address
    return tuple(found.values())


def _dns_hook(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    from fastderp.server.certificates.acme.dns_hook import parse_hook

    try:
        return parse_hook(text)
    except ValueError as error:
        raise UsageError(f'-acme-dns-hook "{printable(text)}": {error}') from None


def manual_hostname(text: str) -> str:
    """Return the -hostname of `-certmode manual` as clients send it in SNI.

    Removes brackets around an IPv6 address and the dot after a name; encodes a name that is not
    ASCII (IDNA). Raises UsageError for a name that no client can send.
    """
    address = parse_ip(text.removeprefix("[").removesuffix("]"))
    if address is not None:
        if getattr(address, "scope_id", None):
            raise UsageError(
                f"-hostname {printable(text)}: certificates are for addresses without a zone"
            )
        return text.removeprefix("[").removesuffix("]")
    if "*" in text:
        raise UsageError(
            f"-hostname {printable(text)}: clients request a name, never a wildcard; "
            "a certificate for the wildcard serves each of its names"
        )
    name = _ascii_name(text)
    labels = name.split(".")
    if not all(_SNI_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise UsageError(
            f'-hostname "{printable(text)}": want a host name or an address such as '
            "derp.example.com or 203.0.113.7, without scheme, port and path"
        )
    return name


def _ascii_name(text: str) -> str:
    """Return a name in ASCII without its final dot; "" for text that is not a name."""
    try:
        return host_bytes(text.removesuffix(".")).decode()
    except UnicodeError:
        return ""


def _name(hostname: str, mode: str) -> str:
    if is_address(hostname):
        if mode == "gcp":
            raise UsageError(
                f"-certmode gcp has no certificates for addresses such as -hostname {hostname}"
            )
        raise UsageError(
            f"-hostname {hostname} is an address: -acme-ip-certs orders certificates for it, "
            "-certmode manual creates one"
        )
    name = _ascii_name(hostname.lower())
    labels = name.split(".")
    if len(labels) < 2 or not all(_is_label(label) for label in labels):
        raise UsageError(
            f"-hostname {printable(hostname)}: a CA issues certificates for names such as "
            "derp.example.com"
        )
    return name


def _is_label(text: str) -> bool:
    return text.replace("-", "a").isalnum() and text.isascii()


def _directory(url: str) -> str:
    if url and not (url.startswith("https://") and _host(url)):
        raise UsageError(
            f"-acme-directory {printable(url)}: want an https URL such as {LETS_ENCRYPT}"
        )
    return url


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _email(text: str) -> str:
    if text and not re.fullmatch(r"[^@\s]+@[^@\s]+", text):
        raise UsageError(f"-acme-email {printable(text)}: want an address such as you@example.com")
    return text


def _external_account(values: Mapping[str, Any]) -> ExternalAccount | None:
    kid, key = values["acme-eab-kid"], values["acme-eab-key"]
    given = {"acme-eab-kid": kid, "acme-eab-key": key}
    if values["certmode"] == "gcp":
        given["acme-email"] = values["acme-email"]
    elif not kid and not key:
        return None
    for flag, value in given.items():
        if not value:
            raise UsageError(
                f"-certmode {values['certmode']} with an external account needs -{flag}"
            )
    return ExternalAccount(kid, _mac_key(key))


def _mac_key(text: str) -> bytes:
    """Decode base64 in either alphabet, padded or not: CAs use all variants."""
    digits = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise UsageError("-acme-eab-key: want base64, as the CA shows it") from None
