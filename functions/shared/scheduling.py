"""When a call that was asked for may ring, and where it waits until then.

A call that may ring within `LONGEST_DELAY_MS` waits by a delayed message. A later one is put into the line, at the
turn of its time, by the write that creates or moves it: a million of them cost nothing while they wait.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from shared.call import Call, WaitingFor, iso
from shared.clock import to_ms, to_seconds
from shared.durations import Durations
from shared.errors import FieldError, refusal, workspace_not_allowed
from shared.gates import Decision
from shared.line import line_of, turn_of
from shared.queues import MAXIMUM_DELAY_SECONDS
from shared.timestamps import PAST_MS, rfc3339_ms

LONGEST_DELAY_MS = MAXIMUM_DELAY_SECONDS * 1000

_DAY_MS = 24 * 3600 * 1000
MAXIMUM_AHEAD_DAYS = 90
MAXIMUM_OPEN_DAYS = 30


def schedule_errors(
    scheduled_at: str | None, expires_at: str | None, now_ms: int
) -> tuple[int | None, int | None, list[FieldError]]:
    """`scheduled_at` and `expires_at` as epoch ms, and what is wrong with them. What has just passed is now."""
    errors = []
    scheduled_ms = None if scheduled_at is None else rfc3339_ms(scheduled_at)
    expires_ms = None if expires_at is None else rfc3339_ms(expires_at)
    if scheduled_ms is not None:
        if scheduled_ms < now_ms - PAST_MS:
            errors.append(FieldError("scheduled_at", "has passed more than 60 seconds ago"))
        elif scheduled_ms > now_ms + MAXIMUM_AHEAD_DAYS * _DAY_MS:
            errors.append(FieldError("scheduled_at", f"must be at most {MAXIMUM_AHEAD_DAYS} days ahead"))
        scheduled_ms = max(scheduled_ms, now_ms)
    if expires_ms is not None:
        start_ms = scheduled_ms or now_ms
        if expires_ms <= start_ms:
            late = "must be after scheduled_at" if scheduled_ms is not None else "has passed"
            errors.append(FieldError("expires_at", late))
        elif expires_ms > start_ms + MAXIMUM_OPEN_DAYS * _DAY_MS:
            message = f"must be at most {MAXIMUM_OPEN_DAYS} days after scheduled_at, or after now without one"
            errors.append(FieldError("expires_at", message))
    return scheduled_ms, expires_ms, errors


def check_decision(call: Call, decision: Decision) -> None:
    """Raises RequestRefusedError when the gates refuse the call, or let it ring after its deadline only."""
    gate = decision.failed
    if decision.refused == "suppressed":
        raise refusal(403, FieldError("to", "is suppressed: its callee wants no such calls", "number_suppressed"))
    if decision.refused is not None and gate is not None:
        match gate.name:
            case "consent":
                error = FieldError("consent", "is required by the call's policy", "consent_required")
            case "calling_window":
                message = "is required: the policy has calling windows, and the number's zone is not known"
                error = FieldError("time_zone", message, "time_zone_required")
            case "policy":
                error = FieldError("purpose", "is not a policy of this workspace", "unknown_purpose")
            case "workspace":
                raise workspace_not_allowed()
            case _:
                raise refusal(403, FieldError("to", "may not be called by this workspace", "number_not_allowed"))
        raise refusal(400, error)
    deadline_ms = call.expires_at_ms or call.queue_deadline_ms
    if decision.waiting_for is not None and (decision.until_ms is None or decision.until_ms >= deadline_ms):
        when = "never" if decision.until_ms is None else f"from {iso(decision.until_ms)} on"
        message = (
            f"is too early: the call may ring {when} ({decision.waiting_for}), and waits until {iso(deadline_ms)}"
        )
        raise refusal(400, FieldError("expires_at", message, "cannot_ring_in_time"))


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a call waits. delay_seconds: of its message; None: it waits in the line."""

    call: Call
    delay_seconds: float | None


def place(call: Call, decision: Decision, durations: Durations, now_ms: int) -> Place:
    """The call with what makes it wait, if the gates say that it must (`decision`, made at `now`)."""
    until_ms = decision.until_ms or now_ms
    why: WaitingFor | None = decision.waiting_for
    waits: dict[str, Any] = {"wait_until_ms": 0, "waiting_for": None, "line_of": None, "turn": None}
    check_ms = to_ms(durations.queued_check)
    if why is None or until_ms <= now_ms:
        return Place(dataclasses.replace(call, **waits, check_at_ms=now_ms + check_ms), 0)
    if until_ms <= now_ms + LONGEST_DELAY_MS:
        # Rounded down to seconds if the worker waits for the rest; the local stack drops messages that early.
        step_ms = 1000 if to_ms(durations.early_message) >= 1000 else 1
        delay_seconds = to_seconds((until_ms - now_ms) // step_ms * step_ms)
        waits |= {"wait_until_ms": until_ms, "waiting_for": why}
        return Place(dataclasses.replace(call, **waits, check_at_ms=until_ms + check_ms), delay_seconds)
    waits |= {"line_of": line_of(call.workspace_id), "turn": turn_of(call, until_ms), "waiting_for": why}
    return Place(
        dataclasses.replace(call, **waits, check_at_ms=call.expires_at_ms or call.queue_deadline_ms), None
    )
