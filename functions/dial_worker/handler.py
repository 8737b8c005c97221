"""Consumer of DialQueue: up to ten messages per batch, dialled concurrently on one event loop."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from dial_worker.agent_left import look_for_agent
from dial_worker.dial import Dialler
from dial_worker.settings import Settings
from shared import aws
from shared.call_store import CallStore
from shared.clock import now_ms, to_seconds
from shared.limits import LimitStore
from shared.line import Line
from shared.livekit.client import connect
from shared.livekit.secret import LiveKitSecretCache
from shared.messages import read_dial_message
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.telemetry import logger
from shared.workspaces import WorkspaceCache, WorkspaceStore

settings = Settings.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
calls = CallStore(dynamodb, settings.calls_table)
limits = LimitStore(dynamodb, settings.workspaces_table, settings.numbers_table)
numbers = NumberStore(dynamodb, settings.numbers_table)
workspace_cache = WorkspaceCache(
    WorkspaceStore(dynamodb, settings.workspaces_table), settings.durations.workspace_cache
)
dial_queue = Queue(aws.client("sqs"), settings.dial_queue_url)
line = Line(calls, limits, dial_queue, settings.durations, now_ms)
livekit_secret = LiveKitSecretCache(
    aws.client("secretsmanager"), settings.livekit_secret_name, settings.durations.workspace_cache
)
# One event loop for the lifetime of the process.
runner = asyncio.Runner()


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return runner.run(dial_batch(event["Records"], context))


async def dial_batch(records: list[dict[str, Any]], context: Any) -> dict[str, Any]:
    """Dials every message's call. A message that raises is reported by its id and does not affect the others."""
    async with connect(livekit_secret.get, settings.durations.livekit_request) as livekit:
        dialler = Dialler(
            calls=calls,
            limits=limits,
            numbers=numbers,
            line=line,
            workspace_cache=workspace_cache,
            dial_queue=dial_queue,
            livekit=livekit,
            durations=settings.durations,
            public_api_url=settings.public_api_url,
            clock=now_ms,
            remaining=lambda: to_seconds(context.get_remaining_time_in_millis()),
        )
        results = await asyncio.gather(
            *(dial_record(dialler, record) for record in records), return_exceptions=True
        )
    failed = []
    for record, result in zip(records, results, strict=True):
        if isinstance(result, BaseException):
            logger.error("dial failed", exc_info=result, extra={"body": record["body"]})
            failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}


async def dial_record(dialler: Dialler, record: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError when the record is not a dial message."""
    message = read_dial_message(record)
    if message.hold:
        return
    if message.agent_left:
        await look_for_agent(dialler, message.call_id)
    else:
        await dialler.dial(message)
