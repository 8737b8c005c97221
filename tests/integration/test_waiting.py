"""Calls that wait their turn: for a slot, for the switch; and what they do not lose by it."""

from __future__ import annotations

import pytest

from shared.workspaces import WorkspaceStore
from tests.hooks import change, once, other_worker, rooms
from tests.system import System, demo_workspace


def test_the_switch_stops_a_call_whose_agent_has_come(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    once(monkeypatch, WorkspaceStore, "reserve_trunk", before=lambda: system.workspaces.pause(1))
    call_id = system.place()
    system.dial()
    assert system.calls_placed() == []
    assert (system.item(call_id)["status"], rooms(system)) == ("queued", [])
    system.workspaces.resume()
    system.run_until(lambda: system.ended(call_id))
    assert len(system.calls_placed()) == 1
    assert system.events(call_id) == ["call.queued", "call.dialing", "call.answered", "call.ended"]


def test_paused_time_does_not_count_against_the_queues(system: System) -> None:
    system.workspaces.pause(1)
    call_id = system.place()
    change(system, call_id, queueDeadline=1)
    system.dial()
    assert system.item(call_id)["status"] == "queued"
    assert system.item(call_id)["queueDeadline"] > 1
    system.workspaces.resume()
    change(system, call_id, queueDeadline=1)
    system.run_until(lambda: system.ended(call_id))
    assert system.item(call_id)["status"] == "expired"
    assert system.calls_placed() == []


def test_a_newcomer_does_not_overtake_a_call_that_waits(system: System) -> None:
    system.workspaces.put(demo_workspace(maxConcurrentCalls=1))
    system.workspaces.take_slot("demo", "somebody", 1)
    first = system.place("+15550000000")
    system.dial()
    assert system.item(first)["waitUntil"] > 0
    system.workspaces.free_slot("demo", "somebody")
    second = system.place("+15550000009")
    # Both may be handed over at once; the slot is free, and not for the newcomer.
    while not system.item(second).get("waitUntil"):
        system.dial()
        assert second not in system.workspaces.active_calls("demo")
    system.run_until(lambda: system.ended(first) and system.ended(second))
    assert len(system.calls_placed()) == 2


def test_a_duplicate_message_starts_no_second_chain(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """It read the call before the other one took the lease, found no slot and gave the lease back."""
    system.workspaces.put(demo_workspace(maxConcurrentCalls=1))
    system.workspaces.take_slot("demo", "somebody", 1)
    call_id = system.place()
    [record] = system.receive("DialQueue")
    once(monkeypatch, WorkspaceStore, "next_free", before=lambda: other_worker(system, [record]))
    other_worker(system, [record])
    # The first message itself, still invisible, and the one of the only chain.
    assert system.messages("DialQueue") == 2
    assert system.item(call_id)["status"] == "queued"
