"""A write that the SDK sends twice, because its first answer was lost, is won once and changes nothing more."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from shared.call import Call, Outcome
from shared.call_store import CallStore, Write
from shared.dynamo import to_wire
from shared.errors import StoreError
from tests.calls import NOW, call_record, fence
from tests.stored_call import CALL, SID, StoredCall

Writing = Callable[[CallStore, Call], Write]
UNTIL, WAIT, CHECK = NOW + 600_000, NOW + 5_000, NOW + 70_000
LEFT = {"reason": "USER_REJECTED", "callStatus": "ringing", "at": NOW}


LINE, TURN = "demo#single", "1#1#a"


def take(lease: str) -> Writing:
    return lambda calls, call: calls.take_lease(CALL, lease, UNTIL, NOW, 2)


def enter(turn: str = TURN, **options: Any) -> Writing:
    return lambda calls, call: calls.enter_line(CALL, LINE, turn, "slot", CHECK, NOW, **options)


def admit(turn: str = TURN, now_ms: int = NOW) -> Writing:
    return lambda calls, call: calls.admit(CALL, LINE, turn, f"{LINE}#admitted", CHECK, now_ms)


def hold(lease: str) -> Writing:
    return lambda calls, call: calls.hold(call, lease, UNTIL, NOW)


# Of each write: the state it is made in, the write, and writes of other processes that are made too late then.
WRITES: dict[str, tuple[str, Writing, list[Writing]]] = {
    "take_lease": (
        "queued",
        take("mine"),
        [take("other"), enter(), lambda calls, call: calls.wait(CALL, "trunk", WAIT, CHECK, NOW)],
    ),
    "wait": (
        "queued",
        lambda calls, call: calls.wait(CALL, "trunk", WAIT, CHECK, NOW),
        [lambda calls, call: calls.wait(CALL, "trunk", WAIT + 1, CHECK, NOW), take("other")],
    ),
    "note_slots_item": (
        "leased",
        lambda calls, call: calls.note_slots_item(CALL, "mine", 3),
        [lambda calls, call: calls.note_slots_item(CALL, "other", 4)],
    ),
    "enter_line": (
        "queued",
        enter(),
        [enter(turn="2#2#b"), take("other"), lambda calls, call: calls.wait(CALL, "trunk", WAIT, CHECK, NOW)],
    ),
    "enter_line, leased": ("leased", enter(lease="mine", uncount=True), [enter(turn="2#2#b", lease="mine")]),
    "admit": ("in line", admit(), [admit(), admit(now_ms=NOW + 1), admit(turn="2#2#b"), hold("other")]),
    "leave_line": ("ended in line", lambda calls, call: calls.leave_line(CALL, LINE), []),
    "hold": ("in line", hold("mine"), [hold("other"), admit(), take("other")]),
    "unfence": (
        "dialing",
        lambda calls, call: calls.unfence(CALL, "lease", "retry", WAIT, CHECK, NOW),
        [lambda calls, call: calls.unfence(CALL, "lease", "retry", WAIT + 1, CHECK, NOW)],
    ),
    "answered": (
        "dialing",
        lambda calls, call: calls.answered(CALL, "lease", CHECK, NOW),
        [lambda calls, call: calls.answered(CALL, "lease", CHECK, NOW + 1)],
    ),
    "note_joined": (
        "dialing",
        lambda calls, call: calls.note_joined(call, NOW),
        [lambda calls, call: calls.note_joined(call, NOW + 1)],
    ),
    "note_left": (
        "dialing",
        lambda calls, call: calls.note_left(call, LEFT),
        [lambda calls, call: calls.note_left(call, LEFT | {"at": NOW + 1})],
    ),
    "ask_to_hang_up": (
        "in_progress",
        lambda calls, call: calls.ask_to_hang_up(call, "canceled_by_api", NOW),
        [
            lambda calls, call: calls.ask_to_hang_up(call, "canceled_by_api", NOW + 1),
            lambda calls, call: calls.ask_to_hang_up(call, "max_duration", NOW),
        ],
    ),
    "end": (
        "in_progress",
        lambda calls, call: calls.end(call, Outcome("completed", "hangup"), CHECK, NOW),
        [
            lambda calls, call: calls.end(call, Outcome("completed", "hangup"), CHECK, NOW + 1),
            lambda calls, call: calls.end(call, Outcome("completed", "max_duration"), CHECK, NOW),
        ],
    ),
    "postpone": (
        "in_progress",
        lambda calls, call: calls.postpone(call, CHECK),
        [lambda calls, call: calls.postpone(call, CHECK + 1)],
    ),
}


class SentTwice:
    """A client whose first answers are lost: the SDK sends each write again."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def update_item(self, **request: Any) -> Any:
        with contextlib.suppress(ClientError):
            self._client.update_item(**request)
        return self._client.update_item(**request)


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_sent_twice_is_won_and_another_one_is_not(stored: StoredCall, name: str) -> None:
    status, write, others = WRITES[name]
    seen = stored.bring_to(status)
    sent_twice = write(CallStore(cast(Any, SentTwice(stored.client)), stored.table), seen)
    assert sent_twice.won
    written = stored.record
    assert written != seen
    assert sent_twice.call in (written, None)
    for other in others:
        assert not other(stored.calls, seen).won
        assert stored.record == written


def test_a_fence_that_is_sent_twice_is_won_and_that_of_another_lease_is_not(stored: StoredCall) -> None:
    stored.bring_to("queued")
    stored.calls.take_lease(CALL, "mine", UNTIL, NOW)
    leased = stored.record
    for _ in range(2):
        fenced = fence(stored.calls, leased, SID)
        assert fenced.won
        assert fenced.call == stored.record
    assert [entry["type"] for entry in stored.record.events] == ["call.queued", "call.dialing"]
    assert not fence(stored.calls, leased, SID, lease="other").won


def test_a_call_that_is_created_twice_is_the_first_one(stored: StoredCall) -> None:
    call = stored.bring_to("queued")
    assert stored.calls.create(call).won
    other = stored.calls.create(dataclasses.replace(call, job_id="other"))
    assert (other.won, other.call) == (False, call)
    assert stored.record == call


def test_a_leased_call_that_enters_the_line_twice_uncounts_one_attempt(stored: StoredCall) -> None:
    stored.bring_to("leased")
    for _ in range(2):
        assert enter(lease="mine", uncount=True)(stored.calls, stored.record).won
    assert stored.record.attempts == 0


def test_a_call_goes_through_the_line(stored: StoredCall) -> None:
    """All of its writes after one another, with DynamoDB's own conditions."""
    calls = stored.calls
    seen = stored.bring_to("in line")
    assert (seen.in_line, seen.check_at_ms, seen.waiting_for) == (True, CHECK, "slot")
    assert not take("mine")(calls, seen).won, "it has not been admitted"
    assert admit()(calls, seen).won
    assert not stored.record.in_line
    assert take("mine")(calls, seen).won
    assert (stored.record.line_of, stored.record.waiting_for, stored.record.slots_item) == (None, None, 2)
    assert calls.note_slots_item(CALL, "mine", 3).won
    assert not enter()(calls, seen).won, "it has a lease"
    assert enter(lease="mine", uncount=True)(calls, seen).won
    back = stored.record
    assert back == seen
    assert hold("mine")(calls, back).won
    assert enter(lease="mine")(calls, back).won
    assert stored.record == back
    assert admit(now_ms=NOW + 5)(calls, back).won
    assert take("mine")(calls, back).won
    assert fence(calls, stored.record, SID, now_ms=NOW + 6).won
    assert stored.record.admitted_at_ms == NOW + 5
    assert calls.unfence(CALL, "mine", "retry", WAIT, CHECK, NOW + 7).won
    assert calls.end(stored.record, Outcome("expired", "expired"), CHECK, NOW + 8).won
    assert stored.record.ended


# ── many at a time ──────────────────────────────────────────────────────────────────────────────────


class Batches:
    """DynamoDB as BatchGetItem: reads so many keys of a request and leaves the rest. sizes: keys asked for."""

    def __init__(self, reads: int) -> None:
        self._reads = reads
        self.sizes: list[int] = []

    def batch_get_item(self, RequestItems: dict[str, Any]) -> dict[str, Any]:
        asked = RequestItems["calls"]
        assert asked["ConsistentRead"] is True
        keys = asked["Keys"]
        self.sizes.append(len(keys))
        assert len(self.sizes) < 10, "it is asked for ever"
        found, left = keys[: self._reads], keys[self._reads :]
        items = [to_wire(call_record(call_id=key["pk"]["S"].removeprefix("CALL#")).to_item()) for key in found]
        return {"Responses": {"calls": items}, "UnprocessedKeys": {"calls": {"Keys": left}} if left else {}}


def batches(reads: int) -> tuple[Batches, CallStore]:
    client = Batches(reads)
    return client, CallStore(cast(Any, client), "calls")


@pytest.mark.parametrize(
    ("number", "reads", "sizes"),
    [(0, 100, []), (100, 100, [100]), (101, 100, [100, 1]), (250, 100, [100, 100, 50]), (5, 2, [5, 3, 1])],
)
def test_what_a_batch_leaves_is_read_by_the_next(number: int, reads: int, sizes: list[int]) -> None:
    client, calls = batches(reads)
    call_ids = {f"{n:024x}" for n in range(number)}
    assert {call.call_id for call in calls.get_many(call_ids)} == call_ids
    assert client.sizes == sizes


def test_a_batch_that_reads_nothing_is_an_error_and_not_an_endless_loop() -> None:
    client, calls = batches(0)
    with pytest.raises(StoreError, match="read nothing"):
        calls.get_many(["a" * 24, "b" * 24])
    assert client.sizes == [2]
