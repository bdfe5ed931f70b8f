"""Who else is asked whether a key may use the relay: the local tailscaled and an admission URL. PROTOCOL §8.

Loop thread only. Whatever they answer, or do not, is one `Verdict`. Import this module only when somebody is to be asked, as `service`.
"""

from __future__ import annotations

import json

from yarl import URL

from fastderp.server.admission.verdict import ALLOWED, Verdict
from fastderp.server.net.http_query import NoAnswer, Service, folded, http_url, members
from fastderp.wire.keys import NodePublic

DEFAULT_SOCKET = "/var/run/tailscale/tailscaled.sock"

URL_ANSWER_LIMIT_BYTES = 4096
# tailscaled describes the whole node; one in a large tailnet has a few KiB.
TAILSCALED_ANSWER_LIMIT_BYTES = 256 * 1024

# The LocalAPI wants to know which version of it is spoken.
TAILSCALE_CAPABILITY = "145"


class Tailscaled:
    """Allows the keys that the tailscaled of this machine knows. Without an answer the answer is no. PROTOCOL §8."""

    name = "tailscaled"

    def __init__(self, socket_path: str = "") -> None:
        """Ask over the unix socket at `socket_path`, "" for tailscaled's usual one."""
        self.socket_path = socket_path or DEFAULT_SOCKET
        self._service = Service.at_socket(
            self.socket_path, TAILSCALED_ANSWER_LIMIT_BYTES, {"Tailscale-Cap": TAILSCALE_CAPABILITY}
        )

    def __str__(self) -> str:
        return f"tailscaled at {self.socket_path}"

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        """Ask, for at most 5 s, whether tailscaled knows the `key`; `ip` makes no difference. What goes wrong is in the verdict."""
        try:
            status, body = await self._get(f"whois?addr=nodekey%3A{key.hex}")
            if status == 404:
                return Verdict(False, "denied", "tailscaled does not know it")
            members(status, body)
        except NoAnswer as error:
            return Verdict(False, error.outcome, f"{self}: {error}")
        return ALLOWED

    async def own_key(self) -> NodePublic:
        """Return the key of this machine's own node. Raises NoAnswer."""
        try:
            node = members(*await self._get("status?peers=false")).get("self")
            if isinstance(node, dict):
                return NodePublic.from_text(folded(node)["publickey"])
        except NoAnswer as error:
            raise NoAnswer(error.outcome, f"{self}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        raise NoAnswer("malformed", f"{self} does not say who it is")

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()

    async def _get(self, question: str) -> tuple[int, bytes]:
        url = URL(f"http://local-tailscaled.sock/localapi/v0/{question}", encoded=True)
        status, body = await self._service.exchange("GET", url)
        if b"invalid 'addr' parameter" in body:
            raise NoAnswer("status", "too old to look keys up; update it")
        return status, body


class AdmissionUrl:
    """Asks a service of the operator's about every key and address. PROTOCOL §8.

    What it says counts. What happens when it cannot be reached, or takes longer than 4 s, is `fail_open`'s to say; any other answer than
    the wanted one, and more questions at once than can get through, are a no.
    """

    name = "url"

    def __init__(self, url: str, *, fail_open: bool = True) -> None:
        """Ask at an http or https `url`; let everybody in while it cannot be reached if `fail_open`, or else nobody.

        Raises ValueError for a URL of no use, never quoting it, for it may hold a password.
        """
        self._url = http_url(url, "https://admission.example.com/derp")
        self.fail_open = fail_open
        self.host = str(self._url.host)
        self._service = Service.at_url(self._url, URL_ANSWER_LIMIT_BYTES)

    def __str__(self) -> str:
        # The rest of the URL may hold a secret.
        return f"{self._url.scheme}://{self.host} ({'everybody' if self.fail_open else 'nobody'} gets in while it cannot be reached)"

    async def ask(self, key: NodePublic, ip: str) -> Verdict:
        """Ask, for at most 5 s, whether the `key` may come in from `ip`. What goes wrong is in the verdict."""
        question = json.dumps(
            {"NodePublic": key.text, "Source": ip}, separators=(",", ":")
        ).encode()
        try:
            status, body = await self._service.exchange("POST", self._url, question)
            if status == 403:
                return Verdict(False, "denied", f"{self.host} says no")
            allow = members(status, body).get("allow")
            if allow is not None and not isinstance(allow, bool):
                raise NoAnswer("malformed", '"Allow" is neither true nor false')
        except NoAnswer as error:
            detail = f"{self.host}: {error}"
            if self.fail_open and error.outcome in ("unreachable", "timeout"):
                return Verdict(True, "fail_open", detail)
            return Verdict(False, error.outcome, detail)
        return ALLOWED if allow else Verdict(False, "denied", f"{self.host} says no")

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()
