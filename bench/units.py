"""DynamoDB's write and read units, counted by AWS's own rules from the items themselves.

Source: Amazon DynamoDB Developer Guide, "Capacity unit consumption" and "Item sizes and formats"; for indexes
"Provisioned throughput considerations for global secondary indexes".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Item = Mapping[str, Any]

WRITE_BYTES, READ_BYTES = 1024, 4096
# What is charged as storage for each item of a table or index beside its own bytes.
STORED_BESIDE = 100


def size(item: Item | None) -> int:
    """Bytes of an item as on the wire ({"name": {"S": "text"}}), names included."""
    return sum(len(name.encode()) + _value(value) for name, value in (item or {}).items())


def _value(value: Mapping[str, Any]) -> int:
    ((kind, content),) = value.items()
    match kind:
        case "S":
            return len(content.encode())
        case "N":
            digits = len(content.lstrip("-").replace(".", "").strip("0"))
            return math.ceil(digits / 2) + 1
        case "BOOL" | "NULL":
            return 1
        case "B":
            return len(content)
        case "SS" | "NS":
            return sum(_value({kind[0]: one}) for one in content)
        case "L":
            return 3 + sum(1 + _value(one) for one in content)
        case "M":
            return 3 + sum(1 + len(name.encode()) + _value(one) for name, one in content.items())
    raise ValueError(f"the type {kind} is not used here")


def write_units(old: Item | None, new: Item | None) -> int:
    """Of one write of the table itself: by the larger of the item before and after."""
    return max(1, math.ceil(max(size(old), size(new)) / WRITE_BYTES))


def read_units(item: Item | None, *, consistent: bool) -> float:
    """Of reading one item; what is not there costs as much as the smallest."""
    units = max(1, math.ceil(size(item) / READ_BYTES))
    return units if consistent else units / 2


def index_units(index: Mapping[str, Any], table_key: Sequence[str], old: Item | None, new: Item | None) -> int:
    """Of what one write of the table does to a global secondary index (as CloudFormation describes it).

    A changed key is a delete and a put; a write that touches nothing of the index costs it nothing.
    """
    keys = [part["AttributeName"] for part in index["KeySchema"]]
    before, after = index_entry(index, table_key, old), index_entry(index, table_key, new)
    if before == after:
        return 0
    if before is None or after is None:
        return write_units(before, after)
    if any(before[key] != after[key] for key in keys):
        return write_units(before, None) + write_units(None, after)
    return write_units(before, after)


def index_entry(index: Mapping[str, Any], table_key: Sequence[str], item: Item | None) -> Item | None:
    """What an index holds of an item; None when nothing."""
    keys = [part["AttributeName"] for part in index["KeySchema"]]
    projection = index["Projection"]
    if item is None or any(key not in item for key in keys):
        return None
    if projection["ProjectionType"] == "ALL":
        return item
    wanted = {*keys, *table_key, *projection.get("NonKeyAttributes", [])}
    return {name: value for name, value in item.items() if name in wanted}
