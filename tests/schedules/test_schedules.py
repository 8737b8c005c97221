"""Schedules of everything that can go wrong between any two steps, against the three promises.

`make test` runs the same ones each time: every fault at every outside call of a dial, and a few hundred random
schedules. `RINGONCE_PROFILE=nightly` runs thousands, longer and others each time; a failure is printed as the
shortest schedule that shows it, with the line that repeats it (`@reproduce_failure`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from dial_worker.livekit_sip import LiveKit
from shared.call import Call, Outcome, event
from shared.call_store import CallStore, Write
from shared.errors import LiveKitUnclear
from shared.workspaces import WorkspaceStore
from tests.schedules import process
from tests.schedules.machine import Schedules
from tests.schedules.process import Fault
from tests.schedules.world import Stage, World

NIGHTLY = os.environ.get("RINGONCE_PROFILE") == "nightly"
SETTINGS = settings(
    max_examples=5000 if NIGHTLY else 200,
    stateful_step_count=40 if NIGHTLY else 16,
    derandomize=not NIGHTLY,
    database=None,
    deadline=None,
    print_blob=True,
    # A schedule takes a tenth of a second and more bytes than hypothesis likes; both are meant.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
# A dial that is answered makes sixteen outside calls.
OUTSIDE_CALLS_OF_A_DIAL = 16


@pytest.fixture(autouse=True)
def _on_stage(stage: Stage) -> None:
    Schedules.stage = stage


def test_no_schedule_rings_twice_ends_twice_or_leaves_anything(report_table: list[tuple[str, ...]]) -> None:
    Schedules.counted.clear()
    process.struck.clear()
    run_state_machine_as_test(Schedules, settings=SETTINGS)
    report_table.append(("random schedules", str(Schedules.counted["schedules"])))
    report_table.append(("  steps", str(Schedules.counted["steps"])))
    report_table += [(f"  {fault}", str(times)) for fault, times in sorted(process.struck.items())]
    assert Schedules.counted["schedules"] >= SETTINGS.max_examples
    assert all(process.struck[fault] for fault in get_args(Fault))


@pytest.mark.parametrize("fault", get_args(Fault))
def test_a_fault_at_any_outside_call_of_a_dial_breaks_no_promise(stage: Stage, fault: Fault) -> None:
    one_fault_anywhere(stage, fault, cancelled=False)


@pytest.mark.parametrize("fault", ["stalls_before", "stalls_after"])
def test_a_dial_that_stalls_and_is_cancelled_meanwhile_breaks_no_promise(stage: Stage, fault: Fault) -> None:
    one_fault_anywhere(stage, fault, cancelled=True)


def one_fault_anywhere(stage: Stage, fault: Fault, cancelled: bool) -> None:
    process.struck.clear()
    for place in range(OUTSIDE_CALLS_OF_A_DIAL):
        world = World(stage)
        try:
            world.place("answer", callback=False, faults={})
            world.run(0.2, [{place: fault}])
            if cancelled:
                world.cancel("key-0", {})
            # Longer than any lease: who stalls wakes up after it, in `finish`.
            world.run(400, [])
            world.finish()
        except AssertionError as exc:
            raise AssertionError(f"{fault} at outside call {place}") from exc
        finally:
            world.close()
    assert process.struck[fault] > 0


@pytest.mark.parametrize("place", range(6))
def test_a_worker_that_wakes_after_its_lease_takes_no_slot(
    stage: Stage, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would free it, if the worker died before it could: the call has ended, and its slot is cleared."""
    taken: list[str] = []
    world = World(stage)
    try:
        world.place("answer", callback=False, faults={})
        world.run(0.2, [{place: "stalls_after"}])
        world.run(400, [])
        assert [(call.ended, call.dueShard) for call in world.calls.values()] == [(True, None)]
        monkeypatch.setattr(WorkspaceStore, "take_slot", lambda self, *given, **named: taken.append("slot"))
        [stalled] = world.running()
        stalled.wake()
        world.run(1, [])
        assert (world.running(), taken) == ([], [])
    finally:
        world.close()


def test_the_same_schedules_run_the_same_way_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails can be shortened and found again; what depends on an earlier schedule cannot."""
    runs: list[list[tuple[float, str, int]]] = []
    before = process.Process._before

    async def noted(self: process.Process, at_once: bool = False) -> Fault | None:
        runs[-1].append((self._loop.time(), self.name, self.calls))
        return await before(self, at_once)

    monkeypatch.setattr(process.Process, "_before", noted)
    for _ in range(2):
        runs.append([])
        run_state_machine_as_test(
            Schedules, settings=settings(SETTINGS, max_examples=20, derandomize=True, phases=[Phase.generate])
        )
    assert len(runs[0]) > 1000
    assert runs[0] == runs[1]


# ── the machine can fail ────────────────────────────────────────────────────────────────────────────


def fenced_without_condition(
    self: CallStore, call_id: str, lease: str, room_sid: str, from_number: str | None, now: int
) -> Write:
    return self._transition(
        call_id,
        "dialing",
        event("call.dialing", now),
        "dialedAt = :now, roomSid = :room",
        "attribute_exists(pk)",
        {":now": now, ":room": room_sid},
        mine=lambda call: False,
    )


def ended_without_condition(self: CallStore, seen: Call, outcome: Outcome, check_at: int, now: int) -> Write:
    return self._transition(
        seen.callId,
        outcome.status,
        event("call.ended", now, status=outcome.status, reason=outcome.reason, retryable=outcome.retryable),
        "endedAt = :now, checkAt = :check",
        "attribute_exists(pk)",
        {":now": now, ":check": check_at},
        mine=lambda call: False,
    )


dialled_once = LiveKit.dial


async def dialled_again_when_unclear(self: LiveKit, **given: Any) -> None:
    try:
        await dialled_once(self, **given)
    except LiveKitUnclear:
        await dialled_once(self, **given)


PLANTED: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "an end without its condition": (CallStore, "end", ended_without_condition),
    "a second dial after an unclear answer": (LiveKit, "dial", dialled_again_when_unclear),
    "a slot that is not freed": (WorkspaceStore, "free_slot", lambda self, workspace_id, call_id: None),
    "an ended call that stays due": (CallStore, "leave_due", lambda self, call_id: None),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_random_schedules_find_a_fault_planted_in_the_product(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*PLANTED[fault])
    first_failure = settings(
        SETTINGS, max_examples=200, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Schedules, settings=first_failure)


@pytest.mark.parametrize("fault", ["stalls_before", "stalls_after"])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_stall_finds_a_fence_without_its_condition(
    stage: Stage, fault: Fault, cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CallStore, "fence", fenced_without_condition)
    with pytest.raises(AssertionError):
        one_fault_anywhere(stage, fault, cancelled)
