"""What a call that waits in the line asks of AWS, beside one that does not wait, and what the reconciler asks.

The functions' engines with their real stores on a DynamoDB in memory, in virtual time. The calls of one workspace
with ten slots talk for two minutes each, and each call that ends is replaced by one that is placed: as many wait
at the end as at the beginning, so what is counted, divided by the calls that ended, is all that one call costs,
from its POST to its last webhook. Requests are the functions' own, without Lambda's receiving and deleting of
messages. Nothing shares a batch, as at low traffic.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from livekit.protocol.models import DisconnectReason, ParticipantInfo, Room
from livekit.protocol.webhook import WebhookEvent

from bench.capacity import TEMPLATE
from bench.units import STORED_BESIDE, Item, index_entry, index_units, read_units, size, write_units
from livekit_events.apply_event import EventApplier
from shared.call import Call, Outcome, iso
from shared.clock import to_ms
from shared.durations import Durations
from shared.dynamo import from_wire, to_wire
from shared.ending import clear, end_call
from shared.line import line_of, turn_of
from shared.queues import MAXIMUM_BATCH
from shared.table_keys import SHARDS
from shared.workspaces import Workspace, WorkspaceCache
from simulate.dynamodb_in_memory import DynamoDBInMemory
from tests.calls import call_record
from tests.clock import MINUTE
from tests.in_memory import QueueInMemory, RoomsInMemory
from tests.simulation import SECRET, Simulation
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.fan_out import FanOut

SLOTS = 10
TALK_SECONDS = 120
# As long as the deadlines of a backlog of 5,000 calls need to be.
QUEUE_TTL = 86_400.0
# The calls that wait at the beginning were placed so long ago.
WAITED_MS = 60 * MINUTE
# The reconciler's runs of a minute, each with as many of the index's shards (template.yaml).
RUNS = 4
CALLBACK_URL = "https://hooks.example/in"
RECONCILER = "reconcile_calls"
EXPIRED = Outcome("expired", "expired", retryable=True)

INDEXES: dict[str, Any] = {
    index["IndexName"]: index
    for index in TEMPLATE["Resources"]["CallsTable"]["Properties"]["GlobalSecondaryIndexes"]
}
TABLE_KEY = ("pk", "sk")


class CountingDynamoDB(DynamoDBInMemory):
    """Counts what each function asks for.

    function: the one that works now. asked: requests, by function and operation. written and read: units, by
    function and table or index. records: of the calls' stream, until they are taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.function = ""
        self.asked: collections.Counter[tuple[str, str]] = collections.Counter()
        self.written: collections.Counter[tuple[str, str]] = collections.Counter()
        self.read: dict[tuple[str, str], float] = collections.defaultdict(float)
        self.records: list[dict[str, Any]] = []
        self._images: dict[tuple[str, tuple[Any, ...]], Item] = {}
        # The items of each partition of an index: a query need not look at all items of the table.
        self._partitions: dict[tuple[str, Any], dict[tuple[Any, ...], Any]] = collections.defaultdict(dict)
        self._queried: dict[tuple[Any, ...], Any] | None = None

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        send = super().__getattr__(operation)

        def counted(**request: Any) -> Any:
            with self._lock:
                return self._counted(operation, send, request)

        return counted

    def table(self, name: str) -> dict[tuple[Any, ...], Any]:
        return super().table(name) if self._queried is None else self._queried

    def partition(self, index: str, value: Any) -> list[tuple[Any, ...]]:
        """The keys of the items in one partition of an index."""
        return list(self._partitions[index, value])

    def keys_of(self, call_id: str) -> list[tuple[Any, ...]]:
        """The keys of a call and of its deliveries."""
        return [key for key in self.table("CallsTable") if key[0] == f"CALL#{call_id}"]

    def image(self, table: str, key: tuple[Any, ...]) -> Item:
        return self._images[table, key]

    def _counted(self, operation: str, send: Callable[..., Any], request: dict[str, Any]) -> Any:
        self.asked[self.function, operation] += 1
        if operation in ("put_item", "update_item"):
            return self._write(send, request)
        if operation == "transact_write_items":
            return self._transact(send, request)
        index = request.get("IndexName")
        if operation == "query" and index in INDEXES:
            partition = INDEXES[index]["KeySchema"][0]["AttributeName"]
            (value,) = (
                value
                for name, value in from_wire(request["ExpressionAttributeValues"]).items()
                if f"{partition} = {name}" in request["KeyConditionExpression"]
            )
            self._queried = self._partitions[index, value]
        elif operation == "scan":
            # All of it: a table of a few workspaces is far smaller than DynamoDB's megabyte.
            request = {"Limit": len(self.table(request["TableName"])) + 1} | request
        try:
            answer = send(**request)
        finally:
            self._queried = None
        self._count_read(operation, request, answer)
        return answer

    def _count_read(self, operation: str, request: dict[str, Any], answer: dict[str, Any]) -> None:
        match operation:
            case "get_item":
                units = read_units(answer.get("Item"), consistent=True)
            case "batch_get_item":
                for table, asked in request["RequestItems"].items():
                    images = [self._images.get((table, _key(from_wire(key)))) for key in asked["Keys"]]
                    self.read[self.function, table] += sum(read_units(image, consistent=True) for image in images)
                return
            case "query":
                index = INDEXES[request["IndexName"]]
                held = sum(size(index_entry(index, TABLE_KEY, item)) for item in answer["Items"])
                units = max(1, math.ceil(held / 4096)) / 2
            case "scan":
                held = sum(
                    size(self._images[request["TableName"], key]) for key in self.table(request["TableName"])
                )
                units = max(1, math.ceil(held / 4096)) / 2
            case _:
                return
        self.read[self.function, _table_of(request)] += units

    def _write(self, send: Callable[..., Any], request: dict[str, Any]) -> Any:
        table = request["TableName"]
        key = _key(from_wire(request.get("Key") or request["Item"]))
        before = self._images.get((table, key))
        try:
            answer = send(**request)
        except Exception:
            # A write whose condition fails is paid for too.
            self.written[self.function, table] += write_units(before, before)
            raise
        self._written(table, key, before)
        return answer

    def _transact(self, send: Callable[..., Any], request: dict[str, Any]) -> Any:
        """A transaction writes each item twice, also one that it only checks; an index once."""
        actions = [action for item in request["TransactItems"] for action in item.values()]
        keys = [(action["TableName"], _key(from_wire(action["Key"]))) for action in actions]
        before = [self._images.get(key) for key in keys]
        answer = send(**request)
        for (table, key), image in zip(keys, before, strict=True):
            if key in super().table(table):
                self._written(table, key, image, times=2)
            else:
                self.written[self.function, table] += 2
        return answer

    def _written(self, table: str, key: tuple[Any, ...], before: Item | None, *, times: int = 1) -> None:
        stored = super().table(table)[key]
        after: Item = to_wire(stored)
        self._images[table, key] = after
        self.written[self.function, table] += times * write_units(before, after)
        if table == "CallsTable":
            self._write_indexes(key, stored, before, after)
            if after["sk"]["S"] == "CALL" and "callbackUrl" in after:
                change = {"Keys": {name: after[name] for name in TABLE_KEY}, "NewImage": after}
                change |= {"OldImage": before} if before is not None else {}
                self.records.append({"eventID": str(len(self.records)), "dynamodb": change})

    def _write_indexes(
        self, key: tuple[Any, ...], stored: dict[str, Any], before: Item | None, after: Item
    ) -> None:
        for name, index in INDEXES.items():
            if units := index_units(index, TABLE_KEY, before, after):
                self.written[self.function, name] += units
            partition = index["KeySchema"][0]["AttributeName"]
            if before is not None and partition in before:
                self._partitions[name, _value(before[partition])].pop(key, None)
            if index_entry(index, TABLE_KEY, after) is not None:
                self._partitions[name, _value(after[partition])][key] = stored


def _key(item: Mapping[str, Any]) -> tuple[Any, ...]:
    if "pk" in item:
        return item["pk"], item["sk"]
    return (item["id"] if "id" in item else item["workspaceId"],)


def _value(wire: Mapping[str, Any]) -> Any:
    return from_wire({"value": wire})["value"]


def _table_of(request: Mapping[str, Any]) -> str:
    return str(request.get("IndexName") or request["TableName"])


class CountingQueue(QueueInMemory):
    """Counts its requests in the table's `asked`."""

    def __init__(self, clock: Callable[[], int], table: CountingDynamoDB) -> None:
        super().__init__(clock)
        self._table = table

    def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
        self._table.asked[self._table.function, "send_message"] += 1
        return super().send(body, group=group, delay_seconds=delay_seconds)

    def send_batch(
        self, messages: Sequence[tuple[dict[str, Any], str]], delays_seconds: Sequence[float] = ()
    ) -> set[int]:
        requests = math.ceil(len(messages) / MAXIMUM_BATCH)
        self._table.asked[self._table.function, "send_message_batch"] += requests
        return super().send_batch(messages, delays_seconds)


class Phones(RoomsInMemory):
    """LiveKit, which says whom it rings. rings: called with the call's id while its phone rings."""

    def __init__(self, rings: Callable[[str], None]) -> None:
        super().__init__()
        self._rings = rings

    async def dial(self, *, room: str, **request: Any) -> None:
        self._rings(request["identity"].removeprefix("call-"))
        await super().dial(room=room, **request)


@dataclasses.dataclass(frozen=True, slots=True)
class Spent:
    """What was spent meanwhile. Counters as in CountingDynamoDB; minutes: runs of the reconciler's schedule.
    invocations: of functions, by their names. waiting: calls in the line at the end.
    """

    asked: Mapping[tuple[str, str], int]
    written: Mapping[tuple[str, str], int]
    read: Mapping[tuple[str, str], float]
    invocations: Mapping[str, int]
    ended: int
    minutes: int
    waiting: int

    def requests(self, *, reconciler: bool = False) -> float:
        """Of one call; of the reconciler's in one minute."""
        return self._each(self.asked, reconciler)

    def write_units(self, *, reconciler: bool = False) -> float:
        return self._each(self.written, reconciler)

    def read_units(self, *, reconciler: bool = False) -> float:
        return self._each(self.read, reconciler)

    def by(self, counter: Mapping[tuple[str, str], float], part: int) -> dict[str, float]:
        """Of one call, by function (part 0), or by operation, table or index (part 1)."""
        found: collections.Counter[str] = collections.Counter()
        for names, count in counter.items():
            if names[0] != RECONCILER:
                found[names[part]] += count  # type: ignore[assignment]
        return {name: round(count / self.ended, 2) for name, count in sorted(found.items())}

    def _each(self, counter: Mapping[tuple[str, str], float], reconciler: bool) -> float:
        total = sum(count for (function, _), count in counter.items() if (function == RECONCILER) == reconciler)
        return total / (self.minutes if reconciler else self.ended)


class Traffic(Simulation):
    """One workspace's calls. calls: how many there are at any time, waiting ones included."""

    def __init__(self, calls: int, *, webhooks: bool) -> None:
        self.table = CountingDynamoDB()
        super().__init__(dataclasses.replace(Durations(), queue_ttl=QUEUE_TTL), dynamodb=cast(Any, self.table))
        self.workspaces.put(
            Workspace(
                "demo",
                "Demo",
                "outbound",
                "ST_demo",
                ("+15550009999",),
                allowed_calling_codes=frozenset({"+1"}),
                max_concurrent_calls=SLOTS,
                calls_per_second=10,
                webhook_secrets=(SECRET,),
            )
        )
        self.livekit = Phones(self._rings)
        self.dial_queue = CountingQueue(self.clock, self.table)
        self.webhook_queue = CountingQueue(self.clock, self.table)
        self.invocations: collections.Counter[str] = collections.Counter()
        self._webhooks = webhooks
        seconds = self.durations.workspace_cache
        self._cache = WorkspaceCache(self.workspaces, seconds, self.clock.seconds)
        self._deliverer = dataclasses.replace(
            self.deliverer(),
            calls=self.calls,
            deliveries=self.deliveries,
            workspaces=WorkspaceCache(self.workspaces, seconds, self.clock.seconds),
        )
        # When and whose phone hangs up.
        self._hang_ups: list[tuple[int, str]] = []
        self._ended = self._minutes = 0
        self._next_minute = self.clock() + MINUTE
        self._begin(calls)

    def spend(self, calls: int) -> Spent:
        """Time goes on until so many calls have ended; as many are placed."""
        self._forget()
        while self._ended < calls:
            self._step()
        return self._spent()

    def look(self) -> Spent:
        """The reconciler's runs of a minute in which nothing is due."""
        self._reconcile()
        self._forget()
        self._reconcile()
        return self._spent()

    def expire(self) -> Spent:
        """All calls that wait reach their deadline: what is spent on one of them, with its webhook."""
        waiting = self.waiting()
        self.clock.advance(QUEUE_TTL)
        # The calls under way are over by then, and not what is counted.
        self._forget()
        for call_id in waiting:
            self.table.function = "expire"
            call = self.call_of(call_id)
            ended = end_call(self.calls, call, EXPIRED, self.durations, self.clock)
            assert ended is not None
            clear(self.line, ended)
            self._fan_out_all()
            while self._deliver_all():
                pass
        self._ended = len(waiting)
        return self._spent()

    def waiting(self) -> list[str]:
        """The ids of the calls in the line."""
        return [key[0].removeprefix("CALL#") for key in self.table.partition("line", line_of("demo"))]

    def stored_bytes(self) -> float:
        """What a call in the line takes in the table and its indexes, with its delivery."""
        images = [
            self.table.image("CallsTable", key) for call in self.waiting() for key in self.table.keys_of(call)
        ]
        entries = [index_entry(index, TABLE_KEY, image) for index in INDEXES.values() for image in images]
        held = [size(image) + STORED_BESIDE for image in [*images, *entries] if image is not None]
        return sum(held) / len(self.waiting())

    def _spent(self) -> Spent:
        return Spent(
            dict(self.table.asked),
            dict(self.table.written),
            dict(self.table.read),
            dict(self.invocations),
            self._ended,
            self._minutes,
            len(self.waiting()),
        )

    def _forget(self) -> None:
        for counter in (self.table.asked, self.table.written, self.table.read, self.invocations):
            counter.clear()
        self._ended = self._minutes = 0

    def _begin(self, calls: int) -> None:
        """The slots are in use, by calls that end one after the other; all other calls wait."""
        talking = min(calls, SLOTS)
        for _ in range(talking):
            self._place()
            self.clock.advance(TALK_SECONDS / talking)
        for _ in range(calls - talking - 1):
            self._wait_since(self.clock() - WAITED_MS)
        if calls > talking:
            # A worker finds no slot for it, and says so in the slots item.
            self._place()
        for _ in range(2 * SLOTS):
            self._step()

    def _wait_since(self, placed_ms: int) -> None:
        """A call in the line, as its worker has left it."""
        number = next(self._numbers)
        call = self._record(f"{number % 16:x}{number:023x}", placed_ms)
        deadline_ms = placed_ms + to_ms(QUEUE_TTL)
        self.calls.create(
            dataclasses.replace(
                call,
                queue_deadline_ms=deadline_ms,
                check_at_ms=deadline_ms,
                line_of=line_of("demo"),
                turn=turn_of(call),
                waiting_for="slot",
            )
        )
        self.table.records.clear()

    def _record(self, call_id: str, placed_ms: int) -> Call:
        return call_record(
            placed_ms,
            call_id=call_id,
            room_name=f"agent-1-{call_id[-10:]}",
            created_at=iso(placed_ms),
            **self._fields(),
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "callback_url": CALLBACK_URL if self._webhooks else None,
            "dynamic_variables": '{"firstName":"Ada","Zipcode":"94105"}',
            "metadata": '{"orderId":"o-1"}',
        }

    def _place(self) -> None:
        self.table.function = "initiate_call"
        self.invocations["initiate_call"] += 1
        self.place(**self._fields())
        self._work()

    # ── what happens ────────────────────────────────────────────────────────────────────────────────

    def _step(self) -> None:
        """The next thing in time: a phone hangs up, or the reconciler's minute."""
        if self._hang_ups and self._hang_ups[0][0] <= self._next_minute:
            at, call_id = heapq.heappop(self._hang_ups)
            self.clock.now = max(self.clock(), at)
            self._hang_up(call_id)
            self._work()
            self._place()
        else:
            self.clock.now = max(self.clock(), self._next_minute)
            self._next_minute += MINUTE
            self._reconcile()
            self._work()

    def _reconcile(self) -> None:
        self.table.function = RECONCILER
        for first in range(RUNS):
            self.reconcile(shards=range(first * SHARDS // RUNS, (first + 1) * SHARDS // RUNS))
        self._minutes += 1

    def _work(self) -> None:
        """Every message and every record of the stream that is there now."""
        while self._dial_all() + self._fan_out_all() + self._deliver_all():
            pass

    def dialler(self, seconds: float = 120) -> Any:
        self.table.function = "dial_worker"
        self.invocations["dial_worker"] += 1
        return dataclasses.replace(super().dialler(seconds), workspace_cache=self._cache)

    def _dial_all(self) -> int:
        return self.dial()

    def _fan_out_all(self) -> int:
        records = list(self.table.records)
        self.table.records.clear()
        self.table.function = "fan_out"
        for record in records:
            self.invocations["fan_out"] += 1
            engine = FanOut(self.deliveries, self.webhook_queue, self.durations, self.clock)
            assert engine.process(self.dead_letters, [record]) is None
        return len(records)

    def _deliver_all(self) -> int:
        self.table.function = "deliver"
        messages = self.webhook_queue.receive(1)
        for message in messages:
            self.invocations["deliver"] += 1
            record = {"messageId": str(message.number), "body": message.body}
            answer = asyncio.run(deliver_batch(self._deliverer, [record]))
            assert answer == {"batchItemFailures": []}, answer
            self.webhook_queue.delete(message)
        self.receivers.posted.clear()
        return len(messages)

    def _rings(self, call_id: str) -> None:
        """LiveKit tells that the phone joined; it is answered, and hangs up some time later."""
        self._tell(self.call_of(call_id), "participant_joined")
        self.table.function = "dial_worker"
        heapq.heappush(self._hang_ups, (self.clock() + TALK_SECONDS * 1000, call_id))

    def _hang_up(self, call_id: str) -> None:
        call = self.call_of(call_id)
        self._tell(call, "participant_left")
        self.livekit.rooms.pop(call.room_name)
        self._tell(call, "room_finished")
        self._ended += 1

    def call_of(self, call_id: str) -> Call:
        """The call as it is stored; not counted."""
        return Call.from_item(DynamoDBInMemory.table(self.table, "CallsTable")[f"CALL#{call_id}", "CALL"])

    def _tell(self, call: Call, kind: str) -> None:
        told = WebhookEvent(
            event=kind,
            room=Room(name=call.room_name, sid=call.room_sid or "", metadata=f'{{"callId":"{call.call_id}"}}'),
            created_at=self.clock() // 1000,
        )
        if kind != "room_finished":
            told.participant.identity = call.identity
            told.participant.kind = ParticipantInfo.Kind.SIP
        if kind == "participant_left":
            told.participant.disconnect_reason = DisconnectReason.CLIENT_INITIATED
            told.participant.attributes["sip.callStatus"] = "hangup"
        self.table.function = "livekit_events"
        self.invocations["livekit_events"] += 1
        EventApplier(self.calls, self.line, self.dial_queue, self.durations, self.clock).apply(told)


def traffic(waiting: int, *, webhooks: bool = True) -> Traffic:
    """Of a workspace in which so many calls wait; with 0 none ever does."""
    return Traffic(SLOTS + waiting if waiting else SLOTS - 1, webhooks=webhooks)


def counts(waiting: int = 10, ended: int = 20) -> dict[str, Any]:
    """What bench/waiting.toml says."""
    alone, line = traffic(0), traffic(waiting)
    idle, look = alone.look(), line.look()
    before, after = alone.spend(ended), line.spend(ended)
    stored = line.stored_bytes()
    expired = line.expire()

    def more(part: Callable[[Spent], Mapping[str, float]]) -> dict[str, float]:
        first, second = part(before), part(after)
        found = {name: round(second.get(name, 0) - first.get(name, 0), 1) for name in (*first, *second)}
        return {name: count for name, count in sorted(found.items()) if count}

    return {
        "requests": more(lambda spent: spent.by(spent.asked, 0)),
        "write_units": more(lambda spent: spent.by(spent.written, 1)),
        "read_units": round(after.read_units() - before.read_units(), 1),
        "invocations": more(lambda spent: {name: round(n / spent.ended) for name, n in spent.invocations.items()}),
        "a_minute": {
            "requests": look.requests(reconciler=True) - idle.requests(reconciler=True),
            "write_units": look.write_units(reconciler=True) - idle.write_units(reconciler=True),
            "read_units": look.read_units(reconciler=True) - idle.read_units(reconciler=True),
        },
        "stored_kilobytes": round(stored / 1000, 1),
        "expired": {"requests": round(expired.requests()), "write_units": round(expired.write_units())},
    }
