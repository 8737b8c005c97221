"""Each gate, their order, and from when on a call may ring."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.call import Call, iso
from shared.gates import Decision, decide, policy_of, preview_view, system_gates
from shared.limits import Standing
from shared.numbers import NumberRecord, Suppression
from shared.policies import Cap, Policy, Window
from shared.slots import SlotsItem
from shared.switch import Switch
from shared.trunk import Trunk
from shared.windows import OPEN_MS
from shared.workspaces import Workspace
from shared.zones import tz_version
from tests.one_call import CALL, CALL_ID, NOW, WORKSPACE

# 2027-01-15, a Friday, 08:01 in UTC and 03:01 in New York.
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
RING = 40_000
EVERY_DAY = frozenset(range(7))
NOTHING = NumberRecord("demo", CALL.to)
ALL_GATES = [
    "workspace",
    "destination",
    "policy",
    "consent",
    "suppression",
    "scheduled_at",
    "calling_window",
    "frequency",
]


def workspace(*policies: Policy, **changes: Any) -> Workspace:
    return dataclasses.replace(WORKSPACE, policies={policy.name: policy for policy in policies}, **changes)


def call(**fields: Any) -> Call:
    return dataclasses.replace(CALL, **fields)


def rang(*times: int, own: int | None = None) -> NumberRecord:
    rings = {f"{n:024}": at for n, at in enumerate(times)} | ({} if own is None else {CALL_ID: own})
    return NumberRecord("demo", CALL.to, rings=rings, version="v")


def suppressed(*suppressions: Suppression) -> NumberRecord:
    return NumberRecord("demo", CALL.to, suppressions, version="v")


def decided(
    policy: Policy | None = None,
    number: NumberRecord = NOTHING,
    *,
    now: int = NOW,
    of: Workspace | None = None,
    scale: float = 1,
    **fields: Any,
) -> Decision:
    return decide(call(**fields), of or workspace(*([policy] if policy else [])), number, now, RING, scale)


def names(decision: Decision) -> list[str]:
    return [gate.name for gate in decision.gates]


def detail(decision: Decision, name: str) -> dict[str, Any]:
    return next(gate.detail for gate in decision.gates if gate.name == name)


def refused(decision: Decision) -> tuple[Any, str, Any, Any]:
    """The end's reason and the gate. What is refused does not wait, and nothing after it is looked at."""
    failed = decision.failed
    assert failed is not None
    assert failed is decision.gates[-1]
    assert all(gate.passed for gate in decision.gates[:-1])
    assert not decision.passed
    return decision.refused, failed.name, decision.waiting_for, decision.until_ms


def passes(decision: Decision) -> bool:
    assert decision.passed == (decision.failed is None)
    assert not decision.passed or (decision.waiting_for, decision.until_ms) == (None, None)
    return decision.passed


# ── the order ───────────────────────────────────────────────────────────────────────────────────────


def test_without_a_policy_only_suppression_restricts_a_call() -> None:
    decision = decided()
    assert passes(decision)
    assert names(decision) == ALL_GATES[:5]
    assert decision.ring_before_ms is None


def test_all_gates_in_their_order() -> None:
    policy = Policy("default", windows=(Window(EVERY_DAY, 0, 1440),), zone="Etc/UTC", min_gap_seconds=5)
    decision = decided(policy, scheduled_at_ms=NOW)
    assert passes(decision)
    assert names(decision) == ALL_GATES
    assert [gate["name"] for gate in decision.receipt()] == ALL_GATES
    assert decision.receipt()[0] == {"name": "workspace", "passed": True, "detail": {}}


STRICT = Policy(
    "sales", windows=(Window(EVERY_DAY, 600, 601),), zone="Etc/UTC", min_gap_seconds=60, consent_required=True
)


def test_each_gate_is_asked_after_those_before_it() -> None:
    """All of them fail; one after the other is put right."""
    everything: dict[str, Any] = {
        "of": workspace(STRICT, disabled=True, allowed_calling_codes=frozenset()),
        "number": dataclasses.replace(rang(NOW), suppressions=(Suppression("all", "x", NOW),)),
        "purpose": "other",
        "scheduled_at_ms": NOW + 9,
    }

    def gate(**changes: Any) -> str:
        everything.update(changes)
        failed = decided(**everything).failed
        assert failed is not None
        return failed.name

    assert gate() == "workspace"
    assert gate(of=workspace(STRICT, allowed_calling_codes=frozenset())) == "destination"
    assert gate(of=workspace(STRICT)) == "policy"
    assert gate(purpose="sales") == "consent"
    assert gate(consent={"basis": "b", "obtainedAt": "t"}) == "suppression"
    assert gate(number=rang(NOW)) == "scheduled_at"
    assert gate(scheduled_at_ms=NOW) == "calling_window"
    open_all_day = dataclasses.replace(STRICT, windows=())
    assert gate(of=workspace(open_all_day)) == "frequency"
    assert passes(decided(**everything | {"number": NOTHING}))


# ── what refuses ────────────────────────────────────────────────────────────────────────────────────


def test_a_workspace_that_is_gone_or_disabled() -> None:
    for there in (None, workspace(disabled=True)):
        decision = decide(CALL, there, NOTHING, NOW, RING)
        assert refused(decision) == ("not_allowed", "workspace", None, None)


@pytest.mark.parametrize(
    ("to", "special", "passed"),
    [
        ("+442079460123", True, False),
        ("+19005550123", False, False),
        ("+19005550123", True, True),
        ("+12025550123", False, True),
    ],
)
def test_a_destination(to: str, special: bool, passed: bool) -> None:
    decision = decided(of=workspace(allow_special_numbers=special), to=to)
    assert passes(decision) is passed
    if not passed:
        assert refused(decision) == ("not_allowed", "destination", None, None)


@pytest.mark.parametrize("purpose", ["sales", "Default", ""])
def test_a_purpose_without_its_policy(purpose: str) -> None:
    decision = decided(Policy("care"), purpose=purpose)
    expected = purpose or "default"
    if expected == "default":
        assert passes(decision)
        return
    assert refused(decision) == ("not_allowed", "policy", None, None)
    assert detail(decision, "policy") == {"purpose": purpose, "missing": True}


def test_the_policy_of_a_call() -> None:
    care, default = Policy("care", version=3), Policy("default", version=2)
    of = workspace(care, default)
    assert policy_of(call(), of) is default
    assert policy_of(call(purpose="care"), of) is care
    assert policy_of(call(purpose="default"), workspace(care)) == Policy("default")
    assert policy_of(call(purpose="gone"), of) is None
    assert detail(decided(of=of, purpose="care"), "policy") == {"purpose": "care", "version": 3}
    assert detail(decided(of=workspace(care)), "policy") == {"purpose": "default", "version": None}


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("given", [None, {"basis": "contract", "obtainedAt": "2026-01-01T00:00:00Z"}])
def test_consent(required: bool, given: dict[str, str] | None) -> None:
    decision = decided(Policy("default", consent_required=required), consent=given)
    if required and given is None:
        assert refused(decision) == ("not_allowed", "consent", None, None)
    else:
        assert passes(decision)
    assert detail(decision, "consent") == {"required": required, "given": given}


@pytest.mark.parametrize(
    ("scope", "until", "passed"),
    [
        ("all", None, False),
        ("all", NOW + 1, False),
        ("all", NOW, True),
        ("default", None, False),
        ("sales", None, True),
    ],
)
def test_a_suppression(scope: str, until: int | None, passed: bool) -> None:
    found = Suppression(scope, "asked", NOW - 5, until, {"key": "k1"})
    decision = decided(number=suppressed(found))
    assert passes(decision) is passed
    if passed:
        assert detail(decision, "suppression") == {"readAt": iso(NOW)}
        return
    assert refused(decision) == ("suppressed", "suppression", None, None)
    assert detail(decision, "suppression") == {
        "readAt": iso(NOW),
        "scope": scope,
        "reason": "asked",
        "since": iso(NOW - 5),
        "until": None if until is None else iso(until),
    }


def test_one_of_several_suppressions_is_enough() -> None:
    several = suppressed(
        Suppression("all", "over", NOW - 9, NOW - 1), Suppression("care", "x", 1), Suppression("sales", "y", 1)
    )
    assert passes(decided(number=several))
    of = workspace(Policy("sales"))
    assert detail(decided(number=several, of=of, purpose="sales"), "suppression")["reason"] == "y"


# ── scheduled_at ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("at", "passed"), [(NOW - 1, True), (NOW, True), (NOW + 1, False)])
def test_scheduled_at(at: int, passed: bool) -> None:
    decision = decided(scheduled_at_ms=at)
    assert passes(decision) is passed
    assert detail(decision, "scheduled_at") == {"scheduledAt": iso(at)}
    if not passed:
        assert (decision.waiting_for, decision.until_ms, decision.refused) == ("scheduled_at", at, None)


# ── calling windows ─────────────────────────────────────────────────────────────────────────────────


def hours(start: int, end: int, **more: Any) -> Policy:
    """Open between these minutes of the day in UTC, unless `more` says otherwise; NOW is minute 481."""
    return Policy("default", windows=(Window(EVERY_DAY, start, end),), **{"zone": "Etc/UTC"} | more)


@pytest.mark.parametrize(
    ("start", "end", "now", "until", "before"),
    [
        (481, 540, NOW, None, NOW + 59 * MINUTE - RING),
        (482, 540, NOW, NOW + MINUTE, None),
        (482, 540, NOW + MINUTE - 1, NOW + MINUTE, None),
        # Ringing must end inside.
        (400, 482, NOW + MINUTE - RING, None, NOW + MINUTE - RING),
        (400, 482, NOW + MINUTE - RING + 1, NOW - 81 * MINUTE + DAY, None),
        (400, 482, NOW + MINUTE, NOW - 81 * MINUTE + DAY, None),
        # Over midnight.
        (1380, 481, NOW - RING, None, NOW - RING),
        (1380, 481, NOW, NOW + 899 * MINUTE, None),
    ],
)
def test_a_calling_window(start: int, end: int, now: int, until: int | None, before: int | None) -> None:
    decision = decided(hours(start, end), now=now)
    assert passes(decision) is (until is None)
    assert (decision.until_ms, decision.ring_before_ms) == (until, before)
    if until is not None:
        assert decision.waiting_for == "calling_window"


def test_what_a_calling_window_saw() -> None:
    policy = Policy("default", windows=(Window(frozenset({4}), 180, 240),))
    open_ = detail(decided(policy, time_zone="America/New_York"), "calling_window")
    assert open_ == {
        "windows": [{"days": [4], "start": "03:00", "end": "04:00"}],
        "zonesFrom": "time_zone",
        "tzVersion": tz_version(),
        "localTime": {"America/New_York": "2027-01-15T03:01:00-05:00"},
        "openUntil": {"America/New_York": "2027-01-15T04:00:00-05:00"},
        "opensAt": None,
    }
    closed = detail(decided(policy, time_zone="America/New_York", now=NOW + HOUR), "calling_window")
    assert (closed["openUntil"], closed["opensAt"]) == (None, {"America/New_York": "2027-01-22T03:00:00-05:00"})


def test_it_must_be_open_in_every_zone_that_the_number_may_be_in() -> None:
    """+1 202 is Washington; a toll-free number may be in any zone of its plan."""
    nine_to_nine = hours(540, 1260, zone="recipient")
    one_zone = decided(nine_to_nine)
    assert detail(one_zone, "calling_window")["zonesFrom"] == "number"
    assert list(detail(one_zone, "calling_window")["localTime"]) == ["America/New_York"]
    assert one_zone.until_ms == NOW + 6 * HOUR - MINUTE
    anywhere = decided(nine_to_nine, to="+18005550123")
    zones = detail(anywhere, "calling_window")["localTime"]
    assert {"America/New_York", "America/Los_Angeles"} < set(zones)
    assert anywhere.until_ms is None or anywhere.until_ms > (one_zone.until_ms or 0)


@pytest.mark.parametrize(
    "rules", [{"windows": (Window(EVERY_DAY, 0, 1440),)}, {"holidays": frozenset({"2027-12-24"})}]
)
def test_a_number_without_a_zone(rules: dict[str, Any]) -> None:
    of = workspace(Policy("default", **rules), allowed_calling_codes=frozenset({"+8"}), allow_special_numbers=True)
    decision = decided(of=of, to="+88213200000")
    assert refused(decision) == ("not_allowed", "calling_window", None, None)
    assert detail(decision, "calling_window") == {"timeZone": None, "policy": "default"}
    assert passes(decided(of=of, to="+88213200000", time_zone="Europe/Berlin"))


def test_without_windows_no_zone_is_needed() -> None:
    of = workspace(allowed_calling_codes=frozenset({"+8"}), allow_special_numbers=True)
    assert passes(decided(of=of, to="+88213200000"))


def test_a_holiday_is_closed_without_windows_too() -> None:
    decision = decided(Policy("default", zone="Etc/UTC", holidays=frozenset({"2027-01-15"})))
    assert (decision.waiting_for, decision.until_ms) == ("calling_window", NOW - 481 * MINUTE + DAY)


def test_a_window_that_is_never_long_enough() -> None:
    decision = decide(CALL, workspace(hours(481, 482)), NOTHING, NOW, MINUTE + 1)
    assert (decision.waiting_for, decision.until_ms) == ("calling_window", None)
    assert not decision.passed


# ── frequency ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rules", "times", "until"),
    [
        ({"min_gap_seconds": 60}, [], None),
        ({"min_gap_seconds": 60}, [NOW - MINUTE], None),
        ({"min_gap_seconds": 60}, [NOW - MINUTE + 1], NOW + 1),
        ({"caps": (Cap(1, 60),)}, [NOW - MINUTE], None),
        ({"caps": (Cap(1, 60),)}, [NOW - MINUTE + 1], NOW + 1),
        ({"caps": (Cap(2, 60),)}, [NOW], None),
        ({"caps": (Cap(2, 60),)}, [NOW - 5, NOW], NOW + MINUTE - 5),
        ({"caps": (Cap(2, 60),)}, [NOW, NOW - 5, NOW - 9], NOW + MINUTE - 5),
        # The longest of all.
        ({"caps": (Cap(2, 60), Cap(3, 600))}, [NOW - 9, NOW - 5, NOW], NOW - 9 + 10 * MINUTE),
        ({"caps": (Cap(2, 60),), "min_gap_seconds": 90}, [NOW - 5, NOW], NOW + 90_000),
        # Of another process whose clock is ahead.
        ({"min_gap_seconds": 60}, [NOW + 5], NOW + MINUTE + 5),
    ],
)
def test_a_frequency(rules: dict[str, Any], times: list[int], until: int | None) -> None:
    decision = decided(Policy("default", **rules), rang(*times))
    assert passes(decision) is (until is None)
    assert decision.until_ms == until
    assert decision.waiting_for == (None if until is None else "frequency")


def test_what_a_frequency_saw() -> None:
    policy = Policy("default", caps=(Cap(9, 60), Cap(9, 600)), min_gap_seconds=5)
    number = rang(NOW - MINUTE, NOW - MINUTE + 1, NOW - 6_000)
    assert detail(decided(policy, number), "frequency") == {
        "caps": [{"count": 9, "seconds": 60, "rings": 2}, {"count": 9, "seconds": 600, "rings": 3}],
        "minGapSeconds": 5,
        "lastRingAt": iso(NOW - 6_000),
    }
    never = detail(decided(Policy("default", caps=(Cap(9, 60),))), "frequency")
    assert (never["minGapSeconds"], never["lastRingAt"]) == (None, None)


def test_a_calls_own_earlier_ring_does_not_count() -> None:
    policy = Policy("default", caps=(Cap(1, 60),), min_gap_seconds=60)
    assert passes(decided(policy, rang(own=NOW)))
    other = decided(policy, rang(NOW - 7, own=NOW))
    assert other.until_ms == NOW - 7 + MINUTE
    assert detail(other, "frequency")["lastRingAt"] == iso(NOW - 7)


@pytest.mark.parametrize("scale", [1, 0.5, 0.05])
def test_the_local_stack_shortens_the_periods(scale: float) -> None:
    policy = Policy("default", caps=(Cap(1, 60),))
    assert decided(policy, rang(NOW), scale=scale).until_ms == NOW + round(MINUTE * scale)
    gap = Policy("default", min_gap_seconds=60)
    assert decided(gap, rang(NOW), scale=scale).until_ms == NOW + round(MINUTE * scale)
    counted = detail(decided(policy, rang(NOW - 40_000), scale=scale), "frequency")["caps"][0]["rings"]
    assert counted == (1 if scale == 1 else 0)


# ── together ────────────────────────────────────────────────────────────────────────────────────────


def test_it_waits_for_the_first_that_fails_until_all_of_them_let_it_ring() -> None:
    """Scheduled for 09:00, open from 10:00 to 10:10, and the last ring is too near until 10:05."""
    ten = NOW - 481 * MINUTE + 600 * MINUTE
    policy = hours(600, 610, min_gap_seconds=3600)
    last = ten + 5 * MINUTE - HOUR
    decision = decided(policy, rang(last), scheduled_at_ms=ten - HOUR)
    assert (decision.waiting_for, decision.until_ms) == ("scheduled_at", ten + 5 * MINUTE)
    # Too near until 10:09:30: the ring would not end in the window.
    late = decided(policy, rang(last + 4 * MINUTE + 30_000), scheduled_at_ms=ten - HOUR)
    assert late.until_ms == ten + DAY


INSTANTS = st.integers(NOW - DAY, NOW + 2 * DAY)
POLICIES = st.builds(
    Policy,
    name=st.just("default"),
    windows=st.lists(
        st.builds(
            Window,
            days=st.frozensets(st.integers(0, 6), min_size=1),
            start=st.integers(0, 1439),
            end=st.integers(1, 1440),
        ).filter(lambda window: window.start != window.end),
        max_size=3,
    ).map(tuple),
    zone=st.sampled_from(["recipient", "Etc/UTC", "Asia/Kathmandu", "Pacific/Apia"]),
    holidays=st.frozensets(st.dates(datetime.date(2027, 1, 14), datetime.date(2027, 1, 20)).map(str), max_size=2),
    caps=st.lists(st.builds(Cap, st.integers(1, 4), st.integers(1, 2 * 86_400)), max_size=2).map(tuple),
    min_gap_seconds=st.one_of(st.just(0), st.integers(1, 86_400)),
)


@given(
    policy=POLICIES,
    times=st.lists(st.integers(NOW - 3 * DAY, NOW), max_size=6),
    own=st.one_of(st.none(), st.integers(NOW - DAY, NOW)),
    scheduled=st.one_of(st.none(), INSTANTS),
    zone=st.sampled_from([None, "Europe/Berlin", "America/St_Johns"]),
    ring=st.integers(1_000, 60_000),
    earlier=st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
    scale=st.sampled_from([1, 0.05]),
)
def test_it_may_ring_at_the_time_it_is_told_and_not_before(
    policy: Policy,
    times: list[int],
    own: int | None,
    scheduled: int | None,
    zone: str | None,
    ring: int,
    earlier: list[float],
    scale: float,
) -> None:
    of, number = workspace(policy), rang(*times, own=own)
    asked = call(scheduled_at_ms=scheduled, time_zone=zone)

    def at(now: int) -> Decision:
        return decide(asked, of, number, now, ring, scale)

    decision = at(NOW)
    assert decision.refused is None
    if decision.passed:
        assert decision.until_ms is None
        if decision.ring_before_ms is not None:
            assert decision.ring_before_ms >= NOW
            assert at(decision.ring_before_ms).passed, "the last moment"
            # No further than that is looked.
            assert decision.ring_before_ms + ring >= NOW + OPEN_MS or not at(decision.ring_before_ms + 1).passed
        return
    if decision.until_ms is None:
        assert not any(at(NOW + day * DAY).passed for day in range(7))
        return
    until = decision.until_ms
    assert until > NOW
    assert at(until).passed
    for part in (*earlier, 1 - 1 / (until - NOW)):
        before = at(NOW + int(part * (until - NOW)))
        assert not before.passed
        assert before.until_ms == until, "it is told the same until then"


# ── the system's own ────────────────────────────────────────────────────────────────────────────────


def standing(**changes: Any) -> Standing:
    return dataclasses.replace(Standing(WORKSPACE, Switch(), Trunk("ST_1"), (SlotsItem(0),)), **changes)


STOPPED = Trunk("ST_1", stops=1, stopped_until_ms=NOW + 1)
FULL = (SlotsItem(0, frozenset({"a", "b"})),)
SYSTEM: list[tuple[dict[str, Any], str | None, int | None, list[bool]]] = [
    ({}, None, None, [True, True, True]),
    ({"switch": Switch(NOW)}, "paused", None, [False, True, True]),
    ({"marked": False}, "paused", None, [False, True, True]),
    ({"trunk": STOPPED}, "trunk", NOW + 1, [True, False, True]),
    ({"trunk": Trunk("ST_1", stops=1, stopped_until_ms=NOW)}, None, None, [True, True, True]),
    # Another call tries it.
    (
        {"trunk": Trunk("ST_1", stops=1, stopped_until_ms=NOW, probe_until_ms=NOW + 1, probe_call="x")},
        "trunk",
        None,
        [True, False, True],
    ),
    ({"slots": FULL}, "slot", None, [True, True, False]),
    ({"slots": (SlotsItem(0, crowded_until_ms=NOW),)}, "slot", None, [True, True, False]),
    ({"slots": (SlotsItem(0, crowded_until_ms=NOW - 1),)}, None, None, [True, True, True]),
    ({"switch": Switch(NOW), "trunk": STOPPED, "slots": FULL}, "paused", None, [False, False, False]),
    ({"trunk": STOPPED, "slots": FULL}, "trunk", NOW + 1, [True, False, False]),
]


@pytest.mark.parametrize(("changes", "waits", "until", "passed"), SYSTEM)
def test_what_the_system_needs(
    changes: dict[str, Any], waits: str | None, until: int | None, passed: list[bool]
) -> None:
    decision = system_gates(standing(**changes), CALL, NOW)
    assert names(decision) == ["paused", "trunk", "slot"]
    assert (decision.waiting_for, decision.until_ms) == (waits, until)
    assert [gate.passed for gate in decision.gates] == passed


def test_the_view_of_a_preview() -> None:
    rules, system = decided(), system_gates(standing(), CALL, NOW)
    assert preview_view(rules, system, NOW) == {
        "status": "success",
        "decision": "ring",
        "waitingFor": None,
        "earliestRingAt": None,
        "gates": [gate.view() for gate in (*rules.gates, *system.gates)],
    }
    later = decided(scheduled_at_ms=NOW + 5)
    view = preview_view(later, system_gates(standing(trunk=STOPPED), CALL, NOW), NOW)
    assert (view["decision"], view["waitingFor"], view["earliestRingAt"]) == ("wait", "scheduled_at", iso(NOW + 5))
    full = preview_view(rules, system_gates(standing(slots=FULL), CALL, NOW), NOW)
    assert (full["decision"], full["waitingFor"], full["earliestRingAt"]) == ("wait", "slot", None)
    never = decided(number=suppressed(Suppression("all", "x", 1)))
    assert preview_view(never, system, NOW)["decision"] == "refuse"
