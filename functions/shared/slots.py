"""A workspace's slots: one for each of its calls that is under way, in items of up to 40 ids.

DynamoDB writes an item of up to 1 KB for one write unit, so a set of more ids would cost more at each call. Item 0
is `<workspace>#slots`, item n is `<workspace>#slots#<n>`. Each item has a fixed part of the limit as its capacity,
and a slot is taken by a write whose condition is that capacity: all items together never exceed the limit.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

SLOTS_PER_ITEM = 40
MAXIMUM_SLOTS = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class SlotsItem:
    """One item. crowded_until_ms: until then calls wait for a slot, and only admitted ones take one."""

    number: int
    call_ids: frozenset[str] = frozenset()
    crowded_until_ms: int = 0


def items_of(limit: int) -> int:
    """The number of items that a limit needs."""
    return max(1, -(-limit // SLOTS_PER_ITEM))


def slots_key(workspace_id: str, number: int) -> str:
    return f"{workspace_id}#slots" + (f"#{number}" if number else "")


def slots_of_key(key: str) -> tuple[str, int] | None:
    """Workspace id and item number of a key of WorkspacesTable; None when it is another item's."""
    workspace_id, found, number = key.partition("#slots")
    if not found or (number and not (number[0] == "#" and number[1:].isdecimal())):
        return None
    return workspace_id, int(number[1:] or 0)


def capacities(limit: int, items: Sequence[SlotsItem]) -> list[int]:
    """How many ids each of the items may contain before another is added.

    Ids beyond an item's part of the limit (the limit was lowered, or an earlier version kept all in item 0) take
    the place of as many in the last items, and such an item gets none. They only become fewer, so capacities
    computed from an older read are too small, never too large. After the limit was lowered an item within its part
    may contain more than what is left of that: so much less is free in the others.
    """
    parts = [min(SLOTS_PER_ITEM, max(0, limit - item.number * SLOTS_PER_ITEM)) for item in items]
    sizes = [len(item.call_ids) for item in items]
    within = [size <= part for size, part in zip(sizes, parts, strict=True)]
    beyond = sum(size - part for size, part, fits in zip(sizes, parts, within, strict=True) if not fits)
    left = [part if fits else 0 for part, fits in zip(parts, within, strict=True)]
    _take_from_last(left, beyond, left)
    excess = sum(max(0, size - most) for size, most, fits in zip(sizes, left, within, strict=True) if fits)
    _take_from_last(left, excess, [max(0, most - size) for most, size in zip(left, sizes, strict=True)])
    return left


def _take_from_last(left: list[int], number: int, most: Sequence[int]) -> None:
    """Lowers `left` by `number` in all, beginning with the last item, each by at most `most`."""
    for place in reversed(range(len(left))):
        taken = min(number, most[place])
        left[place] -= taken
        number -= taken


def free_slots(limit: int, items: Sequence[SlotsItem]) -> list[int]:
    """How many more ids each of the items may get."""
    return [
        max(0, capacity - len(item.call_ids))
        for capacity, item in zip(capacities(limit, items), items, strict=True)
    ]


def choose_item(free: Sequence[int], preferred: int | None = None) -> int | None:
    """The number of the item to take a slot from: the preferred one if it has any, else one at random, so that
    many processes do not try the same; None when no slot is free.
    """
    if preferred is not None and preferred < len(free) and free[preferred]:
        return preferred
    return random.choices(range(len(free)), weights=free)[0] if any(free) else None
