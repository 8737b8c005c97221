"""`admin workspace`: create, show, list, update, disable, enable."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from admin.admission import fill
from admin.keys import described, key_ids, new_key, note, opened
from admin.target import Target
from admin.terminal import AdminError, Terminal, UsageError, card, table
from admin.webhook_secrets import new_secret
from admin.workspace_input import WorkspaceInput
from shared.call import iso
from shared.clock import now_ms
from shared.errors import StoreError
from shared.numbers import ensure_marker
from shared.workspaces import WORKSPACE_ATTRIBUTES, Workspace, key_hash


def create(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    wanted = WorkspaceInput.model_validate(arguments)
    key = None if arguments.no_key else new_key()
    secret = new_secret()
    workspace = Workspace(
        workspace_id=wanted.workspace,
        name=wanted.name or wanted.workspace,
        agent_name=arguments.agent_name,
        sip_trunk_id=arguments.trunk,
        from_numbers=tuple(dict.fromkeys(wanted.from_numbers)),
        api_key_hashes=frozenset({key_hash(key)} if key else ()),
        key_notes=note(key, None) if key else {},
        open=key is None,
        agents=frozenset(wanted.agents),
        allowed_calling_codes=frozenset(wanted.allow),
        webhook_secrets=(secret,),
        created_at=iso(now_ms()),
        version=1,
    )
    workspace = dataclasses.replace(workspace, **_scalars(wanted))
    if not target.store.create(workspace):
        raise AdminError(f"the workspace {workspace.workspace_id} exists already; `workspace update` changes it")
    given: dict[str, Any] = {"workspace": as_json(workspace), "apiKey": key, "webhookSecret": secret}
    shown = [("API key", key)] if key else []
    terminal.give(given, as_text(workspace) + "\n\n" + card([*shown, ("Webhook secret", secret)]))
    terminal.say(
        "\nKeep them now: the key is stored as a hash only, and neither is shown again."
        if key
        else "\nKeep it now: it is not shown again."
    )
    _warn(target, terminal, workspace)
    _mark_numbers(target, terminal)
    terminal.say(f"\nNext, place a call:\n\n{_curl(target, workspace, key)}")


def show(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    calls = sorted(target.limits.active_calls(workspace.workspace_id, workspace.slots_items))
    under_way = f"{len(calls)} of {workspace.max_concurrent_calls}"
    terminal.give(
        as_json(workspace) | {"activeCalls": calls}, as_text(workspace, [("Calls under way", under_way)])
    )


def list_all(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspaces = target.store.all()
    header = ("workspace", "name", "state", "access", "may call", "at a time", "a minute")
    rows = [
        (
            workspace.workspace_id,
            workspace.name,
            _state(workspace),
            _access(workspace),
            _listed(workspace.allowed_calling_codes) or "none",
            str(workspace.max_concurrent_calls),
            str(workspace.calls_per_minute),
        )
        for workspace in workspaces
    ]
    text = table(header, rows) if rows else f"No workspaces yet: {target.name}."
    terminal.give([as_json(workspace) for workspace in workspaces], text)


def update(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    wanted = WorkspaceInput.model_validate(arguments)
    scalars = _scalars(wanted)
    lists = (
        *(wanted.from_numbers, wanted.allow, wanted.agents),
        *(arguments.remove_from_numbers, arguments.disallow, arguments.remove_agents),
    )
    if not (scalars or any(lists) or arguments.any_agent or arguments.open is not None):
        raise UsageError("say what to change; `workspace update --help` lists it")
    if arguments.any_agent and (arguments.agents or arguments.remove_agents):
        raise UsageError("--any-agent goes without --agent and --remove-agent")

    def change(seen: Workspace) -> Workspace:
        if arguments.open and seen.api_key_hashes:
            raise AdminError(
                f"{seen.workspace_id} has {_access(seen)}: revoke every one, the last with `key revoke --open`"
            )
        from_numbers = _with(seen.from_numbers, wanted.from_numbers, arguments.remove_from_numbers, "number")
        codes = _with(seen.allowed_calling_codes, wanted.allow, arguments.disallow, "allowed calling code")
        agents = _with(seen.agents, wanted.agents, arguments.remove_agents, "agent id")
        if arguments.any_agent:
            agents = []
        elif seen.agents and not agents:
            raise AdminError(
                "without its last agent id the workspace could use any agent: say so with --any-agent"
            )
        return dataclasses.replace(
            seen,
            from_numbers=tuple(from_numbers),
            allowed_calling_codes=frozenset(codes),
            agents=frozenset(agents),
            open=seen.open if arguments.open is None else arguments.open,
            **scalars,
        )

    # Impossible changes are refused before the confirmation.
    before = target.existing(arguments.workspace)
    change(before)
    if arguments.open:
        terminal.confirm(opened(arguments.workspace), "Open it?")
    if arguments.any_agent:
        terminal.confirm(f"{arguments.workspace} will be able to use any agent id.", "Lift the limit?")
    workspace = target.updated(arguments.workspace, change)
    terminal.give(as_json(workspace), as_text(workspace))
    _warn(target, terminal, workspace)
    if (
        workspace.max_concurrent_calls > before.max_concurrent_calls
        or workspace.sip_trunk_id != before.sip_trunk_id
    ):
        fill(target, terminal, lambda: [workspace])


def disable(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    target.existing(arguments.workspace)
    terminal.confirm(
        f"Within a minute every request of {arguments.workspace} is refused and its waiting calls fail; calls "
        "under way go on.",
        "Disable it?",
    )
    workspace = target.updated(arguments.workspace, lambda seen: dataclasses.replace(seen, disabled=True))
    terminal.give(as_json(workspace), f"{workspace.workspace_id} is disabled.")


def enable(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.updated(arguments.workspace, lambda seen: dataclasses.replace(seen, disabled=False))
    terminal.give(as_json(workspace), f"{workspace.workspace_id} is enabled.")
    _warn(target, terminal, workspace)


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────


def as_json(workspace: Workspace) -> dict[str, Any]:
    """The workspace for scripts, by its stored names, without hashes and secrets."""
    left_out = ("api_key_hashes", "key_notes", "webhook_secrets", "slots_items_used", "policies")
    fields = {
        name: getattr(workspace, field) for field, name in WORKSPACE_ATTRIBUTES.items() if field not in left_out
    }
    return {
        name: sorted(value) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
    } | {
        "apiKeyIds": key_ids(workspace),
        "apiKeys": described(workspace),
        "webhookSecretCount": len(workspace.webhook_secrets),
        "policies": sorted(workspace.policies),
    }


def as_text(workspace: Workspace, more: Sequence[tuple[str, str]] = ()) -> str:
    secrets = {0: "none: webhooks cannot be sent", 1: "1", 2: "2, a rotation is under way"}
    return card(
        [
            ("Workspace", workspace.workspace_id),
            ("Name", workspace.name),
            ("State", _state(workspace)),
            ("Access", _access(workspace)),
            *_keys(workspace),
            ("May call", _listed(workspace.allowed_calling_codes) or "none"),
            ("Special numbers", "allowed" if workspace.allow_special_numbers else "refused"),
            ("From", ", ".join(workspace.from_numbers) or "the trunk's own"),
            ("Agent worker", workspace.agent_name),
            ("Agents", _listed(workspace.agents) or "any"),
            ("SIP trunk", workspace.sip_trunk_id),
            ("Calls at a time", str(workspace.max_concurrent_calls)),
            ("Calls a minute", str(workspace.calls_per_minute)),
            ("Dials a second", str(workspace.calls_per_second)),
            ("Policies", ", ".join(sorted(workspace.policies)) or "none: only suppression restricts its calls"),
            ("Webhook secrets", secrets.get(len(workspace.webhook_secrets), str(len(workspace.webhook_secrets)))),
            ("Created", workspace.created_at),
            *more,
        ]
    )


# ── parts ───────────────────────────────────────────────────────────────────────────────────────────


def _keys(workspace: Workspace) -> list[tuple[str, str]]:
    """A line for each key: its id and what is known of it."""
    lines = [
        ", ".join(
            [
                key["id"] + (f" ({key['label']})" if key["label"] else ""),
                *([f"made {key['createdAt']}"] if key["createdAt"] else []),
                *([f"ends in {key['last4']}"] if key["last4"] else []),
            ]
        )
        for key in described(workspace)
    ]
    return [("" if above else "API keys", line) for above, line in enumerate(lines or ["none"])]


def _scalars(wanted: WorkspaceInput) -> dict[str, Any]:
    """The scalar attributes that were given."""
    given = {
        "name": wanted.name,
        "agent_name": wanted.agent_name,
        "sip_trunk_id": wanted.trunk,
        "allow_special_numbers": wanted.allow_special_numbers,
        "max_concurrent_calls": wanted.max_concurrent_calls,
        "calls_per_minute": wanted.calls_per_minute,
        "calls_per_second": wanted.calls_per_second,
    }
    return {name: value for name, value in given.items() if value is not None}


def _with(there: Sequence[str] | frozenset[str], add: list[str], remove: list[str], what: str) -> list[str]:
    """`there` with `add` and without `remove`, in order. Raises AdminError when an entry of `remove` is absent."""
    absent = [entry for entry in remove if entry not in there]
    if absent:
        raise AdminError(f"{', '.join(absent)} is no {what} of this workspace; it has {_listed(there) or 'none'}")
    return [entry for entry in dict.fromkeys((*there, *add)) if entry not in remove]


def _warn(target: Target, terminal: Terminal, workspace: Workspace) -> None:
    """Warns of settings that may not be intended."""
    if not workspace.allowed_calling_codes:
        terminal.say(
            "\nIt may call no number until countries are named: "
            + target.command(f"workspace update {workspace.workspace_id} --allow +1 --allow +44")
        )
    if not workspace.api_key_hashes:
        terminal.say(
            f"\nOPEN. {opened(workspace.workspace_id)}"
            if workspace.open
            else "\nIt has no key, so every request is refused: "
            + target.command(f"key create {workspace.workspace_id}")
        )


def _mark_numbers(target: Target, terminal: Terminal) -> None:
    """Writes the marker of a new stack's table of numbers, without which nothing is dialled. The workspace is made
    and its key was shown by then: a failure is told, and left to the reconciler.
    """
    if target.numbers is None:
        return
    try:
        marked = ensure_marker(target.limits, target.numbers, now_ms())
    except StoreError as exc:
        terminal.say(
            f"\nThe marker of the table of numbers could not be written ({exc}): the reconciler does within "
            "a minute."
        )
        return
    if not marked:
        terminal.say(
            "\nThe table of numbers has lost its marker: nothing is dialled until it is restored "
            "(docs/operations.md, Numbers marker missing)."
        )


def _curl(target: Target, workspace: Workspace, key: str | None) -> str:
    # On AWS a placeholder: a copied line must not call a stranger.
    to = "+15550000000" if target.local and "+1" in workspace.allowed_calling_codes else "NUMBER"
    agent = min(workspace.agents, default="a1b2c3d4e5f6a7b8c9d0e1f2")
    lines = [
        f"curl {target.api_url or 'https://YOUR_API'}/v1/api/call",
        f"-H 'x-workspace-id: {workspace.workspace_id}'",
        *([f"-H 'x-api-key: {key}'"] if key else []),
        "-H 'content-type: application/json'",
        f"-d '{json.dumps({'to': to, 'call_agent_id': agent})}'",
    ]
    return " \\\n  ".join(lines)


def _state(workspace: Workspace) -> str:
    return "disabled" if workspace.disabled else "active"


def _access(workspace: Workspace) -> str:
    if workspace.api_key_hashes:
        return "1 key" if len(workspace.api_key_hashes) == 1 else f"{len(workspace.api_key_hashes)} keys"
    return "open: no key required" if workspace.open else "closed: no key"


def _listed(entries: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(entries))
