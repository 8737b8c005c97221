"""From the table's stream to deliveries: one row and one message for each event a call's record has gained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.queues import Queue
from shared.telemetry import count, logger


@dataclasses.dataclass(frozen=True, slots=True)
class FanningOut:
    """What fanning out needs. clock: epoch milliseconds."""

    deliveries: DeliveryStore
    webhook_queue: Queue
    dead_letters: Queue
    durations: Durations
    clock: Callable[[], int]


def fan_out(parts: FanningOut, record: dict[str, Any]) -> None:
    """One stream record (NEW_AND_OLD_IMAGES). Repeating it changes nothing but sends hints again.

    A record that cannot be read goes to the dead-letter queue as `{"callId"}`, so that the shard goes on; a
    redrive makes its deliveries from the call itself. Raises StoreError or QueueError when AWS fails: the
    stream hands the record out again.
    """
    try:
        call_id, workspace_id, sequences = new_events(record["dynamodb"])
    except (KeyError, TypeError, ValueError, AttributeError):
        logger.exception("stream record not readable", extra={"event_id": record.get("eventID")})
        count("PoisonRecords")
        parts.dead_letters.send({"callId": _call_id_of_keys(record), "eventId": record.get("eventID")})
        return
    for sequence in sequences:
        hint(parts, call_id, workspace_id, sequence)


def hint(parts: FanningOut, call_id: str, workspace_id: str, sequence: int) -> None:
    """The row first, then its message: a death in between leaves a row that is due, which is found."""
    now = parts.clock()
    parts.deliveries.create(call_id, workspace_id, sequence, now, now + int(parts.durations.webhook_grace * 1000))
    parts.webhook_queue.send({"callId": call_id, "sequence": sequence}, group=workspace_id)


def new_events(change: dict[str, Any]) -> tuple[str, str, range]:
    """Call id, workspace id and the sequences of the events that this change appended.

    Raises KeyError, TypeError, ValueError or AttributeError when the images are not those of a call.
    """
    new = change["NewImage"]
    before = len(change["OldImage"]["events"]["L"]) if "OldImage" in change else 0
    after = len(new["events"]["L"])
    return new["callId"]["S"], new["workspaceId"]["S"], range(before + 1, after + 1)


def _call_id_of_keys(record: dict[str, Any]) -> str | None:
    try:
        return str(record["dynamodb"]["Keys"]["pk"]["S"]).removeprefix("CALL#")
    except (KeyError, TypeError):
        return None
