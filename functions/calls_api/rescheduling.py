"""PATCH of a call: other times for one that has not been dialled yet."""

from __future__ import annotations

import dataclasses
import random
import time

from calls_api.queries import call_of_workspace
from shared.call import Call, iso
from shared.call_store import CallStore, Write
from shared.clock import Clock, to_ms
from shared.durations import Durations
from shared.errors import FieldError, QueueError, RequestRefusedError, StoreError, refusal
from shared.gates import decide
from shared.messages import dial_message
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.raw_json import body_members
from shared.request_model import RequestModel, validate
from shared.scheduling import Place, check_decision, place, schedule_errors
from shared.telemetry import logger
from shared.timestamps import Timestamp
from shared.workspaces import Workspace

MAXIMUM_PATCH_BYTES = 16 * 1024

# How often the call is read and decided anew when others write it at the same time.
_TRIES = 10


class ReschedulingRequest(RequestModel, extra="forbid"):
    """The body of PATCH /v1/api/call/{callId}: null removes a time, one that is absent stays as it is."""

    scheduled_at: Timestamp | None = None
    expires_at: Timestamp | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Rescheduler:
    """Moves calls. clock: epoch milliseconds."""

    calls: CallStore
    numbers: NumberStore
    dial_queue: Queue
    durations: Durations
    clock: Clock

    def reschedule(self, workspace: Workspace, call_id: str, body: bytes) -> Call:
        """The call with its new times. A process that is about to dial it decides by them.

        Raises RequestRefusedError: 404, 409 when it was dialled or has ended, 400 and 403 as when a call is
        placed; StoreError: not known to be moved, repeat it.
        """
        given: ReschedulingRequest | None = None
        for _ in range(_TRIES):
            # Before the body is read: who may not see a call is told of nothing else.
            seen = call_of_workspace(self.calls, workspace.workspace_id, call_id)
            given = given or _parsed(body)
            if seen.ended:
                raise RequestRefusedError(409, "call_ended", f"The call has already ended: {seen.status}")
            if seen.status != "queued":
                raise RequestRefusedError(409, "call_dialed", f"The call has been dialled: {seen.status}")
            write = self._move(workspace, seen, given)
            if write.won and write.call is not None:
                return write.call
        raise StoreError("the call changed at every attempt")

    def _move(self, workspace: Workspace, seen: Call, given: ReschedulingRequest) -> Write:
        now_ms = self.clock()
        moved = self._moved(seen, given, now_ms)
        number = self.numbers.get(seen.workspace_id, seen.to)
        ring_ms = self.durations.ring_ms(seen.ring_timeout_seconds)
        decision = decide(moved, workspace, number, now_ms, ring_ms, self.durations.scale)
        check_decision(moved, decision)
        leased = seen.lease_until_ms >= now_ms
        if leased and seen.in_line:
            # Its slot is being freed, after which the same process puts it back to its turn.
            time.sleep(random.uniform(0.02, 0.1))
            return Write(won=False, call=seen)
        # In the line a call holds no slot.
        if leased or (seen.held_slots_item is not None and not seen.in_line):
            return self.calls.change_times(seen, moved, now_ms)
        placed = place(moved, decision, self.durations, now_ms)
        write = self.calls.reschedule(seen, placed.call, now_ms)
        if write.won:
            self._send(placed)
        return write

    def _moved(self, seen: Call, given: ReschedulingRequest, now_ms: int) -> Call:
        """Raises RequestRefusedError (400) when the times cannot be, together with the one that is not given."""
        names = given.model_fields_set
        kept_ms = seen.scheduled_at_ms
        if "scheduled_at" in names:
            scheduled_at = given.scheduled_at
        else:
            # One that has come restricts nothing any more.
            scheduled_at = iso(kept_ms) if kept_ms is not None and kept_ms > now_ms else None
        if "expires_at" in names or seen.expires_at_ms is None:
            expires_at = given.expires_at
        else:
            expires_at = iso(seen.expires_at_ms)
        scheduled_at_ms, expires_at_ms, errors = schedule_errors(scheduled_at, expires_at, now_ms)
        if errors:
            raise refusal(400, *errors)
        return dataclasses.replace(
            seen,
            scheduled_at_ms=scheduled_at_ms if "scheduled_at" in names else kept_ms,
            expires_at_ms=expires_at_ms,
            queue_deadline_ms=(scheduled_at_ms or now_ms) + to_ms(self.durations.queue_ttl),
        )

    def _send(self, placed: Place) -> None:
        """Sends the message of a call that does not wait in the line. The reconciler repeats one that is lost."""
        if placed.delay_seconds is None:
            return
        call = placed.call
        try:
            self.dial_queue.send(
                dial_message(call.call_id, call.workspace_id),
                group=call.workspace_id,
                delay_seconds=placed.delay_seconds,
            )
        except QueueError:
            logger.exception("message of a moved call not sent", extra={"call_id": call.call_id})


def _parsed(body: bytes) -> ReschedulingRequest:
    """Raises RequestRefusedError (4xx) with every wrong field."""
    fields = body_members(body, MAXIMUM_PATCH_BYTES)
    given, errors = validate(
        ReschedulingRequest,
        {name: value for name, (value, _) in fields.items()},
        unknown="is not a field of this request",
    )
    if not fields:
        errors.append(FieldError("scheduled_at", "is required, or expires_at"))
    if given is None or errors:
        raise refusal(400, *errors)
    return given
