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
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime

import httpcore
import httpx
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from shared.call import Call, event_id, webhook_body
from shared.call_store import CallStore
from shared.delivery_store import Delivery, DeliveryStore, State
from shared.durations import Durations
from shared.errors import StoreError
from shared.json_text import ascii_compact
from shared.queues import Queue
from shared.telemetry import count, logger
from shared.workspaces import Workspace, WorkspaceCache
from webhook_dispatch.address_guard import AddressRefused

ANSWER_BYTES = 8 * 1024
ANSWER_CHARACTERS = 500
METADATA_HEADER_BYTES = 4 * 1024
USER_AGENT = "Ringonce-Webhooks/1"

GONE = 410
# 4xx that say "not now" rather than "not like this": time-out, conflict, too early, too many.
WORTH_REPEATING = frozenset({408, 409, 425, 429})
REFUSED_ATTEMPTS = 3

# An attempt is counted when it is taken, so one that always kills its process ends too: after so many schedules.
DEATHS_FORGIVEN = 2


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
    """What came of a POST. status: HTTP's, None when there was no answer and `error` says why. retry_after:
    seconds the receiver asks for."""

    status: int | None = None
    error: str | None = None
    answer: str = ""
    retry_after: float | None = None


async def deliver(
    parts: Delivering, call_id: str, sequence: int, leaving: Callable[[], None] = lambda: None
) -> None:
    """Makes the attempt that is due now, if one is. Returning acknowledges the message.

    leaving: called at the moment the POST begins, if it comes to one.
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
    if delivery.attempt > DEATHS_FORGIVEN * len(parts.durations.webhook_schedule):
        attempted = Attempted(error="given up: attempt after attempt died before its outcome could be noted")
        await _finish(parts, delivery, attempted, "dead", None, now)
        return
    call = await asyncio.to_thread(parts.calls.get, call_id)
    if call is None or call.callbackUrl is None or sequence > len(call.events):
        await _finish(parts, delivery, Attempted(error="the call's record is gone"), "dead", None, now)
        return
    if call.webhooksStoppedAt is not None and not delivery.replayed:
        attempted = Attempted(error="the receiver answered 410 to an earlier event")
        await _finish(parts, delivery, attempted, "stopped", None, now)
        return
    workspace = await asyncio.to_thread(parts.workspaces.get, call.workspaceId)
    began = parts.clock()
    if began + parts.durations.webhook_attempt * 1000 >= delivery.leaseUntil:
        # AWS was slow. A POST that outlives its lease could meet the next one.
        raise StoreError(f"no time is left for delivery {sequence} of call {call_id}")
    attempted = await _post(parts, call, call.callbackUrl, sequence, workspace, leaving)
    if attempted.status == GONE:
        await asyncio.to_thread(parts.calls.stop_webhooks, call_id, parts.clock())
    earlier = [attempt.get("status") for attempt in delivery.attempts]
    state, delay = what_follows(attempted, delivery.attempt, earlier, parts.durations)
    await _finish(parts, delivery, attempted, state, delay, began)


def what_follows(
    attempted: Attempted, attempts: int, earlier: Sequence[int | None], durations: Durations
) -> tuple[State, float | None]:
    """The delivery's state after attempt number `attempts` (1-based) of its schedule, and the seconds until the
    next. earlier: the status of every attempt noted before.

    A receiver's Retry-After makes the wait longer, never shorter, and never longer than the longest wait. A
    refusal that another try will not change (4xx) is heard three times, everything else to the schedule's end.
    """
    status = attempted.status
    if status is not None and 200 <= status < 300:
        return "delivered", None
    if status == GONE:
        return "stopped", None
    schedule = durations.webhook_schedule
    heard = earlier[len(earlier) - min(attempts - 1, len(earlier)) :]
    refusals = sum(_is_refusal(one) for one in (*heard, status))
    if attempts >= len(schedule) or (_is_refusal(status) and refusals >= REFUSED_ATTEMPTS):
        return "dead", None
    asked = min((attempted.retry_after or 0) * durations.scale, max(schedule))
    return "pending", max(schedule[attempts], asked) * random.uniform(1, 1.1)


def _is_refusal(status: int | None) -> bool:
    return status is not None and 400 <= status < 500 and status not in WORTH_REPEATING


def retry_after_seconds(value: str | None, now: datetime.datetime) -> float | None:
    """RFC 9110's Retry-After, seconds or a date; None when there is none or it makes no sense."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def signed_headers(
    webhook_secrets: tuple[str, ...], message_id: str, at: datetime.datetime, body: str, metadata: str | None
) -> dict[str, str]:
    """The headers of one attempt. A signature for each secret: two during a rotation."""
    headers = {
        "accept-encoding": "identity",
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


async def _post(
    parts: Delivering, call: Call, url: str, sequence: int, workspace: Workspace | None,
    leaving: Callable[[], None],
) -> Attempted:  # fmt: skip
    if workspace is None or not workspace.webhookSecrets:
        return Attempted(error="the workspace has no webhook secret")
    body = webhook_body(call, sequence)
    message_id = event_id(call.callId, sequence)
    try:
        headers = signed_headers(workspace.webhookSecrets, message_id, _now(parts), body, call.metadata)
    except (ValueError, EmptyWebhookSecretError):
        return Attempted(error="the workspace's webhook secret is not one")
    leaving()
    try:
        async with (
            asyncio.timeout(parts.durations.webhook_attempt),
            parts.client.stream("POST", url, content=body.encode(), headers=headers) as answer,
        ):
            return Attempted(
                answer.status_code,
                answer=await _beginning(answer),
                retry_after=retry_after_seconds(answer.headers.get("retry-after"), _now(parts)),
            )
    except TimeoutError:
        return Attempted(error="no answer in time")
    except AddressRefused as exc:
        return Attempted(error=f"callback_url {exc}")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, *_HTTPCORE_ERRORS) as exc:
        return Attempted(error=_said(exc))
    except Exception as exc:
        # Nothing that a receiver sends may leave its delivery without an outcome: it would come back for ever.
        logger.exception("webhook failed in an unforeseen way", extra={"call_id": call.callId})
        return Attempted(error=_said(exc))


def _said(exc: Exception) -> str:
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return text.encode("utf-8", "replace").decode()[:ANSWER_CHARACTERS]


_HTTPCORE_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


def _now(parts: Delivering) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(parts.clock() // 1000, datetime.UTC)


async def _beginning(answer: httpx.Response) -> str:
    """The first characters of what the receiver said, for the operator; no more than 8 KiB are read."""
    read = b""
    async for part in answer.aiter_raw():
        read += part
        if len(read) >= ANSWER_BYTES:
            break
    return read[:ANSWER_BYTES].decode("utf-8", "replace")[:ANSWER_CHARACTERS]


async def _finish(
    parts: Delivering, delivery: Delivery, attempted: Attempted, state: State, delay: float | None, began: int
) -> None:
    now = parts.clock()
    next_at = now + int((delay or 0) * 1000)
    by_message = delay is not None and delay < parts.durations.webhook_message
    check_at = next_at + int(parts.durations.webhook_grace * 1000) if by_message else next_at
    told = {"status": attempted.status, "error": attempted.error, "answer": attempted.answer or None}
    attempt = {"at": began, "ms": now - began} | {name: value for name, value in told.items() if value is not None}
    finished = await asyncio.to_thread(parts.deliveries.finish, delivery, attempt, state, next_at, check_at)
    extra = {
        "call_id": delivery.callId,
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
    if by_message:
        await asyncio.to_thread(
            parts.webhook_queue.send,
            {"callId": delivery.callId, "sequence": delivery.sequence},
            group=delivery.workspaceId,
            delay_seconds=delay or 0,
        )
