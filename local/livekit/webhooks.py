"""LiveKit's webhooks: signed events, one queue for each address and room, and LiveKit's retries.

Sources: livekit/protocol `webhook/resource_url_notifier.go`, `webhook/resource_queue.go`;
hashicorp/go-retryablehttp `client.go`; livekit `pkg/telemetry/events.go` for the content of an event.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
import uuid
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import jwt
from google.protobuf.json_format import MessageToDict
from livekit.protocol import models
from livekit.protocol.webhook import WebhookEvent

from local.livekit.faults import Faults
from local.livekit.rooms import Settings

# LiveKit's own, in seconds; scaled.
RETRY_WAITS = (1, 2, 4, 8)
MAX_AGE = 30
QUEUE_DEPTH = 200
TOKEN_SECONDS = 300


@dataclass(frozen=True)
class Signed:
    """A signed event; the same bytes at every attempt."""

    id: str
    name: str
    room_name: str
    body: bytes
    token: str


class Server(Protocol):
    """The part of the server that the sender uses."""

    settings: Settings
    faults: Faults
    webhook_urls: tuple[str, ...]

    def note(self, kind: str, **fields: Any) -> None: ...
    def dice(self, purpose: str) -> float: ...
    def scaled(self, seconds: float) -> float: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Notifier:
    """Sends the events of one server to its webhook addresses."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # By address and room; each event with the loop's time when it was queued.
        self._queues: dict[tuple[str, str], deque[tuple[float, Signed]]] = {}
        self._deliveries: dict[tuple[str, str], asyncio.Task[None]] = {}
        # Events that a fault delays.
        self._held: dict[asyncio.Task[None], tuple[str, Signed]] = {}
        self._session: aiohttp.ClientSession | None = None

    @property
    def is_sending(self) -> bool:
        """Whether events are queued or being sent."""
        return bool(self._queues)

    def forget(self) -> None:
        """Drops the queued events. The caller has ended the tasks that deliver them."""
        for kept in (self._queues, self._deliveries, self._held):
            kept.clear()

    def lose_all(self) -> None:
        """Loses the queued events, as a server that crashes does; those being sent may have arrived."""
        for task in (*self._deliveries.values(), *self._held):
            task.cancel()
        waiting = [(url, signed) for (url, _), queue in self._queues.items() for _, signed in queue]
        for url, signed in (*waiting, *self._held.values()):
            self._server.note("webhook_lost", url=url, event=signed.name, id=signed.id, why="the server died")
        self.forget()

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    def notify(
        self,
        name: str,
        room: models.Room,
        participant: models.ParticipantInfo | None = None,
        track: models.TrackInfo | None = None,
        end_reason: models.RoomEndReason | None = None,
    ) -> None:
        """Queues an event for each address. Track events contain only the ids of room and participant."""
        event = WebhookEvent(event=name, id=f"EV_{uuid.uuid4().hex[:12]}", created_at=int(time.time()))
        if end_reason is not None:
            event.room_end_reason = end_reason
        if track:
            room = models.Room(sid=room.sid, name=room.name)
            event.track.CopyFrom(track)
        event.room.CopyFrom(room)
        if participant:
            if track:
                participant = models.ParticipantInfo(sid=participant.sid, identity=participant.identity)
            event.participant.CopyFrom(participant)
        signed = self._sign(event)
        for url in self._server.webhook_urls:
            self._send(url, signed)

    def _sign(self, event: WebhookEvent) -> Signed:
        body = json.dumps(MessageToDict(event), separators=(",", ":")).encode()
        now = int(time.time())
        claims = {
            "iss": self._server.settings.api_key,
            "iat": now,
            "nbf": now,
            "exp": now + TOKEN_SECONDS,
            "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
        }
        token = jwt.encode(claims, self._server.settings.api_secret, algorithm="HS256")
        return Signed(event.id, event.event, event.room.name, body, token)

    def _send(self, url: str, signed: Signed) -> None:
        """Queues an event, or applies the faults to it: drops, delays or duplicates it."""
        faults = self._server.faults.webhooks
        if faults.only is not None and signed.name not in faults.only:
            self._enqueue(url, signed)
            return
        if self._server.dice("webhook") < faults.drop:
            self._server.note("webhook_lost", url=url, event=signed.name, id=signed.id, why="fault")
            return
        delay = faults.delay_seconds + (
            faults.reorder_seconds if self._server.dice("webhook") < faults.reorder else 0
        )
        for _ in range(2 if self._server.dice("webhook") < faults.duplicate else 1):
            if delay:
                held = self._server.spawn(self._enqueue_later(url, signed, delay))
                self._held[held] = (url, signed)
                held.add_done_callback(lambda task: self._held.pop(task, None))
            else:
                self._enqueue(url, signed)

    async def _enqueue_later(self, url: str, signed: Signed, delay: float) -> None:
        await asyncio.sleep(delay)
        self._enqueue(url, signed)

    def _enqueue(self, url: str, signed: Signed) -> None:
        key = (url, signed.room_name)
        if key not in self._queues:
            self._queues[key] = deque([(asyncio.get_running_loop().time(), signed)])
            self._deliveries[key] = self._server.spawn(self._drain(key))
        elif len(self._queues[key]) < QUEUE_DEPTH:
            self._queues[key].append((asyncio.get_running_loop().time(), signed))
        else:
            self._server.note("webhook_lost", url=url, event=signed.name, id=signed.id, why="queue is full")

    async def _drain(self, key: tuple[str, str]) -> None:
        url, queue = key[0], self._queues[key]
        longest = self._server.scaled(MAX_AGE) + self._server.settings.slack
        try:
            while queue:
                queued_at, signed = queue.popleft()
                if asyncio.get_running_loop().time() - queued_at > longest:
                    self._server.note("webhook_lost", url=url, event=signed.name, id=signed.id, why="too old")
                else:
                    await self._deliver(url, signed)
        finally:
            if self._queues.get(key) is queue:
                del self._queues[key], self._deliveries[key]

    async def _deliver(self, url: str, signed: Signed) -> None:
        """Posts until an answer is final. Only connection errors, 429 and 5xx except 501 are retried."""
        for attempt, wait in enumerate((*RETRY_WAITS, None), start=1):
            status, retry_after = await self._post(url, signed)
            final = status is not None and status != 429 and (status < 500 or status == 501)
            kind = "webhook_delivered" if final else "webhook_failed"
            fields = {"url": url, "event": signed.name, "id": signed.id, "roomName": signed.room_name}
            self._server.note(kind, **fields, attempt=attempt, status=status)
            if final or wait is None:
                return
            wanted = status in {429, 503} and retry_after.isdecimal()
            await asyncio.sleep(int(retry_after) if wanted else self._server.scaled(wait))

    async def _post(self, url: str, signed: Signed) -> tuple[int | None, str]:
        """One attempt: the HTTP status (None: no answer) and the Retry-After header. It has no time-out."""
        if not self._session:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0)
            )
        headers = {
            "Content-Type": "application/webhook+json",
            "User-Agent": "LiveKit" if self._server.faults.server_version == "1.13.11" else "Go-http-client/1.1",
            "Authorization": signed.token,
        }
        try:
            async with self._session.post(url, data=signed.body, headers=headers, allow_redirects=False) as answer:
                return answer.status, answer.headers.get("Retry-After", "")
        except (aiohttp.ClientError, OSError):
            return None, ""
