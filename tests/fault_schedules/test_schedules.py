"""Schedules of everything that can go wrong between any two steps, against the three promises.

`make test` runs the same ones each time: every fault at every outside call of a dial, and a few hundred random
schedules. `RINGONCE_PROFILE=nightly` runs thousands, longer and others each time; a failure is printed as the
shortest schedule that shows it, with the line that repeats it (`@reproduce_failure`).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import dial_worker.dial
from dial_worker.dial import Dialler
from reconcile_calls.reconcile import Reconciler
from shared.call import Call, Outcome, Status, WaitingFor, event
from shared.call_store import CallStore, Fence, Write
from shared.errors import LiveKitError, LiveKitUnclearError
from shared.limits import LimitStore
from shared.livekit.client import LiveKit, Presence, RoomView
from shared.livekit.outcomes import Verdict, verdict
from shared.trunk import Trunk
from simulate import invocation
from simulate.invocation import Fault
from tests.fault_schedules.account import Account, Environment
from tests.fault_schedules.machine import DEATHS, Schedules

NIGHTLY = os.environ.get("RINGONCE_PROFILE") == "nightly"
SETTINGS = settings(
    max_examples=5000 if NIGHTLY else 200,
    stateful_step_count=40 if NIGHTLY else 16,
    derandomize=not NIGHTLY,
    database=None,
    deadline=None,
    print_blob=True,
    # A schedule takes some tenths of a second and more bytes than hypothesis likes; both are meant.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@pytest.fixture(autouse=True)
def _in_environment(environment: Environment) -> None:
    Schedules.environment = environment


def test_no_schedule_rings_twice_ends_twice_or_leaves_anything(report_table: list[tuple[str, ...]]) -> None:
    Schedules.counted.clear()
    invocation.struck.clear()
    run_state_machine_as_test(Schedules, settings=SETTINGS)
    report_table.append(("random schedules", str(Schedules.counted["schedules"])))
    report_table.append(("  steps", str(Schedules.counted["steps"])))
    report_table += [(f"  {fault}", str(times)) for fault, times in sorted(invocation.struck.items())]
    report_table += [(f"  {death}", str(Schedules.counted[death])) for death in DEATHS]
    assert Schedules.counted["schedules"] >= SETTINGS.max_examples
    assert all(invocation.struck[fault] for fault in get_args(Fault))
    assert sum(Schedules.counted[death] for death in DEATHS) > 0


@pytest.mark.parametrize("fault", get_args(Fault))
def test_a_fault_at_any_outside_call_of_a_dial_breaks_no_promise(environment: Environment, fault: Fault) -> None:
    one_fault_anywhere(environment, fault, cancelled=False)


@pytest.mark.parametrize("fault", ["stalls_before", "stalls_after"])
def test_a_dial_that_stalls_and_is_cancelled_meanwhile_breaks_no_promise(
    environment: Environment, fault: Fault
) -> None:
    one_fault_anywhere(environment, fault, cancelled=True)


def one_fault_anywhere(environment: Environment, fault: Fault, cancelled: bool) -> None:
    invocation.struck.clear()
    for place in itertools.count():
        account = Account(environment)
        try:
            account.place("answer", callback=False, faults={})
            account.run(20, [{place: fault}], done=account.stalls)
            if cancelled:
                account.cancel("key-0", {})
            # Longer than any lease: who stalls wakes up after it, in `finish`.
            account.run(400, [])
            account.finish()
        except AssertionError as exc:
            raise AssertionError(f"{fault} at outside call {place}") from exc
        finally:
            account.close()
        if invocation.struck[fault] == place:
            # So many outside calls does a dial make that is answered: the fence is among them.
            assert place > 10
            return


def server_crashes_while_it_rings(environment: Environment) -> None:
    account = Account(environment)
    try:
        account.place("talks_on", callback=False, faults={}, ringSeconds=20)
        account.run(10, [])
        assert [call.status for call in account.calls.values()] == ["dialing"]
        assert account.livekit_dies("crash", 0, down=0, moment=0)
        account.finish()
    finally:
        account.close()


@pytest.mark.parametrize("down", [0, 40])
@pytest.mark.parametrize("death", DEATHS)
def test_a_death_in_livekit_at_any_moment_of_a_call_breaks_no_promise(
    environment: Environment, death: str, down: float
) -> None:
    # The agent is awaited for 2 s, the phone rings for 6 s and talks for 15.
    for moment in (0, 1, 3, 8, 14):
        account = Account(environment)
        try:
            account.place("answer", callback=True, faults={})
            assert account.livekit_dies(death, 0, down, moment)
            account.finish()
        except AssertionError as exc:
            raise AssertionError(f"{death} after {moment} s") from exc
        finally:
            account.close()


@pytest.mark.parametrize(
    ("lost", "may_ring_again"), [(None, True), (["participant_joined"], False), (["participant_left"], False)]
)
def test_only_a_dial_that_nothing_tells_of_may_ring_again(
    environment: Environment, lost: list[str] | None, may_ring_again: bool
) -> None:
    """lost: which of LiveKit's events do not arrive; None: all. The phone is busy before a look could show it."""
    account = Account(environment)
    try:
        account.livekit_events(drop=1, only=lost)
        account.place("busy", callback=False, faults={}, fail="unavailable", after=True)
        account.run(400, [], done=lambda: any(call.ended for call in account.calls.values()))
        [call_id] = account.calls
        assert (account.rings(call_id) > 1) is may_ring_again
        assert account.rings(call_id) <= 1 + account.untraceable[call_id]
        account.finish()
    finally:
        account.close()


def handler_stalls_before_it_ends_the_call(environment: Environment) -> None:
    """LiveKit sends its event again meanwhile."""
    account = Account(environment)
    try:
        account.place("answer", callback=True, faults={})
        account.run(20, [], done=lambda: any(call.status == "in_progress" for call in account.calls.values()))
        # The phone's track is gone before the phone is. The handler reads the call, then writes its end.
        account.event_faults = [{1: "stalls_before"}] * 2
        account.run(60, [])
        assert account.stalls()
        assert [call.ended for call in account.calls.values()] == [True]
        account.finish()
    finally:
        account.close()


def test_an_event_sent_again_ends_the_call_once(environment: Environment) -> None:
    handler_stalls_before_it_ends_the_call(environment)


def test_an_event_sent_again_finds_an_end_without_its_condition(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CallStore, "end", ended_without_condition)
    with pytest.raises(AssertionError, match=r"call\.ended"):
        handler_stalls_before_it_ends_the_call(environment)


def test_an_orphan_room_is_believed_for_no_longer_than_a_dial_lasts(environment: Environment) -> None:
    server_crashes_while_it_rings(environment)


@pytest.mark.parametrize("place", range(6))
def test_a_worker_that_wakes_after_its_lease_takes_no_slot(
    environment: Environment, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stay taken if the worker died before freeing it: the call has ended, and its slot is cleared."""
    taken: list[str] = []
    account = Account(environment)
    try:
        account.place("answer", callback=False, faults={})
        account.run(0.2, [{place: "stalls_after"}])
        account.run(400, [])
        assert [(call.ended, call.due_shard) for call in account.calls.values()] == [(True, None)]
        monkeypatch.setattr(LimitStore, "take_slot", lambda self, *given, **named: taken.append("slot"))
        [stalled] = account.running()
        stalled.wake()
        account.run(1, [])
        assert (account.running(), taken) == ([], [])
    finally:
        account.close()


def test_the_same_schedules_run_the_same_way_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails can be shortened and found again; what depends on an earlier schedule cannot."""
    runs: list[list[tuple[float, str, int]]] = []
    before = invocation.Invocation._before

    async def noted(self: invocation.Invocation, at_once: bool = False) -> Fault | None:
        runs[-1].append((self._loop.time(), self.name, self.calls))
        return await before(self, at_once)

    monkeypatch.setattr(invocation.Invocation, "_before", noted)
    for _ in range(2):
        runs.append([])
        run_state_machine_as_test(
            Schedules, settings=settings(SETTINGS, max_examples=20, derandomize=True, phases=[Phase.generate])
        )
    assert len(runs[0]) > 1000
    assert runs[0] == runs[1]


# ── the machine can fail ────────────────────────────────────────────────────────────────────────────


def changed_without_condition(
    store: CallStore, call_id: str, to: Status, entry: dict[str, Any], assignments: str, values: dict[str, Any]
) -> Write:
    return store._update(
        call_id,
        f"SET #status = :to, events = list_append(events, :event), {assignments}",
        "attribute_exists(pk)",
        {":to": to, ":event": [entry], **values},
    )


def fenced_without_condition(
    self: CallStore,
    seen: Call,
    room_sid: str,
    from_number: str | None,
    receipt: list[dict[str, Any]],
    number_write: dict[str, Any],
    token: str,
    now: int,
    give_up: Callable[[], bool],
) -> Fence:
    fenced = changed_without_condition(
        self,
        seen.call_id,
        "dialing",
        event("call.dialing", now),
        "dialedAt = :now, roomSid = :room",
        {":now": now, ":room": room_sid},
    )
    # What it has is what this process has read: its lease too.
    return Fence(
        won=True,
        call=dataclasses.replace(
            seen, status="dialing", events=fenced.call.events, dialed_at_ms=now, room_sid=room_sid
        )
        if fenced.call
        else None,
    )


def ended_without_condition(self: CallStore, seen: Call, outcome: Outcome, check_at: int, now: int) -> Write:
    return changed_without_condition(
        self,
        seen.call_id,
        outcome.status,
        event("call.ended", now, status=outcome.status, reason=outcome.reason, retryable=outcome.retryable),
        "endedAt = :now, checkAt = :check",
        {":now": now, ":check": check_at},
    )


dialled_once = LiveKit.dial


async def dialled_again_when_unclear(self: LiveKit, **given: Any) -> None:
    try:
        await dialled_once(self, **given)
    except LiveKitUnclearError:
        await dialled_once(self, **given)


found_out = Dialler._determine_outcome


async def un_fenced_without_a_look(
    dialler: Dialler, call: Call, trunk: Trunk, error: LiveKitError, *, unsent: bool = False
) -> None:
    if unsent:
        await dialler._un_fence(call, error)
    else:
        await found_out(dialler, call, trunk, error)


def un_fenced_without_condition(
    self: CallStore, call_id: str, lease: str, waiting_for: WaitingFor, wait_until: int, check_at: int, now: int
) -> Write:
    return self._transition(
        call_id,
        "dialing",
        "queued",
        event("call.queued", now),
        "waitUntil = :wait, waitingFor = :why, checkAt = :check",
        "leaseId = :lease",
        {":lease": lease, ":wait": wait_until, ":why": waiting_for, ":check": check_at},
        remove="leaseId, leaseUntil, roomSid, dialedAt, #left, phoneSeenAt",
        mine=lambda call: False,
    )


def refused_when_exhausted(error: LiveKitError) -> Verdict:
    uncoded = error.code == "resource_exhausted" and error.sip_status_code is None
    return Verdict("unsent") if uncoded else verdict(error)


Patch = tuple[Any, str, Callable[..., Any]]
UN_FENCED_AT_ONCE: tuple[Patch, ...] = (
    (Dialler, "_determine_outcome", un_fenced_without_a_look),
    (CallStore, "unfence", un_fenced_without_condition),
)
PLANTED: dict[str, tuple[Patch, ...]] = {
    "a second dial after an unclear answer": ((LiveKit, "dial", dialled_again_when_unclear),),
    "a slot that is not freed": ((LimitStore, "free_slot", lambda self, workspace_id, call_id, item=0: None),),
    "an ended call that stays due": ((CallStore, "leave_due", lambda self, call_id: None),),
    "a dial un-fenced on unavailable alone": UN_FENCED_AT_ONCE,
    "a dial un-fenced on resource_exhausted": (
        *UN_FENCED_AT_ONCE,
        (dial_worker.dial, "verdict", refused_when_exhausted),
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_random_schedules_find_a_fault_planted_in_the_product(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in PLANTED[fault]:
        monkeypatch.setattr(*patch)
    first_failure = settings(
        SETTINGS, max_examples=200, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Schedules, settings=first_failure)


@pytest.mark.parametrize("fault", ["stalls_before", "stalls_after"])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_stall_finds_a_fence_without_its_condition(
    environment: Environment, fault: Fault, cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CallStore, "fence", fenced_without_condition)
    with pytest.raises(AssertionError):
        one_fault_anywhere(environment, fault, cancelled)


def test_a_late_write_finds_that_slots_are_not_repaired(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reconciler, "repair_slots", lambda reconciler: None)
    with pytest.raises(AssertionError):
        one_fault_anywhere(environment, "sent_late", cancelled=False)


async def none_is_there(self: LiveKit, names: list[str]) -> dict[str, Presence]:
    return dict.fromkeys(names, "absent")


def test_a_restart_finds_that_its_rooms_are_not_believed(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveKit, "rooms_present", none_is_there)
    account = Account(environment)
    try:
        account.place("talks_on", callback=False, faults={})
        assert account.livekit_dies("restart", 0, down=0, moment=10)
        with pytest.raises(AssertionError, match="ROOM_DELETED"):
            account.finish()
    finally:
        account.close()


def believed(reconciler: Reconciler, call: Call, view: RoomView) -> str | None:
    return view.call_status


async def not_removed(self: LiveKit, name: str) -> None:
    """In place of making the room again, so that it can be deleted."""


@pytest.mark.parametrize(
    "planted",
    [(Reconciler, "_credible_status", believed), (LiveKit, "remove_orphan", not_removed)],
    ids=["believed for ever", "never removed"],
)
def test_a_crash_finds_that_an_orphan_room_is(
    environment: Environment, planted: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*planted)
    with pytest.raises(AssertionError):
        server_crashes_while_it_rings(environment)
