"""The emulated AWS with DynamoDB's condition key `dynamodb:LeadingKeys`, which the emulator lacks.

`python -m emulator` runs `python -m ministack` and adds the key to requests, so that the local stack enforces the
policies that use it. AWS adds the key to every request that names items by their partition key; here a Query has
none, because no policy of template.yaml restricts one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from ministack.app import main
from ministack.core import iam_actions
from ministack.services import dynamodb


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


if __name__ == "__main__":
    iam_actions.dynamodb_service_context = with_leading_keys(iam_actions.dynamodb_service_context)
    main()
