"""All states of a bounded system, breadth first, and the shortest way to one that breaks a promise."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from tests.model import gates, line
from tests.model.protocol import initial, steps
from tests.model.state import (
    ALWAYS_ENDS,
    ENDED,
    NEEDS_NO_RESCUE,
    Config,
    State,
    broken_promise,
    settled,
)

T = TypeVar("T")
Two = tuple[State, State]


class Explored(NamedTuple):
    """promise: the first one found broken, "" when all hold; trace: how, a line a step. labels: of what happened
    that led anywhere new.
    """

    states: int
    steps: int
    seconds: float
    promise: str = ""
    trace: tuple[str, ...] = ()
    labels: frozenset[str] = frozenset()

    def told(self) -> str:
        lines = [f"{number:3}. {line}".rstrip() for number, line in enumerate(self.trace, 1)]
        return "\n".join((*lines, f"     broken: {self.promise}"))


class _System(NamedTuple, Generic[T]):
    """steps: what can happen, as (what, state after, whether it happens by itself)."""

    start: T
    steps: Callable[[T], Iterable[tuple[str, T, bool]]]
    broken: Callable[[T], str]
    good: Callable[[T], bool]
    in_the_end: str
    changes: Callable[[T, T], str]


def explore(config: Config) -> Explored:
    """Visits every state of one call. Stops at the first that breaks a promise the config does not ignore."""

    def good(state: State) -> bool:
        return settled(config, state) if config.reconcilers else state.call.status == ENDED

    return _timed(
        _System(
            start=initial(config),
            steps=lambda state: steps(config, state),
            broken=lambda state: broken_promise(config, state),
            good=good,
            in_the_end=""
            if ALWAYS_ENDS in config.ignored
            else ALWAYS_ENDS
            if config.reconcilers
            else NEEDS_NO_RESCUE,
            changes=_changes,
        )
    )


def explore_two(config: Config) -> Explored:
    """The same for two calls of a workspace that may have one at a time."""

    def both(calls: Two) -> Iterator[tuple[str, Two, bool]]:
        for mine, other in ((0, 1), (1, 0)):
            for step in steps(config, calls[mine]._replace(full=calls[other].slot)):
                after = step.after._replace(full=False)
                pair = (calls[other], after) if mine else (after, calls[other])
                yield f"call {'AB'[mine]}: {step.label}", pair, step.fair

    return _timed(
        _System(
            start=(initial(config), initial(config)),
            steps=both,
            broken=lambda calls: broken_promise(config, calls[0]) or broken_promise(config, calls[1]),
            good=lambda calls: settled(config, calls[0]) and settled(config, calls[1]),
            in_the_end="" if ALWAYS_ENDS in config.ignored else ALWAYS_ENDS,
            changes=lambda before, after: _changes(before[0], after[0]) or _changes(before[1], after[1]),
        )
    )


def explore_line(config: line.LineConfig) -> Explored:
    """The same for several calls of a workspace and its line."""
    return _timed(
        _System(
            start=line.initial(config),
            steps=lambda state: line.steps(config, state),
            broken=lambda state: line.broken_promise(config, state),
            good=line.served,
            in_the_end="" if line.SERVED in config.ignored else line.SERVED,
            changes=line.changes,
        )
    )


def explore_gates(config: gates.GatesConfig) -> Explored:
    """The same for calls to one number and what may keep it from ringing."""
    return _timed(
        _System(
            start=gates.initial(config),
            steps=lambda state: gates.steps(config, state),
            broken=lambda state: gates.broken_promise(config, state),
            good=gates.all_ended,
            in_the_end="" if gates.ALL_END in config.ignored else gates.ALL_END,
            changes=gates.changes,
        )
    )


def _timed(system: _System[T]) -> Explored:
    # Nothing here is ever part of a cycle, and looking for some takes half the time.
    gc.disable()
    begun = time.process_time()
    try:
        found = _explore(system)
    finally:
        gc.enable()
    return found._replace(seconds=time.process_time() - begun)


def _explore(system: _System[T]) -> Explored:
    number = {system.start: 0}
    order = [system.start]
    parents, labels = array("l", [-1]), [""]
    sources, targets = array("l"), array("l")
    taken = 0
    at = 0
    while at < len(order):
        for label, after, fair in system.steps(order[at]):
            taken += 1
            there = number.get(after)
            if there is None:
                there = number[after] = len(order)
                order.append(after)
                parents.append(at)
                labels.append(label)
                promise = system.broken(after)
                if promise:
                    trace = _trace(system, order, parents, labels, there)
                    return Explored(len(order), taken, 0, promise, trace)
            if fair and there != at:
                sources.append(at)
                targets.append(there)
        at += 1
    stuck = _without_an_end(system, order, sources, targets) if system.in_the_end else None
    if stuck is not None:
        trace = (*_trace(system, order, parents, labels, stuck), "and from here nothing leads to an end")
        return Explored(len(order), taken, 0, system.in_the_end, trace)
    return Explored(len(order), taken, 0, labels=frozenset(labels))


def _without_an_end(system: _System[T], order: list[T], sources: array[int], targets: array[int]) -> int | None:
    """Goes back from the good states along what happens by itself; whatever it does not reach is stuck."""
    before: list[list[int]] = [[] for _ in order]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    good = [system.good(state) for state in order]
    waiting = [place for place, is_good in enumerate(good) if is_good]
    while waiting:
        for source in before[waiting.pop()]:
            if not good[source]:
                good[source] = True
                waiting.append(source)
    return None if all(good) else good.index(False)


def _trace(
    system: _System[T], order: list[T], parents: array[int], labels: list[str], place: int
) -> tuple[str, ...]:
    way = []
    while parents[place] >= 0:
        way.append(f"{labels[place]:<68} {system.changes(order[parents[place]], order[place])}".rstrip())
        place = parents[place]
    return tuple(reversed(way))


def _changes(before: State, after: State) -> str:
    """What a step wrote into the record, and what it did at LiveKit."""
    changes = [
        f"{name} {value if value not in ('', 0, False) or name == 'live' else 'none'}"
        for name, value in after.call._asdict().items()
        if value != getattr(before.call, name)
    ]
    if before.slot != after.slot:
        changes.append("slot taken" if after.slot else "slot free")
    if before.room != after.room:
        changes.append("no room" if after.room is None else f"room {after.room.sid}, agent: {after.room.agent}")
    if before.phone != after.phone:
        changes.append(f"phone {after.phone}")
    return ", ".join(changes)
