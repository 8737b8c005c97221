"""LiveKit's secret: re-read in time, and usable while it cannot be read."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from shared.errors import LiveKitSecretUnreadableError, LiveKitUnreachableError, StoreError
from shared.livekit.client import connect
from shared.livekit.secret import RETRY_SHARE, LiveKitSecret, LiveKitSecretCache

GOOD = {"url": "wss://you.livekit.cloud", "apiKey": "API1", "apiSecret": "s" * 32}
SECRET = LiveKitSecret("wss://you.livekit.cloud", "API1", "s" * 32)
DENIED = ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetSecretValue")
SLOW = ReadTimeoutError(endpoint_url="https://secretsmanager")
# Secrets that cannot be used.
BAD = [
    "",
    "{",
    "[]",
    "null",
    "7",
    '"x"',
    "{}",
    json.dumps(GOOD | {"url": ""}),
    json.dumps(GOOD | {"url": 7}),
    json.dumps(GOOD | {"url": "you.livekit.cloud"}),
    json.dumps(GOOD | {"url": "wss://"}),
    json.dumps(GOOD | {"url": "wss://[you"}),
    json.dumps(GOOD | {"apiKey": None}),
    json.dumps(GOOD | {"apiSecret": "caf\u00e9"}),
    json.dumps(GOOD | {"apiSecret": "s\n"}),
]


class Secrets:
    """Secrets Manager, which answers as `says`: a secret's text, or an error."""

    def __init__(self, says: str | Exception) -> None:
        self.says = says
        self.reads = 0

    def get_secret_value(self, **_: Any) -> dict[str, str]:
        self.reads += 1
        if isinstance(self.says, Exception):
            raise self.says
        return {"SecretString": self.says}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def secrets() -> Secrets:
    return Secrets(json.dumps(GOOD))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(secrets: Secrets, clock: Clock) -> LiveKitSecretCache:
    return LiveKitSecretCache(cast(Any, secrets), "ringonce/livekit", 60, clock)


def test_it_is_read_once_a_minute(cache: LiveKitSecretCache, secrets: Secrets, clock: Clock) -> None:
    assert cache.get() == SECRET
    clock.now += 59
    cache.get()
    assert secrets.reads == 1
    secrets.says = json.dumps(GOOD | {"apiKey": "API2"})
    clock.now += 1
    assert cache.get().api_key == "API2"


def test_its_text_does_not_show_the_key() -> None:
    assert GOOD["apiSecret"] not in repr(SECRET)


@pytest.mark.parametrize("trouble", [DENIED, SLOW, *BAD])
def test_while_it_cannot_be_read_the_last_one_goes_on_and_it_is_told(
    cache: LiveKitSecretCache, secrets: Secrets, clock: Clock, trouble: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.get()
    secrets.says = trouble
    for _ in range(10):
        clock.now += 60
        assert cache.get() == SECRET
    said = capsys.readouterr().out
    assert said.count('"LiveKitSecretUnreadable":') == 10
    assert GOOD["apiSecret"] not in said
    secrets.says = json.dumps(GOOD | {"apiKey": "API2"})
    clock.now += 60
    assert cache.get().api_key == "API2"


@pytest.mark.parametrize("trouble", [DENIED, SLOW, *BAD])
def test_without_any_it_is_an_error_of_the_store_and_is_asked_for_again_soon(
    cache: LiveKitSecretCache, secrets: Secrets, clock: Clock, trouble: Any
) -> None:
    secrets.says = trouble
    for _ in range(5):
        with pytest.raises(StoreError, match="ringonce/livekit"):
            cache.get()
    assert secrets.reads == 1, "it may take seconds to fail"
    secrets.says = json.dumps(GOOD)
    clock.now += 60 * RETRY_SHARE
    assert cache.get() == SECRET


def test_a_connection_reads_it_at_its_first_request_and_each_request_fails_by_itself() -> None:
    reads = 0

    def read() -> LiveKitSecret:
        nonlocal reads
        reads += 1
        raise StoreError("denied")

    async def unread() -> list[Any]:
        async with connect(read, 1) as livekit:
            assert reads == 0
            requests = [
                livekit.view_room("r", "i"),
                livekit.delete_room("r"),
                livekit.remove_participant("r", "i"),
                livekit.rooms_present(["r"]),
                livekit.create_room("r", "", "a", ""),
                livekit.dial(
                    room="r",
                    identity="i",
                    trunk_id="t",
                    to="+1",
                    from_number=None,
                    ring_seconds=1,
                    longest_seconds=1,
                    timeout=1,
                ),
            ]
            return list(await asyncio.gather(*requests, return_exceptions=True))

    errors = asyncio.run(unread())
    assert [type(error) for error in errors] == [LiveKitSecretUnreadableError] * 6
    assert isinstance(errors[0], LiveKitUnreachableError), "nothing was sent"
    assert reads == 1, "those that come together wait for one read"


def test_a_connection_that_is_not_used_reads_nothing() -> None:
    def read() -> LiveKitSecret:
        raise AssertionError

    async def unused() -> None:
        async with connect(read, 1):
            pass

    asyncio.run(unused())


def test_a_connection_reads_again_after_a_failure() -> None:
    answers: list[Exception] = [StoreError("denied"), ValueError("unforeseen"), StoreError("denied")]

    def read() -> LiveKitSecret:
        raise answers.pop(0)

    async def thrice() -> list[type[BaseException]]:
        async with connect(read, 1) as livekit:
            found: list[type[BaseException]] = []
            for _ in range(3):
                with pytest.raises((LiveKitSecretUnreadableError, ValueError)) as raised:
                    await livekit.delete_room("r")
                found.append(raised.type)
            return found

    assert asyncio.run(thrice()) == [LiveKitSecretUnreadableError, ValueError, LiveKitSecretUnreadableError]


def test_a_cancelled_task_closes_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancellation arrives at the next wait, which must not come before the closing."""
    closed = []

    class Client:
        def __init__(self, *given: Any, **named: Any) -> None:
            """Connects to nothing."""

        @property
        def room(self) -> Any:
            raise StoreError("no request is made")

        async def aclose(self) -> None:
            closed.append(True)

    monkeypatch.setattr("livekit.api.LiveKitAPI", Client)

    async def cancelled() -> None:
        async with connect(lambda: SECRET, 1) as livekit:
            with pytest.raises(StoreError):
                await livekit.delete_room("r")
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())
    assert closed == [True]
