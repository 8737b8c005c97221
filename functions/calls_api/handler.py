"""All routes for clients except POST /v1/api/call, and the route for agents' reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from calls_api.deliveries import deliveries_view, replay
from calls_api.queries import call_of_workspace, call_view, list_calls, list_query
from calls_api.reports import ReportReceiver
from calls_api.rescheduling import Rescheduler
from calls_api.settings import Settings
from calls_api.suppression import Suppressor
from shared import aws
from shared.authorization import api_key, authorized_workspace, bearer_token, key_of
from shared.call import Call
from shared.call_store import CallStore
from shared.canceling import Canceler
from shared.clock import now_ms
from shared.delivery_store import DeliveryStore
from shared.http_api import Answer, Event, answer, body_bytes, header, respond
from shared.livekit.secret import LiveKitSecretCache
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.telemetry import count, logger
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore

settings = Settings.from_environment(os.environ)
dynamodb = aws.client("dynamodb")
calls = CallStore(dynamodb, settings.calls_table)
deliveries = DeliveryStore(dynamodb, settings.calls_table)
webhook_queue = Queue(aws.client("sqs"), settings.webhook_queue_url)
workspaces = WorkspaceStore(dynamodb, settings.workspaces_table)
workspace_cache = WorkspaceCache(workspaces, settings.durations.workspace_cache)
livekit_secret = LiveKitSecretCache(
    aws.client("secretsmanager"), settings.livekit_secret_name, settings.durations.workspace_cache
)
canceler = Canceler(
    calls=calls,
    livekit_secret=livekit_secret,
    durations=settings.durations,
    clock=now_ms,
)
numbers = NumberStore(dynamodb, settings.numbers_table)
suppressor = Suppressor(numbers=numbers, clock=now_ms)
report_receiver = ReportReceiver(
    calls=calls,
    suppressor=suppressor,
    livekit_secret=livekit_secret,
    durations=settings.durations,
    clock=now_ms,
)
rescheduler = Rescheduler(
    calls=calls,
    numbers=numbers,
    dial_queue=Queue(aws.client("sqs"), settings.dial_queue_url),
    durations=settings.durations,
    clock=now_ms,
)


def lambda_handler(event: Event, context: Any) -> Answer:
    return respond(event, route)


def route(event: Event) -> Answer:
    return ROUTES[event["routeKey"]](event)


def get_call(event: Event) -> Answer:
    return answer(200, call_view(_call(event), now_ms()))


def get_calls(event: Event) -> Answer:
    return answer(200, list_calls(calls, _workspace(event).workspace_id, list_query(event), now_ms()))


def post_cancel(event: Event) -> Answer:
    call = _call(event)
    canceler.cancel(call)
    logger.info("cancel accepted", extra={"call_id": call.call_id})
    return answer(
        200, {"status": "success", "message": "The call is canceled or being hung up", "callId": call.call_id}
    )


def patch_call(event: Event) -> Answer:
    workspace = _workspace(event)
    call_id = event["pathParameters"]["callId"]
    call = rescheduler.reschedule(workspace, call_id, body_bytes(event))
    logger.info("rescheduled", extra={"call_id": call.call_id, "waiting_for": call.waiting_for})
    return answer(200, call_view(call, now_ms()))


def get_suppressions(event: Event) -> Answer:
    return answer(200, suppressor.page(_workspace(event).workspace_id, event))


def get_suppression(event: Event) -> Answer:
    return answer(200, suppressor.view(_workspace(event).workspace_id, event))


def put_suppression(event: Event) -> Answer:
    workspace = _workspace(event)
    number = event["pathParameters"]["number"]
    key = key_of(workspace, api_key(event))
    return answer(200, suppressor.suppress(workspace, number, body_bytes(event), key))


def delete_suppression(event: Event) -> Answer:
    workspace = _workspace(event)
    return answer(200, suppressor.release(workspace, event, key_of(workspace, api_key(event))))


def post_import(event: Event) -> Answer:
    workspace = _workspace(event)
    key = key_of(workspace, api_key(event))
    return answer(200, suppressor.import_all(workspace, body_bytes(event), key))


def get_deliveries(event: Event) -> Answer:
    return answer(200, deliveries_view(deliveries, _call(event)))


def post_replay(event: Event) -> Answer:
    call = _call(event)
    sequence = event["pathParameters"]["sequence"]
    replay(calls, deliveries, webhook_queue, call, sequence, settings.durations, now_ms())
    logger.info("replay accepted", extra={"call_id": call.call_id, "sequence": sequence})
    return answer(
        200,
        {
            "status": "success",
            "message": "The event is sent again",
            "callId": call.call_id,
            "sequence": int(sequence),
        },
    )


def post_event(event: Event) -> Answer:
    reported = report_receiver.receive(
        call_id=event["pathParameters"]["callId"],
        token=bearer_token(event),
        idempotency_key=header(event, "idempotency-key"),
        body=body_bytes(event),
    )
    logger.info(
        "report accepted" if not reported.replayed else "report replayed",
        extra={"call_id": reported.call_id, "type": reported.kind, "sequence": reported.sequence},
    )
    if reported.sequence is not None:
        count("ReportsReplayed" if reported.replayed else "ReportsAccepted")
    return answer(200, reported.body(), {"idempotency-replayed": "true"} if reported.replayed else None)


ROUTES: dict[str, Callable[[Event], Answer]] = {
    "GET /v1/api/call": get_calls,
    "GET /v1/api/call/{callId}": get_call,
    "PATCH /v1/api/call/{callId}": patch_call,
    "POST /v1/api/call/{callId}/cancel": post_cancel,
    "POST /v1/api/call/{callId}/events": post_event,
    "GET /v1/api/call/{callId}/deliveries": get_deliveries,
    "POST /v1/api/call/{callId}/deliveries/{sequence}/replay": post_replay,
    "GET /v1/api/suppression": get_suppressions,
    "POST /v1/api/suppression/import": post_import,
    "GET /v1/api/suppression/{number}": get_suppression,
    "PUT /v1/api/suppression/{number}": put_suppression,
    "DELETE /v1/api/suppression/{number}": delete_suppression,
}


def _workspace(event: Event) -> Workspace:
    return authorized_workspace(workspace_cache, header(event, "x-workspace-id"), api_key(event))


def _call(event: Event) -> Call:
    return call_of_workspace(calls, _workspace(event).workspace_id, event["pathParameters"]["callId"])
