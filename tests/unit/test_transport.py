"""HTTP only to checked addresses, on a fake network that records the addresses called."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx
import pytest

from shared.callback_url import LookUp, Policy
from shared.durations import Durations
from tests.simulation import run
from tests.unit.test_callback_url import HOSTILE_URLS, PRIVATE_ADDRESSES
from webhook_dispatch.attempt import Attempted, post
from webhook_dispatch.transport import GuardedTransport, _is_readable, webhook_client

PUBLIC, OTHER_PUBLIC = "93.184.216.34", "1.1.1.1"
URL = "https://hooks.example.com/in"
ANSWER = (b"HTTP/1.1 200 OK\r\nSet-Cookie: tenant=one\r\nContent-Length: 2\r\n\r\n", b"ok")
D = Durations()


class Network(httpcore.AsyncMockBackend):
    """Every address there is answers 200. dead: those that refuse."""

    def __init__(self, *answer: bytes, dead: Iterable[str] = ()) -> None:
        super().__init__(list(answer or ANSWER))
        self.called: list[tuple[str, int]] = []
        self._dead = set(dead)

    async def connect_tcp(self, host: str, port: int, *given: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        self.called.append((host, port))
        if host in self._dead:
            raise httpcore.ConnectError("refused")
        return await super().connect_tcp(host, port, *given, **named)


class Resolver:
    """Answers, one after the other; the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked: list[tuple[str, int]] = []
        self._answers = list(answers)

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def client(network: Network, look_up: LookUp, policy: Policy | None = None) -> httpx.AsyncClient:
    transport = GuardedTransport(policy or Policy(), look_up=look_up)
    transport._backend._network = network  # type: ignore[assignment]
    return webhook_client(transport, D)


async def posted(by: httpx.AsyncClient, url: str = URL, seconds: float = 5) -> Attempted:
    return await post(by, url, "{}", {}, seconds, lambda: datetime.datetime.now(datetime.UTC))


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_a_hostile_url_is_not_called_at_send_whatever_it_resolves_to(url: str) -> None:
    """Those that httpx turns into a proper name (white space, IDN) are called by that name, so it is checked."""
    network, resolver = Network(), Resolver(["10.0.0.1"])
    attempted = run(posted(client(network, resolver), url))
    assert attempted.status is None
    assert attempted.error
    assert network.called == []
    assert all("." in host and host.isascii() and not host[-1].isdigit() for host, _ in resolver.asked)


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_a_name_with_a_private_address_among_public_ones_is_not_called(address: str) -> None:
    for found in ([address], [PUBLIC, address], [address, PUBLIC]):
        network = Network()
        attempted = run(posted(client(network, Resolver(found))))
        assert attempted.error == "callback_url names a host with an address that is not public"
        assert network.called == []


def test_the_connection_is_made_to_the_address_that_was_checked_and_the_name_is_asked_once() -> None:
    network, resolver = Network(), Resolver([PUBLIC], ["127.0.0.1"])
    assert run(posted(client(network, resolver))).status == 200
    assert (network.called, resolver.asked) == ([(PUBLIC, 443)], [("hooks.example.com", 443)])


def test_a_name_that_changes_its_answer_is_checked_again_at_every_connection() -> None:
    """DNS rebinding: public when the call was accepted, public at the first attempt, then private."""
    network, resolver = Network(), Resolver([PUBLIC], ["169.254.169.254"])
    for expected in (200, None):
        assert run(posted(client(network, resolver))).status == expected
    assert network.called == [(PUBLIC, 443)]


def test_no_address_resolves_to_nothing_that_is_called() -> None:
    def fails(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    for look_up in (Resolver([]), fails):
        network = Network()
        assert run(posted(client(network, look_up))).status is None
        assert network.called == []


def test_a_dead_address_leaves_its_turn_to_the_next() -> None:
    network = Network(dead=[PUBLIC])
    attempted = run(posted(client(network, Resolver([PUBLIC, OTHER_PUBLIC]))))
    assert (attempted.status, attempted.answer) == (200, "ok")
    assert [host for host, _ in network.called] == [PUBLIC, OTHER_PUBLIC]


def test_each_address_gets_its_share_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0

    class Clocked(Network):
        """No address answers; the second one takes so many seconds to refuse."""

        def __init__(self, seconds: float) -> None:
            super().__init__(dead=[PUBLIC, OTHER_PUBLIC, "8.8.8.8"])
            self.limits: list[float | None] = []
            self._seconds = seconds

        async def connect_tcp(
            self, host: str, port: int, timeout: float | None = None, *given: Any, **named: Any
        ) -> httpcore.AsyncNetworkStream:
            nonlocal now
            self.limits.append(timeout)
            now += self._seconds if host == OTHER_PUBLIC else 0
            return await super().connect_tcp(host, port, timeout, *given, **named)

    monkeypatch.setattr("webhook_dispatch.transport.time.monotonic", lambda: now)
    for seconds, limits in ((0, [5 / 3, 5 / 2, 5]), (4, [5 / 3, 5 / 2, 1]), (5, [5 / 3, 5 / 2])):
        network = Clocked(seconds)
        attempted = run(posted(client(network, Resolver([PUBLIC, OTHER_PUBLIC, "8.8.8.8"]))))
        assert (network.limits, attempted.status) == (limits, None)
    assert D.webhook_connect == 5


def test_a_connection_that_the_peer_has_closed_is_not_used_again() -> None:
    ours, peers = socket.socketpair()
    assert not _is_readable(ours)
    peers.send(b"x")
    assert _is_readable(ours)
    assert ours.recv(1) == b"x"
    peers.close()
    assert _is_readable(ours)
    ours.close()
    assert _is_readable(ours)


def test_a_look_up_that_hangs_ends_with_the_attempt() -> None:
    hang = threading.Event()

    def hangs(host: str, port: int) -> list[str]:
        hang.wait()
        return [PUBLIC]

    network = Network()
    try:
        attempted = run(posted(client(network, hangs), seconds=0.1))
        assert (attempted.error, network.called) == ("no answer in time", [])
    finally:
        hang.set()


@pytest.mark.parametrize("location", ["http://127.0.0.1/", "https://10.0.0.1/", "https://hooks.example.com/other"])
def test_a_redirect_is_an_answer_and_nothing_more(location: str) -> None:
    answer = f"HTTP/1.1 307 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    network, resolver = Network(answer), Resolver([PUBLIC])
    assert run(posted(client(network, resolver))).status == 307
    assert network.called == [(PUBLIC, 443)]


def test_one_tenants_cookies_never_reach_another() -> None:
    async def two() -> None:
        by = client(Network(), Resolver([PUBLIC]))
        assert (await posted(by)).status == 200
        assert not by.cookies

    run(two())


def test_a_port_that_is_not_allowed_is_not_called() -> None:
    network, resolver = Network(), Resolver([PUBLIC])
    assert run(posted(client(network, resolver), "https://hooks.example.com:8443/")).status is None
    assert run(
        posted(client(network, resolver, Policy(frozenset({8443}))), "https://hooks.example.com:8443/")
    ).status
    assert network.called == [(PUBLIC, 8443)]
