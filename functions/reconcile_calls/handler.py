"""Every minute: what is due."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dial_worker.livekit_sip import connect
from reconcile_calls.reconcile import ROUND_SECONDS, Reconciling, reconcile
from reconcile_calls.settings import Settings
from shared import aws
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.delivery_store import DeliveryStore
from shared.livekit_secret import LiveKitSecretCache
from shared.queues import Queue
from shared.workspaces import WorkspaceStore

settings = Settings.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
sqs = aws.client("sqs")
calls = CallStore(dynamodb, settings.calls_table)
deliveries = DeliveryStore(dynamodb, settings.calls_table)
workspaces = WorkspaceStore(dynamodb, settings.workspaces_table)
dial_queue = Queue(sqs, settings.dial_queue_url)
webhook_queue = Queue(sqs, settings.webhook_queue_url)
livekit_secret = LiveKitSecretCache(
    aws.client("secretsmanager"), settings.livekit_secret_name, settings.durations.workspace_cache
)
runner = asyncio.Runner()
# Requests to AWS that are under way at a time, each with an item in its answer: as many as there are connections.
runner.get_loop().set_default_executor(ThreadPoolExecutor(20, thread_name_prefix="aws"))


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, int]:
    return runner.run(run(context))


async def run(context: Any) -> dict[str, int]:
    async with connect(livekit_secret.get, settings.durations.livekit_look) as livekit:
        parts = Reconciling(
            calls=calls,
            deliveries=deliveries,
            workspaces=workspaces,
            dial_queue=dial_queue,
            webhook_queue=webhook_queue,
            livekit=livekit,
            durations=settings.durations,
            clock=now_ms,
            time_left=lambda: context.get_remaining_time_in_millis() > ROUND_SECONDS * 1000,
        )
        return dict(await reconcile(parts))
