"""One attempt at one webhook: take the row, post, note what came of it.

Standard Webhooks (https://www.standardwebhooks.com): the id is the event's, the same on every attempt and
replay; the body is a function of the record, so every attempt carries the same bytes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import random
import secrets
from collections.abc import Callable
from typing import Any

import httpcore
import httpx
from standardwebhooks.webhooks import Webhook

from shared.call import Call, event_id, webhook_body
from shared.call_store import CallStore
from shared.delivery_store import Delivery, DeliveryStore, State
from shared.durations import Durations
from shared.errors import StoreError
from shared.json_text import ascii_compact
from shared.queues import Queue
from shared.telemetry import count, logger
from shared.workspaces import WorkspaceCache
from webhook_dispatch.address_guard import AddressRefused

ANSWER_BYTES = 8 * 1024
ANSWER_CHARACTERS = 500
METADATA_HEADER_BYTES = 4 * 1024
USER_AGENT = "Ringonce-Webhooks/1"


@dataclasses.dataclass(frozen=True, slots=True)
class Delivering:
    """What delivering needs. clock: epoch milliseconds."""

    calls: CallStore
    deliveries: DeliveryStore
    workspaces: WorkspaceCache
    webhook_queue: Queue
    client: httpx.AsyncClient
    durations: Durations
    clock: Callable[[], int]


@dataclasses.dataclass(frozen=True, slots=True)
class Attempted:
    """What came of a POST. status: HTTP's, None when there was no answer and `error` says why."""

    status: int | None = None
    error: str | None = None
    answer: str = ""

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


async def deliver(parts: Delivering, call_id: str, sequence: int) -> None:
    """Makes the attempt that is due now, if one is. Returning acknowledges the message.

    Raises StoreError or QueueError when AWS fails; the row stays due and comes back.
    """
    now = parts.clock()
    delivery = await asyncio.to_thread(
        parts.deliveries.take,
        call_id,
        sequence,
        secrets.token_hex(8),
        now,
        now + int(parts.durations.webhook_lease * 1000),
    )
    if delivery is None:
        logger.info("nothing to deliver", extra={"call_id": call_id, "sequence": sequence})
        return
    call = await asyncio.to_thread(parts.calls.get, call_id)
    if call is None or call.callbackUrl is None or sequence > len(call.events):
        raise StoreError(f"delivery {sequence} of call {call_id} has no event")
    attempted = await _post(parts, call, call.callbackUrl, sequence)
    attempt = {
        "at": now,
        "ms": parts.clock() - now,
        **{
            name: value
            for name, value in dataclasses.asdict(attempted).items()
            if value is not None and value != ""
        },
    }
    await _finish(parts, call, delivery, attempted, attempt)


def signed_headers(
    webhook_secrets: tuple[str, ...], message_id: str, at: datetime.datetime, body: str, metadata: str | None
) -> dict[str, str]:
    """The headers of one attempt. A signature for each secret: two during a rotation."""
    headers = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(message_id, at, body) for secret in webhook_secrets),
    }
    if metadata is not None:
        text = ascii_compact(metadata)
        if len(text) <= METADATA_HEADER_BYTES:
            headers["metadata"] = text
    return headers


async def _post(parts: Delivering, call: Call, url: str, sequence: int) -> Attempted:
    workspace = await asyncio.to_thread(parts.workspaces.get, call.workspaceId)
    if workspace is None or not workspace.webhookSecrets:
        return Attempted(error="the workspace has no webhook secret")
    body = webhook_body(call, sequence)
    headers = signed_headers(
        workspace.webhookSecrets,
        event_id(call.callId, sequence),
        datetime.datetime.fromtimestamp(parts.clock() // 1000, datetime.UTC),
        body,
        call.metadata,
    )
    try:
        async with (
            asyncio.timeout(parts.durations.webhook_attempt),
            parts.client.stream("POST", url, content=body.encode(), headers=headers) as answer,
        ):
            return Attempted(answer.status_code, answer=await _beginning(answer))
    except TimeoutError:
        return Attempted(error="no answer in time")
    except AddressRefused as exc:
        return Attempted(error=f"callback_url {exc}")
    except (httpx.HTTPError, httpx.InvalidURL, *_HTTPCORE_ERRORS) as exc:
        return Attempted(error=f"{type(exc).__name__}: {exc}"[:ANSWER_CHARACTERS])


_HTTPCORE_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


async def _beginning(answer: httpx.Response) -> str:
    """The first characters of what the receiver said, for the operator; no more than 8 KiB are read."""
    read = b""
    async for part in answer.aiter_raw():
        read += part
        if len(read) >= ANSWER_BYTES:
            break
    return read[:ANSWER_BYTES].decode("utf-8", "replace")[:ANSWER_CHARACTERS]


async def _finish(
    parts: Delivering, call: Call, delivery: Delivery, attempted: Attempted, attempt: dict[str, Any]
) -> None:
    now = parts.clock()
    delay = _next_delay(parts.durations, delivery.attempt)
    state: State = "delivered" if attempted.delivered else "pending" if delay is not None else "dead"
    next_at = now + int((delay or 0) * 1000)
    by_message = delay is not None and delay < parts.durations.webhook_message
    check_at = next_at + int(parts.durations.webhook_grace * 1000) if by_message else next_at
    finished = await asyncio.to_thread(parts.deliveries.finish, delivery, attempt, state, next_at, check_at)
    extra = {
        "call_id": call.callId,
        "sequence": delivery.sequence,
        "attempt": delivery.attempt,
        "http_status": attempted.status,
        "error": attempted.error,
        "state": state,
    }
    if finished is None:
        logger.warning("delivery taken over by another process", extra=extra)
        return
    logger.info("webhook", extra=extra)
    count("WebhookAttempts", outcome=state)
    if state == "pending" and by_message:
        await asyncio.to_thread(
            parts.webhook_queue.send,
            {"callId": call.callId, "sequence": delivery.sequence},
            group=call.workspaceId,
            delay_seconds=delay or 0,
        )


def _next_delay(durations: Durations, attempts: int) -> float | None:
    """Seconds until the attempt after number `attempts`, with up to a tenth of jitter; None after the last."""
    if attempts >= len(durations.webhook_schedule):
        return None
    return durations.webhook_schedule[attempts] * random.uniform(1, 1.1)
