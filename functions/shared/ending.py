"""The end of a call: written once, by whoever comes first; then its slot and its place among what is due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shared.call import Call, Outcome, Status
from shared.call_store import CallStore
from shared.durations import Durations
from shared.limits import LimitStore
from shared.telemetry import count, logger, masked


def end_outcome(call: Call, outcome: Outcome) -> Outcome:
    """`outcome`; but of a call that was asked to hang up that reason stands above all others."""
    if call.hangup is None:
        return outcome
    status: Status = "completed" if call.answeredAt else "canceled"
    return Outcome(status, call.hangup["reason"], inferred=outcome.inferred)


def report_end(call: Call) -> None:
    """The log line and the metric of an end."""
    end = call.end_event
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
        write = calls.end(seen, end_outcome(seen, outcome), check_at, now)
        if write.won and write.call is not None:
            report(write.call)
            return write.call
        if write.call is None or write.call.status != status or write.call.leaseId != lease:
            return None
        seen = write.call


def clear(calls: CallStore, limits: LimitStore, call: Call) -> None:
    """Frees the slot of an ended call whose room is gone, then leaves the index; in this order, so that a death
    between is repeated. Repeating all of it changes nothing.
    """
    limits.free_slot(call.workspaceId, call.callId)
    calls.leave_due(call.callId)


async def clear_with_room(
    calls: CallStore, limits: LimitStore, call: Call, delete_room: Callable[[Call], Awaitable[bool]]
) -> bool:
    """As `clear`, the room deleted in between: a LiveKit that cannot delete it holds up no other call.

    delete_room: False when the room must be deleted once more. Returns False when the call stays due for its room:
    that of an orphan's agent, which may come back, until a look does not find it.
    """
    await asyncio.to_thread(limits.free_slot, call.workspaceId, call.callId)
    # Without an attempt there never was a room; those who wait may be thousands, and LiveKit's requests are few.
    if call.attempts and (not await delete_room(call) or call.orphanRoom):
        return False
    await asyncio.to_thread(calls.leave_due, call.callId)
    return True
