"""A slot that is freed admits a call also where calls end seldom, long after the last one was refused a slot."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from shared.line import line_of
from shared.workspaces import Workspace
from simulate.dynamodb_in_memory import DynamoDBInMemory
from tests.calls import call_record
from tests.simulation import Simulation

WAITING = 3


@pytest.fixture
def simulation() -> Simulation:
    simulation = Simulation(dynamodb=cast(Any, DynamoDBInMemory()))
    simulation.workspaces.put(
        Workspace(
            "demo",
            "Demo",
            "outbound",
            "ST_demo",
            ("+15550009999",),
            allowed_calling_codes=frozenset({"+1"}),
            max_concurrent_calls=1,
        )
    )
    return simulation


@pytest.mark.parametrize("after", [0, 20, 40, 55])
@pytest.mark.parametrize("minutes", [1, 4, 15])
def test_a_slot_that_is_freed_admits_the_next_call_however_long_ago_another_was_refused(
    simulation: Simulation, after: int, minutes: int
) -> None:
    """after: seconds from the last run of the reconciler to the moment at which a call is refused a slot."""
    first = simulation.place()
    simulation.dial()
    simulation.reconcile()
    simulation.clock.advance(after)
    simulation.place()
    simulation.dial()
    simulation.clock.advance(60 - after)
    for _ in range(minutes):
        simulation.reconcile()
        # As late as a run may be.
        simulation.clock.advance(70)
    talking = simulation.call(first)
    assert talking.status == "in_progress"
    simulation.line.free_slot(talking)
    assert simulation.dial_queue.bodies()


def test_the_slot_of_each_item_admits_one(simulation: Simulation) -> None:
    """Calls that end in one item must not be all that keeps the others crowded."""
    workspace = simulation.workspaces.get("demo")
    assert workspace is not None
    simulation.workspaces.put(dataclasses.replace(workspace, max_concurrent_calls=80))
    for number in range(80):
        assert simulation.limits.take_slot("demo", f"f{number:023x}", 40, item=number // 40)
    for _ in range(WAITING):
        simulation.place()
    simulation.dial()
    assert len(simulation.calls.line(line_of("demo"), simulation.clock(), 10)) == WAITING
    for _ in range(3):
        simulation.reconcile(shards=[0])
        simulation.clock.advance(65)
    for item in (0, 1):
        simulation.line.free_slot(call_record(call_id=f"f{item * 40:023x}", slots_item=item))
        assert len(simulation.dial_queue.bodies()) == item + 1
