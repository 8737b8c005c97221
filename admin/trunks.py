"""`admin trunk`: list, reset.

A trunk is stopped after several dials in a row that it refused itself (shared/trunk.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from admin.admission import fill
from admin.target import Target
from admin.terminal import AdminError, Terminal, card, table
from shared.call import iso
from shared.clock import now_ms
from shared.trunk import Trunk
from shared.workspaces import Workspace


def list_all(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    everything = target.limits.everything()
    workspaces = everything.workspaces.values()
    trunk_ids = {workspace.sip_trunk_id for workspace in workspaces} | everything.trunks.keys()
    trunks = [everything.trunks.get(trunk_id, Trunk(trunk_id)) for trunk_id in sorted(trunk_ids)]
    header = ("trunk", "state", "faults", "stops", "since", "until", "workspaces", "fault")
    rows = [
        (
            *(trunk.trunk_id, state_of(trunk), str(len(trunk.faults)), str(trunk.stops)),
            *(shown["stoppedAt"] or "-", shown["stoppedUntil"] or "-"),
            *(", ".join(_users(trunk, workspaces)) or "-", trunk.fault or "-"),
        )
        for trunk in trunks
        for shown in [described(trunk)]
    ]
    text = table(header, rows) if rows else f"No trunks yet: {target.name}."
    terminal.give([_as_json(trunk, workspaces) for trunk in trunks], text)


def reset(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    """Without confirmation: it loses nothing, and a trunk that is still at fault is stopped again."""
    everything = target.limits.everything()
    users = [each for each in everything.workspaces.values() if each.sip_trunk_id == arguments.trunk]
    if not users and arguments.trunk not in everything.trunks:
        raise AdminError(f"no trunk {arguments.trunk} in {target.name}; `trunk list` shows them")
    target.limits.reset_trunk(arguments.trunk)
    trunk = target.limits.trunk(arguments.trunk)
    facts = [
        ("Trunk", trunk.trunk_id),
        ("State", state_of(trunk)),
        ("Workspaces", ", ".join(_users(trunk, users)) or "none"),
    ]
    terminal.give(_as_json(trunk, users), card(facts))
    fill(target, terminal, lambda: users)


def described(trunk: Trunk) -> dict[str, Any]:
    """The trunk for scripts."""
    return {
        "trunkId": trunk.trunk_id,
        "state": trunk.state(now_ms()),
        "faults": sorted(trunk.faults),
        "stops": trunk.stops,
        "stoppedAt": _time(trunk.stopped_at_ms),
        "stoppedUntil": _time(trunk.stopped_until_ms),
        "fault": trunk.fault or None,
    }


def state_of(trunk: Trunk) -> str:
    """The trunk's state for people."""
    return {
        "in_use": "in use",
        "stopped": "stopped",
        "probing": "one call tries it",
        "to_probe": "the next call tries it",
    }[trunk.state(now_ms())]


def _as_json(trunk: Trunk, workspaces: Iterable[Workspace]) -> dict[str, Any]:
    return described(trunk) | {"workspaces": _users(trunk, workspaces)}


def _users(trunk: Trunk, workspaces: Iterable[Workspace]) -> list[str]:
    return sorted(each.workspace_id for each in workspaces if each.sip_trunk_id == trunk.trunk_id)


def _time(ms: int) -> str | None:
    return iso(ms) if ms else None
