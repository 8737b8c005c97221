"""The end of a call: written once, by the first process that ends it; then slot and index entry are removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shared.call import Call, Outcome, Status
from shared.call_store import CallStore
from shared.clock import Clock, to_ms
from shared.durations import Durations
from shared.line import Line
from shared.telemetry import count, logger, masked


def end_outcome(call: Call, outcome: Outcome) -> Outcome:
    """The outcome to store: the reason of a request to hang up, if there is one, takes precedence."""
    if call.hangup is None:
        return outcome
    status: Status = "completed" if call.answered_at_ms else "canceled"
    return Outcome(status, call.hangup["reason"], inferred=outcome.inferred)


def report_end(call: Call) -> None:
    """Writes the log line and the metric of an end."""
    end = call.end_event
    logger.info(
        "ended",
        extra={
            "call_id": call.call_id,
            "to": masked(call.to),
            "status": end["status"],
            "reason": end["reason"],
            "sip_status_code": end.get("sipStatusCode"),
        },
    )
    count("CallsEnded", status=end["status"])


def end_call(
    calls: CallStore,
    seen: Call,
    outcome: Outcome,
    durations: Durations,
    clock: Clock,
    report: Callable[[Call], None] = report_end,
) -> Call | None:
    """Ends the call as it was read. Returns the ended call if this caller ended it, else None.

    None too when its status or its lease has changed since, or the times by which it has expired. The caller that
    gets the call clears its room, its slot and its index entry; until then it stays due. report: called with the
    ended call.
    """
    status, lease = seen.status, seen.lease_id
    while True:
        now_ms = clock()
        # A process that holds a live lease may still make the room or take the slot: clear after the lease's end.
        held_until_ms = seen.lease_until_ms if seen.status == "queued" else 0
        check_at_ms = max(now_ms + to_ms(durations.clear_check), held_until_ms)
        write = calls.end(seen, end_outcome(seen, outcome), check_at_ms, now_ms)
        if write.won and write.call is not None:
            report(write.call)
            return write.call
        if write.call is None or write.call.status != status or write.call.lease_id != lease:
            return None
        if outcome.status == "expired" and _times_of(write.call) != _times_of(seen):
            # Moved since it was read: it has not expired.
            return None
        seen = write.call


def _times_of(call: Call) -> tuple[int | None, ...]:
    """What says when a queued call expires."""
    return call.scheduled_at_ms, call.expires_at_ms, call.queue_deadline_ms


def clear(line: Line, call: Call) -> None:
    """Frees the slot of an ended call whose room is gone, then takes it out of the index of what is due.

    In this order, so that the reconciler repeats it when the process dies in between. Idempotent.
    """
    line.free_slot(call)
    line.calls.leave_due(call.call_id)


async def clear_with_room(line: Line, call: Call, delete_room: Callable[[Call], Awaitable[bool]]) -> bool:
    """As `clear`, with the room deleted in between: the slot does not wait for a LiveKit that cannot delete it.

    delete_room: returns False when the room must be deleted once more. Returns False when the call stays due for
    its room; an orphan room, which its agent may recreate, does until it is found absent.
    """
    await asyncio.to_thread(line.free_slot, call)
    # Without an attempt there is no room. Thousands of calls may wait, and LiveKit's rate limit is low.
    if call.attempts and (not await delete_room(call) or call.orphan_room):
        return False
    await asyncio.to_thread(line.calls.leave_due, call.call_id)
    return True
