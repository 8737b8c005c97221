"""What is noted of a simulation beside the product, and what must hold at its end.

Rings are noted by the phones, opt-outs by those who heard the acknowledgement, events by the receivers. Windows
and caps are checked with a calendar of this file's own. Times are epoch ms.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import zoneinfo
from collections.abc import Callable, Iterable

from shared.policies import Policy
from simulate.plan import MINUTE, Planned

# A worker rings a phone by what it has read at most so long ago: a decision (10 s), and the reads before it (2 s).
DECISION_MS = 12_000
# A request's way to the phone, by which a ring may begin and end later than the worker meant.
WAY_MS = 1_000


@dataclasses.dataclass
class Ring:
    """One ring of a phone. until: answered, or given up; None: it rings still."""

    call_id: str
    number: str
    at: int
    until: int | None = None


@dataclasses.dataclass
class Span:
    """From, to; `to` None: it lasts."""

    start: int
    end: int | None = None

    def covers(self, start: int, end: int) -> bool:
        return self.start <= start and (self.end is None or end <= self.end)


@dataclasses.dataclass(frozen=True)
class Closest:
    """The fence and the acknowledged opt-out of its number that came closest to each other."""

    fenced_at: int
    acknowledged_at: int

    @property
    def apart(self) -> int:
        return abs(self.fenced_at - self.acknowledged_at)


class Ledger:
    """clock: epoch ms."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.rung: list[Ring] = []
        self.planned: dict[str, Planned] = {}
        self.refused: collections.Counter[str] = collections.Counter()
        # By workspace and number: (acknowledged at, scope).
        self.opt_outs: dict[tuple[str, str], list[tuple[int, str]]] = collections.defaultdict(list)
        self.fenced: dict[str, list[int]] = collections.defaultdict(list)
        self.paused: list[Span] = []
        self.unmarked: list[Span] = []
        self.policies: dict[tuple[str, str], list[tuple[int, Policy]]] = collections.defaultdict(list)
        self.received: set[str] = set()
        # By call: what it waited for.
        self.waited: dict[str, list[str]] = collections.defaultdict(list)

    # ── what is noted ───────────────────────────────────────────────────────────────────────────────

    def accepted(self, call_id: str, planned: Planned) -> None:
        self.planned[call_id] = planned

    def rings(self, call_id: str, number: str) -> None:
        self.rung.append(Ring(call_id, number, self._clock()))

    def rang(self, call_id: str) -> None:
        """Its phone rings no more."""
        for ring in reversed(self.rung):
            if ring.call_id == call_id:
                ring.until = self._clock()
                return

    def is_fenced(self, call_id: str) -> None:
        self.fenced[call_id].append(self._clock())

    def opted_out(self, workspace: str, number: str, scope: str) -> None:
        """The opt-out is acknowledged."""
        self.opt_outs[workspace, number].append((self._clock(), scope))

    def policy_is(self, workspace: str, policy: Policy) -> None:
        self.policies[workspace, policy.name].append((self._clock(), policy))

    def begins(self, spans: list[Span]) -> None:
        spans.append(Span(self._clock()))

    def ends(self, spans: list[Span]) -> None:
        spans[-1].end = self._clock()

    # ── what must be 0 ──────────────────────────────────────────────────────────────────────────────

    def twice(self) -> list[str]:
        rings = collections.Counter(ring.call_id for ring in self.rung)
        return [f"{call_id} rang {number} times" for call_id, number in rings.items() if number > 1]

    def uncalled(self) -> list[str]:
        """Rings of calls that no client has placed, or of another number than asked for."""
        return [
            f"{ring.call_id} rang {ring.number}"
            for ring in self.rung
            if ring.call_id not in self.planned or self.planned[ring.call_id].number != ring.number
        ]

    def outside_a_window(self) -> list[str]:
        found = []
        for ring, planned in self._rings():
            end = ring.until or ring.at
            policies = self._policies(planned, ring.at)
            if not any(is_open(policy, planned.zone, ring.at, end - WAY_MS) for policy in policies):
                found.append(
                    f"{ring.call_id} rang at {local(ring.at, planned.zone)} until {local(end, planned.zone)}"
                )
        return found

    def after_an_opt_out(self) -> list[str]:
        """Rings whose fence came after the acknowledgement."""
        found = []
        for ring, planned in self._rings():
            fence = self._fence(ring)
            for acknowledged, scope in self.opt_outs.get((planned.workspace, planned.number), ()):
                if scope in ("all", planned.policy) and acknowledged < fence:
                    found.append(f"{ring.call_id} was fenced at {fence}, {scope!r} acknowledged at {acknowledged}")
        return found

    def over_a_cap(self) -> list[str]:
        found = []
        of_number: dict[tuple[str, str], list[Ring]] = collections.defaultdict(list)
        for ring, planned in self._rings():
            rings = of_number[planned.workspace, planned.number]
            for policy in self._policies(planned, ring.at)[:1]:
                periods = [(cap.count, cap.seconds) for cap in policy.caps]
                periods += [(1, policy.min_gap_seconds)] if policy.min_gap_seconds else []
                for count, seconds in periods:
                    since = ring.at - seconds * 1000 + DECISION_MS
                    others = [other for other in rings if other.at > since and other.call_id != ring.call_id]
                    if len(others) >= count:
                        found.append(f"{ring.call_id} rang as number {len(others) + 1} within {seconds} s")
            rings.append(ring)
        return found

    def too_early(self) -> list[str]:
        return [
            f"{ring.call_id} rang at {ring.at}, scheduled for {planned.scheduled_at}"
            for ring, planned in self._rings()
            if planned.scheduled_at is not None and ring.at < planned.scheduled_at
        ]

    def after_expiry(self) -> list[str]:
        return [
            f"{ring.call_id} rang at {ring.at}, expired at {planned.expires_at}"
            for ring, planned in self._rings()
            if ring.at > planned.expires_at + WAY_MS
        ]

    def while_paused(self) -> list[str]:
        return self._during(self.paused)

    def without_marker(self) -> list[str]:
        return self._during(self.unmarked)

    def _during(self, spans: Iterable[Span]) -> list[str]:
        return [
            f"{ring.call_id} rang at {ring.at}"
            for ring in self.rung
            if any(span.covers(ring.at - DECISION_MS, ring.at) for span in spans)
        ]

    # ── figures ─────────────────────────────────────────────────────────────────────────────────────

    def by_hour(self) -> collections.Counter[int]:
        """Rings by the hour of the callee's day."""
        return collections.Counter(local(ring.at, planned.zone).hour for ring, planned in self._rings())

    def closest(self) -> Closest | None:
        """The fence of a ring that came last before an opt-out of its number was acknowledged: of all, the least
        time in between.
        """
        pairs = [
            Closest(self._fence(ring), acknowledged)
            for ring, planned in self._rings()
            for acknowledged, scope in self.opt_outs.get((planned.workspace, planned.number), ())
            if scope in ("all", planned.policy)
        ]
        return min(pairs, key=lambda pair: pair.apart, default=None)

    def lateness(self) -> list[int]:
        """By how many ms calls rang later than scheduled, sorted: of those whose window was open then, whose
        number had not rung before, and that neither a rule nor a pause nor a slot held later.
        """
        found = []
        seen: set[tuple[str, str]] = set()
        for ring, planned in self._rings():
            callee = (planned.workspace, planned.number)
            at = planned.scheduled_at
            if (
                at is not None
                and callee not in seen
                and not {"calling_window", "frequency", "paused", "slot"} & set(self.waited[ring.call_id])
                and all(is_open(policy, planned.zone, at, at + MINUTE) for policy in self._policies(planned, at))
            ):
                found.append(ring.at - at)
            seen.add(callee)
        return sorted(found)

    # ── helpers ─────────────────────────────────────────────────────────────────────────────────────

    def _rings(self) -> list[tuple[Ring, Planned]]:
        return [(ring, self.planned[ring.call_id]) for ring in self.rung if ring.call_id in self.planned]

    def _fence(self, ring: Ring) -> int:
        """The last fence before the phone rang."""
        return max((at for at in self.fenced[ring.call_id] if at <= ring.at), default=ring.at)

    def _policies(self, planned: Planned, at: int) -> list[Policy]:
        """The policies that a worker may have read that let a phone ring at this time, the newest last."""
        versions = self.policies[planned.workspace, planned.policy]
        last = [policy for since, policy in versions if since <= at - DECISION_MS][-1:]
        return last + [policy for since, policy in versions if at - DECISION_MS < since <= at]


def local(at: int, zone: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at / 1000, zoneinfo.ZoneInfo(zone))


def is_open(policy: Policy, zone: str, start: int, end: int) -> bool:
    """Whether both lie in one window of the callee's day. The campaign's windows do not go over midnight."""
    begins, ends = local(start, zone), local(max(start, end), zone)
    midnight = begins.replace(hour=0, minute=0, second=0, microsecond=0)
    if begins.date() != ends.date():
        return False
    for window in policy.windows:
        opens = midnight.replace(hour=window.start // 60, minute=window.start % 60)
        closes = midnight.replace(hour=window.end // 60, minute=window.end % 60)
        # Of one zone, compared by the clock on the wall.
        if begins.weekday() in window.days and opens <= begins and ends <= closes:
            return True
    return False
