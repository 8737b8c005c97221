"""The emulated AWS with DynamoDB's condition key `dynamodb:LeadingKeys`, which the emulator lacks, and with one
session registered at a time.

`python -m emulator` runs `python -m ministack` and adds the key to requests, so that the local stack enforces the
policies that use it. AWS adds the key to every request that names items by their partition key; here a Query has
none, because no policy of template.yaml restricts one.

The emulator registers a session of the execution role when it starts a function's process, and looks for expired
ones before. Functions start concurrently: without a lock one of them fails with "dictionary changed size during
iteration".
"""

from __future__ import annotations

import json
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


if __name__ == "__main__":
    sts.register_session = one_at_a_time(sts.register_session)
    iam_actions.dynamodb_service_context = with_leading_keys(iam_actions.dynamodb_service_context)
    main()
