"""Gets one certificate from a CA, from directory to chain (RFC 8555), by certbot's `acme` library.

Blocks for seconds: runs in a separate thread, and is imported there, because loading the library
takes 0.25 s.
"""

from __future__ import annotations

import base64
import datetime
import ssl
from dataclasses import dataclass
from typing import Any

import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from josepy import jwa, jwk

import fastderp
from fastderp.errors import IssuanceError
from fastderp.server.certificates.acme.challenges import TLS_ALPN_01, Challenges
from fastderp.server.certificates.acme.settings import AcmeSettings
from fastderp.server.certificates.acme.store import PrivateKey
from fastderp.util.net import parse_ip

# Seconds per request; the order has the caller's budget.
REQUEST_TIMEOUT_S = 20
DETAIL_LIMIT = 300

USER_AGENT = f"fastderp/{fastderp.__version__}"


@dataclass(frozen=True, slots=True)
class Order:
    """An order for one certificate.

    Args:
        settings: the CA and the account.
        account_key: ECDSA P-256; without an account for it at the CA, one is created.
        name: a DNS name or an IP address.
        key: the key of the certificate.
        methods: HTTP_01, TLS_ALPN_01 and DNS_01, the preferred one first. The next one is tried when the
            CA does not offer a method, or could not validate by it.
        profile: requested if the CA offers it; "" for none.
        budget_s: seconds to wait for the CA.
    """

    settings: AcmeSettings
    account_key: PrivateKey
    name: str
    key: PrivateKey
    methods: tuple[str, ...]
    profile: str
    budget_s: float


def obtain(order: Order, published: Challenges) -> bytes:
    """Return the chain in PEM, leaf first, as the CA gives it.

    Raises IssuanceError, in one line, for every failure.
    """
    try:
        return _Conversation(order, published).run()
    except IssuanceError:
        raise
    except messages.Error as error:
        raise IssuanceError(_words(error), rate_limited=error.code == "rateLimited") from None
    except errors.IssuanceError as error:
        raise IssuanceError(_words(error.error)) from None
    except errors.TimeoutError:
        raise IssuanceError(f"not done after {order.budget_s:.0f} s") from None
    except requests.exceptions.SSLError:
        raise IssuanceError(
            f"the certificate of {order.settings.directory_url} is not trusted; see -acme-ca-file"
        ) from None
    except requests.exceptions.Timeout:
        raise IssuanceError(f"no answer within {REQUEST_TIMEOUT_S} s") from None
    except requests.exceptions.ConnectionError as error:
        raise IssuanceError(
            f"cannot reach {order.settings.directory_url}: {_cause(error)}"
        ) from None
    except Exception as error:  # the library raises many types for an answer that is not ACME
        # A missing file of roots, such as one that $REQUESTS_CA_BUNDLE names, is a plain OSError.
        is_local = isinstance(error, OSError) and not isinstance(error, requests.RequestException)
        what = "" if is_local else f"the answer is not ACME: {type(error).__name__}: "
        raise IssuanceError(_one_line(f"{what}{error}")) from error


@challenges.ChallengeResponse.register
class _TlsAlpn01Response(challenges.KeyAuthorizationChallengeResponse):
    """The response of tls-alpn-01, which the library no longer has."""

    typ = TLS_ALPN_01


@challenges.Challenge.register
class _TlsAlpn01(challenges.KeyAuthorizationChallenge):
    """The challenge tls-alpn-01; its key authorization is that of http-01 (RFC 8737 §3)."""

    typ = TLS_ALPN_01
    response_cls = _TlsAlpn01Response

    def validation(self, account_key: jwk.JWK, **_: Any) -> str:
        return self.key_authorization(account_key)


class _NotOffered(IssuanceError):
    """The CA does not offer a method."""


class _Conversation:
    """One account's requests to the CA for one order."""

    def __init__(self, order: Order, published: Challenges) -> None:
        self._order = order
        self._published = published
        self._deadline = datetime.datetime.now() + datetime.timedelta(seconds=order.budget_s)
        self._account_key = jwk.JWKEC(key=order.account_key)
        trusted = order.settings.ca_file or _system_roots()
        network = client.ClientNetwork(
            self._account_key,
            alg=jwa.ES256,
            # requests also accepts a path.
            verify_ssl=str(trusted) if trusted else True,  # type: ignore[arg-type]
            user_agent=USER_AGENT,
            timeout=REQUEST_TIMEOUT_S,
        )
        directory = client.ClientV2.get_directory(order.settings.directory_url, network)
        self._client = client.ClientV2(directory, network)

    def run(self) -> bytes:
        self._log_in()
        reasons = []
        for method in self._order.methods:
            try:
                return self._order_validated_by(method)
            except errors.ValidationError as error:
                # The order is invalid now: the next method needs another.
                reasons.append(f"{method}: {_validation_words(error)}")
            except _NotOffered as error:
                reasons.append(str(error))
        raise IssuanceError("; ".join(reasons))

    def _log_in(self) -> None:
        """Find the account of our key, or create one."""
        settings, binding = self._order.settings, None
        if settings.external_account is not None:
            binding = messages.ExternalAccountBinding.from_data(
                self._account_key.public_key(),
                settings.external_account.kid,
                base64.urlsafe_b64encode(settings.external_account.key).decode(),
                self._client.directory,
            )
        elif self._client.external_account_required():
            raise IssuanceError(
                "the CA needs an external account: set -acme-eab-kid and -acme-eab-key"
            )
        registration = messages.NewRegistration.from_data(
            email=settings.email or None,
            terms_of_service_agreed=True,
            external_account_binding=binding,
        )
        try:
            self._client.new_account(registration)
        except errors.ConflictError as known:
            account = messages.RegistrationResource(
                uri=known.location, body=messages.Registration()
            )
            self._client.net.account = account

    def _order_validated_by(self, method: str) -> bytes:
        order = self._client.new_order(self._signing_request(), profile=self._profile())
        shown: list[str] = []
        try:
            for authorization in order.authorizations:
                if authorization.body.status != messages.STATUS_VALID:
                    self._answer(authorization, method, shown)
            order = self._client.poll_authorizations(order, self._deadline)
        finally:
            for key_authorization in shown:
                self._published.withdraw(self._order.name, key_authorization)
        return self._client.finalize_order(order, self._deadline).fullchain_pem.encode()

    def _answer(
        self, authorization: messages.AuthorizationResource, method: str, shown: list[str]
    ) -> None:
        """Show the proof, add the key authorization to `shown`, and notify the CA."""
        offered = [body for body in authorization.body.challenges if body.chall.typ == method]
        if not offered:
            raise _NotOffered(f"the CA does not offer {method}")
        response = offered[0].chall.response(self._account_key)
        key_authorization = str(response.key_authorization)
        self._published.publish(method, self._order.name, key_authorization)
        # Before the request, so that its failure also withdraws this one.
        shown.append(key_authorization)
        self._client.answer_challenge(offered[0], response)

    def _signing_request(self) -> bytes:
        key_pem = self._order.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        address = parse_ip(self._order.name)
        if address is not None:
            return crypto_util.make_csr(key_pem, ipaddrs=[address])
        return crypto_util.make_csr(key_pem, domains=[self._order.name])

    def _profile(self) -> str | None:
        """Return the order's profile where the CA lists it; None otherwise."""
        meta = getattr(self._client.directory, "meta", None)
        return (
            self._order.profile if meta and self._order.profile in (meta.profiles or {}) else None
        )


def _system_roots() -> str | None:
    """Return the path of the system's trusted roots; None selects those of `requests`."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath


def _validation_words(error: errors.ValidationError) -> str:
    problems = [
        body.error
        for failed in error.failed_authzrs
        for body in failed.body.challenges
        if body.error
    ]
    return _words(problems[0]) if problems else "the CA could not validate the name"


def _cause(error: BaseException) -> str:
    """Return the system's error text from the errors of the libraries."""
    text = "the connection was closed"
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            text = below.strerror
        below = below.__cause__ or below.__context__
    return text


def _words(problem: messages.Error) -> str:
    return _one_line(problem.detail or problem.title or str(problem))


def _one_line(text: str) -> str:
    """Escape and shorten the text of a CA for a log line."""
    escaped = " ".join(text.split()).encode("unicode_escape").decode()
    return escaped if len(escaped) <= DETAIL_LIMIT else escaped[:DETAIL_LIMIT] + "…"
