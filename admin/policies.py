"""`admin policy`: list, show, apply, edit, remove."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import shlex
import subprocess  # nosec B404
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from admin import policy_input
from admin.keys import changed_meanwhile
from admin.target import Target
from admin.terminal import AdminError, Terminal, table
from shared.policies import DEFAULT, MAXIMUM_POLICIES, Policy
from shared.workspaces import Workspace


def list_all(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    policies = [workspace.policies[name] for name in sorted(workspace.policies)]
    header = ("policy", "version", "zone", "windows", "holidays", "caps", "gap", "consent", "checked")
    rows = [
        (
            *(policy.name, str(policy.version), policy.zone, _windows(policy) or "any time"),
            *(str(len(policy.holidays)), ", ".join(f"{cap.count} in {_span(cap.seconds)}" for cap in policy.caps)),
            _span(policy.min_gap_seconds) if policy.min_gap_seconds else "-",
            *("required" if policy.consent_required else "-", policy.checked_at or "-"),
        )
        for policy in policies
    ]
    text = (
        table(header, [[cell or "-" for cell in row] for row in rows])
        if rows
        else f"{workspace.workspace_id} has no policies: only suppression restricts its calls."
    )
    terminal.give([_as_json(workspace, policy) for policy in policies], text)
    if policies and DEFAULT not in workspace.policies:
        terminal.say(f"\nThere is no policy `{DEFAULT}`: only suppression restricts calls without a purpose.")


def show(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    policy = _existing(target.existing(arguments.workspace), arguments.policy)
    terminal.give(policy_input.written(policy), _as_text(policy))


def apply(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    wanted = policy_input.read(arguments.file)
    _apply(target, terminal, target.existing(arguments.workspace), wanted.policy(arguments.policy, 1))


def edit(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    policy = _existing(workspace, arguments.policy)
    if not terminal.stdin.isatty():
        raise AdminError(
            "there is no terminal for an editor: `policy show` gives the file and `policy apply` takes it"
        )
    descriptor, name = tempfile.mkstemp(prefix=f"{policy.name}-", suffix=".json")
    path = Path(name)
    with open(descriptor, "w", encoding="utf-8") as file:
        print(_as_text(policy), file=file)
    try:
        _run_editor(path)
        _apply(target, terminal, workspace, policy_input.read_file(path).policy(policy.name, 1))
    except BaseException:
        # Work of minutes, perhaps: it is not lost with a typing error, a refused question or a failed request.
        print(f"The edited policy is kept in {path}.", file=terminal.stderr)
        raise
    path.unlink(missing_ok=True)


def remove(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    policy = _existing(workspace, arguments.policy)
    terminal.confirm(
        f"Within a minute only suppression restricts calls of {workspace.workspace_id} without a purpose, those "
        "that wait too."
        if policy.name == DEFAULT
        else f"Within a minute calls of {workspace.workspace_id} with the purpose {policy.name} are refused, and "
        "those that wait end as not_allowed.",
        "Remove it?",
    )
    workspace = target.updated(workspace.workspace_id, _change(policy.name, policy, None))
    given = {"workspaceId": workspace.workspace_id, "removed": policy.name, "policies": sorted(workspace.policies)}
    left = ", ".join(sorted(workspace.policies)) or "none"
    terminal.give(given, f"Removed {policy.name}. Policies of {workspace.workspace_id} now: {left}.")


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────


def _existing(workspace: Workspace, name: str) -> Policy:
    if name not in workspace.policies:
        raise AdminError(f"{workspace.workspace_id} has no policy {name}; `policy list` shows them")
    return workspace.policies[name]


def _apply(target: Target, terminal: Terminal, workspace: Workspace, wanted: Policy) -> None:
    """workspace: as it was shown to the operator. The version of `wanted` follows from it."""
    name, workspace_id = wanted.name, workspace.workspace_id
    before = workspace.policies.get(name)
    if before and dataclasses.replace(wanted, version=before.version) == before:
        terminal.give(
            _as_json(workspace, before) | {"changed": False},
            f"{name} of {workspace_id} is so already: it stays version {before.version}.",
        )
        return
    if before:
        wanted = dataclasses.replace(wanted, version=before.version + 1)
    change = _change(name, before, wanted)
    # What is impossible is refused before the question.
    change(workspace)
    print(_difference(before, wanted), file=terminal.stderr)
    which = "without a purpose" if name == DEFAULT else f"with the purpose {name}"
    terminal.confirm(
        f"Within a minute every call of {workspace_id} {which} is held to version {wanted.version} of {name}, "
        "one that waits when it is its turn.",
        "Replace it?" if before else "Make it?",
    )
    workspace = target.updated(workspace_id, change)
    text = f"{name} of {workspace_id} is version {wanted.version}; it holds within a minute."
    terminal.give(_as_json(workspace, wanted) | {"changed": True}, text)


def _change(name: str, shown: Policy | None, wanted: Policy | None) -> Callable[[Workspace], Workspace]:
    """Puts `wanted` in the place of `shown`, and of nothing else. None: no policy."""

    def change(seen: Workspace) -> Workspace:
        there = seen.policies.get(name)
        if there == wanted:
            # Written by an earlier try, whose answer was lost.
            return seen
        if there != shown:
            raise changed_meanwhile(seen)
        others = {key: policy for key, policy in seen.policies.items() if key != name}
        if wanted is None:
            return dataclasses.replace(seen, policies=others)
        if len(others) >= MAXIMUM_POLICIES:
            raise AdminError(
                f"{seen.workspace_id} has {len(others)} policies and may have {MAXIMUM_POLICIES}: remove one first"
            )
        return dataclasses.replace(seen, policies=others | {name: wanted})

    return change


def _difference(before: Policy | None, after: Policy) -> str:
    """A unified diff of the two files."""
    lines = difflib.unified_diff(
        _as_text(before).splitlines() if before else [],
        _as_text(after).splitlines(),
        f"{after.name}, version {before.version}" if before else "no policy",
        f"{after.name}, version {after.version}",
        lineterm="",
    )
    return "\n".join(lines)


def _run_editor(path: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        # The operator's own setting, and no shell between.
        code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode  # nosec B603
    except (OSError, ValueError) as exc:
        raise AdminError(f"the editor {editor!r} does not start ({exc}): set EDITOR") from exc
    if code:
        raise AdminError(f"the editor {editor!r} ended with {code}: nothing was changed")


def _as_text(policy: Policy) -> str:
    """The file, for people: letters that are not English as they are."""
    return json.dumps(policy_input.written(policy), indent=2, ensure_ascii=False)


def _as_json(workspace: Workspace, policy: Policy) -> dict[str, Any]:
    return {
        "workspaceId": workspace.workspace_id,
        "name": policy.name,
        "version": policy.version,
        "policy": policy_input.written(policy),
    }


def _windows(policy: Policy) -> str:
    def days(written: str | list[str]) -> str:
        return written if isinstance(written, str) else ",".join(written)

    return "; ".join(
        f"{days(policy_input.days_of(window))} {policy_input.time_of(window.start)}-"
        f"{policy_input.time_of(window.end)}"
        for window in policy.windows
    )


def _span(seconds: int) -> str:
    """In the largest unit without a rest; a day is 24 h, as it is rolling."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds % size == 0 and (unit != "d" or seconds > size):
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
