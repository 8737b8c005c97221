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
# One loop, and with it one pool of connections, for the life of the process.
runner = asyncio.Runner()


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return runner.run(deliver_batch(event["Records"]))


async def deliver_batch(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Attempts every message's delivery; one that raises touches no other and is reported by its own id."""
    results = await asyncio.gather(*(deliver_record(record) for record in records), return_exceptions=True)
    failed = []
    for record, result in zip(records, results, strict=True):
        if isinstance(result, BaseException):
            logger.error("delivery failed", exc_info=result, extra={"message": record["body"]})
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


async def deliver_record(record: dict[str, Any]) -> None:
    """Raises ValueError or KeyError when the message is not one of ours."""
    message = json.loads(record["body"])
    await deliver(parts, message["callId"], message["sequence"])
