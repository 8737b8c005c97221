"""Calls that wait for a slot, a trunk or the switch, and that waiting costs them no attempts and no time."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import Any

import pytest

from shared.clock import now_ms
from shared.limits import LimitStore
from shared.line import line_of
from tests.clock import MINUTE, START
from tests.in_memory import RoomsInMemory
from tests.interleaving import once, other_worker, requests, rooms
from tests.simulation import Simulation
from tests.system import System, demo_workspace


def use_the_only_slot(system: System, simulation: Simulation) -> None:
    """A call talks for as long as the test takes."""
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", simulation.place_answered(check_at_ms=2**42), 1)


def test_the_switch_stops_a_call_whose_agent_has_come(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    once(monkeypatch, LimitStore, "reserve_trunk", before=lambda: system.limits.pause(1))
    call_id = system.place()
    system.dial()
    assert system.calls_placed() == []
    assert (system.item(call_id)["status"], rooms(system)) == ("queued", [])
    assert system.item(call_id)["waitingFor"] == "paused"
    system.limits.resume(now_ms())
    assert system.reconcile()["admitted"] == 1
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]


def test_paused_time_does_not_count_against_the_queues(system: System) -> None:
    """And is counted once, however often dialling is paused."""
    simulation = Simulation(dynamodb=system.dynamodb)
    simulation.durations = dataclasses.replace(simulation.durations, queue_ttl=90)
    use_the_only_slot(system, simulation)
    call_id = simulation.place()
    deadline = simulation.call(call_id).queue_deadline_ms
    for _ in range(2):
        simulation.limits.pause(simulation.clock.now)
        for _ in range(10):
            simulation.clock.now += MINUTE
            simulation.dial()
            simulation.reconcile()
        assert simulation.call(call_id).status == "queued"
        simulation.limits.resume(simulation.clock.now)
        simulation.clock.now += MINUTE // 2
        simulation.dial()
        simulation.reconcile()
        assert simulation.call(call_id).status == "queued", "a minute of its minute and a half"
    ended = simulation.minutes_until_ended(call_id, 2, dials=True)
    assert (ended.status, ended.queue_deadline_ms) == ("expired", deadline)
    assert ended.ended_at_ms is not None
    assert ended.ended_at_ms - deadline >= 20 * MINUTE
    assert not simulation.livekit.requests


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
    assert system.item(first)["waitingFor"] == "slot"
    # It is one that waits for as long as this test takes, on the slowest machine too.
    system.limits.note_crowded("demo", 0, 2**42, 2**42)
    system.limits.free_slot("demo", "another-call")
    second = system.place("+15550000009")
    # The slot is free, and not for the newcomer: that enters the line, and the first is admitted for it.
    while "lineOf" not in system.item(second):
        system.dial()
        assert second not in system.limits.active_calls("demo")
    system.run_until(lambda: system.ended(first) and system.ended(second))
    assert [call["number"] for call in system.calls_placed()] == ["+15550000000", "+15550000009"]


def test_a_duplicate_message_puts_a_call_into_the_line_once(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the call before the other one put it there."""
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    system.limits.take_slot("demo", "another-call", 1)
    call_id = system.place()
    [record] = system.receive("DialQueue")
    once(monkeypatch, LimitStore, "standing", before=lambda: other_worker(system, [record]))
    other_worker(system, [record])
    assert len(system.modules["dial_worker"].calls.line(line_of("demo"), now_ms(), 10)) == 1
    assert system.item(call_id)["status"] == "queued"
    # Only the first message itself, still invisible.
    assert system.messages("DialQueue") == 1


def test_nothing_is_done_for_a_call_that_waits(system: System) -> None:
    """No message, no attempt, no write and no look until its turn or its deadline comes."""
    simulation = Simulation(dynamodb=system.dynamodb)
    use_the_only_slot(system, simulation)
    call_id = simulation.place()
    simulation.dial()
    waits = simulation.call(call_id)
    assert (waits.waiting_for, waits.attempts, waits.lease_id) == ("slot", 0, None)
    for _ in range(59):
        simulation.clock.now += MINUTE
        assert not +collections.Counter(simulation.reconcile())
    assert simulation.call(call_id) == waits
    assert simulation.dial_queue.messages == []
    assert waits.check_at_ms == waits.queue_deadline_ms


def test_a_call_that_never_gets_a_slot_expires_at_its_deadline(system: System) -> None:
    simulation = Simulation(dynamodb=system.dynamodb)
    simulation.durations = dataclasses.replace(simulation.durations, queue_ttl=90)
    use_the_only_slot(system, simulation)
    call_id = simulation.place()
    simulation.dial()
    call = simulation.minutes_until_ended(call_id, 2)
    assert (call.status, call.events[-1]["reason"], call.events[-1]["retryable"]) == ("expired", "expired", True)
    assert call.ended_at_ms is not None
    assert 0 <= call.ended_at_ms - call.queue_deadline_ms <= MINUTE
    assert call.queue_deadline_ms == START + 90_000
    assert not simulation.livekit.requests
    assert (call.due_shard, call.line_of, simulation.dial_queue.messages) == (None, None, [])


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
    assert simulation.limits.trunk("ST_demo").next_free_ms == taken
    assert simulation.livekit.rooms == {}, "its agent does not wait with it"
    assert simulation.call(call_id).wait_until_ms == taken
    simulation.clock.now = taken
    simulation.dial()
    assert simulation.call(call_id).status == "in_progress"
