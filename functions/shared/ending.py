"""The end of a call: written once, by whoever comes first; then its slot and its place among what is due."""

from __future__ import annotations

from collections.abc import Callable

from shared.call import Call, Outcome
from shared.call_store import CallStore
from shared.durations import Durations
from shared.telemetry import count, logger, masked
from shared.workspaces import WorkspaceStore


def hangup_outcome(call: Call) -> Outcome | None:
    """The end of a call that was asked to hang up: that reason stands above all others."""
    if call.hangup is None:
        return None
    return Outcome("completed" if call.answeredAt else "canceled", call.hangup["reason"])


def report_end(call: Call) -> None:
    """The log line and the metric of an end."""
    end = call.events[-1]
    logger.info(
        "ended",
        extra={
            "call_id": call.callId,
            "to": masked(call.to),
            "status": end["status"],
            "reason": end["reason"],
            "sip_status_code": end.get("sipStatusCode"),
        },
    )
    count("CallsEnded", status=end["status"])


def end_call(
    calls: CallStore, seen: Call, outcome: Outcome, durations: Durations, clock: Callable[[], int],
    report: Callable[[Call], None] = report_end,
) -> Call | None:  # fmt: skip
    """Ends the call as it was seen. Returns it, ended, to the one who ended it; None to everybody else.

    None too when the call has moved on: another status, another process's lease. The caller who gets the call
    sees to its room, its slot and its place in the index; until then it stays due.
    """
    status, lease = seen.status, seen.leaseId
    while True:
        now = clock()
        # A process that holds a live lease may still make the room or take the slot: clear after it.
        held_until = seen.leaseUntil if seen.status == "queued" else 0
        check_at = max(now + int(durations.clear_check * 1000), held_until)
        write = calls.end(seen, hangup_outcome(seen) or outcome, check_at, now)
        if write.won and write.call is not None:
            report(write.call)
            return write.call
        if write.call is None or write.call.status != status or write.call.leaseId != lease:
            return None
        seen = write.call


def clear(calls: CallStore, workspaces: WorkspaceStore, call: Call) -> None:
    """Frees an ended call's slot, then leaves the index; in this order, so that a death between is repeated.

    Its room must be gone already. Repeating all of it changes nothing.
    """
    workspaces.free_slot(call.workspaceId, call.callId)
    calls.leave_due(call.callId)
