"""The emulated AWS with DynamoDB's condition key `dynamodb:LeadingKeys`, which the emulator lacks, with one
session registered at a time, and with queries whose time hardly grows with the index.

`python -m emulator` runs `python -m ministack` and adds the key to requests, so that the local stack enforces the
policies that use it. AWS adds the key to every request that names items by their partition key; here a Query has
none, because no policy of template.yaml restricts one.

The emulator registers a session of the execution role when it starts a function's process, and looks for expired
ones before. Functions start concurrently: without a lock one of them fails with "dictionary changed size during
iteration".

The emulator sorts a whole partition of an index at each query, and parses the condition for each of its items: a
line of 5,000 calls takes a second, in which nothing else is answered. A query with a limit gets so many items.
"""

from __future__ import annotations

import heapq
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ministack.app import main
from ministack.core import iam_actions
from ministack.services import dynamodb, sts


def leading_keys(request: dict[str, Any]) -> Iterator[str]:
    """The partition keys of the items that a request names, of all tables."""
    of_tables = request.get("RequestItems") or {request.get("TableName"): request}
    for table, asked in of_tables.items():
        schema = (dynamodb._tables.get(table) or {}).get("KeySchema", ())
        names = [key["AttributeName"] for key in schema if key["KeyType"] == "HASH"]
        if isinstance(asked, list):
            # BatchWriteItem: [{"PutRequest": {"Item": ...}} or {"DeleteRequest": {"Key": ...}}]
            items = [inner for write in asked for part in write.values() for inner in part.values()]
        else:
            items = [*asked.get("Keys", ()), *(asked[name] for name in ("Key", "Item") if name in asked)]
        yield from (value for item in items for name in names for value in item.get(name, {}).values())


def with_leading_keys(context: Callable[[bytes], dict[str, Any]]) -> Callable[[bytes], dict[str, Any]]:
    """Wraps the emulator's function that returns the condition keys of a request; adds the leading keys."""

    def completed(body: bytes) -> dict[str, Any]:
        found = context(body)
        # The emulator itself refuses a body that is not a request of DynamoDB.
        keys = list(leading_keys(json.loads(body))) if found else []
        return {**found, "dynamodb:LeadingKeys": keys} if keys else found

    return completed


def one_at_a_time(register: Callable[[str, dict[str, Any]], None]) -> Callable[[str, dict[str, Any]], None]:
    """Wraps the emulator's function that registers a session, so that no two threads are in it together."""
    lock = threading.Lock()

    def alone(access_key: str, session: dict[str, Any]) -> None:
        with lock:
            register(access_key, session)

    return alone


# A condition that a beginning of the partition meets: the partition key, and an upper bound of the sort key.
_BEGINNING = re.compile(r"(\w+) = (:\w+) AND (\w+) <=? :\w+")
# What else a query may ask for that does not depend on the entries after the first.
_NARROWED = {"TableName", "IndexName", "KeyConditionExpression", "ExpressionAttributeValues", "Limit"}


class FirstEntries:
    """Wraps the emulator's query and its index: a query with a limit sees that many entries and one more."""

    def __init__(self, query: Callable[[dict[str, Any]], Any], members: Callable[[dict[str, Any]], Any]) -> None:
        self._query, self._members = query, members
        self._seen = threading.local()

    def query(self, request: dict[str, Any]) -> Any:
        self._seen.index = self._narrowed(request)
        try:
            return self._query(request)
        finally:
            self._seen.index = None

    def members(self, table: dict[str, Any]) -> Any:
        return getattr(self._seen, "index", None) or self._members(table)

    def _narrowed(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The index with one partition's first entries; None for a query that may need others."""
        condition = _BEGINNING.fullmatch(request.get("KeyConditionExpression") or "")
        table = dynamodb._tables.get(request.get("TableName"))
        if condition is None or table is None or "Limit" not in request or not request.keys() <= _NARROWED:
            return None
        _, value, sort = condition.groups()
        key = dynamodb._extract_key_val(request["ExpressionAttributeValues"].get(value))
        entries = self._members(table).get(request.get("IndexName"), {}).get(key, ())
        kind, items = dynamodb._get_attr_type(table, sort), table["items"]

        def order(entry: tuple[Any, Any]) -> tuple[Any, ...]:
            return (dynamodb._sort_key_value(items[entry[0]][entry[1]].get(sort), kind), *entry)

        there = [entry for entry in entries if entry[1] in items.get(entry[0], ())]
        return {request["IndexName"]: {key: heapq.nsmallest(request["Limit"] + 1, there, key=order)}}


if __name__ == "__main__":
    first_entries = FirstEntries(dynamodb._query, dynamodb._index_members)
    dynamodb._query, dynamodb._index_members = first_entries.query, first_entries.members
    sts.register_session = one_at_a_time(sts.register_session)
    iam_actions.dynamodb_service_context = with_leading_keys(iam_actions.dynamodb_service_context)
    main()
