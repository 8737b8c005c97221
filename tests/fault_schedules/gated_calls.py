"""Schedules in which several calls go to one number, callees opt out, and the rules change while calls wait: the
steps of `machine.py`, and these between them.
"""

from __future__ import annotations

import collections
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from shared.policies import Cap, Policy, Window
from simulate.invocation import Faults
from tests.fault_schedules.machine import A_LIFE, WHICH, Schedules

MOST_CALLS = 6
SALES = "sales"
PURPOSES = st.sampled_from((None, None, SALES))
SCOPES = st.sampled_from(("all", "all", SALES))
EVERY_DAY = frozenset(range(7))
# Of a policy that no call names: rings are stored while there is one that counts them.
COUNTING = {"counting": Policy("counting", min_gap_seconds=1)}
SCHEDULED: st.SearchStrategy[float | None] = st.sampled_from((None, None, 4, 30, 200, 1000))
EXPIRING: st.SearchStrategy[float | None] = st.sampled_from((None, None, None, 40, 300))
RULES = ("none", "no sales", "hours", "one a minute", "two in two minutes", "hours and one a minute")


def hours_until(ms: int, closed_minutes: int = 2) -> tuple[Window, ...]:
    """Windows that close at the next full minute from `ms` on, and open again later."""
    minute = -(-ms // 60_000) % 1440
    return (Window(EVERY_DAY, 0, minute), Window(EVERY_DAY, minute + closed_minutes, 1440))


def rules(kind: str, now_ms: int) -> dict[str, Policy]:
    """The policies by name. Calling hours close within a minute or two, and open two minutes later."""
    caps = (Cap(2, 120),) if kind == "two in two minutes" else (Cap(1, 60),) if "minute" in kind else ()
    windows = hours_until(now_ms + 60_000) if "hours" in kind else ()
    gap = 20 if kind == "two in two minutes" else 0
    default = Policy("default", windows=windows, zone="UTC", caps=caps, min_gap_seconds=gap)
    sales = Policy(SALES, caps=(Cap(1, 90),) if caps else ())
    return {"default": default} | ({} if kind == "no sales" else {SALES: sales})


class GatedSchedules(Schedules):
    """`counted` is its own. counts: whether rings are counted from the first on; else no rule counts them."""

    counted: ClassVar[collections.Counter[str]] = collections.Counter()
    counts = True

    @initialize(
        counts=st.booleans(),
        kind=st.sampled_from(RULES),
        others=st.lists(st.tuples(SCHEDULED, PURPOSES), min_size=1, max_size=2),
    )
    def begins_with_rules(self, counts: bool, kind: str, others: list[tuple[float | None, str | None]]) -> None:
        self.counts = counts
        self._rules("none")
        if not self.account.requests:
            self.account.place("answer", False, {})
        for scheduled_in, purpose in others:
            self.account.place_to(self._number(0), False, {}, scheduled_in=scheduled_in, purpose=purpose)
        self.rules_change(kind)

    def _rules(self, kind: str) -> None:
        counting = COUNTING if self.counts else {}
        self.account.rules(rules(kind, self.account.now_ms()) | counting)

    def _number(self, which: int) -> str:
        return self.account.requests[self._key(which)].number

    @precondition(lambda self: 0 < len(self.account.requests) < MOST_CALLS)
    @rule(
        which=WHICH,
        scheduled_in=SCHEDULED,
        expires_in=EXPIRING,
        purpose=PURPOSES,
        callback=st.booleans(),
        life=A_LIFE,
    )
    def place_another(
        self,
        which: int,
        scheduled_in: float | None,
        expires_in: float | None,
        purpose: str | None,
        callback: bool,
        life: Faults,
    ) -> None:
        """To the number of an earlier call."""
        self._step()
        if scheduled_in is not None and expires_in is not None:
            expires_in += scheduled_in
        self.account.place_to(
            self._number(which), callback, life, scheduled_in=scheduled_in, expires_in=expires_in, purpose=purpose
        )

    @rule(which=WHICH, scope=SCOPES, lasts=st.sampled_from((None, None, 60)), life=A_LIFE)
    def opt_out(self, which: int, scope: str, lasts: float | None, life: Faults) -> None:
        self._step()
        self.account.opt_out(self._number(which), life, scope=scope, lasts=lasts)

    @precondition(lambda self: self.account.gates.opt_outs)
    @rule(which=WHICH, scope=st.sampled_from((None, "all", SALES)), life=A_LIFE)
    def release(self, which: int, scope: str | None, life: Faults) -> None:
        self._step()
        self.account.release(self._number(which), life, scope=scope)

    @rule(kind=st.sampled_from(RULES))
    def rules_change(self, kind: str) -> None:
        self._step()
        self._rules(kind if self.counts or "minute" not in kind else "hours")

    @rule(which=WHICH, scheduled_in=SCHEDULED, life=A_LIFE)
    def move(self, which: int, scheduled_in: float | None, life: Faults) -> None:
        self._step()
        self.account.move(self._key(which), scheduled_in, life)

    @rule(there=st.booleans())
    def marker(self, there: bool) -> None:
        self._step()
        self.account.marker(there=there)

    def teardown(self) -> None:
        gates = self.account.gates
        try:
            super().teardown()
        finally:
            self.counted.update(gates.counted)
            self.counted["opt-outs acknowledged"] += sum(
                opt_out.acknowledged_ms is not None for opt_out in gates.opt_outs
            )
            self.counted["rang"] += len(gates.rings)
            self.counted["moves acknowledged"] += sum(
                move.acknowledged for moves in gates.moves.values() for move in moves
            )
