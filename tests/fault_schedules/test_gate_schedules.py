"""Schedules against the fourth promise: no number is rung that must not be (`number_promises.py`).

The tests of planted faults change one condition of the product and check that it is found.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

import dial_worker.dial
import shared.dynamo
from dial_worker.dial import Dialler
from shared.call import Call
from shared.call_store import CallStore, Fence
from shared.errors import StoreError
from shared.gates import Decision
from shared.limits import Standing
from shared.numbers import ring_write
from shared.policies import Cap, Policy
from simulate import invocation
from simulate.invocation import Fault, Faults
from tests.fault_schedules.account import DIAL, Account, Environment
from tests.fault_schedules.gated_calls import GatedSchedules, rules
from tests.fault_schedules.test_schedules import NIGHTLY, SETTINGS

RANDOM = settings(SETTINGS, max_examples=3000 if NIGHTLY else 60)


def test_no_schedule_rings_who_must_not_be_rung(
    environment: Environment, report_table: list[tuple[str, ...]]
) -> None:
    GatedSchedules.environment = environment
    GatedSchedules.counted.clear()
    run_state_machine_as_test(GatedSchedules, settings=RANDOM)
    report_table.append(("random schedules of opt-outs and rules", str(GatedSchedules.counted["schedules"])))
    report_table += [(f"  {what}", str(times)) for what, times in sorted(GatedSchedules.counted.items())]


# ── a fault at every outside call of a dial, and an opt-out at that moment ──────────────────────────


@pytest.mark.parametrize("fault", ["stalls_before", "stalls_after", "sent_late", "comes_late", "conflict_late"])
def test_an_opt_out_at_any_moment_of_a_dial_is_heeded(environment: Environment, fault: Fault) -> None:
    opt_out_anywhere(environment, fault)


def anywhere(environment: Environment, fault: Fault, schedule: Callable[[Account, Faults], None]) -> None:
    """The schedule, with the fault at each outside call of its first dial in turn."""
    invocation.struck.clear()
    for place in itertools.count():
        account = Account(environment)
        try:
            schedule(account, {place: fault})
            account.finish()
        except AssertionError as exc:
            raise AssertionError(f"{fault} at outside call {place}: {exc}") from exc
        finally:
            account.close()
        if invocation.struck[fault] == place:
            # So many outside calls does a dial make: the fence is among them.
            assert place > 10
            return


def struck_in(account: Account, faults: Faults, seconds: float = 30) -> None:
    """AWS goes on until a process stalls, a request is on its way for longer, or the call has ended."""
    account.run(
        seconds,
        [faults],
        done=lambda: account.stalls() or bool(account.late) or any(call.ended for call in account.calls.values()),
    )


def opt_out_anywhere(environment: Environment, fault: Fault) -> None:
    """The process stalls, or a copy of its request comes late; the callee opts out; then the process goes on, or
    the copy is carried out."""

    def schedule(account: Account, faults: Faults) -> None:
        account.rules({"default": Policy("default", caps=(Cap(1, 60),))})
        account.place("answer", callback=False, faults={})
        struck_in(account, faults)
        [request] = account.requests.values()
        opted_out = account.opt_out(request.number, {})
        assert opted_out.acknowledged_ms is not None
        while account.late:
            account.carry_out(0)
        account.run(1, [])
        account.check()
        for each in account.running():
            each.wake()
        account.run(30, [])
        account.check()

    anywhere(environment, fault, schedule)


@pytest.mark.parametrize("fault", ["stalls_before", "stalls_after"])
def test_no_stall_lets_a_phone_ring_outside_the_window(environment: Environment, fault: Fault) -> None:
    window_closes_anywhere(environment, fault)


def window_closes_anywhere(environment: Environment, fault: Fault) -> None:
    """The process stalls, and goes on when the last moment has passed at which the phone may begin to ring."""

    def schedule(account: Account, faults: Faults) -> None:
        # Closes after a minute, so that a phone that may ring for 40 s may begin in the first 20, and is dialled
        # in the first 17.
        account.rules(rules("hours", account.now_ms() - 60_000 + 1))
        account.wait(12)
        account.place("no_answer", callback=False, faults={})
        struck_in(account, faults, 6)
        account.wait(20.5 - account.loop.time())
        for each in account.running():
            each.wake()
        account.run(20, [])
        account.check()

    anywhere(environment, fault, schedule)


@pytest.mark.parametrize("fault", ["conflict", "conflict_late", "in_progress"])
def test_a_conflict_at_any_outside_call_costs_a_moment_only(environment: Environment, fault: Fault) -> None:
    conflict_anywhere(environment, fault)


def conflict_anywhere(environment: Environment, fault: Fault) -> None:
    """An earlier copy is carried out at once. The call ends as it would without the conflict, at the same time."""

    def schedule(account: Account, faults: Faults) -> None:
        account.rules({"default": Policy("default", caps=(Cap(1, 60),))})
        account.place("answer", callback=False, faults={})
        struck_in(account, faults)
        while account.late:
            account.carry_out(0)
        account.run(45, [], done=lambda: any(call.ended for call in account.calls.values()))
        assert [call.status for call in account.calls.values()] == ["completed"], account.calls

    anywhere(environment, fault, schedule)


@pytest.fixture
def account(environment: Environment) -> Iterator[Account]:
    """Of one workspace with four slots."""
    account = Account(environment, {"demo": 4})
    yield account
    account.close()


def several_at_once(account: Account) -> None:
    """Four calls to one number, each with a worker of its own: one a minute may ring."""
    account.rules({"default": Policy("default", caps=(Cap(1, 60),))})
    account.place("busy", callback=False, faults={})
    [request] = account.requests.values()
    for _ in range(3):
        account.place_to(request.number, False, {})
    for which in range(4):
        account.hand_out(DIAL, which, {}, again=False)
    account.run(400, [])
    account.finish()
    assert len(account.gates.rings) == 4


def the_marker_is_lost(account: Account) -> None:
    """Nothing rings until an operator has restored the table: the reconciler does not take it for a new one."""
    account.place("busy", callback=False, faults={})
    account.run(0.2, [])
    account.marker(there=False)
    account.run(150, [])
    account.check()
    assert account.gates.rings == []
    account.finish()
    assert len(account.gates.rings) == 1


def an_earlier_removal_comes_late(account: Account) -> None:
    """It had no answer, and is carried out after the callee has opted out again."""
    account.place("busy", callback=False, faults={})
    [request] = account.requests.values()
    account.place_to(request.number, False, {}, scheduled_in=30)
    assert account.opt_out(request.number, {}).acknowledged_ms is not None
    account.release(request.number, {1: "comes_late", 2: "dies_before"})
    account.wait(0.01)
    assert account.opt_out(request.number, {}).acknowledged_ms is not None
    account.carry_out(0)
    account.finish()
    assert account.gates.rings == []


SCENARIOS = [several_at_once, the_marker_is_lost, an_earlier_removal_comes_late]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_promise_is_broken_when(account: Account, scenario: Callable[[Account], None]) -> None:
    scenario(account)


# ── what is planted in the product is found ─────────────────────────────────────────────────────────

decide = Dialler._decide
fence = CallStore.fence


def at_any_version(*given: Any, **named: Any) -> dict[str, Any]:
    [(kind, write)] = ring_write(*given, **named).items()
    return {
        kind: write | {"ConditionExpression": f"attribute_not_exists(never) OR {write['ConditionExpression']}"}
    }


def decided_once(self: Dialler, call: Call, standing: Standing | None) -> Decision:
    return decide(self, call, standing) if call.lease_id is None else Decision(())


def without_last_moment(self: Dialler, call: Call, standing: Standing | None) -> Decision:
    return dataclasses.replace(decide(self, call, standing), ring_before_ms=None)


def given_up_on_conflict(*given: Any) -> Fence:
    fenced = fence(*given)
    if fenced.again:
        raise StoreError("TransactionCanceledException")
    return fenced


def without_own_copy(*given: Any) -> Fence:
    """An earlier copy has an earlier time."""
    now_ms, fenced = given[7], fence(*given)
    of_another = fenced.won and fenced.call is not None and fenced.call.dialed_at_ms != now_ms
    return Fence(won=False, call=fenced.call) if of_another else fenced


def not_counted(*given: Any, **named: Any) -> dict[str, Any]:
    return ring_write(*given, **named | {"counted": False})


def anywhere_with(fault: Fault, schedule: Callable[[Environment, Fault], None]) -> Callable[[Account], None]:
    return lambda account: schedule(account.environment, fault)


PLANTED: dict[str, tuple[Callable[[Account], None], str, tuple[Any, str, Any]]] = {
    "a fence at any version of the number": (
        anywhere_with("stalls_before", opt_out_anywhere),
        "OptOut",
        (dial_worker.dial, "ring_write", at_any_version),
    ),
    "a late fence at any version of the number": (
        anywhere_with("comes_late", opt_out_anywhere),
        "OptOut",
        (dial_worker.dial, "ring_write", at_any_version),
    ),
    "no second decision": (
        anywhere_with("stalls_after", opt_out_anywhere),
        "OptOut",
        (Dialler, "_decide", decided_once),
    ),
    "no look at the window's end": (
        anywhere_with("stalls_before", window_closes_anywhere),
        "closed",
        (Dialler, "_decide", without_last_moment),
    ),
    "a write that is not repeated after a conflict": (
        anywhere_with("conflict", conflict_anywhere),
        "conflict at outside call",
        (shared.dynamo, "_CONFLICTS", 1),
    ),
    "a fence that is not repeated after a conflict": (
        anywhere_with("conflict", conflict_anywhere),
        "conflict at outside call",
        (CallStore, "fence", given_up_on_conflict),
    ),
    "a fence that does not know its own earlier copy": (
        anywhere_with("conflict_late", conflict_anywhere),
        "conflict_late at outside call",
        (CallStore, "fence", without_own_copy),
    ),
    "rings that are not counted": (several_at_once, "too often", (dial_worker.dial, "ring_write", not_counted)),
    "a marker that is not missed": (
        the_marker_is_lost,
        "nothing may be fenced",
        (Standing, "paused", property(lambda standing: standing.switch.paused_at_ms is not None)),
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(account: Account, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, told, patch = PLANTED[fault]
    monkeypatch.setattr(*patch)
    with pytest.raises(AssertionError, match=told):
        scenario(account)
