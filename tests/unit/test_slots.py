"""The items that contain a workspace's slots: together they never hold more ids than the limit."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.slots import (
    MAXIMUM_SLOTS,
    SLOTS_PER_ITEM,
    SlotsItem,
    capacities,
    choose_item,
    free_slots,
    items_of,
    slots_key,
    slots_of_key,
)


@functools.cache
def item(number: int, size: int) -> SlotsItem:
    return SlotsItem(number, frozenset(f"{number}-{n}" for n in range(size)))


def items(sizes: Sequence[int]) -> list[SlotsItem]:
    return list(itertools.starmap(item, enumerate(sizes)))


# ── items and their keys ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limit", "number"), [(0, 1), (1, 1), (40, 1), (41, 2), (80, 2), (81, 3), (250, 7), (1000, 25)]
)
def test_a_limit_needs_an_item_for_each_forty(limit: int, number: int) -> None:
    assert items_of(limit) == number


def test_an_item_stays_below_a_kilobyte() -> None:
    ids = {f"{n:024x}" for n in range(SLOTS_PER_ITEM)}
    names = ("workspaceId", "activeCalls", "crowdedUntil")
    # A number takes up to 21 bytes; a workspace's id has at most 32 characters.
    size = sum(map(len, names)) + len("w" * 32 + "#slots#24") + sum(map(len, ids)) + 21
    assert (SLOTS_PER_ITEM, MAXIMUM_SLOTS) == (40, 1000)
    assert size < 1100


@pytest.mark.parametrize(
    ("number", "key"), [(0, "demo#slots"), (1, "demo#slots#1"), (24, "demo#slots#24"), (100, "demo#slots#100")]
)
def test_the_key_of_an_item(number: int, key: str) -> None:
    assert slots_key("demo", number) == key
    assert slots_of_key(key) == ("demo", number)


@pytest.mark.parametrize(
    "key",
    [
        *("demo", "demo#rate", "#switch", "trunk#ST_1", "demo#slot"),
        *("demo#slots1", "demo#slots#", "demo#slots#x", "demo#slots#-1", "demo#slots#1#2", "demo#slots-1"),
    ],
)
def test_the_key_of_anything_else(key: str) -> None:
    assert slots_of_key(key) is None


# ── capacities ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("limit", "sizes", "free"),
    [
        (1, [0], [1]),
        (1, [1], [0]),
        (40, [39], [1]),
        (41, [40, 0], [0, 1]),
        (100, [0, 0, 0], [40, 40, 20]),
        (100, [40, 12, 19], [0, 28, 1]),
        # An item that an earlier, higher limit has needed.
        (40, [10, 0], [30, 0]),
        (40, [10, 30], [0, 0]),
        (40, [10, 29], [1, 0]),
        # All in item 0, by an earlier version: the last items are left free in exchange.
        (250, [250, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]),
        (250, [249, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]),
        (250, [100, 0, 0, 0, 0, 0, 0], [0, 40, 40, 40, 30, 0, 0]),
        (250, [41, 0, 0, 0, 0, 0, 0], [0, 40, 40, 40, 40, 40, 9]),
        (250, [40, 0, 0, 0, 0, 0, 0], [0, 40, 40, 40, 40, 40, 10]),
        # The limit was lowered: no call begins until fewer than it are under way, in whichever item one ends.
        (90, [40, 40, 20], [0, 0, 0]),
        (90, [39, 40, 20], [0, 0, 0]),
        (90, [30, 40, 20], [0, 0, 0]),
        (90, [29, 40, 20], [1, 0, 0]),
        (90, [40, 29, 20], [0, 1, 0]),
        (90, [40, 40, 9], [0, 0, 1]),
    ],
)
def test_how_many_slots_are_free(limit: int, sizes: list[int], free: list[int]) -> None:
    assert free_slots(limit, items(sizes)) == free


def test_items_have_their_numbers_and_not_their_places() -> None:
    """The reconciler's scan may lack items without ids; here it lacks item 0."""
    assert capacities(50, [SlotsItem(1)]) == [10]


@given(limit=st.integers(1, MAXIMUM_SLOTS), data=st.data())
def test_as_many_slots_are_free_as_the_limit_has_left(limit: int, data: st.DataObject) -> None:
    """Whatever the items contain, and however many of them an earlier limit has left behind."""
    number = items_of(limit) + data.draw(st.integers(0, 2))
    sizes = data.draw(st.lists(st.integers(0, 45), min_size=number, max_size=number))
    sizes[0] += data.draw(st.sampled_from([0, 0, 250]))
    assert sum(free_slots(limit, items(sizes))) == max(0, limit - sum(sizes))


class Slots:
    """A workspace's items under a limit. Each read of it shows each item as it was at some time before."""

    def __init__(self, limit: int, sizes: list[int]) -> None:
        self.limit = limit
        self.history = [sizes]

    @property
    def sizes(self) -> list[int]:
        return self.history[-1]

    def read(self, ages: list[int]) -> list[SlotsItem]:
        """ages: how many changes ago each of the items is read."""
        return items([self.history[max(0, len(self.history) - 1 - age)][place] for place, age in enumerate(ages)])

    def take(self, place: int, ages: list[int]) -> bool:
        """The conditional write of a process that has read the items so long ago."""
        if self.sizes[place] >= capacities(self.limit, self.read(ages))[place]:
            return False
        self._change(place, 1)
        return True

    def free(self, place: int) -> None:
        if self.sizes[place]:
            self._change(place, -1)

    def _change(self, place: int, by: int) -> None:
        self.history.append([size + by * (n == place) for n, size in enumerate(self.sizes)])


STEP = st.tuples(
    st.sampled_from(["take", "take", "free", "free many"]),
    st.integers(0, 3),
    st.lists(st.integers(0, 60), min_size=4, max_size=4),
)


@given(
    limit=st.integers(1, 160),
    legacy=st.sampled_from([0, 39, 41, 100, 150, 250]),
    steps=st.lists(STEP, max_size=40),
)
def test_takes_by_older_reads_never_exceed_the_limit(
    limit: int, legacy: int, steps: list[tuple[str, int, list[int]]]
) -> None:
    """Item 0 begins with the ids of an earlier version, which knew no other item."""
    slots = Slots(limit, [legacy, 0, 0, 0])
    for step, place, ages in steps:
        if step == "take":
            # Many processes at the same time, with the same read.
            for _ in range(41):
                if slots.take(place, ages):
                    assert sum(slots.sizes) <= limit
        else:
            for _ in range(1 if step == "free" else 30):
                slots.free(place)


def test_an_item_that_was_over_its_part_gets_nothing_by_an_old_read() -> None:
    """Limit 60, lowered from 120. A read from before item 1 was within its part says nothing of item 0's."""
    slots = Slots(60, [0, 30, 10, 0])
    before = slots.read([0, 0, 0, 0])
    slots.history.append([0, 5, 10, 0])
    now = slots.read([0, 0, 0, 0])
    for capacity in map(lambda of: capacities(60, of), (before, now)):
        slots.history.append([max(size, most) for size, most in zip(slots.sizes, capacity, strict=True)])
    assert sum(slots.sizes) <= 60


@example(limits=(100, 90), steps=[(1, 0)])
@given(
    limits=st.tuples(st.integers(1, 160), st.integers(1, 160)),
    steps=st.lists(st.tuples(st.sampled_from([0, 1, 30]), st.integers(0, 3)), max_size=40),
)
def test_a_changed_limit_holds_from_the_next_take(limits: tuple[int, int], steps: list[tuple[int, int]]) -> None:
    before, limit = limits
    # As full as the limit before allows.
    slots = Slots(limit, [min(40, max(0, before - 40 * number)) for number in range(4)])
    for frees, place in steps:
        for _ in range(frees):
            slots.free(place)
        if slots.take(place, [0, 0, 0, 0]):
            assert sum(slots.sizes) <= limit


# ── which item ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("free", "preferred", "chosen"),
    [
        ([], None, None),
        ([0, 0], None, None),
        ([0, 0], 1, None),
        ([0, 3, 0], None, 1),
        ([0, 3, 0], 0, 1),
        ([5, 1], 1, 1),
        ([5, 0], 1, 0),
        ([0, 5], 2, 1),
        ([5, 5], 0, 0),
    ],
)
def test_the_item_that_is_tried(free: list[int], preferred: int | None, chosen: int | None) -> None:
    assert choose_item(free, preferred) == chosen


def test_items_are_tried_as_often_as_they_have_free_slots() -> None:
    tried = collections.Counter(choose_item([30, 0, 10]) for _ in range(2000))
    assert set(tried) == {0, 2}
    assert 2 < tried[0] / tried[2] < 4.5
