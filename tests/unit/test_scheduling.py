"""Which times a request may ask for, what is refused at once, and where a call waits for its time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from shared.call import Call, iso
from shared.durations import Durations
from shared.errors import RequestRefusedError
from shared.gates import Decision, Gate
from shared.scheduling import Place, check_decision, place, schedule_errors
from tests.one_call import CALL, CALL_ID, NOW

MINUTE, DAY = 60_000, 86_400_000


@pytest.mark.parametrize(
    ("scheduled", "expires", "read", "wrong"),
    [
        (None, None, (None, None), []),
        (NOW + 5, None, (NOW + 5, None), []),
        (None, NOW + 1, (None, NOW + 1), []),
        (NOW, NOW + 1, (NOW, NOW + 1), []),
        # What has just passed is now.
        (NOW - 59_000, None, (NOW, None), []),
        (NOW - 60_000, NOW + 1, (NOW, NOW + 1), []),
        (NOW - 60_001, None, None, ["scheduled_at has passed more than 60 seconds ago"]),
        (NOW - 61_000, None, None, ["scheduled_at has passed more than 60 seconds ago"]),
        (NOW + 90 * DAY, None, (NOW + 90 * DAY, None), []),
        (NOW + 90 * DAY + 1, None, None, ["scheduled_at must be at most 90 days ahead"]),
        (None, NOW, None, ["expires_at has passed"]),
        (NOW + 5, NOW + 5, None, ["expires_at must be after scheduled_at"]),
        (NOW + 5, NOW + 6, (NOW + 5, NOW + 6), []),
        (NOW - 5, NOW, None, ["expires_at must be after scheduled_at"]),
        (None, NOW + 30 * DAY, (None, NOW + 30 * DAY), []),
        (
            None,
            NOW + 30 * DAY + 1,
            None,
            ["expires_at must be at most 30 days after scheduled_at, or after now without one"],
        ),
        (NOW + 90 * DAY, NOW + 120 * DAY, (NOW + 90 * DAY, NOW + 120 * DAY), []),
        (
            NOW - 61_000,
            NOW - 62_000,
            None,
            ["scheduled_at has passed more than 60 seconds ago", "expires_at must be after scheduled_at"],
        ),
    ],
)
def test_the_times_of_a_request(
    scheduled: int | None, expires: int | None, read: tuple[int | None, int | None] | None, wrong: list[str]
) -> None:
    first, last = (None if at is None else iso(at) for at in (scheduled, expires))
    scheduled_ms, expires_ms, errors = schedule_errors(first, last, NOW)
    assert [f"{error.field} {error.message}" for error in errors] == wrong
    assert {error.code for error in errors} <= {"invalid_request"}
    if read is not None:
        assert (scheduled_ms, expires_ms) == read


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────


def refuses(gate: str, reason: Any) -> Decision:
    return Decision((Gate("workspace", True), Gate(gate, False)), refused=reason)


def waits(until: int | None, why: Any = "calling_window") -> Decision:
    return Decision((Gate(why, False),), waiting_for=why, until_ms=until)


@pytest.mark.parametrize(
    ("decision", "status", "code", "field"),
    [
        (refuses("workspace", "not_allowed"), 403, "workspace_not_allowed", None),
        (refuses("suppression", "suppressed"), 403, "number_suppressed", "to"),
        (refuses("consent", "not_allowed"), 400, "consent_required", "consent"),
        (refuses("calling_window", "not_allowed"), 400, "time_zone_required", "time_zone"),
        (refuses("policy", "not_allowed"), 400, "unknown_purpose", "purpose"),
        (refuses("destination", "not_allowed"), 403, "number_not_allowed", "to"),
        (waits(None), 400, "cannot_ring_in_time", "expires_at"),
        (waits(CALL.queue_deadline_ms), 400, "cannot_ring_in_time", "expires_at"),
    ],
)
def test_what_cannot_ring_is_refused_by_its_field(
    decision: Decision, status: int, code: str, field: str | None
) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        check_decision(CALL, decision)
    refused = caught.value
    assert (refused.status, refused.code) == (status, code)
    assert [error.field for error in refused.errors] == ([] if field is None else [field])


def test_what_is_too_early_says_when_and_why() -> None:
    call = dataclasses.replace(CALL, expires_at_ms=NOW + 9)
    with pytest.raises(RequestRefusedError) as caught:
        check_decision(call, waits(NOW + 9, "frequency"))
    assert f"from {iso(NOW + 9)} on (frequency), and waits until {iso(NOW + 9)}" in caught.value.message
    with pytest.raises(RequestRefusedError, match=r"never \(calling_window\)"):
        check_decision(call, waits(None))


@pytest.mark.parametrize(
    "decision",
    [Decision(()), waits(CALL.queue_deadline_ms - 1), waits(NOW + 5, "scheduled_at")],
)
def test_what_can_ring_in_time_is_not_refused(decision: Decision) -> None:
    check_decision(CALL, decision)


def test_a_clients_deadline_goes_before_the_queues() -> None:
    late = dataclasses.replace(CALL, expires_at_ms=CALL.queue_deadline_ms + 9)
    check_decision(late, waits(CALL.queue_deadline_ms + 8))
    early = dataclasses.replace(CALL, expires_at_ms=NOW + 5)
    with pytest.raises(RequestRefusedError):
        check_decision(early, waits(NOW + 5))


# ── where it waits ──────────────────────────────────────────────────────────────────────────────────

LINE = "demo#single"


def placed(until: int | None, why: Any = "scheduled_at", **fields: Any) -> tuple[Place, dict[str, Any]]:
    """The place, and the fields of the call that it changes."""
    before = dataclasses.replace(CALL, check_at_ms=None, **fields)
    found = place(before, Decision(()) if until is None else waits(until, why), Durations(), NOW)
    names = [field.name for field in dataclasses.fields(Call)]
    changed = {
        name: getattr(found.call, name) for name in names if getattr(before, name) != getattr(found.call, name)
    }
    return found, changed


@pytest.mark.parametrize("until", [None, NOW, NOW - 5])
def test_what_may_ring_is_sent_at_once(until: int | None) -> None:
    found, changed = placed(until)
    assert (found.delay_seconds, changed) == (0, {"check_at_ms": NOW + MINUTE})


@pytest.mark.parametrize(("ahead", "delay"), [(1, 0), (999, 0), (1_000, 1), (61_999, 61), (900_000, 900)])
def test_what_may_ring_soon_has_a_message_that_comes_a_little_early(ahead: int, delay: int) -> None:
    found, changed = placed(NOW + ahead, "frequency")
    assert found.delay_seconds == delay
    assert changed == {
        "wait_until_ms": NOW + ahead,
        "waiting_for": "frequency",
        "check_at_ms": NOW + ahead + MINUTE,
    }


@pytest.mark.parametrize("expires", [None, NOW + 9 * DAY])
def test_what_may_ring_later_waits_in_the_line_until_its_deadline(expires: int | None) -> None:
    found, changed = placed(NOW + 900_001, expires_at_ms=expires)
    assert found.delay_seconds is None
    assert changed == {
        "line_of": LINE,
        "turn": f"{NOW + 900_001}#{NOW}#{CALL_ID}",
        "waiting_for": "scheduled_at",
        "check_at_ms": expires or CALL.queue_deadline_ms,
    }


@pytest.mark.parametrize(
    "before",
    [
        {"wait_until_ms": NOW + 5, "waiting_for": "scheduled_at"},
        {"line_of": LINE, "turn": "1#1#a", "waiting_for": "calling_window"},
    ],
)
@pytest.mark.parametrize("until", [None, NOW + 9_000, NOW + DAY])
def test_a_call_that_is_moved_leaves_its_earlier_place(before: dict[str, Any], until: int | None) -> None:
    found, _ = placed(until, **before)
    call = found.call
    in_line, delayed = call.line_of is not None, bool(call.wait_until_ms)
    assert (in_line, delayed) == (until == NOW + DAY, until == NOW + 9_000)
    assert (call.turn is not None) is in_line
    assert (call.waiting_for is not None) is (until is not None)
