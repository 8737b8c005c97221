"""A write that the SDK sends twice, because its first answer was lost, is won once and changes nothing more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from shared.call import Call, Outcome
from shared.call_store import CallStore, Write
from shared.errors import StoreError
from tests.unit.test_apply_event import CALL, NOW, SID, World, new_world
from tests.workspaces_table import OneAtATime, workspaces_table

Writing = Callable[[CallStore, Call], Write]
UNTIL, WAIT, CHECK = NOW + 600_000, NOW + 5_000, NOW + 70_000
LEFT = {"reason": "USER_REJECTED", "callStatus": "ringing", "at": NOW}


@pytest.fixture(scope="module", params=["moto", "memory"])
def client(request: pytest.FixtureRequest) -> Iterator[OneAtATime]:
    with workspaces_table(request.param) as client:
        yield client


@pytest.fixture
def world(client: OneAtATime) -> World:
    return new_world(client)


# Of each write: the state it is made in, the write, and writes of other processes that are made too late then.
WRITES: dict[str, tuple[str, Writing, list[Writing]]] = {
    "take_lease": (
        "queued",
        lambda calls, call: calls.take_lease(CALL, "mine", UNTIL, NOW),
        [lambda calls, call: calls.take_lease(CALL, "other", UNTIL, NOW)],
    ),
    "wait": (
        "queued",
        lambda calls, call: calls.wait(CALL, WAIT, CHECK, NOW),
        [lambda calls, call: calls.wait(CALL, WAIT + 1, CHECK, NOW)],
    ),
    "unfence": (
        "dialing",
        lambda calls, call: calls.unfence(CALL, "lease", WAIT, CHECK, NOW),
        [lambda calls, call: calls.unfence(CALL, "lease", WAIT + 1, CHECK, NOW)],
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


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_sent_twice_is_won_and_another_one_is_not(world: World, name: str) -> None:
    status, write, others = WRITES[name]
    seen = world.call(status)
    assert write(world.calls, seen).won
    written = world.now
    assert written != seen
    assert write(world.calls, seen).won
    assert world.now == written
    for other in others:
        assert not other(world.calls, seen).won
        assert world.now == written


def test_a_fence_that_is_sent_twice_is_won_and_that_of_another_lease_is_not(world: World) -> None:
    world.call("queued")
    world.calls.take_lease(CALL, "mine", UNTIL, NOW)
    for _ in range(2):
        fenced = world.calls.fence(CALL, "mine", SID, None, NOW)
        assert fenced.won
        assert fenced.call == world.now
    assert [entry["type"] for entry in world.now.events] == ["call.queued", "call.dialing"]
    assert not world.calls.fence(CALL, "other", SID, None, NOW).won


def test_a_call_that_is_created_twice_is_the_first_one(world: World) -> None:
    call = world.call("queued")
    assert world.calls.create(call).won
    other = world.calls.create(dataclasses.replace(call, job_id="other"))
    assert (other.won, other.call) == (False, call)
    assert world.now == call


def test_a_leased_wait_that_is_sent_twice_uncounts_one_attempt(world: World) -> None:
    world.call("queued")
    world.calls.take_lease(CALL, "mine", UNTIL, NOW)
    for _ in range(2):
        assert world.calls.wait(CALL, WAIT, CHECK, NOW, lease="mine", uncount=True, extend_ms=7).won
    assert (world.now.attempts, world.now.wait_until_ms, world.now.check_at_ms) == (0, WAIT, CHECK)
    assert (world.now.queue_deadline_ms, world.now.lease_id) == (NOW + 7, None)


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
        items = [
            {"callId": {"S": key["pk"]["S"].removeprefix("CALL#")}, "status": {"S": "queued"}} for key in found
        ]
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
    assert calls.not_ended(call_ids) == call_ids
    assert client.sizes == sizes


def test_a_batch_that_reads_nothing_is_an_error_and_not_an_endless_loop() -> None:
    client, calls = batches(0)
    with pytest.raises(StoreError, match="read nothing"):
        calls.not_ended(["a" * 24, "b" * 24])
    assert client.sizes == [2]
