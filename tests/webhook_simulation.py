"""A simulation of webhook delivery: table, queue and clock in memory, processes that can die at any step.

The engine's code is the real one (fan_out, deliver_batch, reconcile). The table in memory keeps the promises of
the real stores (tests/unit/test_delivery_store.py runs against both), and nothing happens unless a test says so.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import httpx

from reconcile_calls.reconcile import Reconciler
from shared.call import Call, event, iso
from shared.call_store import CallStore, Due
from shared.delivery_store import ATTEMPTS_LISTED, Delivery, DeliveryStore, State, sort_key
from shared.durations import Durations
from shared.limits import LimitStore
from shared.queues import Queue
from shared.table_keys import due_shard
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.deliver import Deliverer
from webhook_dispatch.fan_out import FanOut
from webhook_dispatch.transport import webhook_client

START = 1_800_000_000_000
SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
VISIBILITY_SECONDS = 180
MAXIMUM_RECEIVES = 5

T = TypeVar("T")


class Death(BaseException):
    """The process is dead; its further operations are not executed."""


class Process:
    """What runs its external operations: in memory, over HTTP. The `dies_at`-th is the last.

    after: the last one takes effect, only its answer is not seen.
    """

    def __init__(self, dies_at: int | None = None, *, after: bool = False) -> None:
        self.operations = 0
        self.dead = False
        self._dies_at = dies_at
        self._after = after
        self._lock = threading.Lock()

    def run(self, operation: Callable[[], T]) -> T:
        with self._lock:
            last = self._counts_last()
            if not last or self._after:
                result = operation()
            if last:
                raise Death
            return result

    async def run_async(self, operation: Callable[[], Awaitable[T]]) -> T:
        with self._lock:
            last = self._counts_last()
        if not last or self._after:
            result = await operation()
        if last or self.dead:
            raise Death
        return result

    def _counts_last(self) -> bool:
        if self.dead:
            raise Death
        self.operations += 1
        self.dead = self.operations == self._dies_at
        return self.dead


class Clock:
    """Epoch milliseconds; advanced by the test."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


@dataclasses.dataclass
class Table:
    """CallsTable in memory: the calls, and the deliveries by call id and sequence. kept: until when a call is to
    live at least, epoch seconds."""

    calls: dict[str, Call] = dataclasses.field(default_factory=dict)
    kept: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: dict[tuple[str, int], Delivery] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class MemoryDeliveries(DeliveryStore):
    """DeliveryStore in memory."""

    def __init__(self, table: Table, process: Process | None = None) -> None:
        self._rows = table.rows
        self._table_lock = table.lock
        self._process = process or Process()

    def create(self, call_id: str, workspace_id: str, sequence: int, now: int, check_at: int) -> None:
        # As the real store: an invalid id has no shard.
        due_shard(call_id)

        def create() -> None:
            row = Delivery(call_id, workspace_id, sequence, "pending", 0, now, check_at_ms=check_at)
            self._rows.setdefault((call_id, sequence), row)

        self._process.run(create)

    def get(self, call_id: str, sequence: int) -> Delivery | None:
        return self._process.run(lambda: self._rows.get((call_id, sequence)))

    def take(self, call_id: str, sequence: int, lease: str, now: int, until: int) -> Delivery | None:
        return self._change(
            call_id,
            sequence,
            lambda row: row.state == "pending" and row.next_attempt_at_ms <= now and row.lease_until_ms < now,
            lambda row: dataclasses.replace(
                row, lease_id=lease, lease_until_ms=until, check_at_ms=until, begun=row.begun + 1
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
        self, delivery: Delivery, attempt: dict[str, Any], state: State, next_attempt_at: int, check_at: int
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
                next_attempt_at_ms=next_attempt_at,
                lease_id=None,
                lease_until_ms=0,
                check_at_ms=check_at if state == "pending" else None,
            ),
        )

    def replay(self, call_id: str, workspace_id: str, sequence: int, now: int, check_at: int) -> Delivery | None:
        new = Delivery(call_id, workspace_id, sequence, "pending", 0, now)
        with self._table_lock:
            self._rows.setdefault((call_id, sequence), new)
        return self._change(
            call_id,
            sequence,
            lambda row: row.lease_until_ms < now,
            lambda row: dataclasses.replace(new, attempts=row.attempts, check_at_ms=check_at, replayed=True),
        )

    def make_due(self, seen: Delivery, now: int) -> bool:
        made = self._change(
            seen.call_id,
            seen.sequence,
            lambda row: (row.state, row.attempt) == (seen.state, seen.attempt) and row.lease_until_ms < now,
            lambda row: dataclasses.replace(
                row,
                state="pending",
                attempt=0,
                begun=0,
                next_attempt_at_ms=now,
                check_at_ms=now,
                lease_id=None,
                lease_until_ms=0,
            ),
        )
        return made is not None

    def of_call(self, call_id: str) -> list[Delivery]:
        return self._process.run(lambda: [row for key, row in sorted(self._rows.items()) if key[0] == call_id])

    def postpone(self, seen: Delivery, check_at: int) -> bool:
        moved = self._change(
            seen.call_id,
            seen.sequence,
            lambda row: row.state == "pending" and row.check_at_ms == seen.check_at_ms,
            lambda row: dataclasses.replace(row, check_at_ms=check_at),
        )
        return moved is not None

    def _change(
        self, call_id: str, sequence: int, may: Callable[[Delivery], bool], change: Callable[[Delivery], Delivery]
    ) -> Delivery | None:
        def update() -> Delivery | None:
            with self._table_lock:
                row = self._rows.get((call_id, sequence))
                if row is None or not may(row):
                    return None
                self._rows[call_id, sequence] = change(row)
                return self._rows[call_id, sequence]

        return self._process.run(update)


class MemoryCalls(CallStore):
    """The methods of CallStore that webhook delivery uses, in memory."""

    def __init__(self, table: Table, process: Process | None = None) -> None:
        self._memory = table
        self._process = process or Process()

    def get(self, call_id: str) -> Call | None:
        return self._process.run(lambda: self._memory.calls.get(call_id))

    def keep(self, call_id: str, until: int) -> bool:
        def keep() -> bool:
            self._memory.kept[call_id] = until
            return call_id in self._memory.calls

        return self._process.run(keep)

    def stop_webhooks(self, call_id: str, now: int) -> None:
        def stop() -> None:
            call = self._memory.calls[call_id]
            self._memory.calls[call_id] = dataclasses.replace(
                call, webhooks_stopped_at_ms=call.webhooks_stopped_at_ms or now
            )

        self._process.run(stop)

    def due(self, shard: int, now: int) -> Iterator[list[tuple[str, str]]]:
        rows = sorted(self._memory.rows.values(), key=lambda row: row.check_at_ms or 0)
        yield [
            (row.call_id, sort_key(row.sequence))
            for row in rows
            if row.check_at_ms is not None and row.check_at_ms <= now and due_shard(row.call_id) == shard
        ]

    def read_due(self, keys: list[tuple[str, str]]) -> Due:
        rows = [self._memory.rows[call_id, int(key.removeprefix("DELIVERY#"))] for call_id, key in keys]
        return Due([], [dataclasses.replace(row, attempts=()) for row in rows], [])


class MemoryWorkspaces(WorkspaceStore):
    """Workspaces in memory."""

    def __init__(self, *workspaces: Workspace) -> None:
        self.by_id = {workspace.workspace_id: workspace for workspace in workspaces}
        self.reads = 0

    def get(self, workspace_id: str) -> Workspace | None:
        self.reads += 1
        return self.by_id.get(workspace_id)


class NeverPaused(LimitStore):
    def __init__(self) -> None:
        """Without a table."""

    def paused(self) -> bool:
        return False


@dataclasses.dataclass
class Message:
    number: int
    body: str
    visible_at: int
    receives: int = 0


class MemoryQueue(Queue):
    """An SQS queue on the simulated clock. refuse: the number of next messages that are not accepted."""

    def __init__(self, clock: Callable[[], int], process: Process | None = None, of: MemoryQueue | None = None):
        self._clock = clock
        self._process = process or Process()
        self.messages: list[Message] = of.messages if of else []
        self._numbers: Iterator[int] = of._numbers if of else itertools.count(1)
        self.refuse: set[int] = set()
        self.requests = 0

    def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
        return self._process.run(lambda: self._put(body, delay_seconds))

    def send_batch(self, messages: Sequence[tuple[dict[str, Any], str]]) -> set[int]:
        def send() -> set[int]:
            for place, (body, _) in enumerate(messages):
                if place not in self.refuse:
                    self._put(body, 0)
            return {place for place in self.refuse if place < len(messages)}

        self.requests += 1
        return self._process.run(send) if messages else set()

    def receive(self, number: int = 10) -> list[Message]:
        found = [message for message in self.messages if message.visible_at <= self._clock()][:number]
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
        self.messages.append(Message(number, json.dumps(body), self._clock() + round(delay_seconds * 1000)))
        return f"message-{number}"


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

    def __init__(self, receivers: Receivers, process: Process, limit_ms: int) -> None:
        self._receivers = receivers
        self._process = process
        self._limit_ms = limit_ms

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async def post() -> httpx.Response:
            return self._receivers.respond(request, self._limit_ms if self._process.dead else 0)

        return await self._process.run_async(post)


class World:
    """See the module's docstring. transport: to real receivers instead of those in memory."""

    def __init__(
        self, durations: Durations | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.durations = durations or Durations()
        self.clock = Clock()
        self.table = Table()
        self.queue = MemoryQueue(self.clock)
        self.dead_letters = MemoryQueue(self.clock)
        self.receivers = Receivers(self.clock)
        self.workspaces = MemoryWorkspaces(
            Workspace("demo", "Demo", "outbound", "ST_demo", ("+15550009999",), webhook_secrets=(SECRET,))
        )
        self._transport = transport

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def call(self, call_id: str, events: int = 4, url: str = "https://hooks.example/in") -> list[dict[str, Any]]:
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
        self.table.calls[call_id] = Call(
            call_id=call_id,
            workspace_id="demo",
            call_agent_id="agent-1",
            to="+15550000000",
            room_name="agent-1-x7k2m9p4q1",
            job_id="job-1",
            created_at=iso(START),
            status="completed",
            events=tuple(listed),
            ring_timeout_seconds=40,
            max_duration_seconds=1800,
            queue_deadline_ms=START,
            callback_url=url,
            metadata='{"n": 1.0}',
        )
        return [stream_record(call_id, listed[:count], count) for count in range(1, len(listed) + 1)]

    # ── processes ───────────────────────────────────────────────────────────────────────────────────

    def fan_out(self, records: Sequence[dict[str, Any]], process: Process | None = None) -> int | None:
        """One invocation: the place of the first record that failed, or None. Raises Death."""
        process = process or Process()
        fan_out = FanOut(
            MemoryDeliveries(self.table, process),
            MemoryQueue(self.clock, process, self.queue),
            self.durations,
            self.clock,
        )
        return fan_out.process(MemoryQueue(self.clock, process, self.dead_letters), records)

    def deliverer(self, process: Process | None = None, client: httpx.AsyncClient | None = None) -> Deliverer:
        process = process or Process()
        limit_ms = round(self.durations.webhook_attempt * 1000)
        transport = self._transport or _OfProcess(self.receivers, process, limit_ms)
        return Deliverer(
            calls=MemoryCalls(self.table, process),
            deliveries=MemoryDeliveries(self.table, process),
            workspaces=WorkspaceCache(self.workspaces, 60, lambda: self.clock() / 1000),
            webhook_queue=MemoryQueue(self.clock, process, self.queue),
            client=client or webhook_client(transport, self.durations),
            durations=self.durations,
            clock=self.clock,
        )

    async def deliver(self, process: Process | None = None) -> int:
        """One invocation with up to ten visible messages, acknowledged as it says. Returns their number."""
        process = process or Process()
        messages = []
        for message in self.queue.receive():
            if message.receives > MAXIMUM_RECEIVES:
                self.queue.delete(message)
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
                        self.queue.delete(message)
        return len(messages)

    async def reconcile(self) -> collections.Counter[str]:
        """What AWS starts every minute."""
        return await Reconciler(
            calls=MemoryCalls(self.table),
            deliveries=MemoryDeliveries(self.table),
            limits=NeverPaused(),
            dial_queue=self.queue,
            webhook_queue=self.queue,
            livekit=cast(Any, None),
            durations=self.durations,
            clock=self.clock,
            time_left=lambda: True,
        ).run()

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
                await self.reconcile()
                next_minute = self.clock() + 60_000
                continue
            coming = [message.visible_at for message in self.queue.messages]
            # Nothing can happen before the next message or the next row is due: go there in one step.
            due = [row.check_at_ms for row in self.table.rows.values() if row.check_at_ms is not None]
            tick = max(next_minute, min(due)) if due else next_minute
            next_minute = max(next_minute, tick)
            self.clock.now = max(self.clock.now + 1, min([tick, *coming]))

    # ── what a test sees ────────────────────────────────────────────────────────────────────────────

    def states(self) -> dict[tuple[str, int], str]:
        return {key: row.state for key, row in self.table.rows.items()}

    def settled(self) -> bool:
        """Every event of every call has a delivery that is over."""
        wanted = {(call.call_id, n) for call in self.table.calls.values() for n in range(1, len(call.events) + 1)}
        return self.table.rows.keys() >= wanted and "pending" not in self.states().values()

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
