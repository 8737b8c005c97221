"""From the table's stream to deliveries: one row and one message for each new event of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shared.call_store import CallStore
from shared.clock import Clock, to_ms
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.errors import QueueError, RingonceError
from shared.messages import all_deliveries_message, delivery_message
from shared.queues import Queue
from shared.table_keys import expires_at
from shared.telemetry import count, logger

# Rows of a batch that are written concurrently: writes mostly wait, and the client has 20 connections.
ROWS_AT_ONCE = 10
pool = ThreadPoolExecutor(ROWS_AT_ONCE, thread_name_prefix="rows")


@dataclasses.dataclass(frozen=True, slots=True)
class FanOut:
    """Makes deliveries of calls' events. clock: epoch milliseconds."""

    deliveries: DeliveryStore
    webhook_queue: Queue
    durations: Durations
    clock: Clock

    def process(self, dead_letters: Queue, records: Sequence[dict[str, Any]]) -> int | None:
        """Processes stream records (NEW_AND_OLD_IMAGES) in order. Returns the index of the first that failed, or
        None.

        The rows are written first, concurrently, then their messages are sent in order: after a crash in between
        the rows are due, and the reconciler sends their messages. Repeating a record only sends its messages
        again. An unparsable one goes to the dead-letter queue as `{"callId"}`, so that the shard goes on; a
        redrive makes its deliveries from the call."""
        hints: list[tuple[dict[str, Any], str]] = []
        places: list[int] = []
        failed: int | None = None
        for place, made in enumerate(pool.map(lambda record: self._rows_of(dead_letters, record), records)):
            if made is None:
                # Nothing is sent for later records either: Lambda repeats them together with this one.
                failed = place
                break
            hints += made
            places += [place] * len(made)
        not_sent = [places[n] for n in self.webhook_queue.send_batch(hints)]
        return min([*not_sent, *([failed] if failed is not None else [])], default=None)

    def _rows_of(self, dead_letters: Queue, record: dict[str, Any]) -> list[tuple[dict[str, Any], str]] | None:
        """The messages of a record's rows; None when not all rows could be written."""
        try:
            return self._made_rows(dead_letters, record)
        except RingonceError:
            logger.exception("fan out failed", extra={"event_id": record.get("eventID")})
            return None

    def _made_rows(self, dead_letters: Queue, record: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
        try:
            call_id, workspace_id, sequences = new_events(record["dynamodb"])
            return [self.make_row(call_id, workspace_id, sequence) for sequence in sequences]
        except RingonceError:
            raise
        except Exception:
            # It must not block the shard: the call's record in the table has all that a redrive needs.
            logger.exception("stream record not readable", extra={"event_id": record.get("eventID")})
            count("PoisonRecords")
            dead_letters.send(all_deliveries_message(_call_id_of_keys(record), record.get("eventID")))
            return []

    def deliver_all(self, calls: CallStore, call_id: str) -> None:
        """Makes the missing deliveries of all events of a call, and sends a message for each pending one. The
        call's record is kept until they are over.

        For a message `{"callId"}`: a stream record that could not be read, or an operator's redrive.
        Raises StoreError or QueueError when AWS fails.
        """
        call = calls.get(call_id)
        kept_until = expires_at(self.clock())
        if call is None or call.callback_url is None or not calls.keep(call_id, kept_until):
            logger.warning("no deliveries to make", extra={"call_id": call_id})
            return
        for sequence in range(1, len(call.events) + 1):
            self.make_row(call_id, call.workspace_id, sequence)
        pending = [row for row in self.deliveries.of_call(call_id) if row.state == "pending"]
        hints = [(delivery_message(call_id, row.sequence), call.workspace_id) for row in pending]
        if self.webhook_queue.send_batch(hints):
            raise QueueError("not every hint was sent")

    def make_row(self, call_id: str, workspace_id: str, sequence: int) -> tuple[dict[str, Any], str]:
        """Writes the delivery of one event unless it exists. Returns its message and group, still to be sent."""
        now_ms = self.clock()
        check_at_ms = now_ms + to_ms(self.durations.webhook_grace)
        self.deliveries.create(call_id, workspace_id, sequence, now_ms, check_at_ms)
        return delivery_message(call_id, sequence), workspace_id


def new_events(change: dict[str, Any]) -> tuple[str, str, range]:
    """Call id, workspace id and the sequences of the events that this stream record adds.

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
