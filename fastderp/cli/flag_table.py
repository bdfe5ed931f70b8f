"""The flags of `fastderp-relay`: those of derper and additions (PROTOCOL §12)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from fastderp.cli.flags import Flag, boolean, duration, integer, number, size
from fastderp.server.certificates.acme.settings import VENDOR_HOSTNAME
from fastderp.util import bounds

SYSTEM_KEY_FILE = "/var/lib/derper/derper.key"
CERT_MODES = ("manual", "letsencrypt", "gcp")
LOG_FORMATS = ("text", "json")

LISTEN, KEYS, CERTS, ADMISSION, SERVE, LIMITS, LOG, OTHER = (
    "Listen",
    "Key",
    "Certificates",
    "Admission",
    "Services",
    "Limits",
    "Log",
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
    "log": LOG,
}
_SECTION_OF = {group: section for section, group in SECTIONS.items()}
_LISTS = {
    "bootstrap-dns-names",
    "disallow-app-names",
    "trusted-proxies",
    "mesh-with",
    "public-ip",
    "unpublished-bootstrap-dns-names",
}


def flag_table(environment: Mapping[str, str]) -> list[Flag]:
    """Return every flag of the command, in the order `-help` shows them."""
    return [
        flag._replace(section=_SECTION_OF.get(flag.group, ""), is_list=flag.name in _LISTS)
        for flag in _flags(environment)
    ]


def _flags(environment: Mapping[str, str]) -> list[Flag]:
    return [
        Flag(
            "a",
            str,
            ":443",
            "address to listen on, or unix:PATH; HTTPS on port 443, and on any port with "
            "-certmode manual or -acme-directory; else HTTP",
            "[HOST]:PORT",
            LISTEN,
        ),
        Flag(
            "http-port",
            integer,
            "80",
            "port for plain HTTP beside HTTPS; -1 for none",
            "PORT",
            LISTEN,
            bounds.Bounds(-1, 65535),
        ),
        Flag(
            "debug-addr",
            str,
            "",
            "address for metrics and debug pages without a key, in plain HTTP, such as "
            "127.0.0.1:9090 or unix:PATH; the other ports then have none",
            "[HOST]:PORT",
            LISTEN,
        ),
        Flag(
            "reuse-port",
            boolean,
            "false",
            "share the ports with another relay of this user that has this flag, too: a new one "
            "starts before the previous one ends",
            "",
            LISTEN,
        ),
        Flag(
            "trusted-proxies",
            str,
            "",
            "networks or addresses of proxies whose headers contain the clients' addresses; unix "
            "for those on a unix socket",
            "CIDR,…",
            LISTEN,
        ),
        Flag(
            "proxy-protocol",
            boolean,
            "false",
            "trusted proxies begin each TCP connection with a PROXY header, version 1 or 2",
            "",
            LISTEN,
        ),
        Flag("path-prefix", str, "", "also serve every path below this path", "/PATH", LISTEN),
        Flag(
            "stun",
            boolean,
            "true",
            "answer STUN requests, which give clients their public address",
            "",
            LISTEN,
        ),
        Flag("stun-port", integer, "3478", "UDP port for STUN", "PORT", LISTEN, bounds.PORT),
        Flag(
            "stun-addr",
            str,
            "",
            "address for STUN, instead of the host of -a and -stun-port",
            "[HOST]:PORT",
            LISTEN,
        ),
        Flag(
            "dev",
            boolean,
            "false",
            "trial mode: plain HTTP on :3340, a new key in memory",
            "",
            LISTEN,
        ),
        Flag(
            "c",
            str,
            "",
            f"file with the private key, created if missing (default for root: {SYSTEM_KEY_FILE})",
            "FILE",
            KEYS,
        ),
        Flag(
            "certmode",
            str,
            "letsencrypt",
            "source of certificates: letsencrypt, gcp (Google's CA), or manual (files)",
            "MODE",
            CERTS,
            choices=CERT_MODES,
        ),
        Flag(
            "certdir",
            str,
            default_cert_dir(environment),
            "directory of certificates; manual: HOSTNAME.crt and HOSTNAME.key, reloaded on "
            "SIGHUP, created if missing when HOSTNAME is an address",
            "DIR",
            CERTS,
        ),
        Flag(
            "hostname",
            str,
            VENDOR_HOSTNAME,
            "host name or address of the certificate",
            "NAME",
            CERTS,
        ),
        Flag("acme-email", str, "", "contact address for the CA", "ADDRESS", CERTS),
        Flag(
            "acme-ip-certs",
            boolean,
            "false",
            "letsencrypt: also order certificates for the addresses that clients connect to",
            "",
            CERTS,
        ),
        Flag(
            "public-ip",
            str,
            "",
            "with -acme-ip-certs: the address of this machine behind NAT, which clients connect to; "
            "up to one IPv4 and one IPv6 address",
            "ADDRESS,…",
            CERTS,
        ),
        Flag(
            "acme-dns-hook",
            str,
            "",
            "prove the name by dns-01: COMMAND present|cleanup NAME VALUE sets and removes a TXT "
            "record",
            "COMMAND",
            CERTS,
        ),
        Flag(
            "acme-eab-kid",
            str,
            "",
            "key ID of an external account at the CA; gcp needs one",
            "ID",
            CERTS,
        ),
        Flag("acme-eab-key", str, "", "MAC key of the external account, base64", "KEY", CERTS),
        Flag(
            "acme-directory",
            str,
            "",
            "ACME directory of another CA; enables HTTPS on any port",
            "URL",
            CERTS,
        ),
        Flag(
            "acme-ca-file",
            str,
            "",
            "trusted roots (PEM) for the connection to the CA, instead of the system's",
            "FILE",
            CERTS,
        ),
        Flag(
            "verify-clients",
            boolean,
            "false",
            "admit only nodes in the network map of this machine's tailscaled",
            "",
            ADMISSION,
        ),
        Flag(
            "socket",
            str,
            "",
            "tailscaled's socket for -verify-clients, if not at its default path",
            "FILE",
            ADMISSION,
        ),
        Flag(
            "verify-client-url",
            str,
            "",
            "URL of a service that admits or refuses each client",
            "URL",
            ADMISSION,
        ),
        Flag(
            "verify-client-url-fail-open",
            boolean,
            "true",
            "admit all clients while -verify-client-url cannot be reached",
            "",
            ADMISSION,
        ),
        Flag(
            "verify-interval",
            duration,
            "36s",
            "interval at which connected clients are verified again, and disconnected if "
            "revoked; 0 for never",
            "TIME",
            ADMISSION,
            bounds.RECHECK,
        ),
        Flag(
            "allow-keys",
            str,
            "",
            "admit only the keys in this file, one nodekey:… per line; reloaded when the file "
            "changes",
            "FILE",
            ADMISSION,
        ),
        Flag(
            "deny-keys",
            str,
            "",
            "refuse the keys in this file; reloaded when the file changes",
            "FILE",
            ADMISSION,
        ),
        Flag(
            "disallow-app-names",
            str,
            "",
            "refuse clients with one of these AppNames; comma-separated",
            "NAMES",
            ADMISSION,
        ),
        Flag(
            "mesh-psk-file",
            str,
            default_mesh_psk_file(environment),
            "file with the mesh key of the region, 64 hex digits; reloaded on SIGHUP",
            "FILE",
            MESH,
        ),
        Flag(
            "secrets-url",
            str,
            "",
            "setec server that has the mesh key, instead of -mesh-psk-file; queried again on "
            "SIGHUP",
            "URL",
            MESH,
        ),
        Flag(
            "secrets-path-prefix",
            str,
            "prod/derp",
            "prefix of the secret's name: the mesh key is PREFIX/meshkey",
            "PREFIX",
            MESH,
        ),
        Flag(
            "secrets-cache-dir",
            str,
            os.path.join(environment.get("HOME") or "/root", ".cache/derper-secrets"),
            "file or directory for a copy of the mesh key, used while the setec server cannot be "
            "reached",
            "PATH",
            MESH,
        ),
        Flag(
            "mesh-with",
            str,
            "",
            "other relays of the region, comma-separated: HOST[:PORT] or HOST[:PORT]/DIALHOST, "
            "with =CERTNAME (sha256-raw:…) for a "
            "pinned certificate, or an http:// or https:// URL; or @FILE with one per line, "
            "reloaded on SIGHUP",
            "HOSTS",
            MESH,
        ),
        Flag(
            "home",
            str,
            "",
            "page at /: empty for the default page, blank, or a URL to redirect to",
            "PAGE",
            SERVE,
        ),
        Flag(
            "bootstrap-dns-names",
            str,
            "",
            "names whose addresses /bootstrap-dns sends to all clients; comma-separated",
            "NAMES",
            SERVE,
        ),
        Flag(
            "unpublished-bootstrap-dns-names",
            str,
            "",
            "names whose addresses it sends only on request; NAME/TXT: the TXT record has the "
            "percentage of clients that get them",
            "NAMES",
            SERVE,
        ),
        Flag(
            "derp",
            boolean,
            "true",
            "relay packets; with false only the other services run",
            "",
            SERVE,
        ),
        Flag(
            "ace",
            boolean,
            "false",
            "proxy CONNECT requests over HTTPS to hosts of tailscale.com, its relays excepted",
            "",
            SERVE,
        ),
        Flag(
            "login-memory",
            size,
            f"{bounds.LOGIN_MEMORY_BYTES >> 20}MiB",
            "memory limit for all connections before their login",
            "SIZE",
            LIMITS,
            bounds.LOGIN_MEMORY,
        ),
        Flag(
            "workers",
            integer,
            "0",
            "data-plane threads; 0 for one per core that affinity and CPU quota leave",
            "N",
            LIMITS,
            bounds.WORKERS,
        ),
        Flag(
            "drain-time",
            duration,
            "10s",
            "SIGTERM sends the clients away over this time before the relay ends; 0 closes "
            "all at once",
            "TIME",
            LIMITS,
            bounds.DRAIN,
        ),
        Flag(
            "tcp-write-timeout",
            duration,
            "2s",
            "close a client that has read nothing for this long; 0 for never",
            "TIME",
            LIMITS,
            bounds.WRITE_TIMEOUT,
        ),
        Flag(
            "tcp-user-timeout",
            duration,
            "15s",
            "close a connection whose data stays unacknowledged for this long",
            "TIME",
            LIMITS,
            bounds.USER_TIMEOUT,
        ),
        Flag(
            "tcp-keepalive-time",
            duration,
            "10m",
            "send a TCP keep-alive after this long without traffic",
            "TIME",
            LIMITS,
            bounds.KEEPALIVE,
        ),
        Flag(
            "rate-config",
            str,
            "",
            "JSON file with the limits of clients: of all, and of classes by key, app and network; "
            "reloaded on SIGHUP",
            "FILE",
            LIMITS,
        ),
        Flag(
            "connections-per-address",
            integer,
            "0",
            "connections at once from one IPv4 address or IPv6 /64, unless -rate-config has "
            "another number; 0 for no limit",
            "N",
            LIMITS,
            bounds.ADDRESS_CONNECTIONS,
        ),
        Flag(
            "logins-per-address",
            number,
            "0",
            "average logins per second from one IPv4 address or IPv6 /64, likewise; 0 for no limit",
            "N",
            LIMITS,
            bounds.ADDRESS_LOGINS,
        ),
        Flag(
            "logins-per-address-burst",
            integer,
            "20",
            "logins at once from one address on top of that average",
            "N",
            LIMITS,
            bounds.ADDRESS_BURST,
        ),
        Flag(
            "accept-connection-limit",
            number,
            "+Inf",
            "average HTTPS connections accepted per second; more are closed",
            "N",
            LIMITS,
            bounds.ACCEPTS_PER_S,
        ),
        Flag(
            "accept-connection-burst",
            integer,
            str(bounds.ACCEPT_BURST.high),
            "HTTPS connections accepted in a burst above that average",
            "N",
            LIMITS,
            bounds.ACCEPT_BURST,
        ),
        Flag(
            "log-format",
            str,
            "text",
            "format of the log: text, or json for one object per line",
            "FORMAT",
            LOG,
            choices=LOG_FORMATS,
        ),
        Flag(
            "config",
            str,
            "",
            "TOML file with settings; flags and FASTDERP_… variables take precedence",
            "FILE",
            OTHER,
        ),
        Flag("version", boolean, "false", "print the version", "", OTHER),
        Flag("help", boolean, "false", "print this help", "", OTHER),
        Flag("h", boolean, "false", "", "", ""),
    ]


def default_mesh_psk_file(environment: Mapping[str, str]) -> str:
    """Return derper's default for -mesh-psk-file: Tailscale's path; "" without such a file."""
    places = [
        "/home/derp/keys/derp-mesh.key",
        os.path.join(environment.get("HOME", ""), "keys/derp-mesh.key"),
    ]
    # Path.exists would raise in a folder without search permission (/home, ProtectHome=yes).
    return next((place for place in places if os.path.exists(place)), "")


def default_cert_dir(environment: Mapping[str, str]) -> str:
    """Return derper's default for -certdir: below the user's cache directory; "" without one."""
    home = environment.get("HOME", "")
    cache = environment.get("XDG_CACHE_HOME") or (home and os.path.join(home, ".cache"))
    return os.path.join(cache, "tailscale", "derper-certs") if os.path.isabs(cache) else ""
