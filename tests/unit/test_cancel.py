"""Canceling a call in each of its states, whatever comes in between."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from shared.call import Call, Outcome, event
from shared.call_store import CallStore, Write
from shared.canceling import Canceler
from shared.durations import Durations
from shared.errors import LiveKitUnclearError, RequestRefusedError, StoreError
from shared.limits import LimitStore
from shared.livekit.secret import LiveKitSecretCache
from tests.unit.test_ending import ANSWERED, CALL, NOW, QUEUED, asked_to_hang_up

NEVER_TRIED = dataclasses.replace(QUEUED, attempts=0, lease_id=None, lease_until_ms=0)


def ended(call: Call, reason: str) -> Call:
    entry = event("call.ended", NOW, status="completed", reason=reason, retryable=False)
    return dataclasses.replace(call, status="completed", events=(*call.events, entry), ended_at_ms=NOW)


class World:
    """The table and LiveKit: what they are asked, in order, and what they answer, one after the other."""

    def __init__(self, *, writes: list[Write] | None = None, found: list[Call | None] | None = None) -> None:
        self.writes = writes or []
        self.found = found or []
        self.asked: list[Any] = []
        self.now = NOW
        self.patience_ms = int(Durations().hang_up_patience * 1000)
        # Of each request to take the phone out of its room: whether it was there, or what it raises.
        self.phone: list[bool | Exception] = []

    def canceler(self) -> Canceler:
        return Canceler(
            calls=cast(CallStore, self),
            limits=cast(LimitStore, self),
            livekit_secret=cast(LiveKitSecretCache, self),
            durations=Durations(agent_step=0),
            clock=lambda: self.now,
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

    def free_slot(self, workspace_id: str, call_id: str) -> None:
        self.asked.append("free")

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


@pytest.mark.parametrize(("call", "cleared"), [(NEVER_TRIED, ["free", "leave"]), (QUEUED, [])])
def test_a_queued_call_ends_and_leaves_at_once_when_no_process_had_it(
    call: Call, cleared: list[str], hung_up: list[Call]
) -> None:
    """Else it stays due: a process may have made its room."""
    world = World(writes=[Write(True, ended(call, "canceled_by_api"))])
    world.canceler().cancel(call)
    assert (world.asked, hung_up) == ([END, *cleared], [])


@pytest.mark.parametrize("call", [CALL, ANSWERED])
def test_a_call_under_way_is_asked_to_hang_up_and_hung_up(call: Call, hung_up: list[Call]) -> None:
    world = World(writes=[Write(True, asked_to_hang_up(call))])
    world.canceler().cancel(call)
    assert (world.asked, hung_up) == ([ASK], [call])


def test_a_repeat_hangs_up_again_and_asks_no_more(hung_up: list[Call]) -> None:
    world = World()
    world.canceler().cancel(asked_to_hang_up(CALL))
    assert (world.asked, hung_up) == ([], [asked_to_hang_up(CALL)])


@pytest.mark.parametrize(
    "call",
    [ended(CALL, "canceled_by_api"), asked_to_hang_up(ended(CALL, "hangup"))],
    ids=["its end", "its request"],
)
def test_a_call_that_was_canceled_may_be_canceled_again(call: Call, hung_up: list[Call]) -> None:
    world = World()
    world.canceler().cancel(call)
    assert (world.asked, hung_up) == ([], [])


@pytest.mark.parametrize(
    "call",
    [
        ended(CALL, "hangup"),
        dataclasses.replace(ended(CALL, "max_duration"), hangup={"reason": "max_duration", "at": NOW}),
    ],
)
def test_a_call_that_ended_otherwise_cannot_be_canceled(call: Call, hung_up: list[Call]) -> None:
    world = World()
    with pytest.raises(RequestRefusedError) as refused:
        world.canceler().cancel(call)
    assert (refused.value.status, refused.value.code, world.asked, hung_up) == (409, "call_ended", [], [])


def test_a_call_that_moves_on_meanwhile_is_canceled_where_it_is(hung_up: list[Call]) -> None:
    writes = [Write(False, CALL), Write(False, ANSWERED), Write(True, asked_to_hang_up(ANSWERED))]
    world = World(writes=writes, found=[CALL, ANSWERED])
    world.canceler().cancel(NEVER_TRIED)
    assert (world.asked, hung_up) == ([END, "read", ASK, "read", ASK], [ANSWERED])


def test_a_call_that_is_gone_or_never_rests_is_an_error_of_the_store(hung_up: list[Call]) -> None:
    with pytest.raises(StoreError, match="gone"):
        World(writes=[Write(False, None)], found=[None]).canceler().cancel(CALL)
    world = World(writes=[Write(False, CALL)] * 10, found=[CALL] * 10)
    with pytest.raises(StoreError, match="every attempt"):
        world.canceler().cancel(CALL)
    assert (world.asked.count(ASK), hung_up) == (10, [])


# ── hanging up ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def livekit(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], None]:
    def connected(world: World) -> None:
        @asynccontextmanager
        async def connect(read_secret: Any, request_timeout: float) -> AsyncIterator[World]:
            assert (read_secret, request_timeout) == (world.get, Durations().livekit_request)
            yield world

        monkeypatch.setattr("shared.livekit.client.connect", connect)

    return connected


def test_a_phone_that_rings_is_taken_out_of_its_room(livekit: Callable[[World], None]) -> None:
    world = World()
    world.phone = [True]
    livekit(world)
    world.canceler().hang_up_now(CALL)
    assert world.asked == ["take out"]


def test_an_answered_call_loses_its_room(livekit: Callable[[World], None]) -> None:
    world = World()
    livekit(world)
    world.canceler().hang_up_now(ANSWERED)
    assert world.asked == ["delete"]


@pytest.mark.parametrize(
    ("found", "last"), [([CALL, ANSWERED], ["delete"]), ([CALL, ended(CALL, "x")], []), ([CALL, None], [])]
)
def test_a_phone_that_is_not_in_the_room_yet_is_waited_for(
    found: list[Call | None], last: list[str], livekit: Callable[[World], None]
) -> None:
    world = World(found=found)
    world.phone = [False, False]
    livekit(world)
    world.canceler().hang_up_now(CALL)
    assert world.asked == ["take out", "read", "take out", "read", *last]


def test_who_waits_for_the_phone_gives_up_in_time(
    livekit: Callable[[World], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.phone = [False] * 3
    livekit(world)

    def get(call_id: str) -> Call:
        world.now += world.patience_ms // 2
        return CALL

    monkeypatch.setattr(world, "get", get)
    dataclasses.replace(world.canceler(), livekit_secret=cast(LiveKitSecretCache, world)).hang_up_now(CALL)
    assert world.asked == ["take out"] * 3


def test_what_livekit_or_the_table_does_not_do_now_is_the_reconcilers(livekit: Callable[[World], None]) -> None:
    world = World()
    world.phone = [LiveKitUnclearError()]
    livekit(world)
    world.canceler().hang_up_now(CALL)
    world.phone = [StoreError("x")]
    world.canceler().hang_up_now(CALL)
    assert world.asked == ["take out", "take out"]
