"""The reconciler with many calls at once: few requests to LiveKit, bounded time, no call starves."""

from __future__ import annotations

import collections
import itertools
import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest

from reconcile_calls.reconcile import LIVEKIT_REQUESTS, PORTION, PORTIONS, Reconciler
from shared.call import Call, event
from shared.call_store import DUE_PAGE, CallStore, Due, Write
from shared.delivery_store import sort_key
from shared.dynamo import to_wire
from shared.errors import StoreError
from shared.livekit.client import Presence, RoomView
from shared.queues import Queue
from shared.switch import Switch
from shared.table_keys import call_key, due_shard
from tests.clock import MINUTE
from tests.in_memory import DOWN
from tests.simulation import Simulation
from tests.system import Context, System

LIVE, SOME = 10_000, 4000
# LiveKit Cloud's limit for everything this system asks it in a minute.
CLOUD_REQUESTS = 1000


def crowd(size: int) -> Simulation:
    """So many calls that talk, to be looked at over the next five minutes. moto takes too long for them."""
    simulation = Simulation()
    for n in range(size):
        check_at = simulation.clock.now + n * 5 * MINUTE // size
        simulation.place_answered(check_at_ms=check_at)
    return simulation


def looks(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each call was looked at from now on."""
    counted: collections.Counter[str] = collections.Counter()
    note_missing = simulation.calls.note_missing

    def note(seen: Call, check_at: int, **since: int | None) -> Write:
        counted[seen.call_id] += 1
        return note_missing(seen, check_at, **since)

    monkeypatch.setattr(simulation.calls, "note_missing", note)
    return counted


def test_ten_thousand_live_calls_cost_a_tenth_of_what_livekit_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulation = crowd(LIVE)
    looked = looks(simulation, monkeypatch)
    each: list[int] = []
    for _ in range(7):
        simulation.clock.now += MINUTE
        before = sum(simulation.livekit.requests.values())
        simulation.reconcile()
        each.append(sum(simulation.livekit.requests.values()) - before)
    assert max(each) <= CLOUD_REQUESTS / 10, each
    assert set(simulation.livekit.requests) == {"ListRooms"}
    assert looked.keys() == simulation.tables.calls.keys(), "each was looked at in these minutes"
    assert all(
        call.check_at_ms and call.check_at_ms <= simulation.clock.now + 5 * MINUTE
        for call in simulation.tables.calls.values()
    )


def test_ten_thousand_calls_due_at_once_are_looked_at_in_one_run() -> None:
    """After a long outage."""
    simulation = crowd(LIVE)
    simulation.clock.now += 6 * MINUTE
    assert simulation.reconcile() == {"alive": LIVE}
    assert simulation.livekit.requests == {"ListRooms": -(-LIVE // 50)}


def test_a_livekit_that_fails_is_not_asked_more_often() -> None:
    simulation = crowd(SOME)
    simulation.livekit.down = DOWN
    simulation.clock.now += 6 * MINUTE
    assert simulation.reconcile() == {"postponed": SOME}
    assert sum(simulation.livekit.requests.values()) <= LIVEKIT_REQUESTS < CLOUD_REQUESTS


def test_a_run_ends_when_its_time_is_over_and_the_next_goes_on() -> None:
    simulation = crowd(SOME)
    simulation.clock.now += 6 * MINUTE
    done = simulation.reconcile(time_left=partial(next, iter([True] * 6), False))
    assert done == {"alive": 6 * PORTION}
    assert simulation.reconcile() == {"alive": SOME - 6 * PORTION}


def test_a_run_has_few_items_in_hand_and_writes_the_first_before_it_reads_on() -> None:
    """However many are due: each may come with a record of hundreds of kilobytes when it is written."""
    simulation = crowd(1600)
    simulation.clock.now += 6 * MINUTE
    lock, in_hand, most, read_before_the_first_write = threading.Lock(), 0, 0, 0
    read_due, note_missing = simulation.calls.read_due, simulation.calls.note_missing

    def read(keys: list[tuple[str, str]]) -> Due:
        nonlocal in_hand, most
        with lock:
            in_hand += len(keys)
            most = max(most, in_hand)
        return read_due(keys)

    def write(seen: Call, check_at_ms: int, **since: int | None) -> Write:
        nonlocal in_hand, read_before_the_first_write
        with lock:
            read_before_the_first_write = read_before_the_first_write or in_hand
            in_hand -= 1
        return note_missing(seen, check_at_ms, **since)

    simulation.calls.read_due, simulation.calls.note_missing = read, write  # type: ignore[method-assign]
    assert simulation.reconcile() == {"alive": 1600}
    assert most <= PORTION * PORTIONS <= 200
    assert read_before_the_first_write <= PORTION * PORTIONS


def test_what_is_large_is_neither_read_nor_brought_back_by_a_write(system: System) -> None:
    """Context, metadata, events, attempts: they decide nothing here."""
    simulation = Simulation(dynamodb=system.dynamodb)
    text = json.dumps("x" * 30_000)
    large = {"dynamic_variables": text, "metadata": text}
    large["events"] = tuple(event("agent.note", simulation.clock.now, data=text) for _ in range(2))  # type: ignore[assignment]
    simulation.place_answered(check_at_ms=simulation.clock.now, **large)
    gone = simulation.place_answered(check_at_ms=simulation.clock.now, **large)
    del simulation.livekit.rooms[simulation.call(gone).room_name]
    simulation.place(check_at_ms=simulation.clock.now, **large)
    row = delivery_with_attempts(simulation, system, "7" * 24, 100)
    assert len(json.dumps(row)) > 100_000
    asked: list[str | None] = []
    read: list[dict[str, Any]] = []

    def note_write(params: dict[str, Any], **_: Any) -> None:
        asked.append(params.get("ReturnValues"))

    def note_read(parsed: dict[str, Any], **_: Any) -> None:
        read.extend(parsed["Responses"]["CallsTable"])

    events = system.dynamodb.meta.events
    hooks: list[tuple[str, Any]] = [
        ("before-parameter-build.dynamodb.UpdateItem", note_write),
        ("after-call.dynamodb.BatchGetItem", note_read),
    ]
    for name, hook in hooks:
        events.register(name, hook)
    try:
        done = simulation.reconcile()
    finally:
        for name, hook in hooks:
            events.unregister(name, hook)
    assert done == {"alive": 1, "noted": 1, "sent_again": 1, "deliveries_sent_again": 1}
    assert asked == ["NONE"] * 4
    assert len(read) == 4
    assert max(len(json.dumps(item)) for item in read) < 2000


def delivery_with_attempts(simulation: Simulation, system: System, call_id: str, number: int) -> dict[str, Any]:
    """A row as an older version left it."""
    simulation.deliveries.create(call_id, "demo", 1, simulation.clock.now, simulation.clock.now)
    attempts = [
        {"at": simulation.clock.now + n, "ms": 1, "status": 500, "answer": "\u00fc" * 500} for n in range(number)
    ]
    item: dict[str, Any] = system.dynamodb.update_item(
        TableName="CallsTable",
        Key=call_key(call_id, sort_key(1)),
        UpdateExpression="SET attempts = :attempts",
        ExpressionAttributeValues=to_wire({":attempts": attempts}),
        ReturnValues="ALL_NEW",
    )["Attributes"]
    return item


def test_calls_that_livekit_cannot_tell_about_do_not_hold_up_the_others(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    bad = [simulation.place_answered(check_at_ms=simulation.clock.now) for _ in range(52)]
    names = {simulation.call(call_id).room_name for call_id in bad[:1]}
    rooms_present = type(simulation.livekit).rooms_present

    async def refuses_one(livekit: object, asked: list[str]) -> dict[str, Presence]:
        if names & set(asked):
            raise DOWN
        return await rooms_present(simulation.livekit, asked)

    monkeypatch.setattr(type(simulation.livekit), "rooms_present", refuses_one)
    queued = simulation.place(check_at_ms=simulation.clock.now)
    expired = simulation.place(queue_deadline_ms=simulation.clock.now, check_at_ms=simulation.clock.now)
    simulation.dial_queue.messages.clear()
    done = simulation.reconcile()
    assert (done["sent_again"], done["ended"]) == (1, 1)
    assert [body["callId"] for body in simulation.dial_queue.bodies()] == [queued]
    assert simulation.call(expired).status == "expired"
    assert done["alive"] == len(bad), "those that shared its request are asked about one by one"


def test_a_run_has_the_shards_that_it_is_given_and_others_have_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = crowd(320)
    looked = looks(simulation, monkeypatch)
    simulation.clock.now += 6 * MINUTE
    assert simulation.reconcile(shards=[2, 3]) == {"alive": 40}
    assert {due_shard(call_id) for call_id in looked} == {2, 3}
    assert simulation.reconcile(shards=[0, 1]) == {"alive": 40}
    assert simulation.reconcile(shards=range(4, 16)) == {"alive": 240}
    assert len(looked) == 320


@pytest.mark.parametrize("event", [{}, {"shards": [0, 1]}, {"shards": list(range(16))}])
def test_the_function_looks_at_the_shards_of_its_event_with_their_share_of_the_requests(
    system: System, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any]
) -> None:
    seen: list[Reconciler] = []

    async def note(reconciler: Reconciler) -> dict[str, int]:
        seen.append(reconciler)
        return {}

    monkeypatch.setattr(Reconciler, "run", note)
    system.handlers["reconcile_calls"](event, Context(55))
    shards = event.get("shards", range(16))
    assert list(seen[0].shards) == list(shards)
    assert seen[0].requests_left == LIVEKIT_REQUESTS * len(shards) // 16


@pytest.mark.parametrize(
    ("seconds", "another", "requests"), [(55, True, 3), (16, True, 2), (14, False, 1), (9, False, 0)]
)
def test_what_no_time_is_left_for_does_not_begin(
    system: System, monkeypatch: pytest.MonkeyPatch, seconds: float, another: bool, requests: int
) -> None:
    """Of 55 s: a portion needs 15, a request to LiveKit the 5 that it may take, and 5 to write what it found."""
    seen: list[tuple[bool, list[bool]]] = []

    async def note(reconciler: Reconciler) -> dict[str, int]:
        seen.append((reconciler.time_left(), [reconciler.answers_in_time(number) for number in (1, 2, 3)]))
        return {}

    monkeypatch.setattr(Reconciler, "run", note)
    system.handlers["reconcile_calls"]({}, Context(seconds))
    assert seen == [(another, [number <= requests for number in (1, 2, 3)])]


def test_a_portion_whose_time_is_over_puts_off_what_needs_livekit_and_does_the_rest(system: System) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    dialing = simulation.place_dialing(lease_until_ms=simulation.clock.now - 1, check_at_ms=simulation.clock.now)
    too_long = simulation.place_answered(
        check_at_ms=simulation.clock.now, answered_at_ms=simulation.clock.now - 31 * MINUTE
    )
    alive = simulation.place_answered(check_at_ms=simulation.clock.now)
    queued = simulation.place(check_at_ms=simulation.clock.now)
    simulation.dial_queue.messages.clear()
    assert simulation.reconcile(answers_in_time=lambda requests: False) == {"postponed": 3, "sent_again": 1}
    assert simulation.livekit.requests == {}
    assert [body["callId"] for body in simulation.dial_queue.bodies()] == [queued]
    assert {check_at(system, call_id) for call_id in (dialing, too_long, alive)} == {simulation.clock.now + 30_000}
    # Time for two requests one after the other, where hanging up needs three.
    simulation.clock.now += MINUTE
    assert simulation.reconcile(answers_in_time=lambda requests: requests < 3) == {
        "noted": 1,
        "alive": 1,
        "postponed": 1,
        "sent_again": 1,
    }


def test_when_the_requests_are_spent_the_others_come_next(system: System) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    for _ in range(12):
        simulation.place_dialing(lease_until_ms=simulation.clock.now - 1, check_at_ms=simulation.clock.now)
    assert simulation.reconcile(requests_left=5) == {"noted": 5, "postponed": 7}
    assert simulation.livekit.requests == {"ListParticipants": 5}
    for _ in range(8):
        simulation.clock.now += MINUTE
        simulation.reconcile(requests_left=20)
    assert simulation.livekit.requests["ListParticipants"] <= 5 + 8 * 20
    assert not next(simulation.calls.due(0, simulation.clock.now))


# What no version of this code has written. `due` stays as it is: the index shows such an item like any other.
BROKEN = {
    "no status": "REMOVE #status",
    "no job": "REMOVE jobId",
    "a status of another version": "SET #status = :text",
    "a text for a number": "SET leaseUntil = :text, #status = :dialing",
    "another call's id": "SET callId = :text",
    "a fraction": "SET maxDurationSeconds = :fraction",
}
BROKEN_ROWS = {
    "no state": "REMOVE #state",
    "a state of another version": "SET #state = :text",
    "due though it is over": "SET #state = :delivered",
    "another event's number": "SET #sequence = :one_more",
    "a text for a number": "SET #sequence = :text",
}


def break_item(system: System, call_id: str, sort_key: str, update: str) -> None:
    values = {":text": {"S": "odd"}, ":dialing": {"S": "dialing"}, ":delivered": {"S": "delivered"}}
    values |= {":fraction": {"N": "1.5"}, ":one_more": {"N": "2"}}
    request: dict[str, Any] = {
        "ExpressionAttributeNames": {f"#{n}": n for n in ("status", "state", "sequence") if f"#{n}" in update},
        "ExpressionAttributeValues": {name: value for name, value in values.items() if name in update},
    }
    system.dynamodb.update_item(
        TableName="CallsTable",
        Key=call_key(call_id, sort_key),
        UpdateExpression=update,
        **{name: value for name, value in request.items() if value},
    )


def check_at(system: System, call_id: str, sort_key: str = "CALL") -> int:
    item = system.dynamodb.get_item(TableName="CallsTable", Key=call_key(call_id, sort_key))["Item"]
    return int(item["checkAt"]["N"])


@pytest.mark.parametrize("what", BROKEN)
def test_a_call_that_cannot_be_read_is_put_off_and_holds_up_no_other(
    system: System, what: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    broken, whole = (
        simulation.place(check_at_ms=simulation.clock.now),
        simulation.place(check_at_ms=simulation.clock.now),
    )
    simulation.dial_queue.messages.clear()
    break_item(system, broken, "CALL", BROKEN[what])
    assert simulation.reconcile() == {"sent_again": 1}
    assert [body["callId"] for body in simulation.dial_queue.bodies()] == [whole]
    assert simulation.livekit.requests == {}
    said = capsys.readouterr().out
    assert '"UnreadableItems":' in said or '"ReconcileErrors":' in said
    assert any(broken in str(vars(record)) for record in caplog.records), "its key is told"
    assert simulation.clock.now < check_at(system, broken) <= simulation.clock.now + 5 * MINUTE
    assert simulation.reconcile() == {}


@pytest.mark.parametrize("what", BROKEN_ROWS)
def test_a_delivery_that_cannot_be_read_is_put_off_and_holds_up_no_other(system: System, what: str) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    for call_id in ("0" * 24, "1" * 24):
        simulation.deliveries.create(call_id, "demo", 1, simulation.clock.now, simulation.clock.now)
    break_item(system, "0" * 24, sort_key(1), BROKEN_ROWS[what])
    assert simulation.reconcile() == {"deliveries_sent_again": 1}
    assert [body["callId"] for body in simulation.webhook_queue.bodies()] == ["1" * 24]
    assert check_at(system, "0" * 24, sort_key(1)) == simulation.clock.now + 5 * MINUTE


def test_deliveries_are_sent_again_ten_to_a_request_and_what_is_not_confirmed_comes_again(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    asked: list[list[str]] = []

    class Sqs:
        def send_message_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
            asked.append([json.loads(entry["MessageBody"])["callId"] for entry in Entries])
            return {"Failed": [{"Id": Entries[0]["Id"]}]} if len(asked) == 1 else {}

    call_ids = [f"{n % 16:x}{n:023x}" for n in range(25)]
    for call_id in call_ids:
        simulation.deliveries.create(call_id, "demo", 1, simulation.clock.now, simulation.clock.now)
    queue = Queue(cast(Any, Sqs()), "url")
    assert simulation.reconcile(webhook_queue=queue) == {"deliveries_sent_again": 24}
    assert [len(one) for one in asked] == [10, 10, 5]
    assert sorted(itertools.chain(*asked)) == sorted(call_ids)
    assert '"ReconcileErrors":' in capsys.readouterr().out
    simulation.clock.now += MINUTE
    assert simulation.reconcile(webhook_queue=queue) == {"deliveries_sent_again": 25}


def test_an_item_of_another_kind_is_put_off(system: System) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    item = {"dueShard": {"N": "3"}, "checkAt": {"N": str(simulation.clock.now)}}
    system.dynamodb.put_item(TableName="CallsTable", Item=call_key("3" * 24, "NOTE") | item)
    assert simulation.reconcile() == {}
    assert check_at(system, "3" * 24, "NOTE") == simulation.clock.now + 5 * MINUTE


def test_many_unreadable_items_at_the_head_of_a_shard_leave_the_rest_its_turn(system: System) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    for n in range(3 * DUE_PAGE):
        call_id = f"0{n:023x}"
        simulation.deliveries.create(call_id, "demo", 1, simulation.clock.now, simulation.clock.now - 1000)
        break_item(system, call_id, sort_key(1), BROKEN_ROWS["no state"])
    call_id = simulation.place(check_at_ms=simulation.clock.now)
    simulation.dial_queue.messages.clear()
    # A run that has time for few of them, again and again.
    for _ in range(3):
        simulation.reconcile(time_left=partial(next, iter([True]), False))
    assert [body["callId"] for body in simulation.dial_queue.bodies()] == [call_id]


def test_a_store_that_fails_for_one_call_does_not_hold_up_the_others(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    calls = [simulation.place(check_at_ms=simulation.clock.now) for _ in range(3)]
    simulation.dial_queue.messages.clear()
    postpone = CallStore.postpone

    def fails(store: CallStore, seen: Call, check_at: int) -> Write:
        if seen.call_id == calls[1]:
            raise ValueError("broken")
        return postpone(store, seen, check_at)

    monkeypatch.setattr(CallStore, "postpone", fails)
    assert simulation.reconcile() == {"sent_again": 2}
    assert {body["callId"] for body in simulation.dial_queue.bodies()} == {calls[0], calls[2]}
    assert check_at(system, calls[1]) == simulation.clock.now + 30_000, (
        "it does not stand in the way of those behind it"
    )


@pytest.mark.parametrize("method", ["put_off", "postpone"])
def test_when_even_putting_off_fails_the_others_go_on(
    system: System, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    broken, whole = (
        simulation.place(check_at_ms=simulation.clock.now),
        simulation.place_answered(check_at_ms=simulation.clock.now),
    )
    break_item(system, broken, "CALL", BROKEN["no job" if method == "put_off" else "a text for a number"])

    def fails(*given: Any, **named: Any) -> Write:
        raise StoreError("down")

    monkeypatch.setattr(CallStore, method, fails)
    assert simulation.reconcile() == {"alive": 1}
    assert simulation.call(whole).check_at_ms == simulation.clock.now + 5 * MINUTE


def test_a_shard_that_cannot_be_read_stops_no_other(
    system: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    calls = [simulation.place_answered(check_at_ms=simulation.clock.now) for _ in range(4)]
    due = CallStore.due

    def fails(store: CallStore, shard: int, now: int) -> Iterator[list[tuple[str, str]]]:
        if shard == due_shard(calls[1]):
            raise StoreError("throttled")
        yield from due(store, shard, now)

    monkeypatch.setattr(CallStore, "due", fails)
    assert simulation.reconcile() == {"alive": 3}
    assert '"ReconcileErrors":' in capsys.readouterr().out
    monkeypatch.undo()
    assert simulation.reconcile() == {"alive": 1}


def test_a_portion_that_cannot_be_read_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = crowd(3 * PORTION)
    simulation.clock.now += 6 * MINUTE
    read_due, fail = simulation.calls.read_due, iter([True])

    def fails(keys: list[tuple[str, str]]) -> Due:
        if next(fail, False):
            raise StoreError("throttled")
        return read_due(keys)

    monkeypatch.setattr(simulation.calls, "read_due", fails)
    assert simulation.reconcile() == {"alive": 2 * PORTION}
    assert simulation.reconcile() == {"alive": PORTION}


def test_a_switch_that_cannot_be_read_expires_no_call_and_stops_nothing_else(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    late = simulation.place(queue_deadline_ms=simulation.clock.now, check_at_ms=simulation.clock.now)
    simulation.place_answered(check_at_ms=simulation.clock.now)
    simulation.deliveries.create("5" * 24, "demo", 1, simulation.clock.now, simulation.clock.now)

    def fails() -> Switch:
        raise StoreError("down")

    monkeypatch.setattr(simulation.limits, "switch", fails)
    assert simulation.reconcile() == {"sent_again": 1, "alive": 1, "deliveries_sent_again": 1}
    assert simulation.call(late).status == "queued"
    monkeypatch.undo()
    simulation.clock.now += MINUTE
    assert simulation.reconcile()["ended"] == 1


def test_what_is_alive_is_told_from_what_is_not_by_one_request(system: System) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    together, alone, gone = (simulation.place_answered(check_at_ms=simulation.clock.now) for _ in range(3))
    simulation.livekit.rooms[simulation.call(alone).room_name] = RoomView("active", False)
    del simulation.livekit.rooms[simulation.call(gone).room_name]
    simulation.reconcile()
    assert simulation.livekit.requests == {"ListRooms": 1, "ListParticipants": 1}
    assert simulation.call(together).check_at_ms == simulation.clock.now + 5 * MINUTE
    assert simulation.call(alone).agent_missing_since_ms == simulation.clock.now
    assert simulation.call(gone).phone_missing_since_ms == simulation.clock.now
