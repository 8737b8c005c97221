"""The report of a simulated campaign, as plain text of at most 80 columns."""

from __future__ import annotations

import collections
import datetime
from collections.abc import Iterator, Mapping

from simulate.campaign import Result
from simulate.ledger import Closest
from simulate.plan import HOUR, START

WIDTH = 78
BAR = 48
EIGHTHS = " ▏▎▍▌▋▊▉"
# How many of what must not have happened are shown of each kind.
SHOWN = 3


def report(result: Result, days: float, seed: str, wall_seconds: float) -> str:
    return "\n".join(_lines(result, days, seed, wall_seconds))


def _lines(result: Result, days: float, seed: str, wall_seconds: float) -> Iterator[str]:
    began = datetime.datetime.fromtimestamp(START / 1000, datetime.UTC)
    yield f"{result.calls:,} calls in {days:g} days from {began:%A, %-d %B %Y}, seed {seed}"
    yield (
        f"{result.virtual_ms / HOUR:.0f} hours of virtual time in {wall_seconds:.0f} s"
        f" ({1000 * result.spent / max(1, result.calls):.1f} ms of a processor for a call)"
    )
    yield from _title("Rings, by the hour of the callee's day")
    yield from _chart(result.by_hour)
    yield from _title("What must not happen")
    for name, found in result.violations.items():
        yield _row(name, f"{len(found):,}")
        yield from (f"      {one}" for one in found[:SHOWN])
    yield from _title("What adds up")
    yield _row("calls accepted = ends", f"{result.calls:,} = {sum(result.ends.values()):,}")
    accounted = f"{result.events:,} = {result.delivered:,} + {result.given_up:,}"
    yield _row("events = delivered + given up", accounted)
    yield from _title("Opt-outs")
    yield _row("acknowledged", f"{result.opt_outs:,}")
    yield _row("calls that ended `suppressed`", f"{result.ends['suppressed']:,}")
    yield _row("requests refused as `number_suppressed`", f"{result.refused['number_suppressed']:,}")
    if result.closest is not None:
        yield from _closest(result.closest)
    late = result.lateness
    if late:
        yield from _title("Scheduled calls that nothing else held: rang after their time by")
        yield _row("median", _seconds(late[len(late) // 2]))
        yield _row("99 of 100 within", _seconds(late[min(len(late) - 1, len(late) * 99 // 100)]))
    for title, counted in (
        ("How the calls ended", result.ends),
        ("What they waited for", result.waits),
        ("Requests that were refused", result.refused),
        ("Faults that struck", result.faults),
    ):
        yield from _title(title)
        yield from _columns(counted)
    yield ""
    yield "All holds." if result.holds else f"BROKEN: {_broken(result)}"


def _broken(result: Result) -> str:
    return ", ".join(f"{len(found):,} {name}" for name, found in result.violations.items() if found)


def _title(text: str) -> Iterator[str]:
    yield ""
    yield text


def _row(name: str, value: str) -> str:
    return f"  {name} {value:>{WIDTH - 3 - len(name)}}"


def _chart(by_hour: Mapping[int, int]) -> Iterator[str]:
    if not by_hour:
        yield "  none"
        return
    most = max(by_hour.values())
    for hour in range(min(by_hour), max(by_hour) + 1):
        rings = by_hour.get(hour, 0)
        yield f"  {hour:02} {_bar(rings / most):<{BAR}} {rings:>8,}"
    others = 24 - (max(by_hour) + 1 - min(by_hour))
    yield f"  in the other {others} hours {0:>{BAR - 12}}"
    yield f"  in all {sum(by_hour.values()):>{BAR + 5},}"


def _bar(share: float) -> str:
    whole, eighths = divmod(round(share * BAR * 8), 8)
    return "█" * whole + (EIGHTHS[eighths] if eighths else "")


def _closest(pair: Closest) -> Iterator[str]:
    fence, acknowledged = (
        datetime.datetime.fromtimestamp(at / 1000, datetime.UTC).strftime("%a %H:%M:%S.%f")[:-3]
        for at in (pair.fenced_at, pair.acknowledged_at)
    )
    yield _row("closest: a call fenced at (UTC)", fence)
    yield _row(f"  an opt-out of its number acknowledged {pair.apart:,} ms later at", acknowledged)


def _seconds(ms: int) -> str:
    return f"{ms / 1000:,.1f} s"


def _columns(counted: collections.Counter[str]) -> Iterator[str]:
    """Two columns, the most frequent first."""
    entries = [(name, times) for name, times in counted.most_common() if times]
    if not entries:
        yield "  none"
    width = WIDTH // 2 - 2
    half = -(-len(entries) // 2)
    for n in range(half):
        cells = [
            f"{name} {times:>{width - 1 - len(name)},}"
            for name, times in (entries[n], *entries[n + half : n + half + 1])
        ]
        yield "  " + "  ".join(cells)
