"""A call's webhook deliveries: listing them and replaying one."""

from __future__ import annotations

import re
from typing import Any

from shared.call import Call, compact, event_id_of, iso
from shared.call_store import CallStore
from shared.clock import to_ms
from shared.delivery_store import Delivery, DeliveryStore
from shared.durations import Durations
from shared.errors import RequestRefusedError
from shared.messages import delivery_message
from shared.queues import Queue
from shared.table_keys import expires_at


def deliveries_view(deliveries: DeliveryStore, call: Call) -> str:
    """Every event of the call with the last attempts of its webhook, as JSON text.

    An event whose delivery does not exist yet is `pending` without attempts; a call without a callback URL
    has no deliveries.
    """
    rows = {row.sequence: row for row in deliveries.of_call(call.call_id)} if call.callback_url else {}
    shown = [
        _delivery_view(call, sequence, rows.get(sequence))
        for sequence in range(1, len(call.events) + 1)
        if call.callback_url
    ]
    return compact({"status": "success", "callId": call.call_id, "deliveries": shown})


def replay(
    calls: CallStore,
    deliveries: DeliveryStore,
    webhook_queue: Queue,
    call: Call,
    sequence: str,
    durations: Durations,
    now_ms: int,
) -> None:
    """Sends one event again, from the beginning of its schedule, with the same id and the same bytes.

    Raises RequestRefusedError: 404 when the delivery does not exist or the call's record has expired meanwhile,
    409 while an attempt is under way."""
    number = int(sequence) if re.fullmatch("[0-9]{1,6}", sequence) else 0
    if call.callback_url is None or not 1 <= number <= len(call.events):
        raise RequestRefusedError(404, "delivery_not_found", "This call has no such delivery")
    # First, so that an accepted replay always has its call's record until the schedule ends.
    if not calls.keep(call.call_id, expires_at(now_ms)):
        raise RequestRefusedError(404, "call_not_found", "This call has expired")
    check_at_ms = now_ms + to_ms(durations.webhook_grace)
    if deliveries.replay(call.call_id, call.workspace_id, number, now_ms, check_at_ms) is None:
        raise RequestRefusedError(409, "attempt_under_way", "An attempt is under way")
    webhook_queue.send(delivery_message(call.call_id, number), group=call.workspace_id)


def _delivery_view(call: Call, sequence: int, row: Delivery | None) -> dict[str, Any]:
    pending = row is None or row.state == "pending"
    return {
        "id": event_id_of(call, sequence),
        "sequence": sequence,
        "type": call.events[sequence - 1]["type"],
        "state": "pending" if row is None else row.state,
        "nextAttemptAt": iso(row.next_attempt_at_ms) if row is not None and pending else None,
        "attempts": [
            {
                "at": iso(attempt["at"]),
                "milliseconds": attempt["ms"],
                "status": attempt.get("status"),
                "error": attempt.get("error"),
                "answer": attempt.get("answer"),
                "location": attempt.get("location"),
            }
            for attempt in (row.attempts if row is not None else ())
        ],
    }
