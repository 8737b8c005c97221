"""One signed POST: its headers, how much of an answer is kept, and how long it is waited for."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from shared.callback_url import AddressRefusedError
from shared.durations import Durations
from tests.loop_time import time_passes
from tests.simulation import SECRET
from webhook_dispatch.attempt import METADATA_HEADER_BYTES, Attempted, SecretMissingError, post, signed_headers
from webhook_dispatch.transport import webhook_client

LIMIT_SECONDS = 15
AT = datetime.datetime(2026, 11, 24, 9, 30, 1, tzinfo=datetime.UTC)
OTHER = "whsec_" + "A" * 32


def headers(*secrets: str, metadata: str | None = None) -> dict[str, str]:
    return signed_headers(secrets, "evt_1", AT, '{"a":"ü"}', metadata)


def test_the_headers_of_an_attempt() -> None:
    given = headers(SECRET)
    assert given == {
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "Ringonce-Webhooks/1",
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(AT.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("evt_1", AT, '{"a":"ü"}'),
    }


def test_two_secrets_sign_twice_the_first_one_first() -> None:
    signatures = headers(SECRET, OTHER)["webhook-signature"].split(" ")
    assert signatures == [headers(secret)["webhook-signature"] for secret in (SECRET, OTHER)]


@pytest.mark.parametrize("secrets", [(), ("",), ("x",), (SECRET, "whsec_é")])
def test_without_a_valid_secret_nothing_is_signed(secrets: tuple[str, ...]) -> None:
    with pytest.raises(SecretMissingError, match="not valid" if secrets else "has no webhook secret"):
        headers(*secrets)


@pytest.mark.parametrize(("length", "there"), [(METADATA_HEADER_BYTES, True), (METADATA_HEADER_BYTES + 1, False)])
def test_metadata_of_four_kib_fits_into_a_header(length: int, there: bool) -> None:
    assert METADATA_HEADER_BYTES == 4096
    metadata = '{"a": "%s"}' % ("x" * (length - 8))
    assert headers(SECRET, metadata=metadata).get("metadata") == (metadata.replace(" ", "") if there else None)


# ── the answer ──────────────────────────────────────────────────────────────────────────────────────


class Parts(httpx.AsyncByteStream):
    """A body; each part may be awaited for ever. read: how many parts were."""

    def __init__(self, *parts: bytes, hangs: bool = False) -> None:
        self._parts = parts
        self._hangs = hangs
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            self.read += 1
            yield part
        if self._hangs:
            time_passes(LIMIT_SECONDS)
            await asyncio.Event().wait()


def posted(answer: Callable[[httpx.Request], Any]) -> Attempted:
    async def attempt() -> Attempted:
        async with webhook_client(httpx.MockTransport(answer), Durations()) as client:
            return await post(client, "https://x.example/in", "{}", {"webhook-id": "e"}, LIMIT_SECONDS, lambda: AT)

    return asyncio.run(attempt())


def answered(*parts: bytes, status: int = 200, hangs: bool = False, **more: Any) -> Attempted:
    body = Parts(*parts, hangs=hangs)
    return posted(lambda request: httpx.Response(status, stream=body, **more))


def test_the_status_and_the_answer_are_kept() -> None:
    assert answered(b"o", b"k", status=503, headers={"retry-after": "7"}) == Attempted(
        status=503, answer="ok", retry_after=7
    )


def test_the_body_is_posted_as_it_is() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(204, stream=Parts())

    assert posted(answer) == Attempted(204)
    [request] = asked
    assert (request.method, str(request.url), request.read()) == ("POST", "https://x.example/in", b"{}")
    assert request.headers["webhook-id"] == "e"


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ([b"x" * 499], "x" * 499),
        ([b"x" * 501], "x" * 500),
        (["ü".encode()[:1], "ü".encode()[1:]], "ü"),
        ([b"\xff"], "\ufffd"),
        (["ü".encode() * 300], "ü" * 300),
    ],
)
def test_the_first_500_characters_of_an_answer_are_kept(parts: list[bytes], answer: str) -> None:
    assert answered(*parts).answer == answer


@pytest.mark.parametrize(
    ("sizes", "read"), [([8191, 1, 1], 2), ([8190, 1, 1, 1], 3), ([8192, 1], 1), ([9000, 1], 1)]
)
def test_no_more_than_8_kib_of_an_answer_are_read(sizes: list[int], read: int) -> None:
    body = Parts(*(b"\x00" * size for size in sizes))
    assert posted(lambda request: httpx.Response(200, stream=body)).status == 200
    assert body.read == read


def test_an_answer_that_never_ends_has_its_status() -> None:
    assert answered(b"be", b"gun", hangs=True) == Attempted(200, answer="begun")


def test_an_endpoint_that_does_not_answer_in_time() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        time_passes(LIMIT_SECONDS)
        await asyncio.Event().wait()
        raise AssertionError

    assert posted(answer) == Attempted(error="no answer in time")


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (httpx.ConnectError("refused"), "ConnectError: refused"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
        (AddressRefusedError("names a host"), "callback_url names a host"),
        (OSError("x" * 600), "OSError: " + "x" * 491),
        (httpx.ReadError("\ud800"), "ReadError: ?"),
        (RuntimeError("of a library"), "RuntimeError: of a library"),
    ],
)
def test_a_post_that_fails_says_why(failure: Exception, error: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise failure

    assert posted(answer) == Attempted(error=error)


@pytest.mark.parametrize(
    ("status", "location", "kept"),
    [
        (300, b"/a", "/a"),
        (399, b"/a", "/a"),
        (299, b"/a", None),
        (400, b"/a", None),
        (301, b"\x20\x21\x7e\x7f\x1f", "%20!~%7F%1F"),
        (301, b"/" * 501, "/" * 500),
        (301, b"", None),
    ],
)
def test_where_a_redirect_points_to(status: int, location: bytes, kept: str | None) -> None:
    assert answered(status=status, headers=[(b"location", location)]).location == kept
