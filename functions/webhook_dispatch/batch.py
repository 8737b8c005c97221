"""A batch of messages from WebhookQueue: delivered concurrently, one call's events in their order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from shared.messages import DeliveryMessage, read_delivery_message
from shared.telemetry import logger
from webhook_dispatch.deliver import Deliverer
from webhook_dispatch.fan_out import FanOut


async def deliver_batch(deliverer: Deliverer, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Attempts every message's delivery. A message that raises is reported by its id and does not affect the
    others.
    """
    results = await asyncio.gather(*in_order(deliverer, records), return_exceptions=True)
    failed = []
    for record, result in zip(records, results, strict=True):
        if isinstance(result, BaseException):
            logger.error("delivery failed", exc_info=result, extra={"body": record["body"]})
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One record's turn among those of its call. started: its POST has begun, or there will be none."""

    started: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    done: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


def in_order(deliverer: Deliverer, records: Sequence[dict[str, Any]]) -> list[asyncio.Task[None]]:
    """Starts a task for each record. One call's events in a batch are posted in their order: each when the
    previous one is done, or `webhook_order` after that one's POST began, so that a slow endpoint delays its own
    events only briefly.
    """
    messages = [read_delivery_message(record) for record in records]
    tasks: dict[int, asyncio.Task[None]] = {}
    last_of_call: dict[str, Turn] = {}
    for place in sorted(range(len(records)), key=lambda place: _sequence(messages[place])):
        message = messages[place]
        call_id = message.call_id if message else ""
        before, turn = last_of_call.get(call_id), Turn()
        last_of_call[call_id] = turn
        tasks[place] = asyncio.create_task(deliver_after(deliverer, before, turn, message))
    return [tasks[place] for place in range(len(records))]


async def deliver_after(
    deliverer: Deliverer, before: Turn | None, turn: Turn, message: DeliveryMessage | None
) -> None:
    """Raises ValueError when the record is not a delivery message (None)."""
    try:
        if before is not None:
            await before.started.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(before.done.wait(), deliverer.durations.webhook_order)
        match message:
            case DeliveryMessage(call_id=call_id, sequence=int(sequence)):
                await deliverer.deliver(call_id, sequence, turn.started.set)
            case DeliveryMessage(call_id=call_id):
                fan_out = FanOut(
                    deliverer.deliveries, deliverer.webhook_queue, deliverer.durations, deliverer.clock
                )
                await asyncio.to_thread(fan_out.deliver_all, deliverer.calls, call_id)
            case _:
                raise ValueError("not a delivery message")
    finally:
        turn.started.set()
        turn.done.set()


def _sequence(message: DeliveryMessage | None) -> int:
    return 0 if message is None or message.sequence is None else message.sequence
