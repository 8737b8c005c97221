"""The reconciler with many calls at once: few requests to LiveKit, bounded time, nobody starves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import pytest

from dial_worker.livekit_sip import Presence, RoomView
from reconcile_calls.reconcile import LIVEKIT_REQUESTS
from shared.call import Call
from shared.call_store import CallStore, Write
from shared.delivery_store import Delivery
from shared.dynamo import to_wire
from shared.table_keys import SHARDS, call_key, due_shard
from tests.clocked import DOWN, MINUTE, Clocked
from tests.system import System

LIVE, SOME = 10_000, 4000
# LiveKit Cloud's limit for everything this system asks it in a minute.
CLOUD_REQUESTS = 1000


class CallsInMemory(CallStore):
    """What the reconciler reads and writes of calls in progress; DynamoDB (moto) takes too long for so many."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.looked: dict[str, list[int]] = {}

    def create(self, call: Call) -> Write:
        self.calls[call.callId] = call
        return Write(True, call)

    def get(self, call_id: str) -> Call | None:
        return self.calls.get(call_id)

    def due(self, shard: int, now: int) -> Iterator[list[tuple[str, str]]]:
        found = sorted(
            (call.checkAt, call.callId)
            for call in self.calls.values()
            if call.checkAt is not None and call.checkAt <= now and due_shard(call.callId) == shard
        )
        for start in range(0, len(found), 100):
            yield [(call_id, "CALL") for _, call_id in found[start : start + 100]]

    def get_many(self, keys: list[tuple[str, str]]) -> tuple[list[Call], list[Delivery]]:
        return [self.calls[call_id] for call_id, _ in keys], []

    def note_missing(self, seen: Call, check_at: int, **since: int | None) -> Write:
        self.looked.setdefault(seen.callId, []).append(check_at)
        return self._put(dataclasses.replace(seen, checkAt=check_at, **cast(dict[str, Any], since)))

    def postpone(self, seen: Call, check_at: int) -> Write:
        return self._put(dataclasses.replace(seen, checkAt=check_at))

    def _put(self, call: Call) -> Write:
        self.calls[call.callId] = call
        return Write(True, call)


def crowd(system: System, size: int) -> tuple[Clocked, CallsInMemory]:
    """So many calls that talk, to be looked at over the next five minutes."""
    world, calls = Clocked(system), CallsInMemory()
    world.calls = calls
    for n in range(size):
        call_id = world.place_answered()
        calls.postpone(calls.calls[call_id], world.now + n * 5 * MINUTE // size)
    return world, calls


def test_ten_thousand_live_calls_cost_a_tenth_of_what_livekit_allows(system: System) -> None:
    world, calls = crowd(system, LIVE)
    each: list[int] = []
    for _ in range(7):
        world.now += MINUTE
        before = sum(world.livekit.requests.values())
        world.reconcile()
        each.append(sum(world.livekit.requests.values()) - before)
    assert max(each) <= CLOUD_REQUESTS / 10, each
    assert set(world.livekit.requests) == {"ListRooms"}
    assert all(calls.looked.get(call_id) for call_id in calls.calls), "each was looked at in these minutes"
    assert all(call.checkAt and call.checkAt <= world.now + 5 * MINUTE for call in calls.calls.values())


def test_ten_thousand_calls_due_at_once_are_looked_at_in_one_run(system: System) -> None:
    """After a long standstill."""
    world, _ = crowd(system, LIVE)
    world.now += 6 * MINUTE
    assert world.reconcile() == {"alive": LIVE}
    assert world.livekit.requests == {"ListRooms": -(-LIVE // 50)}


def test_a_livekit_that_fails_is_not_asked_more_often(system: System) -> None:
    world, _ = crowd(system, SOME)
    world.livekit.down = DOWN
    world.now += 6 * MINUTE
    assert world.reconcile() == {"postponed": SOME}
    assert sum(world.livekit.requests.values()) <= LIVEKIT_REQUESTS < CLOUD_REQUESTS


def test_a_run_ends_when_its_time_is_over_and_the_next_goes_on(system: System) -> None:
    world, _ = crowd(system, SOME)
    world.now += 6 * MINUTE
    rounds = iter([True, True, False])
    done = world.reconcile(time_left=lambda: next(rounds))
    assert done == {"alive": 2 * 100 * SHARDS}
    assert world.reconcile() == {"alive": SOME - 2 * 100 * SHARDS}


def test_calls_that_livekit_cannot_tell_about_do_not_hold_up_the_others(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Clocked(system)
    bad = [world.place_answered(checkAt=world.now) for _ in range(52)]
    names = {world.call(call_id).roomName for call_id in bad[:1]}
    rooms_present = type(world.livekit).rooms_present

    async def refuses_one(livekit: object, asked: list[str]) -> dict[str, Presence]:
        if names & set(asked):
            raise DOWN
        return await rooms_present(world.livekit, asked)

    monkeypatch.setattr(type(world.livekit), "rooms_present", refuses_one)
    queued = world.place(checkAt=world.now)
    expired = world.place(queueDeadline=world.now, checkAt=world.now)
    world.dial_queue.sent.clear()
    done = world.reconcile()
    assert (done["sent_again"], done["ended"]) == (1, 1)
    assert [body["callId"] for _, body in world.dial_queue.sent] == [queued]
    assert world.call(expired).status == "expired"
    assert done["alive"] == len(bad), "those that shared its request are asked about one by one"


def test_when_the_requests_are_spent_the_others_come_next(system: System) -> None:
    world = Clocked(system)
    for _ in range(12):
        world.place_dialing(leaseUntil=world.now - 1, checkAt=world.now)
    assert world.reconcile(requests_left=5) == {"noted": 5, "postponed": 7}
    assert world.livekit.requests == {"ListParticipants": 5}
    for _ in range(8):
        world.now += MINUTE
        world.reconcile(requests_left=20)
    assert world.livekit.requests["ListParticipants"] <= 5 + 8 * 20
    assert not next(world.calls.due(0, world.now))


def test_an_item_that_cannot_be_read_does_not_hold_up_the_others(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Clocked(system)
    broken, whole = world.place(checkAt=world.now), world.place(checkAt=world.now)
    world.dial_queue.sent.clear()
    system.dynamodb.update_item(
        TableName="CallsTable",
        Key=call_key(broken),
        UpdateExpression="SET createdAt = :odd REMOVE events",
        ExpressionAttributeValues=to_wire({":odd": "2026"}),
    )
    assert world.reconcile() == {"sent_again": 1}
    assert [body["callId"] for _, body in world.dial_queue.sent] == [whole]
    assert '"UnreadableItems":' in capsys.readouterr().out


def test_a_store_that_fails_for_one_call_does_not_hold_up_the_others(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Clocked(system)
    calls = [world.place(checkAt=world.now) for _ in range(3)]
    world.dial_queue.sent.clear()
    postpone = CallStore.postpone

    def fails(store: CallStore, seen: Call, check_at: int) -> Write:
        if seen.callId == calls[1]:
            raise ValueError("broken")
        return postpone(store, seen, check_at)

    monkeypatch.setattr(CallStore, "postpone", fails)
    assert world.reconcile() == {"sent_again": 2}
    assert {body["callId"] for _, body in world.dial_queue.sent} == {calls[0], calls[2]}


def test_what_is_alive_is_told_from_what_is_not_by_one_request(system: System) -> None:
    world = Clocked(system)
    together, alone, gone = (world.place_answered(checkAt=world.now) for _ in range(3))
    world.livekit.rooms[world.call(alone).roomName] = RoomView("active", False)
    del world.livekit.rooms[world.call(gone).roomName]
    world.reconcile()
    assert world.livekit.requests == {"ListRooms": 1, "ListParticipants": 1}
    assert world.call(together).checkAt == world.now + 5 * MINUTE
    assert world.call(alone).agentMissingSince == world.now
    assert world.call(gone).missingSince == world.now
