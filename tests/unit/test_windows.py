"""When phones may ring, beside a slow reference that looks at the wall clocks minute by minute."""

from __future__ import annotations

import datetime
import functools
import itertools
import struct
from collections.abc import Iterator
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.policies import Policy, Window
from shared.windows import HORIZON_MS, OPEN_MS, next_open, open_until
from shared.zones import zone

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
EVERY_DAY = frozenset(range(7))
MONDAY, FRIDAY, SUNDAY = 0, 4, 6

CHANGING = (
    *("America/New_York", "Europe/London", "Australia/Sydney", "Australia/Lord_Howe", "Africa/Casablanca"),
    *("America/St_Johns", "Australia/Adelaide", "Pacific/Chatham", "America/Havana", "Asia/Beirut"),
)
ZONES = sorted({*(files("tzdata") / "zones").read_text().split()} - {"Factory"})
CONSTANT = ("Asia/Kolkata", "Asia/Kathmandu", "Australia/Eucla", "Pacific/Kiritimati", "America/Phoenix", "UTC")


def at(text: str) -> int:
    """Epoch milliseconds of an ISO 8601 time with its offset."""
    return round(datetime.datetime.fromisoformat(text).timestamp() * 1000)


def hours(span: str, days: frozenset[int] = EVERY_DAY) -> Window:
    """The window of "HH:MM-HH:MM"."""
    start, end = (int(time[:2]) * 60 + int(time[3:]) for time in span.split("-"))
    return Window(days, start, end)


def policy(*windows: Window, holidays: tuple[str, ...] = ()) -> Policy:
    return Policy("calls", windows=windows, holidays=frozenset(holidays))


def spans(rules: Policy, zones: tuple[str, ...], begin: str, end: str) -> list[tuple[int, int]]:
    """The open times that begin between two times."""
    found = []
    now: int | None = at(begin)
    while now is not None and (now := next_open(rules, zones, now, 1)) is not None and now < at(end):
        until = open_until(rules, zones, now)
        assert until is not None
        found.append((now, until))
        now = until
    return found


# ── examples ──


@pytest.mark.parametrize(
    ("name", "span", "begin", "expected"),
    [
        # A day of 23 hours: the hour from 2 to 3 does not exist.
        ("America/New_York", "02:30-04:00", "2026-03-08T00:00-05:00", [("03:00-04:00", "04:00-04:00")]),
        ("America/New_York", "02:00-03:00", "2026-03-08T00:00-05:00", []),
        # A day of 25 hours: the hour from 1 to 2 comes twice.
        (
            "America/New_York",
            "01:15-01:45",
            "2026-11-01T00:00-04:00",
            [("01:15-04:00", "01:45-04:00"), ("01:15-05:00", "01:45-05:00")],
        ),
        ("America/New_York", "00:30-02:00", "2026-11-01T00:00-04:00", [("00:30-04:00", "02:00-05:00")]),
        ("Europe/London", "00:30-01:30", "2027-03-28T00:00+00:00", [("00:30+00:00", "01:00+00:00")]),
        ("Europe/London", "09:00-17:00", "2027-10-31T00:00+01:00", [("09:00+00:00", "17:00+00:00")]),
        # Half an hour is missing, or comes twice: then both halves are one open time.
        ("Australia/Lord_Howe", "02:00-02:30", "2026-10-04T00:00+10:30", []),
        ("Australia/Lord_Howe", "01:30-02:00", "2026-04-05T00:00+11:00", [("01:30+11:00", "02:00+10:30")]),
        ("Asia/Kolkata", "09:00-21:00", "2026-11-28T00:00+05:30", [("09:00+05:30", "21:00+05:30")]),
        ("Asia/Kathmandu", "09:00-21:00", "2026-11-28T00:00+05:45", [("09:00+05:45", "21:00+05:45")]),
        ("America/St_Johns", "08:00-09:00", "2026-07-01T00:00-02:30", [("08:00-02:30", "09:00-02:30")]),
        ("Australia/Adelaide", "08:00-09:00", "2026-12-01T00:00+10:30", [("08:00+10:30", "09:00+10:30")]),
    ],
)
def test_the_hours_of_a_day(name: str, span: str, begin: str, expected: list[tuple[str, str]]) -> None:
    date = begin[:10]
    end = (datetime.datetime.fromisoformat(begin) + datetime.timedelta(hours=22)).isoformat()
    written = [(at(f"{date}T{opens}"), at(f"{date}T{closes}")) for opens, closes in expected]
    assert spans(policy(hours(span)), (name,), begin, end) == written


@pytest.mark.parametrize(("sunday", "length"), [("2026-03-29T00:00+00:00", 23), ("2026-10-25T00:00+01:00", 25)])
def test_a_whole_day_is_as_long_as_it_is(sunday: str, length: int) -> None:
    rules = policy(hours("00:00-24:00", frozenset({SUNDAY})))
    assert next_open(rules, ("Europe/London",), at(sunday) - DAY, 1) == at(sunday)
    assert open_until(rules, ("Europe/London",), at(sunday)) == at(sunday) + length * HOUR


def test_boundaries_are_exact() -> None:
    rules, zones = policy(hours("09:00-17:00")), ("Europe/Berlin",)
    opens, closes = at("2026-11-27T09:00+01:00"), at("2026-11-27T17:00+01:00")
    assert open_until(rules, zones, opens - 1) is None
    assert open_until(rules, zones, opens) == open_until(rules, zones, closes - 1) == closes
    assert open_until(rules, zones, closes) is None
    assert next_open(rules, zones, closes - 30_000, 30_000) == closes - 30_000
    assert next_open(rules, zones, closes - 29_999, 30_000) == opens + DAY


def test_windows_that_meet_or_overlap_are_one_open_time() -> None:
    zones = ("America/Denver",)
    begin, end = "2026-11-23T00:00-07:00", "2026-11-24T00:00-07:00"
    day = [(at("2026-11-23T09:00-07:00"), at("2026-11-23T14:00-07:00"))]
    assert spans(policy(hours("12:00-14:00"), hours("09:00-12:00")), zones, begin, end) == day
    assert (
        spans(policy(hours("09:00-13:30"), hours("10:00-11:00"), hours("13:00-14:00")), zones, begin, end) == day
    )
    week_end = policy(
        hours("20:00-24:00", frozenset({SUNDAY})),
        hours("00:00-02:00", frozenset({MONDAY})),
    )
    assert spans(week_end, zones, "2026-11-22T12:00-07:00", end) == [
        (at("2026-11-22T20:00-07:00"), at("2026-11-23T02:00-07:00"))
    ]


@pytest.mark.parametrize("span", ["22:00-02:00", "22:00-00:00", "22:00-24:00", "22:00-22:00"])
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_starts(span: str) -> None:
    rules, zones = policy(hours(span, frozenset({FRIDAY}))), ("Europe/Paris",)
    length = {"22:00-02:00": 4, "22:00-22:00": 24}.get(span, 2)
    opens = at("2026-11-27T22:00+01:00")  # A Friday.
    assert spans(rules, zones, "2026-11-23T00:00+01:00", "2026-11-30T00:00+01:00") == [
        (opens, opens + length * HOUR)
    ]


def test_a_holiday_is_closed_from_midnight_to_midnight() -> None:
    rules, zones = policy(hours("22:00-02:00"), holidays=("2026-12-25",)), ("Europe/Paris",)
    assert spans(rules, zones, "2026-12-24T12:00+01:00", "2026-12-26T12:00+01:00") == [
        (at("2026-12-24T22:00+01:00"), at("2026-12-25T00:00+01:00")),
        (at("2026-12-26T00:00+01:00"), at("2026-12-26T02:00+01:00")),
    ]


def test_holidays_without_windows_leave_every_other_hour_open() -> None:
    rules, zones = policy(holidays=("2026-12-25", "2026-12-26")), ("Asia/Tokyo",)
    christmas = at("2026-12-25T00:00+09:00")
    assert open_until(rules, zones, christmas - DAY) == christmas
    assert open_until(rules, zones, christmas) is None
    assert next_open(rules, zones, christmas, 1) == christmas + 2 * DAY


def test_it_is_open_where_it_is_open_in_each_zone() -> None:
    rules = policy(hours("09:00-17:00"))
    zones = ("America/New_York", "America/Denver", "America/New_York")
    assert spans(rules, zones, "2026-11-27T00:00-05:00", "2026-11-28T00:00-05:00") == [
        (at("2026-11-27T11:00-05:00"), at("2026-11-27T17:00-05:00"))
    ]
    # The holiday of one zone is closed in all.
    over = policy(hours("00:00-24:00"), holidays=("2026-11-27",))
    assert open_until(over, ("Asia/Tokyo", "Pacific/Honolulu"), at("2026-11-26T12:00+00:00")) == at(
        "2026-11-27T00:00+09:00"
    )
    assert next_open(over, ("Asia/Tokyo", "Pacific/Honolulu"), at("2026-11-26T15:00+00:00"), 1) == at(
        "2026-11-28T00:00-10:00"
    )


def test_hours_that_no_two_zones_share_never_come() -> None:
    assert next_open(policy(hours("09:00-17:00")), ("Asia/Tokyo", "America/New_York"), at("2026-11-28"), 1) is None


def test_a_policy_that_restricts_hours_is_closed_without_a_zone() -> None:
    for rules in (policy(hours("00:00-24:00")), policy(holidays=("2026-12-25",))):
        assert open_until(rules, (), at("2026-11-28")) is None
        assert next_open(rules, (), at("2026-11-28"), 1) is None


def test_a_policy_that_does_not_is_always_open() -> None:
    now = at("2026-11-28")
    for zones in ((), ("Asia/Tokyo",)):
        assert open_until(policy(), zones, now) == now + OPEN_MS
        assert next_open(policy(), zones, now, 200 * DAY) == now


def test_nothing_is_looked_for_beyond_the_horizon() -> None:
    now = at("2026-11-28T00:00+00:00")
    every_hour = policy(hours("00:00-24:00"))
    assert open_until(every_hour, ("UTC",), now) == now + OPEN_MS
    first = datetime.date(2026, 11, 28)
    closed = {days: tuple(str(first + datetime.timedelta(day)) for day in range(days)) for days in (100, 101)}
    assert next_open(policy(holidays=closed[100]), ("UTC",), now, 3 * DAY) == now + HORIZON_MS
    assert next_open(policy(holidays=closed[101]), ("UTC",), now, 1) is None
    assert next_open(policy(hours("09:00-17:00")), ("UTC",), now, 8 * HOUR) == now + 9 * HOUR
    assert next_open(policy(hours("09:00-17:00")), ("UTC",), now, 8 * HOUR + 1) is None
    assert next_open(policy(Window(frozenset(), 540, 1020)), ("UTC",), now, 1) is None


def test_a_day_that_a_zone_skipped_never_was() -> None:
    """Samoa went from Thursday, 29 December 2011 to Saturday."""
    rules = policy(hours("09:00-17:00", frozenset({FRIDAY})))
    assert next_open(rules, ("Pacific/Apia",), at("2011-12-29T12:00-10:00"), 1) == at("2012-01-06T09:00+14:00")
    around = policy(hours("22:00-24:00"), hours("00:00-01:00"), holidays=("2011-12-30",))
    midnight = at("2011-12-30T00:00-10:00")
    assert open_until(around, ("Pacific/Apia",), midnight - 1) == midnight + HOUR


def test_an_unknown_zone_is_an_error() -> None:
    with pytest.raises(ValueError, match="Mars/Olympus"):
        open_until(policy(hours("09:00-17:00")), ("Mars/Olympus",), at("2026-11-28"))


# ── the reference ──


@functools.cache
def wall(name: str, minute: int) -> tuple[str, int, int]:
    """Date, weekday and minute of the day that a wall clock shows at a minute since the epoch."""
    shown = datetime.datetime.fromtimestamp(minute * 60, zone(name))
    return shown.date().isoformat(), shown.weekday(), shown.hour * 60 + shown.minute


def lies_in(window: Window, weekday: int, minute: int) -> bool:
    if window.start < window.end:
        return weekday in window.days and window.start <= minute < window.end
    before_midnight = weekday in window.days and minute >= window.start
    return before_midnight or ((weekday - 1) % 7 in window.days and minute < window.end)


def is_open(rules: Policy, zones: tuple[str, ...], ms: int) -> bool:
    """Offsets of today's zones are whole minutes, as are windows: a minute is open or closed as a whole."""
    for name in zones:
        date, weekday, minute = wall(name, ms // MINUTE)
        if date in rules.holidays or not any(lies_in(window, weekday, minute) for window in rules.windows):
            return False
    return True


def changes_of(name: str) -> list[int]:
    """The instants in 2026 and 2027 at which a zone's offset changes: to the hour, or the half hour of some."""
    first, last = at("2026-01-01T00:00+00:00"), at("2028-01-01T00:00+00:00")
    found = []
    for before, ms in itertools.pairwise(range(first, last, HOUR // 2)):
        offsets = [datetime.datetime.fromtimestamp(each // 1000, zone(name)).utcoffset() for each in (before, ms)]
        if offsets[0] != offsets[1]:
            found.append(ms)
    return found


@functools.cache
def moments() -> list[tuple[str, int]]:
    """Zones, each with the changes of its offset; one without any with an instant."""
    changes = [(name, change) for name in CHANGING for change in changes_of(name)]
    assert {name for name, _ in changes} == set(CHANGING)
    return changes + [(name, at("2026-11-28T00:00+00:00")) for name in CONSTANT]


TIMES = st.integers(0, 1439) | st.integers(0, 16).map(lambda quarter: 15 * quarter) | st.integers(1380, 1439)
WINDOWS = st.builds(
    Window,
    st.just(EVERY_DAY) | st.frozensets(st.integers(0, 6), min_size=1),
    TIMES,
    TIMES | st.just(1440),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Policy, tuple[str, ...], int]:
    """A policy, zones, and an instant less than two days from a change of the first zone's offset."""
    name, change = draw(st.sampled_from(moments()))
    others = draw(st.lists(st.sampled_from(CHANGING + CONSTANT), max_size=2))
    now = change + draw(st.sampled_from([0, -1, 1]) | st.integers(-47 * HOUR, 2 * HOUR))
    today = datetime.datetime.fromtimestamp(now // 1000, zone(name)).date()
    holidays = draw(st.frozensets(st.integers(-1, 3), max_size=2))
    rules = Policy(
        "calls",
        windows=tuple(draw(st.lists(WINDOWS, min_size=1, max_size=4))),
        holidays=frozenset(str(today + datetime.timedelta(days)) for days in holidays),
    )
    return rules, (name, *others), now


@settings(max_examples=60)
@given(situations(), st.sampled_from([1, 30_000, 45 * MINUTE, 8 * HOUR]))
def test_it_opens_and_closes_as_the_wall_clocks_say(
    situation: tuple[Policy, tuple[str, ...], int], needed: int
) -> None:
    rules, zones, now = situation
    minutes = range(now // MINUTE, (now + 3 * DAY) // MINUTE)
    end = minutes.stop * MINUTE
    states = [(is_open(rules, zones, minute * MINUTE), minute * MINUTE) for minute in minutes]
    runs = [(opened, next(run)[1]) for opened, run in itertools.groupby(states, key=lambda state: state[0])]
    edges = [*(max(start, now) for _, start in runs), end]
    open_times = [(edges[n], edges[n + 1]) for n, (opened, _) in enumerate(runs) if opened]

    until = open_until(rules, zones, now)
    if not runs[0][0]:
        assert until is None
    elif edges[1] < end:
        assert until == edges[1]
    else:
        assert until is not None
        assert until >= end

    opens = next_open(rules, zones, now, needed)
    expected = next((start for start, stop in open_times if stop - start >= needed), None)
    if expected is not None:
        assert opens == expected
    else:
        # What is open at the end of these three days may go on.
        earliest = open_times[-1][0] if open_times and open_times[-1][1] == end else end
        assert opens is None or opens >= earliest


@settings(max_examples=100)
@given(
    st.lists(WINDOWS, min_size=1, max_size=7),
    st.lists(st.sampled_from(ZONES), min_size=1, max_size=3),
    st.integers(at("2026-01-01T00:00+00:00"), at("2028-01-01T00:00+00:00")),
    st.integers(1, 12 * HOUR),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=20),
)
def test_what_is_told_of_any_zone_holds(
    windows: list[Window], names: list[str], now: int, needed: int, fractions: list[float]
) -> None:
    rules, zones = policy(*windows), tuple(names)
    opens = next_open(rules, zones, now, needed)
    end = now + HORIZON_MS if opens is None else opens
    for ms in (now + int((end - now) * fraction) for fraction in fractions if end > now):
        closes = open_until(rules, zones, ms)
        assert (closes is not None) == is_open(rules, zones, ms)
        assert closes is None or closes - ms < needed
    if opens is None:
        return
    assert opens == now or not is_open(rules, zones, opens - 1)
    until = open_until(rules, zones, opens)
    assert until is not None
    assert until >= opens + needed
    within = [opens, until - 1, *(opens + int((until - opens) * fraction) for fraction in fractions)]
    assert all(is_open(rules, zones, ms) for ms in within)
    if until < opens + OPEN_MS:
        assert not is_open(rules, zones, until)
        assert {open_until(rules, zones, ms) for ms in within} == {until}


def offset_changes(name: str) -> Iterator[int]:
    """The instants (epoch s) of a zone's file (RFC 9636) at which its offset changes."""
    data = (files("tzdata") / "zoneinfo" / name).read_bytes()
    header = struct.Struct(">4s c 15x 6l")
    _, _, isut, isstd, leap, times, types, chars = header.unpack_from(data)
    second = header.size + 5 * times + 6 * types + chars + 8 * leap + isstd + isut
    _, _, _, _, _, times, types, _ = header.unpack_from(data, second)
    begin = second + header.size
    instants = struct.unpack_from(f">{times}q", data, begin)
    kinds = struct.unpack_from(f">{times}B", data, begin + 8 * times)
    offsets = [struct.unpack_from(">l", data, begin + 9 * times + 6 * kind)[0] for kind in range(types)]
    for n in range(1, times):
        if offsets[kinds[n]] != offsets[kinds[n - 1]]:
            yield instants[n]


def test_no_zone_changes_its_offset_twice_within_a_day() -> None:
    """The search for changes looks at one instant of each day."""
    known = at("2026-01-01T00:00+00:00") // 1000
    changes = {name: [*offset_changes(name)] for name in ZONES}
    gaps = [
        after - before
        for instants in changes.values()
        for before, after in itertools.pairwise(instants)
        if after >= known
    ]
    assert gaps
    assert min(gaps) > DAY // 1000
    assert at("2026-02-15T03:00+01:00") // 1000 in changes["Africa/Casablanca"]
