"""The fourth promise: what was asked of the product and when, against the phones that rang.

Every opt-out, rule, pause and schedule is noted here as it was asked for and answered. A phone rings when the
stand-in says so. Of the product's own records only the moment of a fence is used, and `dialedAt`, by which the
product counts rings.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator

from local.livekit.rooms import Call as PlacedCall
from shared.call import Call
from shared.numbers import ALL
from shared.policies import DEFAULT, Policy
from simulate import invocation

# What is read of a workspace, of the switch and of the marker is at most this old at a fence, milliseconds.
READ_MS = 2_000
# The write comes a moment after the decision: the same request is repeated for up to READ_MS.
WRITTEN_MS = READ_MS + 200
# A phone rings at most this long after the decision that its fence was made by, and after the request to ring it.
DECISION_MS = 10_000
REQUEST_MS = 200
MINUTE_MS = 60_000
FOREVER = 2**60


@dataclasses.dataclass(eq=False)
class OptOut:
    """acknowledged_ms: when its client had the answer; None: never."""

    workspace_id: str
    number: str
    scope: str
    asked_ms: int
    until_ms: int = FOREVER
    acknowledged_ms: int | None = None

    def is_about(self, workspace_id: str, number: str, purpose: str) -> bool:
        return (self.workspace_id, self.number) == (workspace_id, number) and self.scope in (ALL, purpose)


@dataclasses.dataclass(eq=False)
class Release:
    """scope: None removes every opt-out. over_ms: until when the process that was asked may still do it."""

    workspace_id: str
    number: str
    scope: str | None
    over_ms: int = FOREVER

    def may_remove(self, opt_out: OptOut) -> bool:
        of = (self.workspace_id, self.number) == (opt_out.workspace_id, opt_out.number)
        return of and self.scope in (None, opt_out.scope) and self.over_ms >= opt_out.asked_ms


@dataclasses.dataclass(eq=False)
class Move:
    """Another time before which a call must not ring. over_ms: until when the process that was asked may write it.
    acknowledged: the client was told so."""

    not_before_ms: int
    asked_ms: int
    over_ms: int = FOREVER
    acknowledged: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What the client asked of a call: epoch ms, and the name of a policy."""

    purpose: str = DEFAULT
    not_before_ms: int = 0
    not_after_ms: int = FOREVER


@dataclasses.dataclass(frozen=True, slots=True)
class Fence:
    """at_ms: of its write. decided_ms: its `dialedAt`. not_before_ms: the earliest of the call's times that could
    hold then."""

    at_ms: int
    decided_ms: int
    not_before_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Ring:
    call: Call
    purpose: str
    fence: Fence
    at_ms: int
    # How long it may ring.
    ring_ms: int


class NumberPromises:
    """Watches one account. calls: their state by id, which the account keeps. untraceable: by call, the rings that
    the product cannot know of."""

    def __init__(
        self, clock: Callable[[], int], calls: dict[str, Call], untraceable: collections.Counter[str]
    ) -> None:
        self._clock = clock
        self._calls = calls
        self._untraceable = untraceable
        self.wanted: dict[str, Wanted] = {}
        # By call.
        self.moves: dict[str, list[Move]] = {}
        self.opt_outs: list[OptOut] = []
        self.releases: list[Release] = []
        # (from, to) in which nothing may be fenced: dialling was paused, or the table had no marker.
        self.stops: list[tuple[int, int]] = []
        # By workspace: (since, its policies by name), oldest first.
        self._rules: dict[str, list[tuple[int, dict[str, Policy]]]] = collections.defaultdict(list)
        self._fences: dict[str, list[Fence]] = collections.defaultdict(list)
        self._seen = 0
        self.rings: list[Ring] = []
        self.counted: collections.Counter[str] = collections.Counter()
        self._calm: dict[str, list[OptOut]] = {}

    # ── what is asked ───────────────────────────────────────────────────────────────────────────

    def rules_are(self, workspace_id: str, policies: dict[str, Policy]) -> None:
        self._rules[workspace_id].append((self._clock(), policies))

    def restricts(self, workspace_id: str) -> bool:
        """Whether it ever had rules that may keep a call from ringing before its deadline."""
        return any(policies for _, policies in self._rules[workspace_id])

    def stopped(self) -> None:
        self.stops.append((self._clock(), FOREVER))

    def started(self) -> None:
        self.stops = [(since, min(until, self._clock())) for since, until in self.stops]

    def holding(self, workspace_id: str, number: str, purpose: str, at_ms: int) -> list[OptOut]:
        """The opt-outs that were acknowledged by then and that no request has removed, or may have."""
        return [
            opt_out
            for opt_out in self.opt_outs
            if opt_out.is_about(workspace_id, number, purpose)
            and opt_out.acknowledged_ms is not None
            and opt_out.acknowledged_ms <= at_ms < opt_out.until_ms
            and not any(release.may_remove(opt_out) for release in self.releases)
        ]

    def may_hold(self, workspace_id: str, number: str, purpose: str) -> bool:
        """Whether an opt-out was ever asked for, acknowledged or not."""
        return any(opt_out.is_about(workspace_id, number, purpose) for opt_out in self.opt_outs)

    # ── what happens ────────────────────────────────────────────────────────────────────────────

    def call_written(self, before: Call | None, now: Call) -> None:
        wanted = self.wanted.get(now.call_id, Wanted())
        if before is not None and (before.status, now.status) == ("queued", "dialing"):
            assert now.dialed_at_ms is not None
            fence = Fence(self._clock(), now.dialed_at_ms, self._not_before(now.call_id, wanted))
            self._fenced(now, wanted.purpose, fence)
        if now.in_line and (before is None or not before.in_line):
            self.counted[f"waited for {now.waiting_for}"] += 1
        if now.ended and (before is None or not before.ended):
            reason = now.end_event.get("reason")
            self.counted[f"ended {reason}"] += 1
            if reason == "suppressed":
                assert self.may_hold(now.workspace_id, now.to, wanted.purpose), ("not asked for", now)
            if reason == "not_allowed":
                assert any(wanted.purpose not in rules for _, rules in self._rules[now.workspace_id]), now

    def _not_before(self, call_id: str, wanted: Wanted) -> int:
        """A move that was acknowledged replaces all that were over before it was asked for."""
        times = [Move(wanted.not_before_ms, 0, over_ms=0), *self.moves.get(call_id, ())]
        since_ms: int = max((move.asked_ms for move in times if move.acknowledged), default=0)
        not_before_ms: int = min(move.not_before_ms for move in times if move.over_ms >= since_ms)
        return not_before_ms

    def _fenced(self, call: Call, purpose: str, fence: Fence) -> None:
        self.counted["fenced"] += 1
        assert not (held := self.holding(call.workspace_id, call.to, purpose, fence.at_ms)), (held, call)
        by = invocation.current.get()
        bounds = [(fence.decided_ms, READ_MS)]
        if by is not None and not by.ever_stalled:
            bounds.append((fence.at_ms, WRITTEN_MS))
        for since_ms, until_ms in self.stops:
            for at_ms, late_ms in bounds:
                assert not since_ms + late_ms < at_ms < until_ms, ("nothing may be fenced", self.stops, call)
        self._fences[call.call_id].append(fence)

    def look(self, placed: list[PlacedCall]) -> None:
        """At the phones that have begun to ring since."""
        fresh = placed[self._seen :]
        self._seen = len(placed)
        for phone in fresh:
            call = self._calls[phone.identity.removeprefix("call-")]
            fences = [fence for fence in self._fences[call.call_id] if fence.at_ms <= phone.at_ms]
            assert fences, ("it rings without a fence", phone.as_json())
            wanted = self.wanted.get(call.call_id, Wanted())
            ring = Ring(call, wanted.purpose, fences[-1], phone.at_ms, round(phone.ringing_timeout * 1000))
            assert ring.at_ms <= ring.fence.decided_ms + DECISION_MS + REQUEST_MS, ("an old decision", ring)
            assert ring.fence.not_before_ms <= ring.at_ms, ("too early", ring, self.moves)
            assert ring.at_ms <= wanted.not_after_ms + REQUEST_MS, ("too late", ring, wanted)
            held = self.holding(call.workspace_id, call.to, ring.purpose, ring.fence.at_ms)
            assert not held, ("suppressed", held, ring)
            assert any(is_open(policy, ring) for policy in self._in_force(ring)), ("closed", ring)
            self.rings.append(ring)
        if fresh:
            for ring in self.rings:
                policies = list(self._in_force(ring))
                assert any(self._within_caps(policy, ring) for policy in policies), ("too often", ring, policies)

    def _in_force(self, ring: Ring) -> Iterator[Policy]:
        """The call's policy as it may have been read for its fence."""
        rules = self._rules[ring.call.workspace_id] or [(0, {})]
        for (since, policies), (until, _) in zip(rules, [*rules[1:], (FOREVER, {})], strict=True):
            in_force = since <= ring.fence.decided_ms and until >= ring.fence.decided_ms - READ_MS
            if in_force and (ring.purpose in policies or ring.purpose == DEFAULT):
                yield policies.get(ring.purpose, Policy(ring.purpose))

    def _within_caps(self, policy: Policy, ring: Ring) -> bool:
        """Whether it is one of at most so many in the period that ends with it. What the product cannot know of is
        left out."""
        caps = [(cap.count, cap.seconds) for cap in policy.caps] + [(1, policy.min_gap_seconds)]
        at_ms = ring.fence.decided_ms
        of_number = [
            other.fence.decided_ms
            for other in self.rings
            if (other.call.workspace_id, other.call.to) == (ring.call.workspace_id, ring.call.to)
            and not self._untraceable[other.call.call_id]
        ]
        return all(
            sum(at_ms - seconds * 1000 < other_ms <= at_ms for other_ms in of_number) <= count
            for count, seconds in caps
            if seconds
        )

    # ── what it comes to ────────────────────────────────────────────────────────────────────────

    def calm(self) -> None:
        """The faults stop: what waits and is suppressed now ends so."""
        now_ms = self._clock()
        for call in self._calls.values():
            idle = call.status == "queued" and call.lease_until_ms < now_ms
            purpose = self.wanted.get(call.call_id, Wanted()).purpose
            held = self.holding(call.workspace_id, call.to, purpose, now_ms) if idle else []
            if any(opt_out.until_ms == FOREVER for opt_out in held):
                self._calm[call.call_id] = held

    def finish(self) -> None:
        """All calls have ended."""
        for call_id, held in self._calm.items():
            call = self._calls[call_id]
            reason = call.end_event.get("reason")
            expired = reason == "expired" and (call.ended_at_ms or 0) >= min(
                call.queue_deadline_ms, call.expires_at_ms or FOREVER
            )
            assert reason in ("suppressed", "not_allowed") or expired, (held, call)


def is_open(policy: Policy, ring: Ring) -> bool:
    """Whether its whole ring lies in one of the windows, which have every day and UTC here."""
    start_ms, end_ms = ring.at_ms, ring.at_ms + ring.ring_ms - REQUEST_MS
    midnight_ms = start_ms - start_ms % (1440 * MINUTE_MS)
    return not policy.windows or any(
        midnight_ms + window.start * MINUTE_MS <= start_ms and end_ms <= midnight_ms + window.end * MINUTE_MS
        for window in policy.windows
    )
