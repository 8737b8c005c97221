"""Runs a campaign: one or more deployments with a part of the calls each, and what was found in all of them."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Callable

from simulate import invocation
from simulate.ledger import Closest, Ledger
from simulate.plan import START
from simulate.process import FAULTS
from simulate.world import Shares, World

# A deployment has at most so many calls. The same seed draws the same, however many processes simulate it.
CALLS_OF_DEPLOYMENT = 5000

# What must not happen, and how the ledger finds it.
CHECKS: dict[str, Callable[[Ledger], list[str]]] = {
    "rings outside the callee's calling window": Ledger.outside_a_window,
    "rings fenced after an acknowledged opt-out": Ledger.after_an_opt_out,
    "rings over a cap": Ledger.over_a_cap,
    "calls that rang twice": Ledger.twice,
    "rings of no accepted call, or of another number": Ledger.uncalled,
    "rings before the call's scheduled time": Ledger.too_early,
    "rings after the call had expired": Ledger.after_expiry,
    "rings while dialling was paused": Ledger.while_paused,
    "rings while the table of numbers had no marker": Ledger.without_marker,
}
UNENDED = "calls without exactly one end"
UNDELIVERED = "events neither delivered nor given up"
LEFT = "slots, messages or rows left at the end"


@dataclasses.dataclass
class Result:
    """What was found. violations: by what must not happen, each with what it was. lateness: ms, of scheduled
    calls. spent: seconds of the processor.
    """

    calls: int = 0
    rings: int = 0
    events: int = 0
    delivered: int = 0
    given_up: int = 0
    opt_outs: int = 0
    virtual_ms: int = 0
    spent: float = 0
    violations: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    by_hour: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    waits: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lateness: list[int] = dataclasses.field(default_factory=list)
    closest: Closest | None = None

    @property
    def holds(self) -> bool:
        return not any(self.violations.values())

    def add(self, other: Result) -> None:
        """Makes this the result of both."""
        for field in dataclasses.fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, collections.Counter):
                mine.update(its)
            elif isinstance(mine, dict):
                for name, found in its.items():
                    mine.setdefault(name, []).extend(found)
            elif field.name == "virtual_ms":
                self.virtual_ms = max(mine, its)
            elif field.name == "closest":
                pairs = [pair for pair in (mine, its) if pair is not None]
                self.closest = min(pairs, key=lambda pair: pair.apart, default=None)
            elif field.name == "lateness":
                self.lateness = sorted(mine + its)
            else:
                setattr(self, field.name, mine + its)


def simulate(calls: int, days: float, seed: str, workers: int = 1, shares: Shares | None = None) -> Result:
    """workers: processes that simulate deployments side by side; with one it is this process."""
    number = -(-calls // CALLS_OF_DEPLOYMENT)
    parts = [
        (calls // number + (n < calls % number), days, f"{seed}-{n}" if number > 1 else seed, shares)
        for n in range(number)
    ]
    result = Result()
    if min(workers, number) <= 1:
        for part in parts:
            result.add(deployment(*part))
        return result
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, number), context) as pool:
        for found in pool.map(deployment, *zip(*parts, strict=True)):
            result.add(found)
    return result


def deployment(calls: int, days: float, seed: str, shares: Shares | None = None) -> Result:
    """One deployment's part of a campaign."""
    began = time.process_time()
    world = World(calls, days, seed, shares)
    world.run()
    ledger = world.ledger
    events, dead = world.events(), world.dead_rows()
    violations = {name: check(ledger) for name, check in CHECKS.items()}
    violations[UNENDED] = world.unended()
    violations[UNDELIVERED] = sorted(events - ledger.received - dead)
    violations[LEFT] = world.left()
    faults = world.faults + world.sqs.faults + world.livekit.faults + world.dynamodb.faults
    for kind, times in invocation.struck.items():
        faults[FAULTS[kind][1]] += times
    return Result(
        calls=len(ledger.planned),
        rings=len(ledger.rung),
        events=len(events),
        delivered=len(events & ledger.received),
        given_up=len(dead - ledger.received),
        opt_outs=sum(map(len, ledger.opt_outs.values())),
        virtual_ms=world.now_ms() - START,
        spent=time.process_time() - began,
        violations=violations,
        by_hour=ledger.by_hour(),
        refused=ledger.refused,
        ends=world.ends(),
        waits=collections.Counter(why for waited in ledger.waited.values() for why in waited),
        faults=faults,
        lateness=ledger.lateness(),
        closest=ledger.closest(),
    )
