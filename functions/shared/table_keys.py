"""The keys of CallsTable: a call and its deliveries are one item collection, `CALL#<callId>`."""

from __future__ import annotations

import re
from typing import Any

from shared.dynamo import to_wire

# Ids are checked against it before a request: DynamoDB refuses a key of over 2 KB.
CALL_ID = re.compile(r"[0-9a-f]{24}")

# Shards of the index of what is due, which avoid a hot partition.
SHARDS = 16

# How long ended calls and finished deliveries are kept.
RETENTION_SECONDS = 30 * 24 * 3600


def expires_at(ended_ms: int) -> int:
    """The expiry (epoch seconds, DynamoDB's TTL) of what ended at a time in epoch ms."""
    return ended_ms // 1000 + RETENTION_SECONDS


def call_key(call_id: str, sort_key: str = "CALL") -> dict[str, Any]:
    return to_wire({"pk": f"CALL#{call_id}", "sk": sort_key})


def due_shard(call_id: str) -> int:
    return int(call_id[0], SHARDS)
