"""Consumer of WebhookQueue: posts to the customers' endpoints, up to ten concurrently."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shared import aws
from shared.call_store import CallStore
from shared.callback_url import callback_policy
from shared.clock import now_ms
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.queues import Queue
from shared.workspaces import WorkspaceCache, WorkspaceStore
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.deliver import Deliverer
from webhook_dispatch.transport import GuardedTransport, webhook_client

# httpx logs every request with its URL, and a callback URL may contain the customer's token.
logging.getLogger("httpx").setLevel(logging.WARNING)

durations = Durations.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
deliverer = Deliverer(
    calls=CallStore(dynamodb, os.environ["CALLS_TABLE"]),
    deliveries=DeliveryStore(dynamodb, os.environ["CALLS_TABLE"]),
    workspaces=WorkspaceCache(WorkspaceStore(dynamodb, os.environ["WORKSPACES_TABLE"]), durations.workspace_cache),
    webhook_queue=Queue(aws.client("sqs"), os.environ["WEBHOOK_QUEUE_URL"]),
    client=webhook_client(GuardedTransport(callback_policy(os.environ)), durations),
    durations=durations,
    clock=now_ms,
)
# One event loop, and so one connection pool, for the lifetime of the process.
runner = asyncio.Runner()
# Ten deliveries call AWS concurrently; asyncio's default would be six threads on a small processor.
runner.get_loop().set_default_executor(ThreadPoolExecutor(20, thread_name_prefix="aws"))


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return runner.run(deliver_batch(deliverer, event["Records"]))
