"""`admin suppression import`: many numbers at once, which may be interrupted and goes on where it stopped.

A suppression that holds at least as long is kept, so that repeating a file, or a part of it, changes nothing. What
is done is noted beside the file, after each portion.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from botocore.exceptions import ClientError

from admin.suppression import OPERATOR, warn_of_scopes
from admin.suppression_file import (
    KNOWN,
    Defaults,
    Entry,
    Fingerprint,
    Wish,
    entries,
    fingerprint,
    portions,
    understood,
)
from admin.target import Target
from admin.terminal import AdminError, Terminal
from shared.clock import now_ms
from shared.errors import StoreError, StoreUnclearError, TooManyScopesError
from shared.numbers import NumberRecord, NumberStore, Suppression

# Writers at the same time: a workspace's suppressions are one partition of the index, which takes some 1,000
# writes a second.
THREADS = 10
# Numbers that one read fetches, and lines after which the progress is noted.
GROUP, PORTION = 100, 1000
# Lines between two lines of progress where no person watches.
SAID_EVERY = 10_000

_THROTTLED = {"ProvisionedThroughputExceededException", "RequestLimitExceeded", "ThrottlingException"}
_TRIES = 7

# The suppressions that a number is to have instead of those it has.
Change = Callable[[NumberRecord], tuple[Suppression, ...]]

_P = ParamSpec("_P")
_R = TypeVar("_R")

ADDED, EXTENDED, UNCHANGED, REFUSED = "added", "extended", "unchanged", "refused"


def run(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    numbers, workspace = target.of_numbers, target.existing(arguments.workspace)
    path = Path(arguments.file)
    defaults = Defaults(arguments.scope, arguments.reason, arguments.country)
    whole = fingerprint(path)
    found, ignored = entries(path)
    if ignored:
        terminal.say(f"Columns that are not used: {', '.join(ignored)}")
    about = {
        "file": dataclasses.asdict(whole),
        "table": numbers.table,
        "workspace": workspace.workspace_id,
        "defaults": dataclasses.asdict(defaults),
    }
    progress = Progress.of(path, about)
    if progress.entries:
        terminal.say(f"Goes on after line {progress.line:,} of {whole.lines:,}, where it was interrupted.")
    refusals = Refusals(path)
    scopes = {defaults.scope}
    try:
        refusals.truncate(progress.refused_bytes)
        progress.save()
        for _ in zip(range(progress.entries), found, strict=False):
            pass
        with ThreadPoolExecutor(THREADS) as threads:
            for portion in portions(found, PORTION):
                refused, counts, named = _imported(numbers, workspace.workspace_id, portion, defaults, threads)
                scopes |= named
                progress.counts.update(counts)
                progress.entries += len(portion)
                progress.line = portion[-1].line
                progress.refused_bytes = refusals.add(refused)
                progress.save()
                _show(terminal, progress, whole)
    except OSError as exc:
        raise AdminError(f"{exc.filename} cannot be written: {exc.strerror}") from exc
    except (StoreError, KeyboardInterrupt):
        terminal.say(
            f"\nStopped after line {progress.line:,} of {whole.lines:,}; the same command goes on from there."
        )
        raise
    terminal.progress(whole.lines, whole.lines, "lines")
    progress.remove()
    total = {name: progress.counts[name] for name in (ADDED, EXTENDED, UNCHANGED, REFUSED)}
    refused_file = str(refusals.path) if total[REFUSED] else None
    terminal.give(
        {"entries": progress.entries} | total | {"refusedFile": refused_file},
        f"{progress.entries:,} entries: {total[ADDED]:,} numbers suppressed, {total[EXTENDED]:,} for longer "
        f"than before, {total[UNCHANGED]:,} were already, {total[REFUSED]:,} refused.",
    )
    warn_of_scopes(terminal, workspace, scopes)
    if refused_file is not None:
        raise AdminError(
            f"{total[REFUSED]:,} of {progress.entries:,} entries were refused: {refused_file} says why"
        )


def _show(terminal: Terminal, progress: Progress, whole: Fingerprint) -> None:
    if terminal.stderr.isatty():
        terminal.progress(min(progress.line, whole.lines - 1), whole.lines, "lines")
    elif progress.entries % SAID_EVERY == 0:
        print(f"{progress.line:,} of {whole.lines:,} lines", file=terminal.stderr, flush=True)


# ── a portion ───────────────────────────────────────────────────────────────────────────────────────


def _imported(
    numbers: NumberStore,
    workspace_id: str,
    portion: list[Entry],
    defaults: Defaults,
    threads: ThreadPoolExecutor,
) -> tuple[list[tuple[Entry, str]], collections.Counter[str], set[str]]:
    """The entries that were refused, and why; the number of each result; the scopes."""
    refused: list[tuple[Entry, str]] = []
    wishes: dict[str, list[Wish]] = collections.defaultdict(list)
    for entry in portion:
        try:
            wish = understood(entry, defaults)
        except ValueError as exc:
            refused.append((entry, str(exc)))
        else:
            wishes[wish.number].append(wish)
    results: dict[str, list[tuple[Wish, str]]] = {}
    now = now_ms()

    def change(number: str) -> Change:
        def suppress(seen: NumberRecord) -> tuple[Suppression, ...]:
            # Anew each time: it is repeated when another process writes the number.
            suppressions, results[number] = merged(seen, wishes[number], now)
            return suppressions

        return suppress

    change_all(numbers, workspace_id, {number: change(number) for number in wishes}, threads)
    counts: collections.Counter[str] = collections.Counter()
    for wish, result in (one for of_number in results.values() for one in of_number):
        if result in (ADDED, EXTENDED, UNCHANGED):
            counts[result] += 1
        else:
            refused.append((wish.entry, result))
    counts[REFUSED] = len(refused)
    named = {wish.scope for of_number in wishes.values() for wish in of_number}
    return sorted(refused, key=lambda one: one[0].line), counts, named


def merged(
    seen: NumberRecord, wishes: Iterable[Wish], now: int
) -> tuple[tuple[Suppression, ...], list[tuple[Wish, str]]]:
    """The number's suppressions with what its entries ask for, and what became of each: a result, or why it is
    refused.
    """
    results = []
    for wish in wishes:
        wanted = Suppression(wish.scope, wish.reason, now, wish.until_ms, OPERATOR)
        try:
            suppressions = seen.suppressing(wanted, now, keep_longer=True)
        except TooManyScopesError as exc:
            results.append((wish, str(exc)))
            continue
        if suppressions == seen.suppressions:
            results.append((wish, UNCHANGED))
        else:
            results.append((wish, ADDED if seen.of_scope(wish.scope, now) is None else EXTENDED))
        seen = dataclasses.replace(seen, suppressions=suppressions)
    return seen.suppressions, results


def change_all(
    numbers: NumberStore,
    workspace_id: str,
    changes: Mapping[str, Change],
    threads: ThreadPoolExecutor,
) -> int:
    """Changes each of these numbers (canonical). Returns how many it wrote. A change may be called more than once.

    A hundred are read by one request, and written one by one. What DynamoDB throttles is repeated, with growing
    pauses.
    """
    wanted = list(changes)
    groups = [wanted[start : start + GROUP] for start in range(0, len(wanted), GROUP)]

    def one_group(group: list[str]) -> int:
        now, written = now_ms(), 0
        there = patiently(numbers.get_many, workspace_id, group)
        for number in group:
            before, after = patiently(numbers.change, workspace_id, number, changes[number], now, there[number])
            written += before != after
        return written

    return sum(threads.map(one_group, groups))


def patiently(send: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R:
    """What it returns; repeated while DynamoDB throttles it or its outcome is unknown. Raises StoreError."""
    for n in range(_TRIES):
        try:
            return send(*arguments, **named)
        except StoreError as exc:
            refused = isinstance(exc.__cause__, ClientError) and str(exc) not in _THROTTLED
            if n == _TRIES - 1 or (refused and not isinstance(exc, StoreUnclearError)):
                raise
            time.sleep(0.05 * 2**n)
    raise AssertionError


# ── beside the file ─────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(slots=True)
class Progress:
    """How far an import is: in a file beside the imported one, replaced as a whole.

    about: the file's size and hash, where it goes and how it is read: another import does not go on from here.
    """

    path: Path
    about: dict[str, Any]
    entries: int = 0
    line: int = 0
    refused_bytes: int = 0
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @classmethod
    def of(cls, imported: Path, about: dict[str, Any]) -> Progress:
        path = imported.with_name(f"{imported.name}.ringonce-progress")
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
            if noted["about"] == about:
                counts = collections.Counter(noted["counts"])
                return cls(path, about, noted["entries"], noted["line"], noted["refusedBytes"], counts)
        except (OSError, ValueError, LookupError, TypeError):
            pass
        return cls(path, about)

    def save(self) -> None:
        part = self.path.with_name(f"{self.path.name}.part")
        noted = {
            "about": self.about,
            "entries": self.entries,
            "line": self.line,
            "refusedBytes": self.refused_bytes,
            "counts": self.counts,
        }
        part.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class Refusals:
    """The refused entries, as CSV that `import` reads again when it is repaired. There is none without them."""

    def __init__(self, imported: Path) -> None:
        self.path = imported.with_name(f"{imported.name}.refused.csv")
        self._bytes = 0

    def truncate(self, size: int) -> None:
        """What was written after the progress was noted is written again."""
        self._bytes = size
        if size == 0:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            os.truncate(self.path, size)

    def add(self, refused: list[tuple[Entry, str]]) -> int:
        """Appends them. Returns the file's size then."""
        if refused:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                rows = csv.writer(stream, lineterminator="\n")
                if stream.tell() == 0:
                    rows.writerow(("line", *KNOWN, "refused"))
                for entry, why in refused:
                    rows.writerow((entry.line, *(entry.values.get(name, "") for name in KNOWN), why))
                stream.flush()
                self._bytes = os.fstat(stream.fileno()).st_size
        return self._bytes
