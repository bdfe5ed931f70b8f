#!/usr/bin/env python3
"""Start the relay in a container, from flags and from the variables that derper's images share.

`fastderp-entrypoint [FLAGS]` becomes `fastderp-relay` with the key and the certificates in
/var/lib/fastderp; flags win over variables. `fastderp-entrypoint health` asks the relay of the same
variables for /derp/probe and exits with 0 when it answers 200; FASTDERP_HEALTH_URL names another
address. Needs nothing but Python.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

STATE = "/var/lib/fastderp"
RELAY = "fastderp-relay"
HEALTH_TIMEOUT_S = 4.0

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
    told = [f"-{flag}={variables[name]}" for name, flag in FLAGS.items() if variables.get(name)]
    return [RELAY, *kept, *told, *flags]


def health_url(variables: Mapping[str, str]) -> str:
    """Return where the relay of these variables answers probes."""
    if url := variables.get("FASTDERP_HEALTH_URL"):
        return url
    address = variables.get("DERP_ADDR") or ":443"
    host, _, port = address.rpartition(":")
    tls = port in ("443", "https") or variables.get("DERP_CERT_MODE") == "manual"
    if host in ("", "0.0.0.0", "[::]"):
        host = "127.0.0.1"
    return f"{'https' if tls else 'http'}://{host}:{port}/derp/probe"


def is_healthy(url: str, server_name: str) -> bool:
    """Return whether the relay answers 200. Its certificate is not judged: this is one machine."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=HEALTH_TIMEOUT_S, context=context
        )
        # The relay chooses its certificate by the name that is asked for.
        plain = http.client.HTTPConnection(host, port, timeout=HEALTH_TIMEOUT_S)
        plain.connect()
        connection.sock = context.wrap_socket(plain.sock, server_hostname=server_name or host)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/derp/probe")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def main(arguments: Sequence[str]) -> int:
    """Become the relay, or answer whether it is healthy."""
    if arguments == ["health"]:
        url = health_url(os.environ)
        try:
            healthy = is_healthy(url, os.environ.get("DERP_DOMAIN", ""))
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(f"{url}: {error}", file=sys.stderr)
            return 1
        return 0 if healthy else 1
    line = command(os.environ, arguments)
    try:
        os.execvp(line[0], line)
    except OSError as error:
        print(f"cannot start {line[0]}: {error.strerror}", file=sys.stderr)
        return 69


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
