"""Where things are in CallsTable: a call and its deliveries are one item collection, `CALL#<callId>`."""

from __future__ import annotations

import re
from typing import Any

from shared.dynamo import to_wire

# What is asked of a table has this form: DynamoDB refuses a key of over 2 KB, for ever.
CALL_ID = re.compile(r"[0-9a-f]{24}")

# Of the index of what is due, so that neither writers nor the reconciler meet one hot partition.
SHARDS = 16

# Ended calls and finished deliveries are kept so long.
RETENTION_SECONDS = 30 * 24 * 3600


def call_key(call_id: str, sort_key: str = "CALL") -> dict[str, Any]:
    return to_wire({"pk": f"CALL#{call_id}", "sk": sort_key})


def due_shard(call_id: str) -> int:
    return int(call_id[0], SHARDS)
