"""Calling hours: whether phones may ring at an instant under a policy's windows and holidays, until and from when.

It is open at an instant if in every zone given the wall clock of that instant lies in a window (one over midnight
belongs to the day on which it starts) and its date is not a holiday. Without windows any hour lies in one. So on
the day clocks go forward a window 02:30-04:00 opens at 03:00, and on the day they go back a window 01:15-01:45
opens twice. Open times that meet are one. Instants are exact to the millisecond.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shared.policies import Policy
from shared.zones import zone

_MINUTE_MS = 60_000
_DAY_MINUTES = 1440
_DAY_MS = _DAY_MINUTES * _MINUTE_MS
_EPOCH = datetime.date(1970, 1, 1).toordinal()
_EPOCH_WEEKDAY = datetime.date(1970, 1, 1).weekday()

# How long an open time is looked at: a phone rings for a minute at most.
OPEN_MS = 4 * _DAY_MS
# How far ahead is looked: a call is scheduled at most 90 days ahead.
HORIZON_MS = 100 * _DAY_MS


class _Span(NamedTuple):
    """From `start` until before `end`."""

    start: int
    end: int


def open_until(policy: Policy, zones: Sequence[str], at_ms: int) -> int | None:
    """The end (epoch ms) of the open time that contains `at_ms`, at most OPEN_MS later; None when it is closed at
    that instant.

    A policy that does not restrict hours is always open. One that does is closed without a zone.
    Raises ValueError when a name is not a zone's.
    """
    first = next(_open_times(policy, zones, at_ms, at_ms + OPEN_MS), None)
    return first.end if first and first.start == at_ms else None


def next_open(policy: Policy, zones: Sequence[str], from_ms: int, needed_ms: int) -> int | None:
    """The first moment (epoch ms) from `from_ms` on from which it stays open for at least `needed_ms`; None when
    there is none within HORIZON_MS. Open and closed are as for open_until, which raises the same.
    """
    # Most are open within some days: open times that meet for months are not put together for that.
    for ahead_ms in (OPEN_MS, HORIZON_MS):
        for start, end in _open_times(policy, zones, from_ms, from_ms + ahead_ms + needed_ms):
            if end - start >= needed_ms:
                return start
    return None


def _open_times(policy: Policy, zones: Sequence[str], from_ms: int, until_ms: int) -> Iterator[_Span]:
    """The open times between two instants, ascending, none touching the next."""
    if not policy.restricts_hours:
        return iter([_Span(from_ms, until_ms)])
    calendar = _Calendar(policy)
    return _common([_merged(calendar.open_times(name, from_ms, until_ms)) for name in dict.fromkeys(zones)])


class _Calendar:
    """What a policy leaves open by the clock on the wall."""

    def __init__(self, policy: Policy) -> None:
        self._holidays = {
            datetime.date.fromisoformat(date).toordinal() - _EPOCH for date in sorted(policy.holidays)
        }
        if not policy.windows:
            self._weekdays = [[_Span(0, _DAY_MS)]] * 7
            return
        spans: list[list[_Span]] = [[] for _ in range(7)]
        for window in policy.windows:
            end = window.end if window.end > window.start else window.end + _DAY_MINUTES
            for day in window.days:
                spans[day].append(_Span(window.start * _MINUTE_MS, min(end, _DAY_MINUTES) * _MINUTE_MS))
                if end > _DAY_MINUTES:
                    spans[(day + 1) % 7].append(_Span(0, (end - _DAY_MINUTES) * _MINUTE_MS))
        self._weekdays = [list(_merged(sorted(day))) for day in spans]

    def open_times(self, zone_name: str, from_ms: int, until_ms: int) -> Iterator[_Span]:
        """The open times in one zone, ascending; some touch the next."""
        for start, end, offset in _offsets(zone_name, from_ms, until_ms):
            for day in range((start + offset) // _DAY_MS, (end - 1 + offset) // _DAY_MS + 1):
                midnight = day * _DAY_MS - offset
                for span in self._open_on(day):
                    opens = max(midnight + span.start, start)
                    closes = min(midnight + span.end, end)
                    if opens < closes:
                        yield _Span(opens, closes)

    def _open_on(self, day: int) -> list[_Span]:
        """The open times of a date, given as days since 1970-01-01: milliseconds after midnight on the wall."""
        return [] if day in self._holidays else self._weekdays[(day + _EPOCH_WEEKDAY) % 7]


def _offsets(zone_name: str, from_ms: int, until_ms: int) -> Iterator[tuple[int, int, int]]:
    """Stretches of time of at most a day in which the zone's offset from UTC is constant: start, end, offset (ms).

    No zone changes its offset twice within a day.
    """
    found = zone(zone_name)

    def offset_at(ms: int) -> int:
        # Such a datetime has an offset.
        offset = datetime.datetime.fromtimestamp(ms // 1000, found).utcoffset() or datetime.timedelta()
        return offset // datetime.timedelta(milliseconds=1)

    start, offset = from_ms, offset_at(from_ms)
    while start < until_ms:
        end = min(start + _DAY_MS, until_ms)
        following = offset_at(end)
        if following != offset:
            # The first instant with another offset lies after `before` and not after `end`.
            before = start
            while end - before > 1:
                middle = (before + end) // 2
                if offset_at(middle) == offset:
                    before = middle
                else:
                    end = middle
            following = offset_at(end)
        yield start, end, offset
        start, offset = end, following


def _merged(spans: Iterable[_Span]) -> Iterator[_Span]:
    """Spans in the order of their starts, those that touch or overlap made one."""
    current: _Span | None = None
    for span in spans:
        if current and span.start <= current.end:
            current = _Span(current.start, max(current.end, span.end))
            continue
        if current:
            yield current
        current = span
    if current:
        yield current


def _common(each: Sequence[Iterator[_Span]]) -> Iterator[_Span]:
    """The times that lie in a span of every one, ascending; no time if there is none to ask."""
    spans = [next(one, None) for one in each]
    while current := [span for span in spans if span]:
        if len(current) < len(spans):
            return
        start = max(span.start for span in current)
        end = min(span.end for span in current)
        if start < end:
            yield _Span(start, end)
        # Nothing later meets the one that ends first.
        spans = [next(one, None) if span.end == end else span for one, span in zip(each, current, strict=True)]
