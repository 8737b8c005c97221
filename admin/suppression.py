"""`admin suppression`: add, remove, show, list, export, mark; import and rebuild are in modules of their own.

A change here is in the table and in what the command prints, not in the functions' logs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from admin.target import Target
from admin.terminal import AdminError, Terminal, UsageError, card, table
from shared.call import compact, iso
from shared.clock import now_ms
from shared.errors import TooManyScopesError
from shared.numbers import ALL, NumberRecord, NumberStore, Suppression
from shared.policies import DEFAULT
from shared.workspaces import Workspace

# Who made a suppression: this command.
OPERATOR = {"operator": True}
# Numbers that one request to the index reads.
PAGE = 1000
# The columns of an export; `import` reads the first four.
COLUMNS = ("number", "scope", "reason", "expires_at", "since", "by")


# ── one number ──────────────────────────────────────────────────────────────────────────────────────


def add(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    numbers, workspace = target.of_numbers, target.existing(arguments.workspace)
    now = now_ms()
    if arguments.expires_at is not None and arguments.expires_at <= now:
        raise UsageError("--expires-at has passed already")
    wanted = Suppression(arguments.scope, arguments.reason, now, arguments.expires_at, OPERATOR)
    found = numbers.get(workspace.workspace_id, arguments.number)
    there = found.of_scope(wanted.scope, now)
    if there is not None and not wanted.outlasts(there):
        terminal.confirm(
            f"{arguments.number} is suppressed {_until(there)} already; this one ends sooner.", "Replace it?"
        )
    try:
        record = numbers.suppress(workspace.workspace_id, arguments.number, wanted, now)
    except TooManyScopesError as exc:
        raise AdminError(str(exc)) from exc
    terminal.give(
        change_record(record, wanted.scope, "put", now, wanted.reason, wanted.until_ms),
        f"{record.number} is not called by {workspace.workspace_id}, {_meant(wanted.scope)}, {_until(wanted)}.",
    )
    warn_of_scopes(terminal, workspace, {wanted.scope})


def remove(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    numbers, workspace = target.of_numbers, target.existing(arguments.workspace)
    scope: str | None = arguments.scope
    found = numbers.get(workspace.workspace_id, arguments.number)
    if not any(scope in (None, one.scope) for one in found.holding(now_ms())):
        what = "is not suppressed" if scope is None else f"has no suppression of the scope {scope}"
        raise AdminError(f"{found.number} {what} in {workspace.workspace_id}")
    which = "Every suppression" if scope is None else f"The suppression of the scope {scope}"
    terminal.confirm(
        f"{which} of {found.number} is removed: {workspace.workspace_id} may call it again.", "Remove it?"
    )
    now = now_ms()
    before, after = numbers.release(workspace.workspace_id, arguments.number, scope, now)
    removed = [one for one in before.holding(now) if one not in after.suppressions]
    records = [change_record(after, one.scope, "delete", now, arguments.reason) for one in removed]
    left = ", ".join(one.scope for one in after.holding(now))
    terminal.give(
        records,
        f"{after.number}: removed {', '.join(one.scope for one in removed) or 'nothing: another command did'}; "
        + (f"still suppressed: {left}." if left else "not suppressed any more."),
    )


def show(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    record = target.of_numbers.get(workspace.workspace_id, arguments.number)
    now = now_ms()
    rings = sorted(record.rings.items(), key=lambda ring: ring[1], reverse=True)
    value = {
        "workspaceId": record.workspace_id,
        "number": record.number,
        "suppressed": bool(record.holding(now)),
        "suppressions": [_as_json(one, now) for one in record.suppressions],
        "rings": [{"callId": call_id, "at": iso(at)} for call_id, at in rings],
    }
    facts = [("Number", record.number), ("Workspace", record.workspace_id)]
    text = card([*facts, ("Suppressed", "yes" if value["suppressed"] else "no")])
    if record.suppressions:
        text += "\n\n" + table(_HEADER[1:], [_row(record, one, now)[1:] for one in record.suppressions])
    if rings:
        text += "\n\n" + table(("rang at", "call"), [(iso(at), call_id) for call_id, at in rings])
    terminal.give(value, text)


def change_record(
    record: NumberRecord,
    scope: str,
    action: str,
    at_ms: int,
    reason: str | None,
    until_ms: int | None = None,
) -> dict[str, Any]:
    """A change as the API's log line says it, whose fields `suppression rebuild` reads."""
    return {
        "message": "suppression changed",
        "workspace_id": record.workspace_id,
        "number": record.number,
        "scope": scope,
        "action": action,
        "reason": reason,
        "until": until_ms,
        "at": at_ms,
        "by": OPERATOR,
    }


def warn_of_scopes(terminal: Terminal, workspace: Workspace, scopes: set[str]) -> None:
    """A scope that no policy has is perhaps a misspelt one: no call would be held back by it."""
    known = {ALL, DEFAULT, *workspace.policies}
    if unknown := sorted(scopes - known):
        terminal.say(
            f"\n{workspace.workspace_id} has no policy {', '.join(unknown)}: such a suppression holds only for "
            f"calls of that purpose. The scopes of today: {', '.join(sorted(known))}."
        )


def _meant(scope: str) -> str:
    return "for any purpose" if scope == ALL else f"for the purpose {scope}"


def _until(suppression: Suppression) -> str:
    return "for ever" if suppression.until_ms is None else f"until {iso(suppression.until_ms)}"


# ── many ────────────────────────────────────────────────────────────────────────────────────────────

_HEADER = ("number", "scope", "since", "until", "by", "reason")


def list_all(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    now = now_ms()
    found: list[tuple[NumberRecord, Suppression]] = []
    more = False
    for record in suppressed_numbers(target.of_numbers, workspace.workspace_id):
        holding = [(record, one) for one in record.holding(now)]
        more = not arguments.all and len(found) + len(holding) > arguments.limit
        if more:
            break
        found += holding
    text = table(_HEADER, [_row(record, one, now) for record, one in found])
    terminal.give(
        [{"number": record.number} | _as_json(one, now) for record, one in found],
        text if found else f"No number is suppressed in {workspace.workspace_id}.",
    )
    if more:
        terminal.say("\nThere are more: --limit, --all, or `suppression export`")


def export(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    found = suppressed_numbers(target.of_numbers, workspace.workspace_id)
    if arguments.file is None:
        if terminal.as_json:
            raise UsageError("--json goes with a file; `--format jsonl` prints a JSON object in each line")
        _write(found, arguments.format, terminal.stdout, lambda done: None)
        return
    path = Path(arguments.file)
    if path.exists():
        terminal.confirm(f"{path} exists.", "Replace it?")
    # Under another name until it is complete: half a list must not be taken for a whole one.
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as stream:
            written = _write(
                found, arguments.format, stream, lambda done: terminal.progress(done, None, "suppressions written")
            )
        os.replace(part, path)
    except OSError as exc:
        raise AdminError(f"{path} cannot be written: {exc.strerror}") from exc
    finally:
        part.unlink(missing_ok=True)
    terminal.progress(written, written, "suppressions written")
    terminal.give({"file": str(path), "suppressions": written}, f"{written:,} suppressions written to {path}.")


def suppressed_numbers(numbers: NumberStore, workspace_id: str) -> Iterator[NumberRecord]:
    """By number, page by page: the list is never in memory as a whole."""
    after = None
    while True:
        page, after = numbers.suppressed(workspace_id, PAGE, after)
        yield from page
        if after is None:
            return


def _write(found: Iterator[NumberRecord], form: str, stream: TextIO, progress: Callable[[int], None]) -> int:
    """Writes the suppressions that hold now, in a form that `suppression import` reads. Returns their number."""
    written, now = 0, now_ms()
    rows = csv.writer(stream, lineterminator="\n")
    if form == "csv":
        rows.writerow(COLUMNS)
    for record in found:
        for one in record.holding(now):
            until = None if one.until_ms is None else iso(one.until_ms)
            values = (record.number, one.scope, one.reason, until, iso(one.at_ms))
            if form == "csv":
                rows.writerow(["" if value is None else value for value in (*values, _by(one))])
            else:
                stream.write(compact(dict(zip(COLUMNS, (*values, one.by), strict=True))) + "\n")
            written += 1
            if written % PAGE == 0:
                progress(written)
    return written


def _as_json(suppression: Suppression, now: int) -> dict[str, Any]:
    return {
        "scope": suppression.scope,
        "reason": suppression.reason,
        "since": iso(suppression.at_ms),
        "expiresAt": None if suppression.until_ms is None else iso(suppression.until_ms),
        "ended": not suppression.holds(now),
        "by": suppression.by,
    }


def _row(record: NumberRecord, one: Suppression, now: int) -> tuple[str, ...]:
    until = "-" if one.until_ms is None else iso(one.until_ms) + ("" if one.holds(now) else " (ended)")
    # An agent may have quoted the callee: nothing of it controls the terminal.
    reason = "".join(character if character.isprintable() else " " for character in one.reason)
    return record.number, one.scope, iso(one.at_ms), until, _by(one), reason


def _by(suppression: Suppression) -> str:
    """What made it, for people: `operator`, `call f9e8...`, `key 1a2b3c4d (billing)`."""
    by = dict(suppression.by)
    if by == OPERATOR:
        return "operator"
    label = by.pop("label", None)
    said = ", ".join(
        f"{what} {which if isinstance(which, str) else json.dumps(which)}" for what, which in by.items()
    )
    return (said + (f" ({label})" if label else "")) or "-"


# ── the marker ──────────────────────────────────────────────────────────────────────────────────────


def mark(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    numbers = target.of_numbers
    if numbers.marked():
        terminal.give({"marked": True, "written": False}, "The table of numbers has its marker already.")
        return
    terminal.confirm(
        f"With its marker the table {numbers.table} is taken for complete: calls ring, except to the numbers that "
        "it names. Opt-outs that are missing are lost.",
        "Is it restored?",
    )
    now = now_ms()
    numbers.mark(now)
    target.limits.note_numbers(now)
    paused = target.limits.switch().paused_at_ms is not None
    terminal.give(
        {"marked": True, "written": True},
        "The marker is written."
        + (f" Dialling is paused: `{target.command('switch resume')}` resumes it." if paused else ""),
    )
