"""Production durations on a clock that the test moves: hours of dialling and reconciling in a second.

The stores are the real ones on moto. LiveKit and the dial queue are in memory, because a request over the wire or
a delay of SQS's takes real time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any
from unittest import mock

from dial_worker.dial import Dialler
from reconcile_calls.reconcile import Reconciler
from shared.call import Call, event, iso
from shared.call_store import CallStore
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.errors import LiveKitError, LiveKitUnclearError
from shared.limits import LimitStore
from shared.livekit.client import ROOMS_PER_REQUEST, LiveKit, OrphanRoomError, Presence, RoomView
from shared.messages import DialMessage
from shared.queues import Queue
from shared.workspaces import WorkspaceCache, WorkspaceStore
from tests.system import System

MINUTE = 60_000
# No run of the first minutes is one that compares the slots.
START = 1_800_000_060_000


class RoomsInMemory(LiveKit):
    """LiveKit as the functions see it. rooms: who is where; `keeps`: rooms that a DeleteRoom does not end;
    `orphans`: those whose server has crashed.

    down: every request fails. requests: how many there were, by method. answers: what dials end with, in order.
    """

    def __init__(self) -> None:
        self.rooms: dict[str, RoomView] = {}
        self.keeps: set[str] = set()
        self.orphans: set[str] = set()
        self.down: LiveKitError | None = None
        self.requests: dict[str, int] = {}
        self.answers: list[LiveKitError | None] = []
        self.agents_come = True

    def _request(self, method: str) -> None:
        self.requests[method] = self.requests.get(method, 0) + 1
        if self.down is not None:
            raise self.down

    async def create_room(self, name: str, room_metadata: str, agent_name: str, agent_metadata: str) -> str:
        self._request("CreateRoom")
        self.rooms.setdefault(name, RoomView(None, self.agents_come))
        return f"RM_{name}"

    async def delete_room(self, name: str) -> None:
        self._request("DeleteRoom")
        if name in self.orphans:
            raise OrphanRoomError("unknown", 500)
        if name not in self.keeps:
            self.rooms.pop(name, None)

    async def remove_orphan(self, name: str) -> None:
        self._request("CreateRoom")
        self.orphans.discard(name)
        await self.delete_room(name)

    async def remove_participant(self, room: str, identity: str) -> bool:
        self._request("RemoveParticipant")
        if room in self.rooms and room not in self.keeps | self.orphans:
            self.rooms[room] = RoomView(None, self.rooms[room].agent_present)
            return True
        return False

    async def delete_lost_dispatches(self, room: str) -> bool:
        self._request("ListDispatch")
        return False

    async def view_room(self, room: str, identity: str) -> RoomView:
        self._request("ListParticipants")
        return self.rooms.get(room, RoomView(None, False))

    async def rooms_present(self, names: list[str]) -> dict[str, Presence]:
        self._request("ListRooms")
        assert len(names) <= ROOMS_PER_REQUEST
        return {name: self._presence(name) for name in names}

    def _presence(self, name: str) -> Presence:
        view = self.rooms.get(name)
        if view is None:
            return "absent"
        return "both" if view.call_status is not None and view.agent_present else "some"

    async def dial(self, *, room: str, **request: Any) -> None:
        self._request("CreateSIPParticipant")
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        self.rooms[room] = RoomView("active", True)


class MessagesInMemory(Queue):
    """A queue whose delays pass on the test's clock; `loses`: whatever is sent is lost."""

    def __init__(self, world: Clocked) -> None:
        self._world = world
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.loses = False

    def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
        if not self.loses:
            self.sent.append((self._world.now + int(delay_seconds * 1000), body))
        return "message"

    def send_batch(self, messages: Sequence[tuple[dict[str, Any], str]]) -> set[int]:
        for body, group in messages:
            self.send(body, group=group)
        return set()

    def due(self) -> list[dict[str, Any]]:
        """Takes the messages whose delay is over."""
        now = self._world.now
        due = [body for at, body in self.sent if at <= now]
        self.sent = [(at, body) for at, body in self.sent if at > now]
        return due


class Clocked:
    """now: epoch milliseconds."""

    def __init__(self, system: System) -> None:
        self.now = START
        self.durations = Durations()
        self.livekit = RoomsInMemory()
        self.dial_queue = MessagesInMemory(self)
        self.webhook_queue = MessagesInMemory(self)
        self.calls = CallStore(system.dynamodb, "CallsTable")
        self.workspaces = WorkspaceStore(system.dynamodb, "WorkspacesTable")
        self.limits = LimitStore(system.dynamodb, "WorkspacesTable")
        self.deliveries = DeliveryStore(system.dynamodb, "CallsTable")
        self._numbers = itertools.count()

    def reconciler(self, **changes: Any) -> Reconciler:
        reconciler = Reconciler(
            calls=self.calls,
            deliveries=self.deliveries,
            limits=self.limits,
            dial_queue=self.dial_queue,
            webhook_queue=self.webhook_queue,
            livekit=self.livekit,
            durations=self.durations,
            clock=lambda: self.now,
            time_left=lambda: True,
        )
        return dataclasses.replace(reconciler, **changes)

    def dialler(self, seconds: float = 120) -> Dialler:
        """A worker that has so many seconds left while the clock does not move."""
        deadline = self.now + int(seconds * 1000)
        return Dialler(
            calls=self.calls,
            limits=self.limits,
            workspace_cache=WorkspaceCache(self.workspaces, 0),
            dial_queue=self.dial_queue,
            livekit=self.livekit,
            durations=self.durations,
            public_api_url="https://api.example",
            clock=lambda: self.now,
            remaining=lambda: (deadline - self.now) / 1000,
        )

    def reconcile(self, **changes: Any) -> dict[str, int]:
        return dict(asyncio.run(self.reconciler(**changes).run()))

    def dial(self, seconds: float = 120) -> int:
        """Works on every message that is due; how many there were. seconds: what each worker has left.

        Where a worker waits, the clock goes on by as much.
        """
        due = self.dial_queue.due()
        for body in due:
            since = body.get("since", self.now)
            work = self.dialler(seconds).dial(DialMessage(body["callId"], body["workspaceId"], since))
            with mock.patch("asyncio.sleep", self._passes):
                asyncio.run(work)
        return len(due)

    async def _passes(self, seconds: float) -> None:
        self.now += int(seconds * 1000)

    def place(self, **fields: Any) -> str:
        """A call as initiate_call leaves it, with its message, or as `fields` say."""
        number = next(self._numbers)
        call = Call(
            call_id=f"{number % 16:x}{number:023x}",
            workspace_id="demo",
            call_agent_id="agent-1",
            to="+15550000000",
            room_name=f"agent-1-{number:010}",
            job_id="message",
            created_at=iso(self.now),
            status="queued",
            events=(event("call.queued", self.now),),
            ring_timeout_seconds=40,
            max_duration_seconds=1800,
            queue_deadline_ms=self.now + int(self.durations.queue_ttl * 1000),
            check_at_ms=self.now + int(self.durations.queued_check * 1000),
        )
        call = dataclasses.replace(call, **fields)
        self.calls.create(call)
        if call.status == "queued":
            self.dial_queue.send({"callId": call.call_id, "workspaceId": "demo"})
        return call.call_id

    def place_dialing(self, **fields: Any) -> str:
        """Fenced by a worker that is dead: its lease ends after its own two minutes and the margin."""
        until = self.now + int((120 + self.durations.lease_margin) * 1000)
        given: dict[str, Any] = {
            "status": "dialing",
            "attempts": 1,
            "lease_id": "dead",
            "lease_until_ms": until,
            "dialed_at_ms": self.now,
            "room_sid": "RM_1",
            "check_at_ms": until,
        }
        return self.place(**given | fields)

    def place_answered(self, **fields: Any) -> str:
        """An answered call as the worker leaves it; phone and agent are in the room."""
        given: dict[str, Any] = {
            "status": "in_progress",
            "attempts": 1,
            "lease_id": "done",
            "lease_until_ms": self.now,
            "room_sid": "RM_1",
            "dialed_at_ms": self.now,
            "answered_at_ms": self.now,
            "check_at_ms": self.now + int(self.durations.second_look * 1000),
        }
        call_id = self.place(**given | fields)
        self.livekit.rooms[self.call(call_id).room_name] = RoomView("active", True)
        return call_id

    def call(self, call_id: str) -> Call:
        call = self.calls.get(call_id)
        assert call is not None
        return call

    def minutes_until_ended(self, call_id: str, limit: int, *, dials: bool = False) -> Call:
        """Runs the reconciler every minute until the call has ended; fails after `limit` minutes."""
        for _ in range(limit):
            self.now += MINUTE
            self.reconcile()
            while dials and self.dial():
                pass
            call = self.call(call_id)
            if call.ended:
                return call
        raise AssertionError(f"not ended after {limit} minutes: {self.call(call_id)}")


DOWN = LiveKitUnclearError(502)
