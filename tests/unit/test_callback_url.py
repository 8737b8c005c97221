"""Callback URLs that are refused: URLs, addresses and names that an attacker would try."""

from __future__ import annotations

import itertools
import threading
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import callback_url
from shared.callback_url import (
    AddressRefusedError,
    Policy,
    callback_policy,
    check_addresses,
    check_name,
    check_url,
    is_public,
    resolve_within,
)

POLICY = Policy()
LOCAL = Policy(loopback=True)

HOSTILE_URLS = [
    # Not https.
    "http://hooks.example.com/",
    "HTTP://hooks.example.com/",
    "ftp://hooks.example.com/",
    "file:///etc/passwd",
    "gopher://hooks.example.com:443/_GET",
    "javascript:alert(1)",
    "data:text/plain,hello",
    # Not absolute.
    "//hooks.example.com/",
    "/hook",
    "hooks.example.com",
    "https:hooks.example.com",
    "https:/hooks.example.com",
    "https:///hook",
    "https://",
    "",
    # IPv4 addresses, in every way that a resolver takes.
    "https://127.0.0.1/",
    "https://127.1/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://0.0.0.0/",
    "https://0/",
    "https://8.8.8.8/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0x7f.1/",
    "https://0X7F.0X1/",
    "https://0177.0.0.1/",
    "https://0177.1/",
    "https://017700000001/",
    "https://127.0.0.1./",
    "https://2852039166/",
    "https://0xa9.0xfe.0xa9.0xfe/",
    "https://example.com.1/",
    # IPv6 addresses.
    "https://[::1]/",
    "https://[::]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:169.254.169.254]/",
    "https://[fe80::1%25eth0]/",
    "https://[fd00:ec2::254]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2606:4700:4700::1111]/",
    "https://[v1.fe80::a]/",
    "https://[::1/",
    # IDN tricks: digits and dots of other scripts, which normalise to an address or a host.
    "https://①②⑦.⓪.⓪.①/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://127。0。0。1/",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "https://hooks。example。com/",
    "https://\u0435xample.com/",
    "https://example.com℀@internal/",
    "https://ex\u200bample.com/",
    # User information, and hosts that hide behind it.
    "https://user@hooks.example.com/",
    "https://user:password@hooks.example.com/",
    "https://:@hooks.example.com/",
    "https://@hooks.example.com/",
    "https://hooks.example.com@127.0.0.1/",
    "https://hooks.example.com:443@127.0.0.1/",
    "https://hooks.example.com\\@127.0.0.1/",
    "https://127.0.0.1\\@hooks.example.com/",
    # Ports.
    "https://hooks.example.com:80/",
    "https://hooks.example.com:22/",
    "https://hooks.example.com:8443/",
    "https://hooks.example.com:0/",
    "https://hooks.example.com:65536/",
    "https://hooks.example.com:-443/",
    "https://hooks.example.com:443443/",
    "https://hooks.example.com:https/",
    "https://hooks.example.com:443:80/",
    # Dots, labels, names without a public owner.
    "https://hooks.example.com./",
    "https://.example.com/",
    "https://hooks..example.com/",
    "https://./",
    "https://localhost/",
    "https://localhost./",
    "https://LOCALHOST/",
    "https://hooks.localhost/",
    "https://intranet/",
    "https://metadata.google.internal/",
    "https://ip-10-0-0-1.ec2.internal/",
    "https://printer.local/",
    "https://1.0.0.127.in-addr.arpa/",
    "https://-hooks.example.com/",
    "https://hooks-.example.com/",
    f"https://{'a' * 64}.example.com/",
    f"https://{'a.' * 130}example.com/",
    "https://exa%6dple.com/",
    "https://%31%32%37.0.0.1/",
    "https://hooks.example.com%00.internal/",
    "https://hooks,example.com/",
    "https://*.example.com/",
    # White space and control characters, which parsers drop or split at.
    " https://hooks.example.com/",
    "https://hooks.example.com/ ",
    "https://hooks.example.com/\r\nHost: internal",
    "https://hooks.exam\tple.com/",
    "https://hooks.exam\nple.com/",
    "https://hooks.example.com\x00/",
    "https://hooks.example.com/\x7f",
    "https:\\\\hooks.example.com\\",
]

PRIVATE_ADDRESSES = [
    "0.0.0.0",
    "10.255.255.255",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]

PUBLIC_ADDRESSES = [
    "1.1.1.1",
    "8.8.8.8",
    "52.95.110.1",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:81b::200e",
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_a_hostile_url_is_refused(url: str) -> None:
    with pytest.raises(AddressRefusedError):
        check_url(url, POLICY)


def test_at_least_sixty_hostile_urls_are_tried() -> None:
    assert len(set(HOSTILE_URLS)) == len(HOSTILE_URLS) >= 60


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com/",
        "https://hooks.example.com:443/a/b?c=d&e=%20f",
        "HTTPS://Hooks.Example.COM/",
        "https://hooks_1.example.com/",
        "https://xn--bcher-kva.example/",
        "https://a.b.c.d.e.example/",
        "https://hooks.example.com/ünïcode",
        "https://hooks.example.com?next=https://127.0.0.1/",
        "https://hooks.example.com/@127.0.0.1",
        "https://127.0.0.1.example.com/",
    ],
)
def test_a_public_https_url_passes(url: str) -> None:
    check_url(url, POLICY)


def test_a_port_of_the_operators_list_passes_and_no_other() -> None:
    policy = Policy(ports=frozenset({8443}))
    check_url("https://hooks.example.com:8443/", policy)
    for url in ("https://hooks.example.com/", "https://hooks.example.com:444/"):
        with pytest.raises(AddressRefusedError, match="port 8443"):
            check_url(url, policy)


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_an_address_that_is_not_the_internets_is_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(AddressRefusedError):
        check_addresses([address], POLICY)


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_a_public_address_passes(address: str) -> None:
    assert check_addresses([address], POLICY) == [address]


@pytest.mark.parametrize("order", list(itertools.permutations(["8.8.8.8", "10.0.0.1", "1.1.1.1"])))
def test_one_private_address_among_public_ones_refuses_them_all(order: tuple[str, ...]) -> None:
    with pytest.raises(AddressRefusedError):
        check_addresses(order, POLICY)


def test_a_name_without_addresses_is_refused_at_send() -> None:
    with pytest.raises(AddressRefusedError):
        check_addresses([], POLICY)


@given(
    st.from_regex(
        r"https://[A-Za-z0-9_-]{1,9}[.:@%_/?#\\-]?[a-z0-9]{0,9}\.com(:443)?[/?#:@]?[ -~]{0,9}", fullmatch=True
    )
)
@settings(max_examples=400)
def test_the_client_connects_to_the_host_and_port_that_were_checked(url: str) -> None:
    """Such checks are bypassed with URLs that two parsers read differently."""
    try:
        check_url(url, POLICY)
    except AddressRefusedError:
        return
    parsed = httpx.URL(url)
    assert (parsed.scheme, parsed.host, parsed.port or 443) == ("https", urlsplit(url).hostname, 443)
    assert not parsed.userinfo


# ── when a call is accepted ─────────────────────────────────────────────────────────────────────────


def test_a_name_of_a_private_address_is_refused_when_the_call_is_accepted() -> None:
    asked: list[tuple[str, int]] = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["8.8.8.8", "10.0.0.1"]

    with pytest.raises(AddressRefusedError):
        check_name("https://hooks.example.com/x", POLICY, look_up)
    assert asked == [("hooks.example.com", 443)]


@pytest.mark.parametrize("outcome", [OSError("no such name"), TimeoutError(), ["8.8.8.8"], []])
def test_a_name_that_is_public_or_does_not_resolve_is_accepted(outcome: Exception | list[str]) -> None:
    asked = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append(host)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    check_name("https://hooks.example.com/", POLICY, look_up)
    assert asked == ["hooks.example.com"]


def test_a_slow_look_up_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        if host == "slow.example":
            hang.wait()
        return ["8.8.8.8"]

    monkeypatch.setattr(callback_url, "resolve", resolve)
    assert resolve_within(60)("quick.example", 443) == ["8.8.8.8"]
    look_up = resolve_within(0.05)
    try:
        # More of them than there are threads: none waits longer for it.
        for _ in range(8):
            with pytest.raises(TimeoutError):
                look_up("slow.example", 443)
    finally:
        hang.set()


# ── the local stack's own receiver ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/x", "http://localhost:9/", "https://[::1]:8443/"])
def test_loopback_is_for_the_local_stack_only(url: str) -> None:
    check_url(url, LOCAL)
    with pytest.raises(AddressRefusedError):
        check_url(url, POLICY)


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://hooks.example.com/", "ftp://127.0.0.1/"])
def test_the_local_stack_allows_nothing_but_loopback(url: str) -> None:
    with pytest.raises(AddressRefusedError):
        check_url(url, LOCAL)


def test_the_local_stack_never_looks_its_own_receiver_up() -> None:
    def look_up(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was looked up")

    check_name("http://127.0.0.1:8080/x", LOCAL, look_up)


EMULATED = {"AWS_ENDPOINT_URL": "http://127.0.0.1:4566", "ALLOW_LOOPBACK_CALLBACKS": "1"}


@pytest.mark.parametrize(
    ("environment", "loopback"),
    [
        (EMULATED, True),
        (EMULATED | {"AWS_ENDPOINT_URL": "http://localhost:4566"}, True),
        ({"ALLOW_LOOPBACK_CALLBACKS": "1"}, False),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}, False),
        (EMULATED | {"ALLOW_LOOPBACK_CALLBACKS": "true"}, False),
        (EMULATED | {"AWS_ENDPOINT_URL": "https://sqs.eu-central-1.amazonaws.com"}, False),
        (EMULATED | {"AWS_ENDPOINT_URL": "http://127.0.0.1.evil.example"}, False),
        (EMULATED | {"AWS_ENDPOINT_URL": "http://127.0.0.1@evil.example"}, False),
        ({}, False),
    ],
)
def test_loopback_counts_only_where_aws_itself_is_on_loopback(environment: dict[str, str], loopback: bool) -> None:
    assert callback_policy(environment).loopback is loopback


@pytest.mark.parametrize(
    ("text", "ports"), [(None, {443}), ("", {443}), ("8443", {8443}), ("443, 8443,", {443, 8443})]
)
def test_the_operators_ports_are_read(text: str | None, ports: set[int]) -> None:
    environment = {} if text is None else {"CALLBACK_PORTS": text}
    assert callback_policy(environment).ports == ports


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (f"{'a' * 63}.example", True),
        (f"{'a' * 64}.example", False),
        (".".join(["a" * 61] * 4) + ".aaaaa", True),
        (".".join(["a" * 61] * 4) + ".aaaaaa", False),
    ],
)
def test_a_host_is_as_long_as_dns_allows(host: str, allowed: bool) -> None:
    """A label has up to 63 characters, a name up to 253 (RFC 1035)."""
    assert (len(host) <= 253) or not allowed
    url = f"https://{host}/!"
    if allowed:
        callback_url.check_url(url, callback_url.Policy())
    else:
        with pytest.raises(callback_url.AddressRefusedError, match="public host"):
            callback_url.check_url(url, callback_url.Policy())
