"""WebhookQueue → the customers' endpoints, up to ten side by side."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import httpx

from shared import aws
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.queues import Queue
from shared.telemetry import logger
from shared.workspaces import WorkspaceCache, WorkspaceStore
from webhook_dispatch.deliver import Delivering, deliver
from webhook_dispatch.fan_out import FanningOut, deliver_all
from webhook_dispatch.settings import callback_policy
from webhook_dispatch.transport import GuardedTransport

durations = Durations.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
parts = Delivering(
    calls=CallStore(dynamodb, os.environ["CALLS_TABLE"]),
    deliveries=DeliveryStore(dynamodb, os.environ["CALLS_TABLE"]),
    workspaces=WorkspaceCache(WorkspaceStore(dynamodb, os.environ["WORKSPACES_TABLE"]), durations.workspace_cache),
    webhook_queue=Queue(aws.client("sqs"), os.environ["WEBHOOK_QUEUE_URL"]),
    client=httpx.AsyncClient(
        transport=GuardedTransport(callback_policy(os.environ)),
        timeout=httpx.Timeout(durations.webhook_attempt, connect=durations.webhook_connect),
        follow_redirects=False,
    ),
    durations=durations,
    clock=now_ms,
)
fanning_out = FanningOut(
    deliveries=parts.deliveries,
    webhook_queue=parts.webhook_queue,
    durations=durations,
    clock=now_ms,
)
# One loop, and with it one pool of connections, for the life of the process.
runner = asyncio.Runner()


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return runner.run(deliver_batch(event["Records"]))


async def deliver_batch(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Attempts every message's delivery; one that raises touches no other and is reported by its own id."""
    tasks = in_order(records)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failed = []
    for record, result in zip(records, results, strict=True):
        if isinstance(result, BaseException):
            logger.error("delivery failed", exc_info=result, extra={"message": record["body"]})
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


def in_order(records: list[dict[str, Any]]) -> list[asyncio.Task[None]]:
    """A task for each record. Of one call's events in a batch a later one starts when the one before is done,
    or has taken `webhook_order`: order where it costs nothing, and no endpoint holds up its own events for long.
    """
    tasks: dict[int, asyncio.Task[None]] = {}
    last_of_call: dict[str, asyncio.Task[None]] = {}
    for place, record in sorted(enumerate(records), key=lambda entry: _sequence(entry[1])):
        call_id = str(_message(record).get("callId"))
        before = last_of_call.get(call_id)
        tasks[place] = last_of_call[call_id] = asyncio.create_task(deliver_after(before, record))
    return [tasks[place] for place in range(len(records))]


async def deliver_after(before: asyncio.Task[None] | None, record: dict[str, Any]) -> None:
    """Raises ValueError when the message is not one of ours."""
    if before is not None:
        await asyncio.wait([before], timeout=durations.webhook_order)
    match _message(record):
        case {"callId": str(call_id), "sequence": int(sequence)}:
            await deliver(parts, call_id, sequence)
        case {"callId": str(call_id)}:
            await asyncio.to_thread(deliver_all, fanning_out, parts.calls, call_id)
        case _:
            raise ValueError("not a delivery message")


def _message(record: dict[str, Any]) -> dict[str, Any]:
    try:
        body = json.loads(record["body"])
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _sequence(record: dict[str, Any]) -> int:
    sequence = _message(record).get("sequence")
    return sequence if isinstance(sequence, int) else 0
