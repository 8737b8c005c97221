"""Runs every minute over what is due, in several concurrent invocations, each with some of the index's shards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from reconcile_calls.reconcile import ROUND_SECONDS, WRITE_SECONDS, Reconciler, requests_of
from reconcile_calls.settings import Settings
from shared import aws
from shared.call_store import CallStore
from shared.clock import now_ms, to_seconds
from shared.delivery_store import DeliveryStore
from shared.limits import LimitStore
from shared.line import Line
from shared.livekit.client import connect
from shared.livekit.secret import LiveKitSecretCache
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.table_keys import SHARDS

settings = Settings.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
sqs = aws.client("sqs")
calls = CallStore(dynamodb, settings.calls_table)
deliveries = DeliveryStore(dynamodb, settings.calls_table)
limits = LimitStore(dynamodb, settings.workspaces_table)
numbers = NumberStore(dynamodb, settings.numbers_table)
dial_queue = Queue(sqs, settings.dial_queue_url)
line = Line(calls, limits, dial_queue, settings.durations, now_ms)
webhook_queue = Queue(sqs, settings.webhook_queue_url)
livekit_secret = LiveKitSecretCache(
    aws.client("secretsmanager"), settings.livekit_secret_name, settings.durations.workspace_cache
)
runner = asyncio.Runner()
# Concurrent requests to AWS, each of which may hold an item: as many as the client has connections.
runner.get_loop().set_default_executor(ThreadPoolExecutor(20, thread_name_prefix="aws"))


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, int]:
    """event: `{"shards": [0, 1]}`; without `shards` the run takes all of them."""
    return runner.run(run(context, event.get("shards", range(SHARDS))))


async def run(context: Any, shards: Sequence[int] = range(SHARDS)) -> dict[str, int]:
    def remaining() -> float:
        return to_seconds(context.get_remaining_time_in_millis())

    look = settings.durations.livekit_look
    async with connect(livekit_secret.get, look) as livekit:
        reconciler = Reconciler(
            calls=calls,
            deliveries=deliveries,
            limits=limits,
            numbers=numbers,
            line=line,
            dial_queue=dial_queue,
            webhook_queue=webhook_queue,
            livekit=livekit,
            durations=settings.durations,
            clock=now_ms,
            time_left=lambda: remaining() > ROUND_SECONDS,
            answers_in_time=lambda requests: remaining() > requests * look + WRITE_SECONDS,
            shards=shards,
            requests_left=requests_of(shards),
        )
        return dict(await reconciler.run())
