"""A slot that was taken for a call that is over is found and freed."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from reconcile_calls.reconcile import Reconciler
from shared.clock import now_ms
from tests.interleaving import change_durations, standin
from tests.system import Context, System, demo_workspace

BUSY = "+15550000001"


def repairs(monkeypatch: pytest.MonkeyPatch, system: System) -> None:
    """Every run of the reconciler compares the slots, not each fifth."""
    change_durations(monkeypatch, system, "reconcile_calls", slot_repair=0.001)


def test_a_slot_taken_again_after_the_end_is_freed(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK sent the write twice; its second copy is carried out when the call has long been cleared."""
    repairs(monkeypatch, system)
    call_id = system.place(BUSY)
    system.run_until(lambda: system.ended(call_id) and "dueShard" not in system.item(call_id))
    assert system.limits.take_slot("demo", call_id, 10)
    system.limits.take_slot("demo", "0123456789abcdef01234567", 10)
    system.reconcile()
    assert system.limits.active_calls("demo") == frozenset()


def test_calls_that_wait_or_talk_keep_their_slots(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    repairs(monkeypatch, system)
    talks, waits = system.place("+15550000012"), system.place("+15550000000")
    system.limits.take_slot("demo", waits, 10)
    system.dial()
    system.reconcile()
    assert talks in system.limits.active_calls("demo")


def test_a_slot_of_a_call_that_waits_in_the_line_is_freed(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that stalled past its lease took it; the call keeps its turn, and no attempt is counted."""
    repairs(monkeypatch, system)
    system.workspaces.put(demo_workspace(max_concurrent_calls=1))
    talks = system.place("+15550000012")
    system.dial()
    waits = system.place("+15550000001")
    system.dial()
    before = system.item(waits)
    assert before["waitingFor"] == "slot"
    assert system.limits.take_slot("demo", waits, 2)
    system.reconcile()
    assert system.limits.active_calls("demo") == {talks}
    assert system.item(waits) == before
    standin(system, "hangup", number="+15550000012")
    system.run_until(lambda: system.ended(talks) and system.ended(waits))
    assert len(system.calls_placed()) == 2


def test_one_range_of_the_index_repairs_the_slots_of_all(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is read once in five minutes, and not by each of the runs of a minute."""
    repairs(monkeypatch, system)
    handler = system.handlers["reconcile_calls"]
    system.limits.take_slot("demo", "0123456789abcdef01234567", 10)
    handler({"shards": [4, 5, 6, 7]}, Context(55))
    assert len(system.limits.active_calls("demo")) == 1
    handler({"shards": [0, 1, 2, 3]}, Context(55))
    assert system.limits.active_calls("demo") == frozenset()


def test_every_workspace_is_looked_at_however_many_there_are(system: System) -> None:
    """More calls than DynamoDB reads at once, in more items than one page of a scan."""
    for number in range(3):
        system.workspaces.put(dataclasses.replace(demo_workspace(), workspace_id=f"tenant-{number}"))
        for call in range(120):
            system.limits.take_slot(f"tenant-{number}", f"{number}{call:023x}", 1000)
    live = system.place("+15550000012")
    system.dial()
    reconciler(system).repair_slots(system.limits.everything())
    assert [system.limits.active_calls(f"tenant-{number}") for number in range(3)] == [frozenset()] * 3
    assert system.limits.active_calls("demo") == {live}


def reconciler(system: System) -> Reconciler:
    module, unused = system.modules["reconcile_calls"], cast(Any, None)
    return Reconciler(
        calls=module.calls,
        limits=module.limits,
        numbers=unused,
        line=module.line,
        deliveries=unused,
        dial_queue=unused,
        webhook_queue=unused,
        livekit=unused,
        durations=system.durations,
        clock=now_ms,
        time_left=lambda: True,
    )
