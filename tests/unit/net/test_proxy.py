"""The environment's proxy for a URL, and hosts without a proxy. PROTOCOL §13."""

from __future__ import annotations

import pytest

from fastderp.net.proxy import proxy_for

PROXY = {"HTTP_PROXY": "http://plain.example:3128", "HTTPS_PROXY": "https://tls.example:3129"}


def is_direct(host: str, no_proxy: str, port: int = 443) -> bool:
    return proxy_for("https", host, port, {**PROXY, "NO_PROXY": no_proxy}) is None


def test_each_scheme_has_its_own_variable() -> None:
    plain, tls = (proxy_for(scheme, "a.example", 80, PROXY) for scheme in ("http", "https"))
    assert plain is not None and plain.geturl() == "http://plain.example:3128"
    assert tls is not None and tls.geturl() == "https://tls.example:3129"
    assert proxy_for("https", "a.example", 443, {"HTTP_PROXY": "http://plain.example"}) is None
    assert proxy_for("http", "a.example", 80, {}) is None


def test_the_lower_case_variable_counts_without_the_upper_case_one() -> None:
    both = {"http_proxy": "http://lower.example", "HTTP_PROXY": "http://upper.example"}
    assert (found := proxy_for("http", "a.example", 80, both)) and found.hostname == "upper.example"
    both["HTTP_PROXY"] = ""
    assert (found := proxy_for("http", "a.example", 80, both)) and found.hostname == "lower.example"
    assert proxy_for("http", "a.example", 80, {**PROXY, "no_proxy": "a.example"}) is None


@pytest.mark.parametrize("text", ["proxy.example:3128", " proxy.example:3128 "])
def test_a_proxy_without_a_scheme_is_used_over_http(text: str) -> None:
    found = proxy_for("https", "a.example", 443, {"HTTPS_PROXY": text})
    assert found is not None and found.geturl() == "http://proxy.example:3128"


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost.", "127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_never_uses_a_proxy(host: str) -> None:
    assert is_direct(host, "")


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("*", "a.example", True),
        ("x, * ", "192.0.2.1", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("10.0.0.0/8", "ten.example", False),
        ("fd00::/8", "fd12::1", True),
        ("fd00::/8", "10.0.0.1", False),
        ("10.0.0.0/99", "10.0.0.1", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("fd12::1", "fd12:0::1", True),
        ("[fd12::1]:443", "fd12::1", True),
        ("[fd12::1]:80", "fd12::1", False),
        ("example.com", "example.com", True),
        ("example.com", "admit.EXAMPLE.com.", True),
        ("example.com", "badexample.com", False),
        (".example.com", "admit.example.com", True),
        (".example.com", "example.com", False),
        ("*.example.com", "admit.example.com", True),
        ("*.example.com", "example.com", False),
        ("admit.example.com:443", "admit.example.com", True),
        ("admit.example.com:8443", "admit.example.com", False),
        (":443", "admit.example.com", False),
        (".,,:", "admit.example.com", False),
        ("2", "192.0.2.2", False),
        ("other.example", "admit.example.com", False),
    ],
)
def test_hosts_in_no_proxy_are_dialled_directly(no_proxy: str, host: str, direct: bool) -> None:
    assert is_direct(host, no_proxy) is direct


def test_a_malformed_proxy_url_is_named_by_its_variable_and_not_quoted() -> None:
    with pytest.raises(ValueError, match="^HTTPS_PROXY is not a URL$"):
        proxy_for("https", "a.example", 443, {"HTTPS_PROXY": "http://me:s3cret@[::1"})
