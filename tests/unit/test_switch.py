"""The time that dialling was paused, which does not count against a call's queue deadline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.call import iso
from shared.switch import PAUSES_KEPT_MS, Switch
from tests.calls import call_record

DAY = 86_400_000
NOW = 1_800_000_000_000


@pytest.mark.parametrize(
    ("switch", "since", "until", "paused"),
    [
        (Switch(), 0, NOW, 0),
        # Before, overlapping the beginning, within, overlapping the end, after, and around the whole time.
        (Switch(None, ((10, 20),)), 20, 90, 0),
        (Switch(None, ((10, 20),)), 15, 90, 5),
        (Switch(None, ((10, 20),)), 10, 20, 10),
        (Switch(None, ((10, 20),)), 0, 90, 10),
        (Switch(None, ((10, 20),)), 0, 15, 5),
        (Switch(None, ((10, 20),)), 0, 10, 0),
        (Switch(None, ((10, 20),)), 12, 15, 3),
        (Switch(None, ((10, 20), (30, 35))), 15, 33, 8),
        # Paused now.
        (Switch(40, ((10, 20),)), 15, 50, 15),
        (Switch(40), 45, 50, 5),
        (Switch(40), 0, 40, 0),
        (Switch(40), 0, 39, 0),
        (Switch(0), 0, 50, 50),
    ],
)
def test_the_paused_time_between_two_times(switch: Switch, since: int, until: int, paused: int) -> None:
    assert switch.paused_ms(since, until) == paused


@given(st.lists(st.integers(0, 300), unique=True, max_size=9), st.integers(0, 300), st.integers(0, 300))
def test_the_paused_time_is_the_number_of_paused_milliseconds(moments: list[int], since: int, until: int) -> None:
    moments.sort()
    pauses = tuple(zip(moments[::2], moments[1::2], strict=False))
    switch = Switch(moments[-1] if len(moments) % 2 else None, pauses)
    ends = (*pauses, (switch.paused_at_ms, 300)) if switch.paused_at_ms is not None else pauses
    counted = {ms for start, end in ends for ms in range(start, end)}
    assert switch.paused_ms(since, until) == len(counted & set(range(since, until)))


@pytest.mark.parametrize(
    ("paused_until", "extended"),
    [
        (0, 300),  # 100 before it was made do not count
        (NOW + 200, 200),
        # A version that added paused time to the deadline itself has added it up to here.
        (NOW + 350, 150),
        (NOW + 500, 100),
        (NOW + 600, 0),
    ],
)
def test_a_deadline_is_later_by_the_paused_time_since_the_call_was_made(paused_until: int, extended: int) -> None:
    call = call_record(created_at=iso(NOW), queue_deadline_ms=NOW + 5_000, paused_until_ms=paused_until)
    switch = Switch(NOW + 500, ((NOW - 100, NOW + 100), (NOW + 300, NOW + 400)))
    assert switch.deadline_ms(call, NOW + 600) == NOW + 5_000 + extended


def test_the_deadline_moves_on_while_dialling_is_paused() -> None:
    call = call_record(created_at=iso(NOW), queue_deadline_ms=NOW + 5_000)
    switch = Switch(NOW + 1_000)
    assert [switch.deadline_ms(call, NOW + at) - NOW for at in (999, 1_000, 1_001, 9_000)] == [
        5_000,
        5_000,
        5_001,
        13_000,
    ]


# ── what is stored ──────────────────────────────────────────────────────────────────────────────────


def test_a_pause_that_ends_becomes_an_interval() -> None:
    switch = Switch(NOW, ((NOW - 9, NOW - 5),)).resumed(NOW + 7)
    assert switch == Switch(None, ((NOW - 9, NOW - 5), (NOW, NOW + 7)))
    assert switch.resumed(NOW + 50) is switch


@pytest.mark.parametrize(("age", "kept"), [(30 * DAY, True), (30 * DAY + 1, False)])
def test_intervals_are_kept_for_thirty_days_after_their_end(age: int, kept: bool) -> None:
    assert PAUSES_KEPT_MS == 30 * DAY
    earlier = (NOW - 40 * DAY, NOW - age)
    assert Switch(NOW - 5, (earlier,)).resumed(NOW).pauses == ((earlier,) if kept else ()) + ((NOW - 5, NOW),)


def test_a_pause_of_more_than_thirty_days_is_kept() -> None:
    assert Switch(NOW - 40 * DAY).resumed(NOW).pauses == ((NOW - 40 * DAY, NOW),)


@pytest.mark.parametrize(
    ("item", "switch"),
    [
        (None, Switch()),
        ({"workspaceId": "#switch"}, Switch()),
        ({"workspaceId": "#switch", "pausedAt": 7}, Switch(7)),
        (
            {"pausedAt": 70, "pauses": [{"from": 1, "to": 2}, {"from": 3, "to": 4}]},
            Switch(70, ((1, 2), (3, 4))),
        ),
    ],
)
def test_the_stored_form(item: dict[str, object] | None, switch: Switch) -> None:
    assert Switch.from_item(item) == switch
    assert switch.pauses_item() == (item or {}).get("pauses", [])
