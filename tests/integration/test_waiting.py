"""Calls that wait for a slot, a trunk or the switch, and that waiting costs them no attempts and no time."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from shared.clock import now_ms
from shared.limits import LimitStore
from tests.clock import START
from tests.in_memory import RoomsInMemory
from tests.interleaving import change, once, other_worker, requests, rooms
from tests.simulation import Simulation
from tests.system import System, demo_workspace


def test_the_switch_stops_a_call_whose_agent_has_come(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    once(monkeypatch, LimitStore, "reserve_trunk", before=lambda: system.limits.pause(1))
    call_id = system.place()
    system.dial()
    assert system.calls_placed() == []
    assert (system.item(call_id)["status"], rooms(system)) == ("queued", [])
    system.limits.resume(now_ms())
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]


def test_paused_time_does_not_count_against_the_queues(system: System) -> None:
    system.limits.pause(1)
    call_id = system.place()
    change(system, call_id, queue_deadline_ms=1)
    system.dial()
    assert system.item(call_id)["status"] == "queued"
    assert system.item(call_id)["queueDeadline"] > 1
    system.limits.resume(now_ms())
    change(system, call_id, queue_deadline_ms=1)
    system.run_until(lambda: system.ended(call_id))
    assert system.item(call_id)["status"] == "expired"
    assert system.calls_placed() == []


@pytest.mark.parametrize("changed", [{"disabled": True}, {"allowed_calling_codes": frozenset({"+44"})}])
def test_a_call_that_its_workspace_may_not_place_any_more_is_not_dialled(
    system: System, changed: dict[str, Any]
) -> None:
    call_id = system.place()
    system.workspaces.put(demo_workspace(**changed))
    system.forget_workspaces()
    system.run_until(lambda: system.ended(call_id))
    system.workspaces.put(demo_workspace())
    system.forget_workspaces()
    seen = system.api("GET /v1/api/call/{callId}", call_id)["json"]
    assert (seen["status"], seen["endReason"]) == ("failed", "not_allowed")
    assert system.events(call_id) == ["call.queued", "call.ended"]
    assert (system.calls_placed(), system.limits.active_calls("demo")) == ([], frozenset())
    assert not requests(system), "LiveKit is not even asked"


def test_a_newcomer_does_not_overtake_a_call_that_waits(system: System) -> None:
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", "another-call", 1)
    first = system.place("+15550000000")
    system.dial()
    assert system.item(first)["waitUntil"] > 0
    # It is one that waits for as long as this test takes, on the slowest machine too.
    system.limits.note_waiting("demo", 2**42)
    system.limits.free_slot("demo", "another-call")
    second = system.place("+15550000009")
    # Both may be handed over at once; the slot is free, and not for the newcomer.
    while not system.item(second).get("waitUntil"):
        system.dial()
        assert second not in system.limits.active_calls("demo")
    system.run_until(lambda: system.ended(first) and system.ended(second))
    assert len(system.calls_placed()) == 2


def test_a_duplicate_message_starts_no_second_chain(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """It read the call before the other one took the lease, found no slot and gave the lease back."""
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", "another-call", 1)
    call_id = system.place()
    [record] = system.receive("DialQueue")
    once(monkeypatch, LimitStore, "next_free", before=lambda: other_worker(system, [record]))
    other_worker(system, [record])
    # The first message itself, still invisible, and the one of the only chain.
    assert system.messages("DialQueue") == 2
    assert system.item(call_id)["status"] == "queued"


def test_a_waiting_call_burns_no_receives(system: System) -> None:
    """Each round is a message of its own, received for the first time: none comes near the dead-letter queue."""
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", "another-call", 1)
    call_id = system.place()
    deadline = system.item(call_id)["queueDeadline"]
    seen: set[str] = set()

    def three_rounds() -> bool:
        for record in system.receive("DialQueue"):
            assert record["attributes"]["ApproximateReceiveCount"] == "1"
            assert other_worker(system, [record]) == {"batchItemFailures": []}
            system.sqs.delete_message(
                QueueUrl=system.queue_urls["DialQueue"], ReceiptHandle=record["receiptHandle"]
            )
            seen.add(record["messageId"])
        return len(seen) == 3

    system.run_until(three_rounds, dial=False)
    item = system.item(call_id)
    assert (item["status"], item["queueDeadline"], item["attempts"]) == ("queued", deadline, 0)
    assert system.events(call_id) == ["call.queued"]
    assert system.messages("DialQueue") == 1


def test_a_call_that_never_gets_a_slot_expires_at_its_deadline(system: System) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    simulation.durations = dataclasses.replace(simulation.durations, queue_ttl=90)
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", "another-call", 1)
    call_id = simulation.place()
    rounds = 0
    while not simulation.call(call_id).ended:
        rounds += simulation.dial()
        assert len(simulation.dial_queue.messages) <= 1, "one chain of messages"
        simulation.clock.now = min(
            (message.visible_at for message in simulation.dial_queue.messages), default=simulation.clock.now
        )
    call = simulation.call(call_id)
    assert (call.status, call.events[-1]["reason"], call.events[-1]["retryable"]) == ("expired", "expired", True)
    assert call.ended_at_ms is not None
    assert 0 <= call.ended_at_ms - call.queue_deadline_ms <= simulation.durations.slot_wait * 1000
    assert call.queue_deadline_ms == START + 90_000
    assert rounds > 90 / simulation.durations.slot_wait, "and it asked often enough"
    assert not simulation.livekit.requests
    assert (call.due_shard, simulation.dial_queue.messages) == (None, [])


def test_a_trunk_is_given_its_invites_a_gap_apart(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten calls of two workspaces on one trunk, one call a second (at 1/20 of the time: 50 ms)."""
    gap = 50
    for name in ("demo", "other"):
        system.workspaces.put(demo_workspace(workspace_id=name, calls_per_second=1))
    reserved: list[int] = []
    reserve_trunk = LimitStore.reserve_trunk

    def noted(*given: Any) -> int | None:
        moment = reserve_trunk(*given)
        reserved.extend([moment] if moment else [])
        return moment

    monkeypatch.setattr(LimitStore, "reserve_trunk", noted)
    system.faults(numbers={f"+1555060{n:04}": {"outcome": "busy"} for n in range(10)})
    calls = [
        system.place(f"+1555060{n:04}", headers={"x-workspace-id": ("demo", "other")[n % 2]}) for n in range(10)
    ]
    system.dial(seconds=30)
    system.run_until(lambda: all(map(system.ended, calls)))
    moments = sorted(reserved)
    assert len(moments) == len(system.calls_placed()) == 10
    assert all(later - earlier >= gap for earlier, later in itertools.pairwise(moments)), moments
    dialled = sorted(system.item(call_id)["dialedAt"] for call_id in calls)
    # Each is fenced at its own moment or later; a sleep may wake up a millisecond early.
    assert all(at >= moment - 2 for at, moment in zip(dialled, moments, strict=True))


def test_a_moment_that_a_call_cannot_use_is_left_to_others(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its agent came, others took the trunk for longer than this process lives."""
    simulation = Simulation(dynamodb=system.dynamodb)
    call_id = simulation.place()
    taken = simulation.clock.now + 100_000
    once(
        monkeypatch,
        RoomsInMemory,
        "create_room",
        after=lambda: simulation.limits.reserve_trunk("ST_demo", 100_000, simulation.clock.now, taken),
    )
    simulation.dial()
    assert simulation.call(call_id).status == "queued"
    assert simulation.limits.next_free("ST_demo") == taken
    assert simulation.livekit.rooms == {}, "its agent does not wait with it"
    assert simulation.call(call_id).wait_until_ms == taken
    simulation.clock.now = taken
    simulation.dial()
    assert simulation.call(call_id).status == "in_progress"
