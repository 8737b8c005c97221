"""Canceling a call in each of its states, whatever comes in between."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from shared.call import Call, Outcome
from shared.call_store import CallStore, Write
from shared.canceling import Canceler
from shared.durations import Durations
from shared.errors import LiveKitUnclearError, RequestRefusedError, StoreError
from shared.livekit.secret import LiveKitSecretCache
from tests.calls import ANSWERED, DIALING, NOW, QUEUED, asked_to_hang_up, ended
from tests.clock import Clock

NEVER_TRIED = dataclasses.replace(QUEUED, attempts=0, lease_id=None, lease_until_ms=0)


def completed(call: Call, reason: str) -> Call:
    return ended(call, "completed", reason)


class Services:
    """The table and LiveKit: what they are asked, in order, and what they answer, one after the other."""

    def __init__(self, *, writes: list[Write] | None = None, found: list[Call | None] | None = None) -> None:
        self.writes = writes or []
        self.found = found or []
        self.asked: list[Any] = []
        self.clock = Clock(NOW)
        self.patience_ms = int(Durations().hang_up_patience * 1000)
        # Of each request to take the phone out of its room: whether it was there, or what it raises.
        self.phone: list[bool | Exception] = []

    def canceler(self) -> Canceler:
        return Canceler(
            calls=cast(CallStore, self),
            livekit_secret=cast(LiveKitSecretCache, self),
            durations=Durations(agent_step=0),
            clock=self.clock,
        )

    def end(self, seen: Call, outcome: Outcome, check_at: int, now: int) -> Write:
        self.asked.append(("end", outcome.status, outcome.reason))
        return self.writes.pop(0)

    def ask_to_hang_up(self, seen: Call, reason: str, now: int) -> Write:
        self.asked.append(("ask", reason, now))
        return self.writes.pop(0)

    def get(self, call_id: str) -> Call | None:
        self.asked.append("read")
        return self.found.pop(0)

    def leave_due(self, call_id: str) -> None:
        self.asked.append("leave")

    async def remove_participant(self, room: str, identity: str) -> bool:
        self.asked.append("take out")
        answer = self.phone.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def delete_room(self, name: str) -> None:
        self.asked.append("delete")


END, ASK = ("end", "canceled", "canceled_by_api"), ("ask", "canceled_by_api", NOW)


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that `cancel` hangs up."""
    calls: list[Call] = []
    monkeypatch.setattr(Canceler, "hang_up_now", lambda canceler, call: calls.append(call))
    return calls


@pytest.mark.parametrize(("call", "cleared"), [(NEVER_TRIED, ["leave"]), (QUEUED, [])])
def test_a_queued_call_ends_and_leaves_at_once_when_no_process_had_it(
    call: Call, cleared: list[str], hung_up: list[Call]
) -> None:
    """Else it stays due: a process may have made its room."""
    services = Services(writes=[Write(True, completed(call, "canceled_by_api"))])
    services.canceler().cancel(call)
    assert (services.asked, hung_up) == ([END, *cleared], [])


@pytest.mark.parametrize("call", [DIALING, ANSWERED])
def test_a_call_under_way_is_asked_to_hang_up_and_hung_up(call: Call, hung_up: list[Call]) -> None:
    services = Services(writes=[Write(True, asked_to_hang_up(call))])
    services.canceler().cancel(call)
    assert (services.asked, hung_up) == ([ASK], [call])


def test_a_repeat_hangs_up_again_and_asks_no_more(hung_up: list[Call]) -> None:
    services = Services()
    services.canceler().cancel(asked_to_hang_up(DIALING))
    assert (services.asked, hung_up) == ([], [asked_to_hang_up(DIALING)])


@pytest.mark.parametrize(
    "call",
    [completed(DIALING, "canceled_by_api"), asked_to_hang_up(completed(DIALING, "hangup"))],
    ids=["its end", "its request"],
)
def test_a_call_that_was_canceled_may_be_canceled_again(call: Call, hung_up: list[Call]) -> None:
    services = Services()
    services.canceler().cancel(call)
    assert (services.asked, hung_up) == ([], [])


@pytest.mark.parametrize(
    "call",
    [
        completed(DIALING, "hangup"),
        dataclasses.replace(completed(DIALING, "max_duration"), hangup={"reason": "max_duration", "at": NOW}),
    ],
)
def test_a_call_that_ended_otherwise_cannot_be_canceled(call: Call, hung_up: list[Call]) -> None:
    services = Services()
    with pytest.raises(RequestRefusedError) as refused:
        services.canceler().cancel(call)
    assert (refused.value.status, refused.value.code, services.asked, hung_up) == (409, "call_ended", [], [])


def test_a_call_that_moves_on_meanwhile_is_canceled_where_it_is(hung_up: list[Call]) -> None:
    writes = [Write(False, DIALING), Write(False, ANSWERED), Write(True, asked_to_hang_up(ANSWERED))]
    services = Services(writes=writes, found=[DIALING, ANSWERED])
    services.canceler().cancel(NEVER_TRIED)
    assert (services.asked, hung_up) == ([END, "read", ASK, "read", ASK], [ANSWERED])


def test_a_call_that_is_gone_or_never_rests_is_an_error_of_the_store(hung_up: list[Call]) -> None:
    with pytest.raises(StoreError, match="gone"):
        Services(writes=[Write(False, None)], found=[None]).canceler().cancel(DIALING)
    services = Services(writes=[Write(False, DIALING)] * 10, found=[DIALING] * 10)
    with pytest.raises(StoreError, match="every attempt"):
        services.canceler().cancel(DIALING)
    assert (services.asked.count(ASK), hung_up) == (10, [])


# ── hanging up ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def livekit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Services], None]:
    def connected(services: Services) -> None:
        @asynccontextmanager
        async def connect(read_secret: Any, request_timeout: float) -> AsyncIterator[Services]:
            assert (read_secret, request_timeout) == (services.get, Durations().livekit_request)
            yield services

        monkeypatch.setattr("shared.livekit.client.connect", connect)

    return connected


def test_a_phone_that_rings_is_taken_out_of_its_room(livekit: Callable[[Services], None]) -> None:
    services = Services()
    services.phone = [True]
    livekit(services)
    services.canceler().hang_up_now(DIALING)
    assert services.asked == ["take out"]


def test_an_answered_call_loses_its_room(livekit: Callable[[Services], None]) -> None:
    services = Services()
    livekit(services)
    services.canceler().hang_up_now(ANSWERED)
    assert services.asked == ["delete"]


@pytest.mark.parametrize(
    ("found", "last"),
    [([DIALING, ANSWERED], ["delete"]), ([DIALING, completed(DIALING, "x")], []), ([DIALING, None], [])],
)
def test_a_phone_that_is_not_in_the_room_yet_is_waited_for(
    found: list[Call | None], last: list[str], livekit: Callable[[Services], None]
) -> None:
    services = Services(found=found)
    services.phone = [False, False]
    livekit(services)
    services.canceler().hang_up_now(DIALING)
    assert services.asked == ["take out", "read", "take out", "read", *last]


def test_who_waits_for_the_phone_gives_up_in_time(
    livekit: Callable[[Services], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = Services()
    services.phone = [False] * 3
    livekit(services)

    def get(call_id: str) -> Call:
        services.clock.now += services.patience_ms // 2
        return DIALING

    monkeypatch.setattr(services, "get", get)
    dataclasses.replace(services.canceler(), livekit_secret=cast(LiveKitSecretCache, services)).hang_up_now(
        DIALING
    )
    assert services.asked == ["take out"] * 3


def test_what_livekit_or_the_table_does_not_do_now_is_the_reconcilers(
    livekit: Callable[[Services], None],
) -> None:
    services = Services()
    services.phone = [LiveKitUnclearError()]
    livekit(services)
    services.canceler().hang_up_now(DIALING)
    services.phone = [StoreError("x")]
    services.canceler().hang_up_now(DIALING)
    assert services.asked == ["take out", "take out"]
