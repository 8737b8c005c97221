"""The version before this one beside the present one, on the same tables: what runs while a stack is updated."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from livekit.protocol.models import DisconnectReason, ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from livekit_events.apply_event import EventApplier
from shared.livekit.client import RoomView
from shared.messages import read_dial_message
from tests.in_memory import Message, RoomsInMemory
from tests.simulation import Simulation
from tests.system import System

ARCHIVE = Path(__file__).parent / "upgrade" / "previous_version.zip"
PACKAGES = ("shared", "dial_worker", "reconcile_calls", "livekit_events")
Version = Literal["previous", "present"]


def _ours() -> Iterator[str]:
    return (name for name in list(sys.modules) if name.partition(".")[0] in PACKAGES)


@contextmanager
def _only_the_archive() -> Iterator[None]:
    """The packages' names stand for the previous version's meanwhile."""
    present = {name: sys.modules.pop(name) for name in _ours()}
    sys.path.insert(0, str(ARCHIVE / "functions"))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.pop(0)
        for name in _ours():
            del sys.modules[name]
        sys.modules.update(present)


class Previous:
    """The previous version's parts, on the tables of `system`."""

    def __init__(self, system: System) -> None:
        with _only_the_archive():
            module = importlib.import_module
            self.dial: Any = module("dial_worker.dial")
            self.reconcile: Any = module("reconcile_calls.reconcile")
            self.apply_event: Any = module("livekit_events.apply_event")
            self.messages: Any = module("shared.messages")
            self.workspaces: Any = module("shared.workspaces")
            self.durations: Any = module("shared.durations").Durations()
            client = system.dynamodb
            self.calls: Any = module("shared.call_store").CallStore(client, "CallsTable")
            self.deliveries: Any = module("shared.delivery_store").DeliveryStore(client, "CallsTable")
            self.limits: Any = module("shared.limits").LimitStore(client, "WorkspacesTable")
            self.line: Any = module("shared.line").Line
            self.workspace_store: Any = self.workspaces.WorkspaceStore(client, "WorkspacesTable")


class Phones(RoomsInMemory):
    """LiveKit that keeps which rooms' phones rang, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rang: list[str] = []

    async def dial(self, *, room: str, **request: Any) -> None:
        self.rang.append(room)
        await super().dial(room=room, **request)


class Update(Simulation):
    """A stack during an update: each step is done by the version that the test says."""

    livekit: Phones

    def __init__(self, system: System) -> None:
        super().__init__(dynamodb=system.dynamodb)
        self.previous = Previous(system)
        self.livekit = Phones()

    # ── dial workers ────────────────────────────────────────────────────────────────────────────

    def work(self, version: Version, seconds: float = 120) -> int:
        """Works on every message that is due; how many there were."""
        due = self.dial_queue.visible()
        for message in due:
            self.work_on(message, version, seconds)
        return len(due)

    def work_on(self, message: Message, version: Version, seconds: float = 120) -> None:
        """One message, which is deleted."""
        self.dial_queue.delete(message)
        record = {"body": message.body, "attributes": {"SentTimestamp": str(self.clock())}}
        work: Any
        if version == "present":
            work = self.dialler(seconds).dial(read_dial_message(record))
        else:
            work = self._previous_dialler(seconds).dial(self.previous.messages.read_dial_message(record))
        with mock.patch("asyncio.sleep", self._passes):
            asyncio.run(work)

    def _previous_dialler(self, seconds: float) -> Any:
        deadline, previous = self.clock() + int(seconds * 1000), self.previous
        return previous.dial.Dialler(
            calls=previous.calls,
            limits=previous.limits,
            line=self._previous_line(),
            workspace_cache=previous.workspaces.WorkspaceCache(previous.workspace_store, 0),
            dial_queue=self.dial_queue,
            livekit=self.livekit,
            durations=previous.durations,
            public_api_url="https://api.example",
            clock=self.clock,
            remaining=lambda: (deadline - self.clock()) / 1000,
        )

    def _previous_line(self) -> Any:
        previous = self.previous
        return previous.line(previous.calls, previous.limits, self.dial_queue, previous.durations, self.clock)

    def message_of(self, call_id: str) -> Message:
        """The only message of a call, visible or not."""
        [message] = [one for one in self.dial_queue.messages if json.loads(one.body)["callId"] == call_id]
        return message

    # ── the reconciler, LiveKit's events ────────────────────────────────────────────────────────

    def reconcile_as(self, version: Version) -> dict[str, int]:
        if version == "present":
            return self.reconcile()
        previous = self.previous
        reconciler = previous.reconcile.Reconciler(
            calls=previous.calls,
            deliveries=previous.deliveries,
            limits=previous.limits,
            line=self._previous_line(),
            dial_queue=self.dial_queue,
            webhook_queue=self.webhook_queue,
            livekit=self.livekit,
            durations=previous.durations,
            clock=self.clock,
            time_left=lambda: True,
        )
        return dict(asyncio.run(reconciler.run()))

    def hang_up(self, call_id: str, version: Version) -> None:
        """The callee hangs up: LiveKit's events of the phone and of its room."""
        call = self.call(call_id)
        applier: Any
        if version == "present":
            applier = EventApplier(self.calls, self.line, self.dial_queue, self.durations, self.clock)
        else:
            previous = self.previous
            applier = previous.apply_event.EventApplier(
                previous.calls, self._previous_line(), self.dial_queue, previous.durations, self.clock
            )
        room = Room(name=call.room_name, sid=call.room_sid or "", metadata=json.dumps({"callId": call_id}))
        phone = ParticipantInfo(
            identity=call.identity,
            kind=ParticipantInfo.Kind.SIP,
            disconnect_reason=DisconnectReason.CLIENT_INITIATED,
            attributes={"sip.callStatus": "hangup"},
        )
        seconds = self.clock() // 1000
        self.livekit.rooms[call.room_name] = RoomView(None, True)
        applier.apply(WebhookEvent(event="participant_left", room=room, participant=phone, created_at=seconds))
        self.livekit.rooms.pop(call.room_name)
        applier.apply(WebhookEvent(event="room_finished", room=room, created_at=seconds))

    # ── what a test sees ────────────────────────────────────────────────────────────────────────

    def rings(self, call_id: str) -> int:
        return self.livekit.rang.count(self.call(call_id).room_name)

    def in_line(self) -> list[str]:
        """The calls that the index shows in the demo workspace's line, in their turn."""
        return [call_id for call_id, _ in self.calls.line("demo#single", 2**42, 100)]
