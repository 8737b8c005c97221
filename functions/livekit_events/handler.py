"""POST /v1/livekit/events: LiveKit's webhooks."""

from __future__ import annotations

import os
from typing import Any

from google.protobuf.json_format import Parse, ParseError
from livekit.protocol.webhook import WebhookEvent

from livekit_events.apply_event import EventApplier
from livekit_events.settings import Settings
from shared import aws
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.http_api import Answer, Event, answer, body_bytes, header, request_id, respond
from shared.limits import LimitStore
from shared.line import Line
from shared.livekit.secret import LiveKitSecretCache
from shared.livekit.signature import signed_claims
from shared.queues import Queue
from shared.telemetry import count, logger

_LOGGED_CHARACTERS = 128

settings = Settings.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
livekit_secret = LiveKitSecretCache(
    aws.client("secretsmanager"), settings.livekit_secret_name, settings.durations.workspace_cache
)
calls = CallStore(dynamodb, settings.calls_table)
dial_queue = Queue(aws.client("sqs"), settings.dial_queue_url)
event_applier = EventApplier(
    calls=calls,
    line=Line(
        calls, LimitStore(dynamodb, settings.workspaces_table), dial_queue, settings.durations, clock=now_ms
    ),
    dial_queue=dial_queue,
    durations=settings.durations,
    clock=now_ms,
)


def lambda_handler(event: Event, context: Any) -> Answer:
    return respond(event, receive)


def receive(event: Event) -> Answer:
    """Answers 200 once the event is stored; 503 makes LiveKit send it again (any 4xx would count as delivered).

    A signed body that cannot be parsed is counted and answered 200 too, as repeating it would not help.
    """
    body = body_bytes(event)
    signed_claims(body, header(event, "authorization"), livekit_secret.get())
    livekit_event = _parsed(body)
    if livekit_event is None:
        logger.warning("livekit event not understood", extra={"bytes": len(body), "request_id": request_id(event)})
        count("LiveKitEventsNotUnderstood")
        return answer(200, {"status": "success"})
    applied, call_id = event_applier.apply(livekit_event)
    logger.info(
        "livekit event",
        extra={
            "call_id": call_id,
            "event": livekit_event.event[:_LOGGED_CHARACTERS],
            "id": livekit_event.id[:_LOGGED_CHARACTERS],
            "applied": applied,
        },
    )
    return answer(200, {"status": "success"})


def _parsed(body: bytes) -> WebhookEvent | None:
    try:
        event = Parse(body, WebhookEvent(), ignore_unknown_fields=True)
    except (ParseError, UnicodeDecodeError):
        return None
    # `Parse` reads an array as an event without fields.
    return event if body.lstrip().startswith(b"{") else None
