"""The flags of `fastderp-relay`: derper's, and some of our own (PROTOCOL §12)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from fastderp.cli.flags import Flag, boolean, duration, integer, number, size
from fastderp.server.accept.login_memory import LOGIN_MEMORY_BYTES
from fastderp.server.certificates.acme.settings import VENDOR_HOSTNAME
from fastderp.server.settings import MAX_BURST
from fastderp.util import bounds

SYSTEM_KEY_FILE = "/var/lib/derper/derper.key"

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


# Section of a configuration file -> group of the help.
SECTIONS = {
    "listen": LISTEN,
    "key": KEYS,
    "certificates": CERTS,
    "admission": ADMISSION,
    "mesh": MESH,
    "serve": SERVE,
    "limits": LIMITS,
}
_SECTION_OF = {group: section for section, group in SECTIONS.items()}
_LISTS = {
    "bootstrap-dns-names",
    "disallow-app-names",
    "mesh-with",
    "unpublished-bootstrap-dns-names",
}


def flag_table(environment: Mapping[str, str]) -> list[Flag]:
    """Return every flag of the command, in the order `-help` shows them."""
    return [
        replace(flag, section=_SECTION_OF.get(flag.group, ""), is_list=flag.name in _LISTS)
        for flag in _flags(environment)
    ]


def _flags(environment: Mapping[str, str]) -> list[Flag]:
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
        Flag(
            "config",
            str,
            "",
            "TOML file with values for flags, by sections; flags and FASTDERP_… variables are stronger",
            "FILE",
            OTHER,
        ),
        Flag("version", boolean, "false", "print the version", "", OTHER),
        Flag("help", boolean, "false", "print this", "", OTHER),
        Flag("h", boolean, "false", "", "", ""),
    ]


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
