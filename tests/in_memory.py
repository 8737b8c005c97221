"""What surrounds the functions, in memory: the table's stores, a queue, LiveKit's rooms.

The stores keep the promises of the real ones (tests/unit/test_delivery_store.py runs against both) and have the
methods that reconciling and webhook delivery use.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from shared.call import Call
from shared.call_store import DUE_PAGE, CallStore, Due, Write
from shared.delivery_store import ATTEMPTS_LISTED, Delivery, DeliveryStore, State, sort_key
from shared.errors import LiveKitError, LiveKitUnclearError
from shared.limits import Everything, LimitStore
from shared.livekit.client import ROOMS_PER_REQUEST, LiveKit, OrphanRoomError, Presence, RoomView
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.slots import SlotsItem
from shared.switch import Switch
from shared.table_keys import due_shard
from shared.workspaces import Workspace, WorkspaceStore
from tests.mortal_process import MortalProcess

VISIBILITY_SECONDS = 180
DOWN = LiveKitUnclearError(502)


@dataclasses.dataclass
class Tables:
    """What the stores hold. rows: the deliveries, by call id and sequence. kept: until when a call is to live at
    least, epoch seconds. workspace_reads: how many there were."""

    calls: dict[str, Call] = dataclasses.field(default_factory=dict)
    kept: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: dict[tuple[str, int], Delivery] = dataclasses.field(default_factory=dict)
    workspaces: dict[str, Workspace] = dataclasses.field(default_factory=dict)
    workspace_reads: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class DeliveriesInMemory(DeliveryStore):
    def __init__(self, tables: Tables, process: MortalProcess | None = None) -> None:
        self._rows = tables.rows
        self._lock = tables.lock
        self._process = process or MortalProcess()

    def create(self, call_id: str, workspace_id: str, sequence: int, now_ms: int, check_at_ms: int) -> None:
        # As the real store: an invalid id has no shard.
        due_shard(call_id)

        def create() -> None:
            row = Delivery(call_id, workspace_id, sequence, "pending", 0, now_ms, check_at_ms=check_at_ms)
            self._rows.setdefault((call_id, sequence), row)

        self._process.run(create)

    def get(self, call_id: str, sequence: int) -> Delivery | None:
        return self._process.run(lambda: self._rows.get((call_id, sequence)))

    def take(self, call_id: str, sequence: int, lease: str, now_ms: int, until_ms: int) -> Delivery | None:
        return self._change(
            call_id,
            sequence,
            lambda row: (
                row.state == "pending" and row.next_attempt_at_ms <= now_ms and row.lease_until_ms < now_ms
            ),
            lambda row: dataclasses.replace(
                row, lease_id=lease, lease_until_ms=until_ms, check_at_ms=until_ms, begun=row.begun + 1
            ),
        )

    def release(self, delivery: Delivery) -> None:
        self._change(
            delivery.call_id,
            delivery.sequence,
            lambda row: row.lease_id == delivery.lease_id,
            lambda row: dataclasses.replace(row, lease_id=None, lease_until_ms=0, begun=row.begun - 1),
        )

    def finish(
        self, delivery: Delivery, attempt: dict[str, Any], state: State, next_attempt_at_ms: int, check_at_ms: int
    ) -> Delivery | None:
        return self._change(
            delivery.call_id,
            delivery.sequence,
            lambda row: row.lease_id == delivery.lease_id,
            lambda row: dataclasses.replace(
                row,
                state=state,
                attempt=delivery.attempt + 1,
                begun=0,
                attempts=(*delivery.attempts, attempt)[-ATTEMPTS_LISTED:],
                next_attempt_at_ms=next_attempt_at_ms,
                lease_id=None,
                lease_until_ms=0,
                check_at_ms=check_at_ms if state == "pending" else None,
            ),
        )

    def replay(
        self, call_id: str, workspace_id: str, sequence: int, now_ms: int, check_at_ms: int
    ) -> Delivery | None:
        new = Delivery(call_id, workspace_id, sequence, "pending", 0, now_ms)
        with self._lock:
            self._rows.setdefault((call_id, sequence), new)
        return self._change(
            call_id,
            sequence,
            lambda row: row.lease_until_ms < now_ms,
            lambda row: dataclasses.replace(new, attempts=row.attempts, check_at_ms=check_at_ms, replayed=True),
        )

    def make_due(self, seen: Delivery, now_ms: int) -> bool:
        made = self._change(
            seen.call_id,
            seen.sequence,
            lambda row: (row.state, row.attempt) == (seen.state, seen.attempt) and row.lease_until_ms < now_ms,
            lambda row: dataclasses.replace(
                row,
                state="pending",
                attempt=0,
                begun=0,
                next_attempt_at_ms=now_ms,
                check_at_ms=now_ms,
                lease_id=None,
                lease_until_ms=0,
            ),
        )
        return made is not None

    def of_call(self, call_id: str) -> list[Delivery]:
        return self._process.run(lambda: [row for key, row in sorted(self._rows.items()) if key[0] == call_id])

    def postpone(self, seen: Delivery, check_at_ms: int) -> bool:
        moved = self._change(
            seen.call_id,
            seen.sequence,
            lambda row: row.state == "pending" and row.check_at_ms == seen.check_at_ms,
            lambda row: dataclasses.replace(row, check_at_ms=check_at_ms),
        )
        return moved is not None

    def _change(
        self, call_id: str, sequence: int, may: Callable[[Delivery], bool], change: Callable[[Delivery], Delivery]
    ) -> Delivery | None:
        def update() -> Delivery | None:
            with self._lock:
                row = self._rows.get((call_id, sequence))
                if row is None or not may(row):
                    return None
                self._rows[call_id, sequence] = change(row)
                return self._rows[call_id, sequence]

        return self._process.run(update)


class CallsInMemory(CallStore):
    def __init__(self, tables: Tables, process: MortalProcess | None = None) -> None:
        self._tables = tables
        self._process = process or MortalProcess()

    def create(self, call: Call) -> Write:
        return self._put(call)

    def get(self, call_id: str) -> Call | None:
        return self._process.run(lambda: self._tables.calls.get(call_id))

    def keep(self, call_id: str, until_seconds: int) -> bool:
        def keep() -> bool:
            self._tables.kept[call_id] = until_seconds
            return call_id in self._tables.calls

        return self._process.run(keep)

    def stop_webhooks(self, call_id: str, now_ms: int) -> None:
        def stop() -> None:
            call = self._tables.calls[call_id]
            self._tables.calls[call_id] = dataclasses.replace(
                call, webhooks_stopped_at_ms=call.webhooks_stopped_at_ms or now_ms
            )

        self._process.run(stop)

    def note_missing(self, seen: Call, check_at_ms: int, **since: int | None) -> Write:
        return self._put(dataclasses.replace(seen, check_at_ms=check_at_ms, **cast(dict[str, Any], since)))

    def postpone(self, seen: Call, check_at_ms: int) -> Write:
        return self._put(dataclasses.replace(seen, check_at_ms=check_at_ms))

    def due(self, shard: int, now_ms: int) -> Iterator[list[tuple[str, str]]]:
        calls = [(call.check_at_ms, call_id, "CALL") for call_id, call in self._tables.calls.items()]
        rows = [(row.check_at_ms, row.call_id, sort_key(row.sequence)) for row in self._tables.rows.values()]
        found = sorted(
            (check_at_ms, call_id, key)
            for check_at_ms, call_id, key in calls + rows
            if check_at_ms is not None and check_at_ms <= now_ms and due_shard(call_id) == shard
        )
        for start in range(0, len(found), DUE_PAGE):
            yield [(call_id, key) for _, call_id, key in found[start : start + DUE_PAGE]]

    def read_due(self, keys: list[tuple[str, str]]) -> Due:
        calls = [self._tables.calls[call_id] for call_id, key in keys if key == "CALL"]
        sequences = [(call_id, int(key.removeprefix("DELIVERY#"))) for call_id, key in keys if key != "CALL"]
        rows = [dataclasses.replace(self._tables.rows[key], attempts=()) for key in sequences]
        return Due(calls, rows, [])

    def _put(self, call: Call) -> Write:
        def put() -> Write:
            self._tables.calls[call.call_id] = call
            return Write(True, call)

        return self._process.run(put)


class WorkspacesInMemory(WorkspaceStore):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def get(self, workspace_id: str) -> Workspace | None:
        self._tables.workspace_reads += 1
        return self._tables.workspaces.get(workspace_id)


class MarkedNumbers(NumberStore):
    """A table of numbers with its marker, in which nothing is stored."""

    def __init__(self) -> None:
        self.table = "numbers"

    def marked(self) -> bool:
        return True


class NoLimits(LimitStore):
    """Dialling is never paused, and no slot is taken."""

    def __init__(self) -> None:
        """Without a table."""

    def switch(self) -> Switch:
        return Switch()

    def everything(self) -> Everything:
        return Everything()

    def free_slot(self, workspace_id: str, call_id: str, item: int = 0) -> SlotsItem | None:
        return None


@dataclasses.dataclass
class Message:
    """visible_at: epoch milliseconds. receives: how often it was handed out."""

    number: int
    body: str
    visible_at: int
    receives: int = 0


class QueueInMemory(Queue):
    """An SQS queue whose delays pass on a clock.

    of: the queue whose messages these are: the same one, as a process sees it. refuse: the places, in the next
    batches, of messages that are not accepted. loses: whatever is sent is lost.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        process: MortalProcess | None = None,
        of: QueueInMemory | None = None,
    ) -> None:
        self._clock = clock
        self._process = process or MortalProcess()
        self.messages: list[Message] = of.messages if of else []
        self._numbers: Iterator[int] = of._numbers if of else itertools.count(1)
        self.refuse: set[int] = set()
        self.loses = False

    def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
        return self._process.run(lambda: self._put(body, delay_seconds))

    def send_batch(
        self, messages: Sequence[tuple[dict[str, Any], str]], delays_seconds: Sequence[float] = ()
    ) -> set[int]:
        def send() -> set[int]:
            for place, (body, _) in enumerate(messages):
                if place not in self.refuse:
                    self._put(body, delays_seconds[place] if delays_seconds else 0)
            return {place for place in self.refuse if place < len(messages)}

        return self._process.run(send) if messages else set()

    def visible(self) -> list[Message]:
        return [message for message in self.messages if message.visible_at <= self._clock()]

    def receive(self, number: int = 10) -> list[Message]:
        found = self.visible()[:number]
        for message in found:
            message.visible_at = self._clock() + VISIBILITY_SECONDS * 1000
            message.receives += 1
        return found

    def delete(self, message: Message) -> None:
        self.messages.remove(message)

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(message.body) for message in self.messages]

    def _put(self, body: dict[str, Any], delay_seconds: float) -> str:
        number = next(self._numbers)
        if not self.loses:
            self.messages.append(Message(number, json.dumps(body), self._clock() + round(delay_seconds * 1000)))
        return f"message-{number}"


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
