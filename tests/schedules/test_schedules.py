"""Random schedules of requests, dials, events, cancels, deaths and stalls: one ring, one end, nothing left.

`HYPOTHESIS_PROFILE=nightly` runs thousands of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.schedules.world import Life, World
from tests.system import System, demo_workspace

pytestmark = pytest.mark.e2e

SCHEDULES = 3000 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 200
FATES = (
    "answer", "talks_on", "busy", "no_answer", "unavailable_once", "rate_limited_once", "unavailable",
    "cut_after_answer", "cut_while_ringing", "bad_gateway", "agent_never_joins", "carrier_error",
)  # fmt: skip
LIVES = st.one_of(st.none(), st.integers(0, 40))
LIMIT = 2

counted = {"schedules": 0, "steps": 0, "deaths": 0}
system: System


class Schedules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        counted["schedules"] += 1
        self.world = World(system)
        self.placed = 0

    @rule(fate=st.sampled_from(FATES), dies_after=LIVES)
    def request(self, fate: str, dies_after: int | None) -> None:
        if self.placed >= 3:
            return
        self.placed += 1
        number = f"+1555{counted['schedules']:06d}{self.placed}"
        system.faults(numbers={number: {"outcome": fate}})
        self.world.request(number, key=number, life=Life(dies_after))

    @precondition(lambda self: self.world.dial_queue.waiting)
    @rule(which=st.integers(0, 9), dies_after=LIVES, again=st.booleans())
    def dial(self, which: int, dies_after: int | None, again: bool) -> None:
        waiting = self.world.dial_queue.waiting
        message = waiting.pop(which % len(waiting))
        acknowledged = self.world.dial(message, Life(dies_after))
        counted["deaths"] += not acknowledged
        if again or not acknowledged:
            waiting.append(message)

    @precondition(lambda self: self.world.dial_queue.waiting and not self.world.threads)
    @rule(which=st.integers(0, 9), after=st.integers(0, 30))
    def stall(self, which: int, after: int) -> None:
        waiting = self.world.dial_queue.waiting
        self.world.stall(waiting[which % len(waiting)], after)

    @precondition(lambda self: self.world.threads)
    @rule()
    def wake(self) -> None:
        self.world.wake()

    @precondition(lambda self: self.world.events)
    @rule(which=st.integers(0, 9), dies_after=LIVES, fate=st.sampled_from(["once", "again", "lost"]))
    def livekit_event(self, which: int, dies_after: int | None, fate: str) -> None:
        event = self.world.events[which % len(self.world.events)]
        if fate != "again":
            self.world.events.remove(event)
        if fate != "lost":
            self.world.settle(event, Life(dies_after))

    @precondition(lambda self: self.world.calls)
    @rule(which=st.integers(0, 9), dies_after=LIVES)
    def cancel(self, which: int, dies_after: int | None) -> None:
        call_ids = sorted(self.world.calls)
        self.world.cancel(call_ids[which % len(call_ids)], Life(dies_after))

    @rule(dies_after=LIVES)
    def reconcile(self, dies_after: int | None) -> None:
        self.world.reconcile(Life(dies_after))

    @rule(seconds=st.sampled_from([10, 70, 240, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.world.jump(seconds)

    @invariant()
    def holds(self) -> None:
        counted["steps"] += 1
        self.world.check()
        assert len(self.world.workspaces.active_calls("demo")) <= LIMIT

    def teardown(self) -> None:
        self.world.finish()


@pytest.fixture
def quick_system() -> Iterator[System]:
    global system
    system = System()
    system.workspaces.put(demo_workspace(maxConcurrentCalls=LIMIT))
    system.faults(talkSeconds=0.02, ringSeconds=0.01, agentJoinSeconds=0.0)
    yield system
    system.close()


def test_no_schedule_rings_twice_ends_twice_or_leaves_anything(
    quick_system: System, report_table: list[tuple[str, ...]]
) -> None:
    run_state_machine_as_test(
        Schedules,
        settings=settings(
            max_examples=SCHEDULES,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    report_table.append(("random schedules, steps, dials that died", *map(str, counted.values())))
