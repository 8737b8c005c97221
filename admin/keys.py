"""`admin key`: create, list, revoke.

A key is shown once and stored as its SHA-256; the first eight hex digits of the hash are its id. Beside the hash
its label, the time at which it was made and its last four characters are kept, so that people can tell keys apart.
Keys that an older version made have none of these.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
from typing import Any

from admin.target import Target
from admin.terminal import AdminError, Terminal, table
from shared.call import iso
from shared.clock import now_ms
from shared.workspaces import Workspace, key_hash


def create(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    confirmed = target.existing(arguments.workspace)
    if confirmed.open:
        terminal.confirm(
            f"{confirmed.workspace_id} is open. With a key, requests without one are refused, within a minute.",
            "Make a key?",
        )
    key = new_key()
    hashed, noted = key_hash(key), note(key, arguments.label)

    def change(seen: Workspace) -> Workspace:
        if seen.open and not confirmed.open:
            raise changed_meanwhile(seen)
        return _with_keys(seen, seen.api_key_hashes | {hashed}, noted, open=False)

    workspace = target.updated(confirmed.workspace_id, change)
    given = {
        "workspaceId": workspace.workspace_id,
        "apiKey": key,
        "keyId": _id(hashed),
        "label": arguments.label,
        "apiKeyIds": key_ids(workspace),
    }
    terminal.give(given, key)
    terminal.say(
        f"\nKey {_id(hashed)} of {workspace.workspace_id}, one of {len(workspace.api_key_hashes)}. Keep it now: "
        "only its hash is stored. Running processes know it within a minute."
    )


def list_all(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    workspace = target.existing(arguments.workspace)
    ids = key_ids(workspace)
    if ids:
        rows = [
            (key["id"], *(key[name] or "-" for name in ("label", "createdAt", "last4")), hashed)
            for hashed, key in zip(sorted(workspace.api_key_hashes), described(workspace), strict=True)
        ]
        text = table(("key", "label", "created", "ends in", "sha-256"), rows)
    elif workspace.open:
        text = f"{workspace.workspace_id} has no keys and is open: a request needs only its id."
    else:
        text = f"{workspace.workspace_id} has no keys: every request is refused."
    given = {"workspaceId": workspace.workspace_id, "apiKeyIds": ids, "apiKeys": described(workspace)}
    terminal.give(given | {"open": workspace.open}, text)


def revoke(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    confirmed = target.existing(arguments.workspace)
    hashed = _only(confirmed, arguments.key)
    others = len(confirmed.api_key_hashes) - 1
    if arguments.open and others:
        raise AdminError(f"--open goes with the last key only, and {confirmed.workspace_id} has {others} more")
    if arguments.open:
        consequence = f"{_id(hashed)} is the last key. {opened(confirmed.workspace_id)}"
    elif others:
        consequence = f"Within a minute requests with the key {_id(hashed)} are refused."
    else:
        consequence = (
            f"{_id(hashed)} is the last key. Within a minute every request of {confirmed.workspace_id} is "
            "refused, until there is a new key."
        )
    terminal.confirm(consequence, "Revoke it?")

    def change(seen: Workspace) -> Workspace:
        if hashed in seen.api_key_hashes and seen.api_key_hashes != confirmed.api_key_hashes:
            # Whether it is the last key may have changed.
            raise changed_meanwhile(seen)
        rest = seen.api_key_hashes - {hashed}
        return _with_keys(seen, rest, open=seen.open or (arguments.open and not rest))

    workspace = target.updated(confirmed.workspace_id, change)
    given = {"workspaceId": workspace.workspace_id, "apiKeyIds": key_ids(workspace), "open": workspace.open}
    left = ", ".join(key_ids(workspace)) or ("none, it is open" if workspace.open else "none, all is refused")
    terminal.give(given, f"Revoked {_id(hashed)}. Keys of {workspace.workspace_id} now: {left}.")


def new_key() -> str:
    """256 random bits: `rk_` and 43 characters."""
    return "rk_" + secrets.token_urlsafe(32)


def note(key: str, label: str | None) -> dict[str, dict[str, str]]:
    """What is kept of a new key for people, by its hash."""
    known = {"createdAt": iso(now_ms()), "last4": key[-4:]}
    return {key_hash(key): known if label is None else known | {"label": label}}


def described(workspace: Workspace) -> list[dict[str, Any]]:
    """The keys with what is known of each, in the order of their hashes; None what is not known."""
    return [
        {"id": _id(hashed)}
        | {name: workspace.key_notes.get(hashed, {}).get(name) for name in ("label", "createdAt", "last4")}
        for hashed in sorted(workspace.api_key_hashes)
    ]


def key_ids(workspace: Workspace) -> list[str]:
    return sorted(_id(hashed) for hashed in workspace.api_key_hashes)


def opened(workspace_id: str) -> str:
    """The consequence of an open workspace, for a confirmation or warning."""
    return (
        f"Anyone who knows the id {workspace_id} can place calls: no key is required. "
        "Keep the API behind IAM or in a private network."
    )


def changed_meanwhile(workspace: Workspace) -> AdminError:
    return AdminError(
        f"{workspace.workspace_id} was changed by another command meanwhile; nothing was changed: check and repeat"
    )


def _id(hashed: str) -> str:
    return hashed[:8]


def _with_keys(
    workspace: Workspace, hashes: frozenset[str], noted: dict[str, dict[str, str]] | None = None, *, open: bool
) -> Workspace:
    """The workspace with these keys, and with the notes of these alone."""
    notes = {hashed: kept for hashed, kept in workspace.key_notes.items() if hashed in hashes} | (noted or {})
    return dataclasses.replace(workspace, api_key_hashes=hashes, key_notes=notes, open=open)


def _only(workspace: Workspace, beginning: str) -> str:
    """The only hash that begins so. Raises AdminError when there is none or more than one."""
    found = [hashed for hashed in workspace.api_key_hashes if hashed.startswith(beginning)]
    if not found:
        raise AdminError(f"{workspace.workspace_id} has no key {beginning}; `key list` shows them")
    if len(found) > 1:
        raise AdminError(
            f"{len(found)} keys begin with {beginning}: give more of the SHA-256 that `key list` shows"
        )
    return found[0]
