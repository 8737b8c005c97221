"""One attempt at one webhook: takes the row, posts, stores the result."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import random
import secrets
from collections.abc import Callable, Sequence

import httpx

from shared.call import Call, event_id_of, webhook_body
from shared.call_store import CallStore
from shared.clock import Clock, to_ms
from shared.delivery_store import Delivery, DeliveryStore, State
from shared.durations import Durations
from shared.errors import RingonceError, StoreError
from shared.messages import delivery_message
from shared.queues import Queue
from shared.telemetry import count, logger, measure
from shared.workspaces import Workspace, WorkspaceCache
from webhook_dispatch.attempt import Attempted, SecretMissingError, post, signed_headers

GONE = 410
# 4xx that are worth a retry: time-out, conflict, too early, too many requests.
WORTH_REPEATING = frozenset({408, 409, 425, 429})
REFUSED_ATTEMPTS = 3

# An attempt without an outcome (its process died) says nothing of the receiver and does not advance the schedule.
# An event that crashes the process every time is given up after so many attempts in a row. That takes about two
# hours, as the dead process's lease ends after 45 s and the reconciler runs every minute.
DEATHS_FORGIVEN = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Deliverer:
    """Delivers webhooks. clock: epoch milliseconds."""

    calls: CallStore
    deliveries: DeliveryStore
    workspaces: WorkspaceCache
    webhook_queue: Queue
    client: httpx.AsyncClient
    durations: Durations
    clock: Clock

    async def deliver(self, call_id: str, sequence: int, on_post: Callable[[], None] = lambda: None) -> None:
        """Makes the attempt that is due now, if there is one. Returning acknowledges the message.

        on_post: called when the POST begins, if there is one.
        Raises StoreError or QueueError when AWS fails; the row stays due and its message is repeated.
        """
        # All AWS requests before the POST run in one thread, all after it in another: boto3 blocks.
        taken = await asyncio.to_thread(self._take, call_id, sequence)
        if taken is None:
            logger.info("nothing to deliver", extra={"call_id": call_id, "sequence": sequence})
            return
        delivery, call, workspace = taken
        began_ms = self.clock()
        state: State
        if _given_up(delivery):
            state, attempted = (
                "dead",
                Attempted(error="given up: attempt after attempt died before it could be noted"),
            )
        elif call is None or call.callback_url is None or sequence > len(call.events):
            state, attempted = "dead", Attempted(error="the call's record is gone")
        elif call.webhooks_stopped_at_ms is not None and not delivery.replayed:
            state, attempted = "stopped", Attempted(error="the receiver answered 410 to an earlier event")
        elif began_ms + to_ms(self.durations.webhook_attempt) >= delivery.lease_until_ms:
            # AWS was slow. A POST that outlives its lease could overlap with the next attempt.
            await asyncio.to_thread(self._release, delivery)
            raise StoreError(f"no time is left for delivery {sequence} of call {call_id}")
        else:
            attempted = await self._attempt(call, call.callback_url, sequence, workspace, on_post)
            await asyncio.to_thread(self._conclude, delivery, attempted, began_ms, call.events[sequence - 1]["at"])
            return
        await asyncio.to_thread(self._finish, delivery, attempted, state, None, began_ms)

    def _take(self, call_id: str, sequence: int) -> tuple[Delivery, Call | None, Workspace | None] | None:
        now_ms = self.clock()
        lease_until_ms = now_ms + to_ms(self.durations.webhook_lease)
        delivery = self.deliveries.take(call_id, sequence, secrets.token_hex(8), now_ms, lease_until_ms)
        if delivery is None:
            return None
        if _given_up(delivery):
            # The call's record itself may cause the crash, so it is not read when giving up.
            return delivery, None, None
        try:
            call = self.calls.get(call_id)
            return delivery, call, self.workspaces.get(call.workspace_id) if call is not None else None
        except RingonceError:
            self._release(delivery)
            raise

    def _release(self, delivery: Delivery) -> None:
        """Gives the row back: a failing table must not count as an event that crashes its process."""
        with contextlib.suppress(RingonceError):
            self.deliveries.release(delivery)

    async def _attempt(
        self,
        call: Call,
        url: str,
        sequence: int,
        workspace: Workspace | None,
        on_post: Callable[[], None],
    ) -> Attempted:
        def moment() -> datetime.datetime:
            return datetime.datetime.fromtimestamp(self.clock() // 1000, datetime.UTC)

        body = webhook_body(call, sequence)
        webhook_secrets = workspace.webhook_secrets if workspace is not None else ()
        try:
            headers = signed_headers(webhook_secrets, event_id_of(call, sequence), moment(), body, call.metadata)
        except SecretMissingError as exc:
            return Attempted(error=str(exc))
        on_post()
        return await post(self.client, url, body, headers, self.durations.webhook_attempt, moment)

    def _conclude(self, delivery: Delivery, attempted: Attempted, began_ms: int, happened_ms: int) -> None:
        if attempted.status == GONE:
            # Before the row: after a crash in between the webhooks are stopped, and the next attempt sees that.
            self.calls.stop_webhooks(delivery.call_id, self.clock())
        earlier = [attempt.get("status") for attempt in delivery.attempts]
        state, delay_seconds = what_follows(attempted, delivery.attempt + 1, earlier, self.durations)
        self._finish(delivery, attempted, state, delay_seconds, began_ms)
        if state == "delivered" and not delivery.replayed:
            measure("WebhookDelay", self.clock() - happened_ms)

    def _finish(
        self, delivery: Delivery, attempted: Attempted, state: State, delay_seconds: float | None, began_ms: int
    ) -> None:
        now_ms = self.clock()
        next_at_ms = now_ms + to_ms(delay_seconds or 0)
        by_message = delay_seconds is not None and delay_seconds < self.durations.webhook_message
        check_at_ms = next_at_ms + to_ms(self.durations.webhook_grace) if by_message else next_at_ms
        told = {
            "status": attempted.status,
            "error": attempted.error,
            "answer": attempted.answer or None,
            "location": attempted.location,
        }
        attempt = {"at": began_ms, "ms": now_ms - began_ms} | {
            name: value for name, value in told.items() if value is not None
        }
        extra = {
            "call_id": delivery.call_id,
            "sequence": delivery.sequence,
            "attempt": delivery.attempt + 1,
            "http_status": attempted.status,
            "error": attempted.error,
            "state": state,
        }
        if self.deliveries.finish(delivery, attempt, state, next_at_ms, check_at_ms) is None:
            logger.warning("delivery taken over by another process", extra=extra)
            return
        logger.info("webhook", extra=extra)
        count("WebhookAttempts", outcome=state)
        if state == "dead":
            # A separate metric for an alarm: an operator must look into it and may redrive.
            count("WebhooksDead")
        if by_message:
            self.webhook_queue.send(
                delivery_message(delivery.call_id, delivery.sequence),
                group=delivery.workspace_id,
                delay_seconds=delay_seconds or 0,
            )


def _given_up(delivery: Delivery) -> bool:
    return delivery.begun > DEATHS_FORGIVEN


def what_follows(
    attempted: Attempted, attempts: int, earlier: Sequence[int | None], durations: Durations
) -> tuple[State, float | None]:
    """The delivery's state after `attempts` attempts of its schedule with an outcome, and the seconds until the
    next. earlier: the status of every attempt stored before.

    A receiver's Retry-After may lengthen the wait, up to the schedule's longest, but not shorten it. After three
    refusals that a retry does not change (4xx) the delivery is dead; all other failures use the whole schedule.
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
