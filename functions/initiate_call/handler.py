"""POST /v1/api/call, and its preview."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from initiate_call.accept import Acceptor
from initiate_call.rate_limit import RateLimit
from initiate_call.settings import Settings
from shared import aws
from shared.authorization import api_key
from shared.call_store import CallStore
from shared.callback_url import resolve_within
from shared.clock import now_ms
from shared.http_api import Answer, Event, answer, body_bytes, header, respond
from shared.limits import LimitStore
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.telemetry import count, logger, masked
from shared.workspaces import WorkspaceCache, WorkspaceStore

settings = Settings.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
limits = LimitStore(dynamodb, settings.workspaces_table, settings.numbers_table)
acceptor = Acceptor(
    calls=CallStore(dynamodb, settings.calls_table),
    numbers=NumberStore(dynamodb, settings.numbers_table),
    limits=limits,
    workspaces=WorkspaceCache(
        WorkspaceStore(dynamodb, settings.workspaces_table), settings.durations.workspace_cache
    ),
    rate_limit=RateLimit(limits),
    dial_queue=Queue(aws.client("sqs"), settings.dial_queue_url),
    durations=settings.durations,
    callback_policy=settings.callback_policy,
    look_up=resolve_within(settings.durations.name_lookup),
    clock=now_ms,
)


def lambda_handler(event: Event, context: Any) -> Answer:
    return respond(event, route)


def route(event: Event) -> Answer:
    return ROUTES[event["routeKey"]](event)


def initiate_call(event: Event) -> Answer:
    accepted = acceptor.accept(
        workspace_id=header(event, "x-workspace-id"),
        api_key=api_key(event),
        idempotency_key=header(event, "idempotency-key"),
        body=body_bytes(event),
    )
    call = accepted.call
    logger.info(
        "accepted" if not accepted.replayed else "replayed",
        extra={"call_id": call.call_id, "job_id": call.job_id, "to": masked(call.to)},
    )
    count("CallsReplayed" if accepted.replayed else "CallsAccepted")
    return answer(200, accepted.body(), {"idempotency-replayed": "true"} if accepted.replayed else None)


def preview_call(event: Event) -> Answer:
    return answer(
        200,
        acceptor.preview(
            workspace_id=header(event, "x-workspace-id"), api_key=api_key(event), body=body_bytes(event)
        ),
    )


ROUTES: dict[str, Callable[[Event], Answer]] = {
    "POST /v1/api/call": initiate_call,
    "POST /v1/api/call/preview": preview_call,
}
