"""The gates: whether a call may ring now, and if not, why and when.

One order, for all who ask: the worker before its lease and again before the fence, the request that places a call,
the preview, and `earliestRingAt`. Nothing here reads or writes: the same arguments have the same answer.

    workspace        exists, not disabled
    destination      an allowed country, no special number
    policy           the one that the call's purpose names exists
    consent          given, where the policy requires it
    suppression      none of this number for `all` or the purpose
    scheduled_at     has come
    calling_window   open in every zone in which the callee may be, until the ringing ends
    frequency        the policy's caps on rings of this number
    paused, trunk, slot    what the system itself needs (`system_gates`)

What is missing where it must be does not let a call ring.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

from shared.call import Call, EndReason, WaitingFor, iso
from shared.clock import to_seconds
from shared.limits import Standing
from shared.number_policy import in_allowed_country, is_special
from shared.numbers import NumberRecord
from shared.policies import DEFAULT, Policy
from shared.workspaces import Workspace


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """One gate's answer. detail: what it saw, for the ring receipt and the preview (public names)."""

    name: str
    passed: bool
    detail: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def view(self) -> dict[str, Any]:
        return {"name": self.name, "passed": self.passed, "detail": self.detail}


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What the gates say together: the call is refused, waits, or passes.

    until_ms: from when on (epoch ms) a call that waits may ring, as far as is known now; None: that is not known,
    or never. ring_before_ms: the last moment at which it may be dialled; None: at any time.
    """

    gates: tuple[Gate, ...]
    refused: EndReason | None = None
    waiting_for: WaitingFor | None = None
    until_ms: int | None = None
    ring_before_ms: int | None = None

    @property
    def passed(self) -> bool:
        return self.refused is None and self.waiting_for is None

    @property
    def failed(self) -> Gate | None:
        """The first gate that does not let it ring."""
        return next((gate for gate in self.gates if not gate.passed), None)

    def receipt(self) -> list[dict[str, Any]]:
        return [gate.view() for gate in self.gates]


def policy_of(call: Call, workspace: Workspace) -> Policy | None:
    """The policy under which the call may ring; None when its purpose names one that does not exist."""
    name = call.purpose or DEFAULT
    return workspace.policies.get(name) or (Policy(DEFAULT) if name == DEFAULT else None)


def decide(
    call: Call, workspace: Workspace | None, number: NumberRecord, now_ms: int, ring_ms: int, scale: float = 1
) -> Decision:
    """Whether the rules of the workspace let the call ring now. number: the callee's record. ring_ms: how long its
    phone may ring. scale: the local stack's factor of time, which shortens the periods of caps.
    """
    gates: list[Gate] = []

    def refuse(name: str, end_reason: EndReason, **detail: Any) -> Decision:
        return Decision((*gates, Gate(name, passed=False, detail=detail)), refused=end_reason)

    if workspace is None or workspace.disabled:
        return refuse("workspace", "not_allowed", disabled=True)
    gates.append(Gate("workspace", passed=True))
    if not in_allowed_country(call.to, workspace.allowed_calling_codes):
        return refuse("destination", "not_allowed", country="not allowed")
    if not workspace.allow_special_numbers and is_special(call.to):
        return refuse("destination", "not_allowed", type="special number")
    gates.append(Gate("destination", passed=True))
    purpose = call.purpose or DEFAULT
    policy = policy_of(call, workspace)
    if policy is None:
        return refuse("policy", "not_allowed", purpose=purpose, missing=True)
    known = policy.name in workspace.policies
    gates.append(Gate("policy", True, {"purpose": purpose, "version": policy.version if known else None}))
    if policy.consent_required and not call.consent:
        return refuse("consent", "not_allowed", required=True, given=None)
    gates.append(Gate("consent", True, {"required": policy.consent_required, "given": call.consent}))
    suppression = number.suppression(purpose, now_ms)
    if suppression is not None:
        return refuse(
            "suppression",
            "suppressed",
            readAt=iso(now_ms),
            scope=suppression.scope,
            reason=suppression.reason,
            since=iso(suppression.at_ms),
            until=None if suppression.until_ms is None else iso(suppression.until_ms),
        )
    gates.append(Gate("suppression", True, {"readAt": iso(now_ms)}))
    return _in_time(call, policy, number, gates, now_ms, ring_ms, scale)


def _in_time(
    call: Call,
    policy: Policy,
    number: NumberRecord,
    gates: list[Gate],
    now_ms: int,
    ring_ms: int,
    scale: float,
) -> Decision:
    """The gates that open with time: scheduled_at, calling window, frequency."""
    hours = _Hours.of(call, policy)
    if hours is not None and not hours.zones:
        gates.append(Gate("calling_window", passed=False, detail={"timeZone": None, "policy": policy.name}))
        return Decision(tuple(gates), refused="not_allowed")
    rings = sorted(at_ms for ring, at_ms in number.rings.items() if ring != call.call_id)
    scheduled_ms = call.scheduled_at_ms or 0
    opens_ms = None if hours is None else hours.next_open(now_ms, ring_ms)
    # The first moment at which all three let it ring: each moves it on until none does.
    until_ms: int | None = max(now_ms, scheduled_ms)
    while until_ms is not None:
        moved = _frequency_until(policy, rings, until_ms, scale)
        opens: int | None = moved
        if hours is not None:
            opens = opens_ms if moved == now_ms else hours.next_open(moved, ring_ms)
        if opens == until_ms:
            break
        until_ms = opens
    waiting_for: WaitingFor | None = None
    if call.scheduled_at_ms is not None:
        come = scheduled_ms <= now_ms
        gates.append(Gate("scheduled_at", come, {"scheduledAt": iso(scheduled_ms)}))
        waiting_for = None if come else "scheduled_at"
    ring_before_ms = None
    if hours is not None:
        open_until = hours.open_until(now_ms)
        opened = open_until is not None and open_until - now_ms >= ring_ms
        if open_until is not None and opened:
            ring_before_ms = open_until - ring_ms
        detail = hours.detail(now_ms) | {
            "openUntil": hours.local(open_until),
            "opensAt": None if opened else hours.local(opens_ms),
        }
        gates.append(Gate("calling_window", opened, detail))
        waiting_for = waiting_for or (None if opened else "calling_window")
    if policy.periods_seconds:
        free_ms = _frequency_until(policy, rings, now_ms, scale)
        counted = free_ms <= now_ms
        gates.append(Gate("frequency", counted, _frequency_detail(policy, rings, now_ms, scale)))
        waiting_for = waiting_for or (None if counted else "frequency")
    return Decision(
        tuple(gates),
        waiting_for=waiting_for,
        until_ms=None if waiting_for is None else until_ms,
        ring_before_ms=ring_before_ms,
    )


def system_gates(standing: Standing, call: Call, now_ms: int) -> Decision:
    """What the system itself needs: dialling not paused, the trunk in use, a free slot."""
    gates: list[Gate] = []
    waiting_for: WaitingFor | None = None
    paused = standing.paused
    gates.append(Gate("paused", not paused))
    if paused:
        waiting_for = "paused"
    holds = standing.trunk.holds(call.call_id, now_ms)
    gates.append(Gate("trunk", not holds))
    until_ms = None
    if holds and waiting_for is None:
        waiting_for = "trunk"
        until_ms = standing.trunk.stopped_until_ms if standing.trunk.stopped_until_ms > now_ms else None
    if standing.workspace is not None:
        free = sum(standing.free(standing.workspace.max_concurrent_calls))
        crowded = standing.crowded(now_ms)
        gates.append(Gate("slot", free > 0 and not crowded, {"free": free, "callsWait": crowded}))
        if waiting_for is None and not (free and not crowded):
            waiting_for = "slot"
    return Decision(tuple(gates), waiting_for=waiting_for, until_ms=until_ms)


def preview_view(rules: Decision, system: Decision, now_ms: int) -> dict[str, Any]:
    """The API's answer: what would become of a call now. earliestRingAt is null where only a slot, the trunk or an
    operator decides.
    """
    until_ms = rules.until_ms or system.until_ms
    waiting_for = rules.waiting_for or system.waiting_for
    decision = "refuse" if rules.refused else "wait" if waiting_for else "ring"
    return {
        "status": "success",
        "decision": decision,
        "waitingFor": waiting_for,
        "earliestRingAt": iso(until_ms) if waiting_for and until_ms and until_ms > now_ms else None,
        "gates": [gate.view() for gate in (*rules.gates, *system.gates)],
    }


# ── frequency ───────────────────────────────────────────────────────────────────────────────────────────


def _frequency_until(policy: Policy, rings: list[int], from_ms: int, scale: float) -> int:
    """The first moment from `from` on at which the caps let a number ring that rang at these times."""
    until_ms = from_ms
    for cap in policy.caps:
        if len(rings) >= cap.count:
            until_ms = max(until_ms, rings[-cap.count] + round(cap.seconds * 1000 * scale))
    if rings and policy.min_gap_seconds:
        until_ms = max(until_ms, rings[-1] + round(policy.min_gap_seconds * 1000 * scale))
    return until_ms


def _frequency_detail(policy: Policy, rings: list[int], now_ms: int, scale: float) -> dict[str, Any]:
    return {
        "caps": [
            {
                "count": cap.count,
                "seconds": cap.seconds,
                "rings": sum(at_ms > now_ms - round(cap.seconds * 1000 * scale) for at_ms in rings),
            }
            for cap in policy.caps
        ],
        "minGapSeconds": policy.min_gap_seconds or None,
        "lastRingAt": iso(rings[-1]) if rings else None,
    }


# ── calling windows ─────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class _Hours:
    """A policy's calling windows for one callee. source: where its zones are from."""

    policy: Policy
    zones: tuple[str, ...]
    source: str

    @classmethod
    def of(cls, call: Call, policy: Policy) -> _Hours | None:
        """None when the policy restricts no hours."""
        if not policy.restricts_hours:
            return None
        # Imported here: only a workspace whose policy has windows needs the tables of zones.
        from shared.zones import zones_for

        zones, source = zones_for(policy, call.time_zone, call.to)
        return cls(policy, zones, source)

    def open_until(self, at_ms: int) -> int | None:
        from shared.windows import open_until

        return open_until(self.policy, self.zones, at_ms)

    def next_open(self, from_ms: int, needed_ms: int) -> int | None:
        from shared.windows import next_open

        return next_open(self.policy, self.zones, from_ms, needed_ms)

    def local(self, at_ms: int | None) -> dict[str, str] | None:
        """A moment in each of the zones, ISO 8601."""
        if at_ms is None:
            return None
        from shared.zones import zone

        moment = datetime.datetime.fromtimestamp(to_seconds(at_ms), datetime.UTC)
        return {name: moment.astimezone(zone(name)).isoformat(timespec="seconds") for name in self.zones}

    def detail(self, now_ms: int) -> dict[str, Any]:
        from shared.zones import tz_version

        return {
            "windows": [
                {"days": sorted(window.days), "start": _time(window.start), "end": _time(window.end)}
                for window in self.policy.windows
            ],
            "zonesFrom": self.source,
            "tzVersion": tz_version(),
            "localTime": self.local(now_ms),
        }


def _time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
