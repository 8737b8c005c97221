"""All states of a bounded system, breadth first, and the shortest way to one that breaks a promise."""

from __future__ import annotations

import gc
from array import array
from typing import NamedTuple

from tests.model.protocol import initial, steps
from tests.model.world import (
    ALWAYS_ENDS,
    ENDED,
    NEEDS_NO_RESCUE,
    Config,
    State,
    broken_promise,
    settled,
)


class Explored(NamedTuple):
    """promise: the first one found broken, "" when all hold; trace: how, as (what happened, state)."""

    states: int
    transitions: int
    promise: str = ""
    trace: tuple[tuple[str, State], ...] = ()


def explore(config: Config) -> Explored:
    """Visits every state. Stops at the first that breaks a promise which the config does not ignore."""
    # Nothing here is ever part of a cycle, and looking for some takes half the time.
    gc.disable()
    try:
        return _explore(config)
    finally:
        gc.enable()


def _explore(config: Config) -> Explored:
    start = initial(config)
    number = {start: 0}
    order = [start]
    parents, labels = array("l", [-1]), [""]
    sources, targets = array("l"), array("l")
    transitions = 0
    at = 0
    while at < len(order):
        for step in steps(config, order[at]):
            transitions += 1
            there = number.get(step.after)
            if there is None:
                there = number[step.after] = len(order)
                order.append(step.after)
                parents.append(at)
                labels.append(step.label)
                promise = broken_promise(config, step.after)
                if promise:
                    return Explored(len(order), transitions, promise, _trace(order, parents, labels, there))
            if step.fair and there != at:
                sources.append(at)
                targets.append(there)
        at += 1
    return _without_an_end(config, order, parents, labels, sources, targets, transitions)


def _without_an_end(
    config: Config,
    order: list[State],
    parents: array[int],
    labels: list[str],
    sources: array[int],
    targets: array[int],
    transitions: int,
) -> Explored:
    """Goes back from the good states along what happens by itself; whatever it does not reach is stuck."""
    promise = ALWAYS_ENDS if config.reconciler else NEEDS_NO_RESCUE
    before: list[list[int]] = [[] for _ in order]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    if config.reconciler:
        good = [settled(state) for state in order]
    else:
        good = [state.call.status == ENDED for state in order]
    waiting = [place for place, is_good in enumerate(good) if is_good]
    while waiting:
        for source in before[waiting.pop()]:
            if not good[source]:
                good[source] = True
                waiting.append(source)
    if promise not in config.ignored and not all(good):
        stuck = good.index(False)
        return Explored(len(order), transitions, promise, _trace(order, parents, labels, stuck))
    return Explored(len(order), transitions)


def _trace(
    order: list[State], parents: array[int], labels: list[str], place: int
) -> tuple[tuple[str, State], ...]:
    way = []
    while place >= 0:
        way.append((labels[place], order[place]))
        place = parents[place]
    return tuple(reversed(way))


def told(found: Explored) -> str:
    """The trace for a reader: what happened, and behind it what changed in the record and at LiveKit."""
    lines = [f"broken: {found.promise}"]
    for (_, before), (label, after) in zip(found.trace, found.trace[1:], strict=False):
        lines.append(f"{len(lines):4}. {label:<64}{_changes(before, after)}".rstrip())
    return "\n".join(lines)


def _changes(before: State, after: State) -> str:
    changes = [
        f"{name} {value}"
        for name, value in after.call._asdict().items()
        if value != getattr(before.call, name)
    ]
    changes += [
        f"{name} {'gone' if value is None else value if isinstance(value, str | bool) else 'there'}"
        for name, value in (("slot", after.slot), ("room", after.room), ("phone", after.phone))
        if value != getattr(before, name)
    ]
    return ", ".join(changes)
