"""Hours and days of dialling, reconciling and webhook delivery in a second, on a clock that the test moves.

The functions' engines are the real ones (Dialler, Reconciler, FanOut, Deliverer) with production's durations. The
table's stores are in memory, or real ones on a client of moto's. LiveKit, the queues and the receivers are in
memory, because a request over the wire or a delay of SQS's takes real time. Processes can die at any step, and
nothing happens unless a test says so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import httpx

from dial_worker.dial import Dialler
from reconcile_calls.reconcile import Reconciler
from shared.call import Call, event
from shared.call_store import CallStore
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.limits import LimitStore
from shared.line import Line
from shared.livekit.client import RoomView
from shared.messages import DialMessage
from shared.numbers import NumberStore
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore
from tests.calls import call_record
from tests.clock import MINUTE, START, Clock
from tests.in_memory import (
    CallsInMemory,
    DeliveriesInMemory,
    MarkedNumbers,
    NoLimits,
    QueueInMemory,
    RoomsInMemory,
    Tables,
    WorkspacesInMemory,
)
from tests.mortal_process import MortalProcess
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.deliver import Deliverer
from webhook_dispatch.fan_out import FanOut
from webhook_dispatch.transport import webhook_client

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
MAXIMUM_RECEIVES = 5

T = TypeVar("T")


@dataclasses.dataclass
class Posted:
    """One POST as a receiver saw it. until: when it was surely over."""

    id: str
    at: int
    until: int
    body: bytes
    headers: httpx.Headers


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


def over_the_wire(answer: httpx.Response) -> httpx.Response:
    """The same answer with its body still to be read, as a transport hands it over."""
    if isinstance(answer.stream, httpx.ByteStream):
        return httpx.Response(answer.status_code, headers=answer.headers, stream=_Body(answer.content))
    return answer


class Receivers(httpx.AsyncBaseTransport):
    """Every endpoint there is. answer: from the request and how often this id came before to a response."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.posted: list[Posted] = []
        self.answer: Callable[[httpx.Request, int], httpx.Response] = lambda request, times: httpx.Response(204)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.respond(request, 0)

    def respond(self, request: httpx.Request, busy_ms: int) -> httpx.Response:
        message_id, now = request.headers["webhook-id"], self._clock()
        times = sum(one.id == message_id for one in self.posted)
        body = request.read()
        self.posted.append(Posted(message_id, now, now + busy_ms, body, request.headers))
        return over_the_wire(self.answer(request, times))


class _OfProcess(httpx.AsyncBaseTransport):
    """A process's way to the receivers. When it dies at it, the receiver may be busy to the attempt's limit."""

    def __init__(self, receivers: Receivers, process: MortalProcess, limit_ms: int) -> None:
        self._receivers = receivers
        self._process = process
        self._limit_ms = limit_ms

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async def post() -> httpx.Response:
            return self._receivers.respond(request, self._limit_ms if self._process.dead else 0)

        return await self._process.run_async(post)


class Simulation:
    """See the module's docstring. dynamodb: the stores are the real ones on its tables; webhooks are delivered
    from those in memory only. transport: to real receivers instead of those in memory.
    """

    def __init__(
        self,
        durations: Durations | None = None,
        *,
        dynamodb: DynamoDBClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.clock = Clock()
        self.durations = durations or Durations()
        self.tables = Tables()
        self.tables.workspaces["demo"] = Workspace(
            "demo", "Demo", "outbound", "ST_demo", ("+15550009999",), webhook_secrets=(SECRET,)
        )
        self.calls: CallStore = CallsInMemory(self.tables)
        self.deliveries: DeliveryStore = DeliveriesInMemory(self.tables)
        self.workspaces: WorkspaceStore = WorkspacesInMemory(self.tables)
        self.limits: LimitStore = NoLimits()
        self.numbers: NumberStore = MarkedNumbers()
        if dynamodb is not None:
            self.calls = CallStore(dynamodb, "CallsTable")
            self.deliveries = DeliveryStore(dynamodb, "CallsTable")
            self.workspaces = WorkspaceStore(dynamodb, "WorkspacesTable")
            self.limits = LimitStore(dynamodb, "WorkspacesTable", "NumbersTable")
            self.numbers = NumberStore(dynamodb, "NumbersTable")
        self.livekit = RoomsInMemory()
        self.dial_queue = QueueInMemory(self.clock)
        self.webhook_queue = QueueInMemory(self.clock)
        self.dead_letters = QueueInMemory(self.clock)
        self.receivers = Receivers(self.clock)
        self.transport = transport
        self._numbers = itertools.count()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def place(self, **fields: Any) -> str:
        """A call as initiate_call leaves it, with its message, or as `fields` say."""
        number, now = next(self._numbers), self.clock()
        given: dict[str, Any] = {
            "call_id": f"{number % 16:x}{number:023x}",
            "room_name": f"agent-1-{number:010}",
            "queue_deadline_ms": now + int(self.durations.queue_ttl * 1000),
            "check_at_ms": now + int(self.durations.queued_check * 1000),
        }
        call = call_record(now, **given | fields)
        self.calls.create(call)
        if call.status == "queued":
            self.dial_queue.send({"callId": call.call_id, "workspaceId": "demo"})
        return call.call_id

    def place_dialing(self, **fields: Any) -> str:
        """Fenced by a worker that is dead: its lease ends after its own two minutes and the margin."""
        now = self.clock()
        until = now + int((120 + self.durations.lease_margin) * 1000)
        given: dict[str, Any] = {
            "status": "dialing",
            "attempts": 1,
            "lease_id": "dead",
            "lease_until_ms": until,
            "dialed_at_ms": now,
            "room_sid": "RM_1",
            "check_at_ms": until,
        }
        return self.place(**given | fields)

    def place_answered(self, **fields: Any) -> str:
        """An answered call as the worker leaves it; phone and agent are in the room."""
        now = self.clock()
        given: dict[str, Any] = {
            "status": "in_progress",
            "attempts": 1,
            "lease_id": "done",
            "lease_until_ms": now,
            "room_sid": "RM_1",
            "dialed_at_ms": now,
            "answered_at_ms": now,
            "check_at_ms": now + int(self.durations.second_look * 1000),
        }
        call_id = self.place(**given | fields)
        self.livekit.rooms[self.call(call_id).room_name] = RoomView("active", True)
        return call_id

    def call(self, call_id: str) -> Call:
        call = self.calls.get(call_id)
        assert call is not None
        return call

    # ── dialling and reconciling ────────────────────────────────────────────────────────────────────

    @property
    def line(self) -> Line:
        return Line(self.calls, self.limits, self.dial_queue, self.durations, self.clock)

    def dialler(self, seconds: float = 120) -> Dialler:
        """A worker that has so many seconds left while the clock does not move."""
        deadline = self.clock() + int(seconds * 1000)
        return Dialler(
            calls=self.calls,
            limits=self.limits,
            numbers=self.numbers,
            line=self.line,
            workspace_cache=WorkspaceCache(self.workspaces, 0),
            dial_queue=self.dial_queue,
            livekit=self.livekit,
            durations=self.durations,
            public_api_url="https://api.example",
            clock=self.clock,
            remaining=lambda: (deadline - self.clock()) / 1000,
        )

    def dial(self, seconds: float = 120) -> int:
        """Works on every message that is due; how many there were. seconds: what each worker has left.

        Where a worker waits, the clock goes on by as much.
        """
        due = self.dial_queue.visible()
        for message in due:
            self.dial_queue.delete(message)
        for message in due:
            body = json.loads(message.body)
            since = body.get("since", self.clock())
            dial_message = DialMessage(body["callId"], body["workspaceId"], since, body.get("slotsItem"))
            work = self.dialler(seconds).dial(dial_message)
            with mock.patch("asyncio.sleep", self._passes):
                asyncio.run(work)
        return len(due)

    async def _passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def reconciler(self, **changes: Any) -> Reconciler:
        """One run of what AWS starts every minute."""
        reconciler = Reconciler(
            calls=self.calls,
            deliveries=self.deliveries,
            limits=self.limits,
            numbers=self.numbers,
            line=self.line,
            dial_queue=self.dial_queue,
            webhook_queue=self.webhook_queue,
            livekit=self.livekit,
            durations=self.durations,
            clock=self.clock,
            time_left=lambda: True,
        )
        return dataclasses.replace(reconciler, **changes)

    def reconcile(self, **changes: Any) -> dict[str, int]:
        return dict(asyncio.run(self.reconciler(**changes).run()))

    def minutes_until_ended(self, call_id: str, limit: int, *, dials: bool = False) -> Call:
        """Runs the reconciler every minute until the call has ended; fails after `limit` minutes."""
        for _ in range(limit):
            self.clock.now += MINUTE
            self.reconcile()
            while dials and self.dial():
                pass
            call = self.call(call_id)
            if call.ended:
                return call
        raise AssertionError(f"not ended after {limit} minutes: {self.call(call_id)}")

    # ── webhooks ────────────────────────────────────────────────────────────────────────────────────

    def call_with_events(
        self, call_id: str, events: int = 4, url: str = "https://hooks.example/in"
    ) -> list[dict[str, Any]]:
        """A call with so many events. Returns its stream records, one for each."""
        kinds = [
            "call.queued",
            "call.dialing",
            "call.answered",
            *["agent.note"] * max(0, events - 4),
            "call.ended",
        ]
        listed = []
        for place, kind in enumerate(kinds[:events] if events < 4 else kinds):
            fields: dict[str, Any] = {}
            if kind == "call.ended":
                fields = {"status": "completed", "reason": "hangup", "retryable": False}
            elif kind.startswith("agent."):
                fields = {"data": json.dumps({"n": place})}
            listed.append(event(kind, START + 1000 * place, **fields))
        self.tables.calls[call_id] = call_record(
            START,
            call_id=call_id,
            status="completed",
            events=tuple(listed),
            callback_url=url,
            metadata='{"n": 1.0}',
        )
        return [stream_record(call_id, listed[:count], count) for count in range(1, len(listed) + 1)]

    def fan_out(self, records: Sequence[dict[str, Any]], process: MortalProcess | None = None) -> int | None:
        """One invocation: the place of the first record that failed, or None. Raises Death."""
        process = process or MortalProcess()
        fan_out = FanOut(
            DeliveriesInMemory(self.tables, process),
            QueueInMemory(self.clock, process, self.webhook_queue),
            self.durations,
            self.clock,
        )
        return fan_out.process(QueueInMemory(self.clock, process, self.dead_letters), records)

    def deliverer(
        self, process: MortalProcess | None = None, client: httpx.AsyncClient | None = None
    ) -> Deliverer:
        process = process or MortalProcess()
        limit_ms = round(self.durations.webhook_attempt * 1000)
        transport = self.transport or _OfProcess(self.receivers, process, limit_ms)
        return Deliverer(
            calls=CallsInMemory(self.tables, process),
            deliveries=DeliveriesInMemory(self.tables, process),
            workspaces=WorkspaceCache(self.workspaces, 60, self.clock.seconds),
            webhook_queue=QueueInMemory(self.clock, process, self.webhook_queue),
            client=client or webhook_client(transport, self.durations),
            durations=self.durations,
            clock=self.clock,
        )

    async def deliver(self, process: MortalProcess | None = None) -> int:
        """One invocation with up to ten visible messages, acknowledged as it says. Returns their number."""
        process = process or MortalProcess()
        messages = []
        for message in self.webhook_queue.receive():
            if message.receives > MAXIMUM_RECEIVES:
                self.webhook_queue.delete(message)
                self.dead_letters.messages.append(message)
            else:
                messages.append(message)
        if messages:
            records = [{"messageId": str(message.number), "body": message.body} for message in messages]
            deliverer = self.deliverer(process)
            answer = await deliver_batch(deliverer, records)
            if not process.dead:
                failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
                for message in messages:
                    if str(message.number) not in failed:
                        self.webhook_queue.delete(message)
        return len(messages)

    async def run(self, until: Callable[[], bool], days: float = 12) -> None:
        """Time goes on: messages are worked on as they get visible, and everything that is due every minute.

        Fails when `until` has not come after so many days.
        """
        end = self.clock() + round(days * 86_400_000)
        next_minute = self.clock()
        while not until():
            assert self.clock() < end, f"never came: {self.states()}"
            while await self.deliver():
                pass
            if self.clock() >= next_minute:
                await self.reconciler().run()
                next_minute = self.clock() + 60_000
                continue
            coming = [message.visible_at for message in self.webhook_queue.messages]
            # Nothing can happen before the next message or the next row is due: go there in one step.
            due = [row.check_at_ms for row in self.tables.rows.values() if row.check_at_ms is not None]
            tick = max(next_minute, min(due)) if due else next_minute
            next_minute = max(next_minute, tick)
            self.clock.now = max(self.clock.now + 1, min([tick, *coming]))

    # ── what a test sees ────────────────────────────────────────────────────────────────────────────

    def states(self) -> dict[tuple[str, int], str]:
        return {key: row.state for key, row in self.tables.rows.items()}

    def settled(self) -> bool:
        """Every event of every call has a delivery that is over."""
        wanted = {(call.call_id, n) for call in self.tables.calls.values() for n in range(1, len(call.events) + 1)}
        return self.tables.rows.keys() >= wanted and "pending" not in self.states().values()

    def check_never_two_at_a_time(self) -> None:
        over: dict[str, int] = {}
        for one in self.receivers.posted:
            assert one.at >= over.get(one.id, 0), f"{one.id} was posted again at {one.at} while under way"
            over[one.id] = one.until


def stream_record(call_id: str, events: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
    """A record of the table's stream: the call gained its last event."""

    def image(count: int) -> dict[str, Any]:
        return {
            "callId": {"S": call_id},
            "workspaceId": {"S": "demo"},
            "callbackUrl": {"S": "https://hooks.example/in"},
            "events": {"L": [{"M": {"type": {"S": entry["type"]}}} for entry in events[:count]]},
        }

    change: dict[str, Any] = {
        "Keys": {"pk": {"S": f"CALL#{call_id}"}, "sk": {"S": "CALL"}},
        "SequenceNumber": f"{call_id}-{number:06d}",
        "NewImage": image(len(events)),
    }
    if len(events) > 1:
        change["OldImage"] = image(len(events) - 1)
    return {
        "eventID": f"{call_id}-{number}",
        "eventName": "MODIFY" if "OldImage" in change else "INSERT",
        "dynamodb": change,
    }


def run(work: Awaitable[T]) -> T:
    """Runs a coroutine to its end on a loop of its own."""

    async def main() -> T:
        return await work

    return asyncio.run(main())
