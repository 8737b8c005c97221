"""Hundreds of calls on few slots, under every fault, against what the line promises (`line_promises.py`).

The tests of planted faults change one condition of the product and check that it is found.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dial_worker.dial import Dialler
from reconcile_calls.reconcile import Reconciler
from shared import slots
from shared.call import Call
from shared.call_store import CallStore, Write
from shared.limits import LimitStore, Standing
from shared.line import Line
from tests.fault_schedules.account import DIAL, Account, Environment
from tests.fault_schedules.busy_line import run_busy_line

NIGHTLY = os.environ.get("RINGONCE_PROFILE") == "nightly"
# Others each day: the processes of one run must agree on them.
TODAY = int(time.time() // 86_400)
SEEDS = range(20 * TODAY, 20 * TODAY + 20) if NIGHTLY else range(2)
CALLS = 400 if NIGHTLY else 150


@pytest.fixture(autouse=True)
def _small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a workspace of few slots has several items."""
    monkeypatch.setattr(slots, "SLOTS_PER_ITEM", 3)


@pytest.fixture
def account(environment: Environment) -> Iterator[Account]:
    """Of one workspace with two slots."""
    account = Account(environment)
    yield account
    account.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_hundreds_of_calls_on_few_slots_break_no_promise(
    environment: Environment, seed: int, report_table: list[tuple[str, ...]]
) -> None:
    busy = run_busy_line(environment, seed, CALLS)
    line = busy.account.line
    report_table.append((f"{CALLS} calls on few slots, seed", str(seed)))
    report_table += [(f"  {what}", str(number)) for what, number in sorted(line.counted.items())]
    report_table.append(("  most calls that overtook one", str(max(line.overtaken.values(), default=0))))
    report_table.append(("  excused: a request came late, or a process stalled", str(len(line.excused))))
    assert line.counted["entered the line"] > CALLS / 3
    assert line.counted["admissions sent"] > CALLS / 4


def waiting_behind(account: Account, talking: int, waiting: int) -> None:
    """So many calls talk, and as many others wait in the line for their slots."""
    for _ in range(talking):
        account.place("talks_on", callback=False, faults={})
    account.run(
        30, [], done=lambda: sum(call.status == "in_progress" for call in account.calls.values()) == talking
    )
    for _ in range(waiting):
        account.place("answer", callback=False, faults={})
    account.run(30, [], done=lambda: len(account.line.waiting["demo"]) == waiting)
    assert len(account.line.waiting["demo"]) == waiting


def two_end_at_the_same_moment(account: Account) -> None:
    """Each admits one."""
    waiting_behind(account, talking=2, waiting=3)
    account.callees_hang_up()
    account.run(1, [])
    account.check()
    assert account.line.counted["slots freed"] == 2
    assert account.line.counted["admitted"] == account.line.counted["admissions sent"] == 2
    account.finish()


def a_call_goes_back_before_its_fence(account: Account) -> None:
    """Dialling is paused while its agent is awaited: it holds a slot by then."""
    account.place("answer", callback=False, faults={})
    account.run(2, [], done=lambda: bool(account.line.ids("demo")))
    account.switch(on=True)
    account.run(10, [], done=lambda: bool(account.line.waiting["demo"]))
    assert account.line.waiting["demo"]
    account.finish()


def test_a_call_that_goes_back_frees_the_slot_that_it_took_second(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first item had no free slot any more when it was tried."""
    account.limit("demo", 6)
    take = LimitStore.take_slot
    refused: list[int] = []

    def take_slot(self: LimitStore, *given: Any, item: int, **named: Any) -> bool:
        if not refused:
            refused.append(item)
            return False
        return take(self, *given, item=item, **named)

    monkeypatch.setattr(LimitStore, "take_slot", take_slot)
    a_call_goes_back_before_its_fence(account)
    assert refused


def many_come_back(account: Account) -> None:
    """Two slots become free, and the limit has become one: one of the admitted calls finds none."""
    waiting_behind(account, talking=2, waiting=8)
    account.limit("demo", 1)
    account.callees_hang_up()
    account.run(5, [])
    account.finish()
    assert account.line.counted["came back"] == 1


def admissions_are_lost(account: Account) -> None:
    """The calls are admitted when the reconciler looks at the line, and no worker has leased them."""
    waiting_behind(account, talking=2, waiting=6)
    account.callees_hang_up()
    account.wait(2)
    assert account.line.counted["admitted"] == 2
    account.sqs.waiting(DIAL).clear()
    account.run(130, [])
    account.finish()


def one_is_canceled_in_the_line(account: Account) -> None:
    waiting_behind(account, talking=2, waiting=2)
    account.cancel("key-2", {})
    account.finish()


def newcomers_come_beside_free_slots(account: Account) -> None:
    """Before the reconciler fills them."""
    slots.SLOTS_PER_ITEM = 40
    waiting_behind(account, talking=2, waiting=3)
    account.wait(6)
    account.limit("demo", 40)
    for _ in range(30):
        account.place("busy", callback=False, faults={})
    account.run(20, [])
    account.finish()


def nobody_admits_at_an_end(account: Account) -> None:
    """The processes die that would admit."""
    waiting_behind(account, talking=2, waiting=3)
    # Reads the call, ends it, frees its slot.
    account.event_faults = [{3: "dies_before"}] * 10
    account.callees_hang_up()
    account.run(1, [])
    assert (account.line.counted["slots freed"], account.line.counted["admitted"]) == (2, 0)
    account.finish()


def a_slot_is_taken_late_for_a_waiting_call(account: Account) -> None:
    waiting_behind(account, talking=2, waiting=1)
    account.limit("demo", 3)
    account.switch(on=True)
    [call_id] = account.line.waiting["demo"]
    assert account.limits.take_slot("demo", call_id, 3)
    account.line.calm()
    account.run(400, [])
    account.check()
    account.switch(on=False)
    account.finish()


SCENARIOS = [
    two_end_at_the_same_moment,
    a_call_goes_back_before_its_fence,
    many_come_back,
    admissions_are_lost,
    one_is_canceled_in_the_line,
    newcomers_come_beside_free_slots,
    nobody_admits_at_an_end,
    a_slot_is_taken_late_for_a_waiting_call,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_promise_is_broken_when(account: Account, scenario: Callable[[Account], None]) -> None:
    scenario(account)


# ── what is planted in the product is found ─────────────────────────────────────────────────────────

update = CallStore._update
enter_line = Dialler._enter_line
wait_for_slot = Dialler._wait_for_slot
take_slot = LimitStore.take_slot
repair_slot = Reconciler._repair_slot


def admitted_without_condition(self: CallStore, *given: Any, **named: Any) -> Write:
    if ":admitted" in given[3]:
        values = {name: value for name, value in given[3].items() if name not in (":line", ":turn")}
        return update(self, given[0], given[1], "attribute_exists(pk)", values)
    return update(self, *given, **named)


def slot_kept(self: Dialler, *given: Any, **named: Any) -> Any:
    return enter_line(self, *given, **named | {"holds_slot": False})


async def admits_another(self: Dialler, standing: Standing, call: Call, *given: Any) -> None:
    await wait_for_slot(self, standing, call, *given)
    await asyncio.to_thread(self.line.admit_one, call.workspace_id, 0)


def entry_kept(self: CallStore, call_id: str, written: str, *given: Any, **named: Any) -> Write:
    return update(self, call_id, written.replace(", lineOf", ""), *given, **named)


def taken_by_anyone(self: LimitStore, *given: Any, **named: Any) -> bool:
    return take_slot(self, *given, **named | {"admitted": True})


def only_of_ended(self: Reconciler, workspace_id: str, call_id: str, item: int, call: Call | None) -> None:
    if call is None or call.ended:
        repair_slot(self, workspace_id, call_id, item, call)


Scenario = Callable[[Account], None]
PLANTED: dict[str, tuple[Scenario, str, tuple[tuple[Any, str, Any], ...]]] = {
    "an admission without its claim": (
        two_end_at_the_same_moment,
        "does not wait",
        ((CallStore, "_update", admitted_without_condition),),
    ),
    "a slot that is not freed on the way into the line": (
        a_call_goes_back_before_its_fence,
        "waits with a slot",
        ((Dialler, "_enter_line", slot_kept),),
    ),
    "a call that comes back and admits another": (
        many_come_back,
        "came back",
        ((Dialler, "_wait_for_slot", admits_another),),
    ),
    "a fill that ignores who was admitted": (
        admissions_are_lost,
        r"'filled', 2, 2, 2",
        ((Line, "_outstanding", lambda self, *given: 0),),
    ),
    "an entry that is never removed": (
        one_is_canceled_in_the_line,
        "line_of=",
        ((CallStore, "_update", entry_kept),),
    ),
    "newcomers that overtake the line": (
        newcomers_come_beside_free_slots,
        "waiting_for='slot'",
        (
            (Standing, "crowded", lambda self, now_ms: False),
            (LimitStore, "take_slot", taken_by_anyone),
        ),
    ),
    "a line that is not filled": (
        nobody_admits_at_an_end,
        "demo",
        ((Line, "fill", lambda self, workspace, standing: 0),),
    ),
    "a waiting call's slot that is not repaired": (
        a_slot_is_taken_late_for_a_waiting_call,
        "demo",
        ((Reconciler, "_repair_slot", only_of_ended),),
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(account: Account, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, told, patches = PLANTED[fault]
    for patch in patches:
        monkeypatch.setattr(*patch)
    with pytest.raises(AssertionError, match=told):
        scenario(account)
