#!/usr/bin/env python3
"""Start the relay in a container, from flags and from the variables that derper's images share.

`fastderp-entrypoint [FLAGS]` becomes `fastderp-relay` with the key and the certificates in
/var/lib/fastderp; flags win over variables. `fastderp-entrypoint health` asks the relay of the same
variables for /derp/probe and exits with 0 when it answers 200. It does not get the flags: if they
change the address, set FASTDERP_HEALTH_URL. Needs nothing but Python.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

STATE = "/var/lib/fastderp"
RELAY = "fastderp-relay"
HEALTH_TIMEOUT_S = 4.0

# Variables of this program.
OWN = ("FASTDERP_HEALTH_URL", "FASTDERP_STATE_DIR")

PORTS = {"http": "80", "https": "443"}

# Variable of the known derper images -> flag of derper's.
FLAGS = {
    "DERP_DOMAIN": "hostname",
    "DERP_ADDR": "a",
    "DERP_CERT_MODE": "certmode",
    "DERP_CERT_DIR": "certdir",
    "DERP_STUN": "stun",
    "DERP_STUN_PORT": "stun-port",
    "DERP_HTTP_PORT": "http-port",
    "DERP_VERIFY_CLIENTS": "verify-clients",
    "DERP_VERIFY_CLIENT_URL": "verify-client-url",
}


def command(variables: Mapping[str, str], flags: Sequence[str]) -> list[str]:
    """Return the command line of the relay; the last of several equal flags counts."""
    state = variables.get("FASTDERP_STATE_DIR") or STATE
    kept = [f"-c={state}/relay.key", f"-certdir={state}/certs"]
    told = [f"-{flag}={value}" for name, flag in FLAGS.items() if (value := own(variables, name))]
    return [RELAY, *kept, *told, *flags]


def own(variables: Mapping[str, str], name: str) -> str:
    """Return the value of a variable that a person has set.

    Kubernetes sets DERP_STUN_PORT=udp://10.0.0.1:3478 beside DERP_STUN_SERVICE_HOST for a service
    `derp-stun`.
    """
    value = variables.get(name, "")
    is_link = f"{name.removesuffix('PORT')}SERVICE_HOST" in variables and "://" in value
    return "" if is_link else value


def setting(variables: Mapping[str, str], name: str) -> str:
    """Return the value of a flag's variable, of derper's images or of fastderp."""
    return own(variables, name) or own(
        variables, f"FASTDERP_{FLAGS[name].replace('-', '_').upper()}"
    )


def health_url(variables: Mapping[str, str]) -> str:
    """Return where the relay of these variables answers probes: a URL, or unix:PATH."""
    if url := variables.get("FASTDERP_HEALTH_URL"):
        return url
    address = setting(variables, "DERP_ADDR") or ":443"
    if address.startswith("unix:"):
        return address
    host, _, port = address.rpartition(":")
    port = PORTS.get(port, port)
    tls = port == "443" or setting(variables, "DERP_CERT_MODE") == "manual"
    if host in ("", "0.0.0.0", "[::]"):
        host = "127.0.0.1"
    return f"{'https' if tls else 'http'}://{host}:{port}/derp/probe"


def is_healthy(url: str, server_name: str) -> bool:
    """Return whether the relay answers 200. Its certificate is not judged: this is one machine.

    Raises OSError, ValueError or HTTPException.
    """
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port, timeout=HEALTH_TIMEOUT_S)
    if parts.scheme == "unix":
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(HEALTH_TIMEOUT_S)
        connection.sock.connect(url.removeprefix("unix:"))
    elif parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection.connect()
        # The relay chooses its certificate by the name that is asked for.
        connection.sock = context.wrap_socket(connection.sock, server_hostname=server_name or host)
    try:
        path = parts.path if parts.scheme in ("http", "https") else ""
        connection.request("GET", path or "/derp/probe")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def main(arguments: Sequence[str]) -> int:
    """Become the relay, or answer whether it is healthy."""
    if arguments == ["health"]:
        url = health_url(os.environ)
        try:
            healthy = is_healthy(url, setting(os.environ, "DERP_DOMAIN"))
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(f"{url}: {error}", file=sys.stderr)
            return 1
        return 0 if healthy else 1
    line = command(os.environ, arguments)
    # The relay refuses variables that it does not know.
    variables = {name: value for name, value in os.environ.items() if name not in OWN}
    try:
        os.execvpe(line[0], line, variables)
    except OSError as error:
        print(f"cannot start {line[0]}: {error.strerror}", file=sys.stderr)
        return 69


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
