"""The limits: slots, pacing, the switch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from shared.clock import now_ms
from shared.limits import LimitStore
from tests.workspaces_table import TABLE, OneAtATime


@pytest.fixture
def limits(client: OneAtATime) -> LimitStore:
    return LimitStore(cast(Any, client), TABLE)


# ── slots ───────────────────────────────────────────────────────────────────────────────────────────


def test_no_more_slots_than_the_limit(limits: LimitStore) -> None:
    assert [limits.take_slot("acme", call, 2) for call in ("a", "b", "c")] == [True, True, False]
    assert limits.active_calls("acme") == {"a", "b"}


def test_taking_a_slot_twice_takes_one(limits: LimitStore) -> None:
    assert limits.take_slot("acme", "a", 1)
    assert limits.take_slot("acme", "a", 1)
    assert limits.active_calls("acme") == {"a"}


def test_freeing_a_slot_twice_frees_one(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 2)
    limits.take_slot("acme", "b", 2)
    limits.free_slot("acme", "a")
    limits.free_slot("acme", "a")
    limits.free_slot("unknown", "a")
    assert limits.active_calls("acme") == {"b"}
    assert limits.take_slot("acme", "c", 2)


def test_a_newcomer_leaves_the_slots_to_those_that_wait(limits: LimitStore) -> None:
    assert limits.take_slot("acme", "a", 2, waited=False, now_ms=1000)
    limits.note_waiting("acme", 5000)
    assert not limits.take_slot("acme", "new", 2, waited=False, now_ms=5000)
    assert limits.take_slot("acme", "a", 2, waited=False, now_ms=1000), "it has one"
    assert limits.take_slot("acme", "old", 2, waited=True, now_ms=1000)
    limits.free_slot("acme", "old")
    assert limits.take_slot("acme", "new", 2, waited=False, now_ms=5001)


def test_the_latest_of_those_that_wait_is_remembered(limits: LimitStore) -> None:
    limits.note_waiting("acme", 5000)
    limits.note_waiting("acme", 4000)
    assert not limits.take_slot("acme", "new", 2, waited=False, now_ms=4500)


def test_the_last_slot_freed_leaves_room_for_all(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 1)
    limits.free_slot("acme", "a")
    assert limits.active_calls("acme") == frozenset()
    assert limits.take_slot("acme", "b", 1)


def test_workspaces_do_not_share_slots(limits: LimitStore) -> None:
    limits.take_slot("acme", "a", 1)
    assert limits.take_slot("other", "b", 1)


def test_the_slots_of_every_workspace_are_found_on_every_page(limits: LimitStore) -> None:
    """A page in memory has three items."""
    expected = {f"w{n}": frozenset({f"call-{n}", "other"}) for n in range(7)}
    for workspace_id, call_ids in expected.items():
        for call_id in call_ids:
            limits.take_slot(workspace_id, call_id, 5)
    limits.note_waiting("waits only", 5)
    limits.take_permits("w1", 7, 10, None)
    limits.reserve_trunk("ST_1", 1000, 5, LATER)
    limits.pause(5)
    assert dict(limits.slots()) == expected


def test_threads_together_take_no_more_than_the_limit(limits: LimitStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda number: limits.take_slot("acme", f"call-{number}", 5), range(16)))
    assert taken.count(True) == 5
    assert len(limits.active_calls("acme")) == 5


# ── pacing ──────────────────────────────────────────────────────────────────────────────────────────

LATER = 10**9


def test_a_trunk_that_is_free_is_given_now(limits: LimitStore) -> None:
    assert limits.next_free("ST_1") == 0
    assert limits.reserve_trunk("ST_1", 1000, 5_000, LATER) == 5_000
    assert limits.next_free("ST_1") == 6_000


def test_moments_of_one_trunk_are_a_gap_apart(limits: LimitStore) -> None:
    assert [limits.reserve_trunk("ST_1", 1000, now, LATER) for now in (5_000, 5_000, 5_100)] == [
        5_000,
        6_000,
        7_000,
    ]


def test_a_trunk_left_alone_is_free_again(limits: LimitStore) -> None:
    limits.reserve_trunk("ST_1", 1000, 5_000, LATER)
    assert limits.reserve_trunk("ST_1", 1000, 60_000, LATER) == 60_000


def test_a_moment_that_is_too_late_is_left_to_others(limits: LimitStore) -> None:
    assert limits.reserve_trunk("ST_1", 1000, 5_000, 5_000) == 5_000
    assert limits.reserve_trunk("ST_1", 1000, 5_000, 5_999) is None
    assert limits.next_free("ST_1") == 6_000
    assert limits.reserve_trunk("ST_1", 1000, 5_000, 6_000) == 6_000


def test_trunks_do_not_wait_for_each_other(limits: LimitStore) -> None:
    limits.reserve_trunk("ST_1", 1000, 5_000, LATER)
    assert limits.reserve_trunk("ST_2", 1000, 5_000, LATER) == 5_000


def test_threads_are_given_moments_a_gap_apart(limits: LimitStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        moments = list(threads.map(lambda number: limits.reserve_trunk("ST_1", 100, 5_000, LATER), range(16)))
    assert sorted(moment for moment in moments if moment) == [5_000 + 100 * number for number in range(16)]


# ── the switch ──────────────────────────────────────────────────────────────────────────────────────


def test_the_switch_pauses_and_resumes(limits: LimitStore) -> None:
    assert not limits.paused()
    limits.pause(7)
    assert limits.paused()
    limits.resume(now_ms())
    assert not limits.paused()
    limits.resume(now_ms())
    assert limits.paused_at_ms() is None


def test_pausing_again_keeps_the_first_moment(limits: LimitStore) -> None:
    limits.pause(7)
    limits.pause(9)
    assert limits.paused_at_ms() == 7
