"""DynamoDB of the simulation: the one in memory, quick for ten thousand calls, with a stream of what is written.

Values are not serialised, and the indexes `due` and `line` are kept sorted. A request
is an outside call of the process that sends it (invocation.py); some meet another transaction, and some changes
show late in the indexes.
"""

from __future__ import annotations

import asyncio
import bisect
import collections
import random
import re
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from shared.dynamo import from_wire
from simulate import invocation, virtual_time
from simulate.dynamodb_in_memory import DynamoDBInMemory, Item

Key = tuple[Any, ...]

# Partition and sort attribute of each index that is kept sorted.
INDEXES = {"due": ("dueShard", "checkAt"), "line": ("lineOf", "turn")}

_RANGE = re.compile(r"\w+ = (:\w+) AND \w+ (?:BETWEEN (:\w+) AND (:\w+)|<= (:\w+))")
_HIGHEST = ("\U0010ffff",)


class Wire:
    """A value in place of its DynamoDB format (`{"S": text}`): it is not serialised and not parsed, which takes
    longer than all else that a store does.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, kind: str) -> Any:
        """As the text of a string, or the members of a list, are read."""
        assert kind in ("S", "L"), kind
        return self.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wire) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


def value_of(wire: Any) -> Any:
    """In place of boto3's deserialiser. Keys such as those of the index are parsed as ever."""
    return wire.value if isinstance(wire, Wire) else _PLAIN[next(iter(wire))](wire)


_PLAIN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "S": lambda wire: wire["S"],
    "N": lambda wire: int(wire["N"]),
}


class Stored(dict[str, Any]):
    """An item. wire: the same in DynamoDB's format."""

    wire: dict[str, Wire]

    def __init__(self, item: Item) -> None:
        super().__init__(item)
        self.wire = {name: Wire(value) for name, value in item.items()}


class Index:
    """A sorted index. partitions: the entries (sort value, key of the item) of each."""

    def __init__(self, partition: str, sort: str) -> None:
        self._partition, self._sort = partition, sort
        self.partitions: dict[Any, list[tuple[Any, Key]]] = collections.defaultdict(list)
        self._places: dict[Key, tuple[Any, tuple[Any, Key]]] = {}

    def put(self, key: Key, item: Item) -> None:
        partition, sort = item.get(self._partition), item.get(self._sort)
        place = None if partition is None or sort is None else (partition, (sort, key))
        before = self._places.get(key)
        if before == place:
            return
        if before is not None:
            entries = self.partitions[before[0]]
            del entries[bisect.bisect_left(entries, before[1])]
            del self._places[key]
        if place is not None:
            bisect.insort(self.partitions[place[0]], place[1])
            self._places[key] = place

    def first(self, partition: Any) -> Any:
        """The lowest sort value of a partition; None when it is empty."""
        entries = self.partitions[partition]
        return entries[0][0] if entries else None


class SimulatedDynamoDB(DynamoDBInMemory):
    """A boto3 client. wrote: called with table, key, the item before and after each write. before_write: called
    with the operation and the request of a process, before it is carried out; it may take its time.
    conflicts, stale: shares of the writes that meet another transaction, and that an index shows late.
    """

    def __init__(self, dice: random.Random, *, conflicts: float, stale: float) -> None:
        super().__init__()
        self.wrote: Callable[[str, Key, Stored | None, Stored], None] = lambda *given: None
        self.indexes = {name: Index(*attributes) for name, attributes in INDEXES.items()}
        self.faults: collections.Counter[str] = collections.Counter()
        self.conflicts, self.stale = conflicts, stale
        self._dice = dice

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        handler = super().__getattr__(operation)

        def send(**request: Any) -> Any:
            sender: Any = invocation.current.get()
            if sender is None or not virtual_time.in_thread():
                return handler(**request)
            self._meet_conflict(operation, request)
            if sender.at_once():
                return handler(**request)
            return virtual_time.wait_for(sender.aws(operation, lambda: handler(**request)))

        return send

    def _meet_conflict(self, operation: str, request: dict[str, Any]) -> None:
        """DynamoDB refuses a write while another transaction is under way on one of its items."""
        in_transaction = operation == "transact_write_items"
        alone = operation == "update_item" and request["TableName"] != "workspaces" and _is_fenced_item(request)
        if not (in_transaction or alone) or self._dice.random() >= self.conflicts:
            return
        self.faults["transaction conflict"] += 1
        if alone:
            error: Any = {"Error": {"Code": "TransactionConflictException"}}
            error["ResponseMetadata"] = {"HTTPStatusCode": 400}
        else:
            reasons = [{"Code": "None"}, {"Code": "TransactionConflict"}]
            error = {"Error": {"Code": "TransactionCanceledException"}, "CancellationReasons": reasons}
        raise ClientError(error, operation)

    def _store(self, table: str, key: Key, item: Item) -> None:
        before: Any = self.table(table).get(key)
        stored = Stored(item)
        self.table(table)[key] = stored
        if table == "calls":
            if self._dice.random() < self.stale:
                self.faults["index shows it late"] += 1
                asyncio.get_running_loop().call_later(self._dice.uniform(0.05, 3), self._show, key)
            else:
                self._show(key)
        self.wrote(table, key, before, stored)

    def _show(self, key: Key) -> None:
        item = self.table("calls")[key]
        for index in self.indexes.values():
            index.put(key, item)

    def _sent(self, item: Item) -> dict[str, Any]:
        return item.wire if isinstance(item, Stored) else super()._sent(item)

    def _scan(self, request: dict[str, Any]) -> dict[str, Any]:
        # All of it: a table of a few workspaces is far smaller than DynamoDB's megabyte.
        return super()._scan({"Limit": len(self.table(request["TableName"])) + 1} | request)

    def _query(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request.get("IndexName")
        found = _RANGE.fullmatch(request["KeyConditionExpression"])
        if name not in INDEXES or found is None or "FilterExpression" in request:
            return super()._query(request)
        values = from_wire(request["ExpressionAttributeValues"])
        partition, start, end, most = (values.get(given) for given in found.groups())
        entries = self.indexes[name].partitions[partition]
        first = 0 if start is None else bisect.bisect_left(entries, (start, ()))
        if "ExclusiveStartKey" in request:
            last = from_wire(request["ExclusiveStartKey"])
            after = (last[INDEXES[name][1]], (last["pk"], last["sk"]))
            first = max(first, bisect.bisect_right(entries, after))
        until = bisect.bisect_right(entries, (most if end is None else end, _HIGHEST))
        table = self.table(request["TableName"])
        limit = request.get("Limit", len(entries))
        shown = entries[first : min(until, first + limit + 1)]
        # As the index shows them: the items themselves may have changed since.
        items = [_entry(name, partition, sort, key, table[key]) for sort, key in shown]
        return self._page(items, request, INDEXES[name][1])


def _entry(index: str, partition: Any, sort: Any, key: Key, item: Item) -> Item:
    """An index's entry: keys only."""
    names = INDEXES[index]
    if item.get(names[0]) == partition and item.get(names[1]) == sort:
        return item
    return {"pk": key[0], "sk": key[1], names[0]: partition, names[1]: sort}


def _is_fenced_item(request: dict[str, Any]) -> bool:
    """Whether the item takes part in fences: a call or a number."""
    key = request["Key"]
    return "id" in key or from_wire(key).get("sk") == "CALL"
