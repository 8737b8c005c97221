"""`admin suppression rebuild`: after NumbersTable was lost or restored, what other places know is written into it.

In this order, so that of two changes of the same suppression the later one holds:
- a restored table: the suppressions and rings of a backup;
- the calls: agents' opt-outs, and rings, where a policy counts them;
- the functions' log: each suppression and each release by the API, and agents' opt-outs.

A suppression that is newer than what is known of it here stays. What the operator's command changed since the
backup is in none of these. Repeating the command does the rest if it was interrupted.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from admin.calls import Search, pages_of
from admin.suppression_file import reading
from admin.suppression_import import THREADS, Change, change_all, patiently
from admin.target import Target
from admin.terminal import AdminError, Terminal, UsageError
from shared.call import OPT_OUT, Call
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.numbers import ALL, MAXIMUM_REASON, NumberRecord, NumberStore, Suppression
from shared.phone_number import canonical, e164
from shared.policies import DEFAULT, LONGEST_CAP_SECONDS, NAME
from shared.timestamps import rfc3339_ms
from shared.workspaces import Workspace

CHANGED = "suppression changed"
# Of a log line: whether it suppresses.
_ACTIONS = {"suppressed": True, "put": True, "released": False, "delete": False}
# Numbers that are written together.
PORTION = 1000
# Lines of the log that are named when they cannot be read.
SAID_LINES = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """What became of a number's suppression of one scope, and when. suppression: None: it was removed."""

    at_ms: int
    suppression: Suppression | None


# What is known of each number (canonical) of a workspace, by scope.
Numbers = dict[str, dict[str, Known]]


def run(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    numbers, (calls, _) = target.of_numbers, target.of_calls
    if bool(arguments.workspaces) == arguments.all:
        raise UsageError("name the workspaces, or --all")
    if arguments.restored == numbers.table:
        raise AdminError("that is the stack's own table: name the one into which the backup was restored")
    if target.limits.switch().paused_at_ms is None:
        raise AdminError("dialling is not paused: `switch pause`, then repeat this")
    if arguments.all:
        workspaces = target.store.all()
    else:
        workspaces = [target.existing(one) for one in dict.fromkeys(arguments.workspaces)]
    names = {workspace.workspace_id for workspace in workspaces}
    log = Log(terminal)
    for path in arguments.log_files:
        log.read(Path(path), names, arguments.since)
    written: collections.Counter[str] = collections.Counter()
    each = {workspace.workspace_id: Rebuild(numbers, workspace, terminal) for workspace in workspaces}
    if arguments.restored is not None:
        written["fromBackup"] = _from_backup(numbers.other(arguments.restored), each, terminal)
    for workspace_id, rebuild in each.items():
        later = rebuild.from_calls(calls, arguments.since)
        for number, scopes in log.found[workspace_id].items():
            for scope, known in scopes.items():
                _keep_later(later, number, scope, known)
        written["fromReportsAndLog"] += rebuild.write(later)
    rings = sum(rebuild.with_rings for rebuild in each.values())
    terminal.give(
        {
            "workspaces": list(each),
            "logLines": log.lines,
            "logLinesNotRead": log.wrong,
            "numbersChanged": {name: written[name] for name in ("fromBackup", "fromReportsAndLog")},
            "numbersWithRingsAdded": rings,
        },
        f"{len(each)} workspaces, {log.lines:,} lines of the log. Suppressions changed: of "
        f"{written['fromBackup']:,} numbers by the backup, of {written['fromReportsAndLog']:,} by reports and the "
        f"log. Rings were added to {rings:,} numbers.",
    )
    if not arguments.log_files:
        terminal.say("\nWithout --log-file it is not known what the API suppressed and released since the backup.")
    if log.wrong:
        raise AdminError(f"{log.wrong:,} lines of the log could not be read")


def _from_backup(restored: NumberStore, each: dict[str, Rebuild], terminal: Terminal) -> int:
    """Numbers whose suppressions were changed. The restored table is only read."""
    written = done = 0
    found = restored.everything()
    while portion := list(itertools.islice(found, PORTION)):
        for workspace_id, rebuild in each.items():
            records = [record for record in portion if record.workspace_id == workspace_id]
            suppressions = {
                record.number: {one.scope: Known(one.at_ms, one) for one in record.suppressions}
                for record in records
                if record.suppressions
            }
            written += rebuild.write(suppressions)
            rebuild.add_rings({record.number: record.rings for record in records if record.rings})
        done += len(portion)
        terminal.progress(done, None, "numbers read in the backup")
    terminal.progress(done, done, "numbers read in the backup")
    return written


@dataclasses.dataclass(slots=True)
class Rebuild:
    """Rebuilds the numbers of one workspace. with_rings: how many got rings that they lacked."""

    numbers: NumberStore
    workspace: Workspace
    terminal: Terminal
    with_rings: int = 0

    def from_calls(self, calls: CallStore, since_ms: int) -> Numbers:
        """What agents reported since then, in every call that is stored. Adds the rings that policies count."""
        found: Numbers = {}
        now, done = now_ms(), 0
        for page, _ in pages_of(calls, self.workspace.workspace_id, Search(0, now)):
            rings: dict[str, dict[str, int]] = collections.defaultdict(dict)
            for call in page:
                for scope, known in _opt_outs(call, since_ms):
                    _keep_later(found, canonical(call.to), scope, known)
                at = call.dialed_at_ms
                if at is not None and at > now - LONGEST_CAP_SECONDS * 1000 and self.workspace.counts_rings:
                    rings[canonical(call.to)][call.call_id] = at
            self.add_rings(rings)
            done += len(page)
            self.terminal.progress(done, None, f"calls of {self.workspace.workspace_id} read")
        self.terminal.progress(done, done, f"calls of {self.workspace.workspace_id} read")
        return found

    def write(self, known: Numbers) -> int:
        """Numbers that were written."""
        changes: Mapping[str, Change] = {
            number: partial(_rebuilt, scopes=scopes) for number, scopes in known.items()
        }
        with ThreadPoolExecutor(THREADS) as threads:
            return change_all(self.numbers, self.workspace.workspace_id, changes, threads)

    def add_rings(self, rings: Mapping[str, Mapping[str, int]]) -> None:
        def add(number: str) -> bool:
            workspace_id = self.workspace.workspace_id
            return patiently(self.numbers.add_rings, workspace_id, number, rings[number], now_ms())

        with ThreadPoolExecutor(THREADS) as threads:
            self.with_rings += sum(threads.map(add, rings))


def _rebuilt(seen: NumberRecord, scopes: dict[str, Known]) -> tuple[Suppression, ...]:
    """The number's suppressions with what is known; one that is as new, or newer, stays."""
    there = {one.scope: one for one in seen.suppressions}
    for scope, known in scopes.items():
        if scope in there and there[scope].at_ms > known.at_ms:
            continue
        if known.suppression is None:
            there.pop(scope, None)
        elif scope not in there or there[scope].at_ms < known.at_ms:
            there[scope] = known.suppression
    rebuilt = tuple(there.values())
    return seen.suppressions if set(rebuilt) == set(seen.suppressions) else rebuilt


def _keep_later(found: Numbers, number: str, scope: str, known: Known) -> None:
    earlier = found.setdefault(number, {}).get(scope)
    # Of two in the same millisecond the suppression.
    if earlier is None or (known.at_ms, known.suppression is not None) >= (
        earlier.at_ms,
        earlier.suppression is not None,
    ):
        found[number][scope] = known


# ── reports ─────────────────────────────────────────────────────────────────────────────────────────


def _opt_outs(call: Call, since_ms: int) -> Iterator[tuple[str, Known]]:
    """The suppressions that a call's reports made."""
    for entry in call.events:
        if entry["type"] != OPT_OUT or entry["at"] < since_ms:
            continue
        try:
            data = json.loads(entry.get("data", "{}"))
        except ValueError:
            data = {}
        scope = (call.purpose or DEFAULT) if data.get("scope") == "purpose" else ALL
        said = str(data.get("said") or "")[:MAXIMUM_REASON]
        yield scope, Known(entry["at"], Suppression(scope, said, entry["at"], None, {"call": call.call_id}))


# ── the log ─────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(slots=True)
class Log:
    """What log lines say of each workspace's numbers. lines: those of a change; wrong: that cannot be read."""

    terminal: Terminal
    found: collections.defaultdict[str, Numbers] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(dict)
    )
    lines: int = 0
    wrong: int = 0

    def read(self, path: Path, workspaces: set[str], since_ms: int) -> None:
        """A file with a line of the functions' log in each line; others than of a change are passed over."""
        with reading(path), path.open(encoding="utf-8-sig") as stream:
            for n, text in enumerate(stream, 1):
                if CHANGED not in text:
                    continue
                try:
                    workspace_id, number, scope, known = _change(text)
                except (ValueError, KeyError, TypeError, RecursionError) as exc:
                    self.wrong += 1
                    why = f"it has no {exc}" if isinstance(exc, KeyError) else str(exc)
                    # Of a file in another form every line is wrong.
                    if self.wrong <= SAID_LINES:
                        self.terminal.say(f"line {n} of {path} cannot be read: {why}")
                    continue
                self.lines += 1
                if workspace_id in workspaces and known.at_ms >= since_ms:
                    _keep_later(self.found[workspace_id], number, scope, known)


def _change(text: str) -> tuple[str, str, str, Known]:
    """Workspace, number, scope and what became of it. Raises ValueError, KeyError, TypeError."""
    line = json.loads(text)
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    # As CloudWatch's exports wrap a function's line.
    for name in ("@message", "message"):
        if isinstance(line.get(name), str) and line[name].lstrip().startswith("{"):
            line = json.loads(line[name])
    if line["message"] != CHANGED:
        raise ValueError(f"its message is not {CHANGED!r}")
    scope = line["scope"]
    # The functions' lines have the logger's time and an ISO end, the operator's command milliseconds. The logger
    # leaves out what is null: no end is for ever.
    at_ms = line["at"] if "at" in line else rfc3339_ms(line["timestamp"])
    until_ms = line.get("until")
    if line.get("expires_at"):
        until_ms = rfc3339_ms(line["expires_at"])
    if not NAME.fullmatch(scope):
        raise ValueError("its scope is neither all nor the name of a policy")
    if type(at_ms) is not int or type(until_ms) not in (int, type(None)):
        raise ValueError("its times are not in milliseconds")
    if line["action"] not in _ACTIONS:
        raise ValueError(f"its action is none of {', '.join(_ACTIONS)}")
    suppression = Suppression(scope, str(line.get("reason") or ""), at_ms, until_ms, dict(line.get("by") or {}))
    number = canonical(e164(line["number"]))
    return line["workspace_id"], number, scope, Known(at_ms, suppression if _ACTIONS[line["action"]] else None)
