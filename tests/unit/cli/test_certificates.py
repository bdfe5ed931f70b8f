"""The flags of certificates from a CA, and their refusals before the start."""

from __future__ import annotations

import base64
import ssl
from ipaddress import ip_address
from pathlib import Path

import pytest

from fastderp.cli import config
from fastderp.cli.sources import read_settings
from fastderp.errors import EX_USAGE, ConfigError, UsageError
from fastderp.server.certificates.acme.requirements import check_ca_file
from fastderp.server.certificates.acme.settings import (
    GOOGLE,
    LETS_ENCRYPT,
    AcmeSettings,
    ExternalAccount,
)
from tests.kit.certificates import self_signed

KEY = bytes(range(64)) + b"\xfb\xff"
ACCOUNT = (
    "-acme-eab-kid",
    "kid",
    "-acme-eab-key",
    base64.b64encode(KEY).decode(),
    "-acme-email",
    "ops@example.com",
)


def acme(*arguments: str) -> AcmeSettings | None:
    read = read_settings(["-c", "k", "-certdir", "/certs", *arguments], {"HOME": "/home/ann"})
    return config.relay_settings(read.values, read.given, environment={}, is_root=False).acme


def refusal(*arguments: str) -> str:
    with pytest.raises(UsageError) as refused:
        acme(*arguments)
    assert refused.value.exit_code == EX_USAGE
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_lets_encrypt_is_the_default_as_derpers_is() -> None:
    assert acme() == AcmeSettings(LETS_ENCRYPT, Path("/certs"), "derp.tailscale.com")
    ours = acme(
        "-hostname", "Derp.Example.COM.", "-acme-email", "ops@example.com", "-http-port", "-1"
    )
    assert ours == AcmeSettings(
        LETS_ENCRYPT, Path("/certs"), "derp.example.com", http=False, email="ops@example.com"
    )


def test_a_name_in_another_script_is_ordered_as_the_ca_writes_it() -> None:
    settings = acme("-hostname", "Bücher.example")
    assert settings
    assert settings.hostname == "xn--bcher-kva.example"
    assert settings.allows("xn--bcher-kva.example")


def manual(hostname: str) -> str:
    read = read_settings(
        ["-c", "k", "-certdir", "/certs", "-certmode", "manual", "-hostname", hostname], {}
    )
    return config.relay_settings(
        read.values, read.given, environment={}, is_root=False
    ).pages.hostname


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("derp.test.", "derp.test"),
        ("Derp.Test", "Derp.Test"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("relay", "relay"),
        ("derp_1.test", "derp_1.test"),
        ("203.0.113.7", "203.0.113.7"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_a_hostname_is_served_in_the_form_of_server_names(given: str, served: str) -> None:
    assert manual(given) == served


@pytest.mark.parametrize(
    "hostname",
    ["", ".", "*.test", "*", "https://derp.test", "derp.test/derp", "derp.test:443", "derp test",
    "derp..test",
     "-derp.test", "256.0.0.1", "10.1", "user@derp.test", "fe80::1%eth0", "a" * 64 + ".test",
     "[derp.test]"],
)  # fmt: skip
def test_a_hostname_that_cannot_be_a_server_name_is_refused(hostname: str) -> None:
    with pytest.raises(UsageError, match="-hostname") as refused:
        manual(hostname)
    assert str(refused.value).isprintable()


def test_nothing_is_checked_where_no_certificate_is_served() -> None:
    for arguments in (("-a", ":80"), ("-dev",), ("-certmode", "manual")):
        assert acme(*arguments, "-hostname", "203.0.113.7", "-acme-eab-key", "!") is None
    assert acme("-dev", "-acme-directory", "https://ca.test/dir") is None


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(KEY).decode(),
        base64.b64encode(KEY).decode().rstrip("="),
        base64.urlsafe_b64encode(KEY).decode(),
        base64.urlsafe_b64encode(KEY).decode().rstrip("="),
        f" {base64.urlsafe_b64encode(KEY).decode()}\n",
    ],
)
def test_gcp_takes_its_key_in_either_base64(text: str) -> None:
    settings = acme(
        "-certmode", "gcp", "-hostname", "derp.example.com", *ACCOUNT, "-acme-eab-key", text
    )
    assert settings == AcmeSettings(
        GOOGLE,
        Path("/certs"),
        "derp.example.com",
        email="ops@example.com",
        external_account=ExternalAccount("kid", KEY),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*ACCOUNT, "-acme-eab-kid="),
            "-certmode gcp with an external account needs -acme-eab-kid",
        ),
        ((*ACCOUNT, "-acme-eab-key="), "needs -acme-eab-key"),
        ((*ACCOUNT, "-acme-email="), "needs -acme-email"),
        ((*ACCOUNT, "-acme-eab-key", "not*base64"), "-acme-eab-key: want base64"),
        ((*ACCOUNT, "-acme-eab-key", "abcde"), "-acme-eab-key: want base64"),
        ((*ACCOUNT, "-acme-eab-key", "ä"), "-acme-eab-key: want base64"),
        ((*ACCOUNT, "-hostname", "203.0.113.7"), "-certmode gcp has no certificates for addresses"),
        ((*ACCOUNT, "-acme-ip-certs"), "-acme-ip-certs needs -certmode letsencrypt, not gcp"),
        ((*ACCOUNT, "-certdir="), "missing required -certdir"),
    ],
)
def test_gcp_needs_its_account_and_a_name(arguments: tuple[str, ...], message: str) -> None:
    said = refusal("-certmode", "gcp", "-hostname", "derp.example.com", *arguments)
    assert message in said
    assert "not*base64" not in said, "a key is a secret"


def test_an_account_may_be_bound_with_any_ca() -> None:
    account = (
        "-hostname",
        "derp.example.com",
        "-acme-directory",
        "https://ca.test/dir",
        "-a",
        ":8443",
    )
    settings = acme(*account, *ACCOUNT)
    assert settings
    assert settings.directory_url == "https://ca.test/dir"
    assert settings.external_account == ExternalAccount("kid", KEY)
    assert "needs -acme-eab-key" in refusal(*account, "-acme-eab-kid", "kid")
    assert "needs -acme-eab-kid" in refusal(*account, "-acme-eab-key", "AAAA")


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::1"])
def test_an_address_needs_the_flag_for_addresses(address: str) -> None:
    assert "-acme-ip-certs orders certificates for it" in refusal("-hostname", address)
    settings = acme("-hostname", address, "-acme-ip-certs")
    assert settings
    assert (settings.hostname, settings.ip_certs) == ("", True)
    assert "leave -http-port -1 out" in refusal(
        "-hostname", address, "-acme-ip-certs", "-http-port", "-1"
    )


def test_addresses_may_be_served_beside_a_name() -> None:
    settings = acme("-hostname", "derp.example.com", "-acme-ip-certs")
    assert settings
    assert (settings.hostname, settings.ip_certs) == ("derp.example.com", True)


@pytest.mark.parametrize(
    "hostname",
    [
        "",
        "relay",
        "a..example",
        ".example",
        "a b.example",
        "a/b.example",
        "*.example.com",
        "x" * 64 + ".example",
    ],
)
def test_a_name_that_no_ca_signs_is_refused(hostname: str) -> None:
    assert "a CA issues certificates for names such as derp.example.com" in refusal(
        "-hostname", hostname
    )


@pytest.mark.parametrize(
    "url", ["http://ca.test/dir", "ca.test", "https://", "https://[::1/dir", "ftp://ca.test"]
)
def test_another_directory_is_an_https_url(url: str) -> None:
    assert "want an https URL" in refusal("-hostname", "derp.example.com", "-acme-directory", url)


@pytest.mark.parametrize("email", ["ann", "ann@", "@example.com", "ann smith@example.com", "a@b@c"])
def test_a_mail_address_has_a_name_and_a_host(email: str) -> None:
    assert f"-acme-email {email}: want an address such as" in refusal(
        "-hostname", "derp.example.com", "-acme-email", email
    )


@pytest.mark.parametrize(
    "hostname",
    ["", "https://relay.example", "relay.example:443", "relay.example/derp", "a b", "a@b"],
)
def test_a_url_is_refused_as_name_of_certificate_files(hostname: str) -> None:
    assert "want a host name or an address" in refusal("-certmode", "manual", "-hostname", hostname)


@pytest.mark.parametrize(
    "hostname", ["relay", "relay.example", "203.0.113.7", "2001:db8::1", "_a.example"]
)
def test_certificate_files_may_be_for_any_name_or_address(hostname: str) -> None:
    assert acme("-certmode", "manual", "-hostname", hostname) is None


@pytest.mark.parametrize(
    "content",
    [None, b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
def test_a_file_of_roots_without_roots_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^-acme-ca-file {path}: (No such file|no certificates)"):
        check_ca_file(path)
    path.write_text(ssl.DER_cert_to_PEM_cert(self_signed("ca.test").der))
    check_ca_file(path)


def test_public_addresses_are_one_of_each_family() -> None:
    settings = acme("-acme-ip-certs", "-public-ip", "203.0.113.7, 2001:db8::7")
    assert settings is not None
    assert settings.public_ips == (ip_address("203.0.113.7"), ip_address("2001:db8::7"))
    assert refusal("-public-ip", "203.0.113.7") == (
        "-public-ip needs -acme-ip-certs; for -certmode manual, -hostname is the address"
    )
    for text, reason in (
        ("203.0.113.7,203.0.113.8", "203.0.113.7,203.0.113.8: two addresses of one family"),
        ("derp.example.com", '"derp.example.com": want an address such as 203.0.113.7'),
        ("fe80::1%eth0", '"fe80::1%eth0": want an address such as 203.0.113.7'),
    ):
        assert refusal("-acme-ip-certs", "-public-ip", text) == f"-public-ip {reason}"


def test_a_hook_for_dns_is_a_command_with_arguments() -> None:
    settings = acme("-hostname", "derp.example.com", "-acme-dns-hook", "/bin/hook -zone 'a b'")
    assert settings is not None
    assert settings.dns_hook == ("/bin/hook", "-zone", "a b")
    assert refusal("-acme-dns-hook", "hook 'a") == (
        '-acme-dns-hook "hook \'a": no closing quotation; want a command'
    )
