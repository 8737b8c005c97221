"""`admin webhook-secret`: rotate, drop-old.

During a rotation every webhook carries two signatures, so that a receiver can switch at any time: rotate, give the
receiver the new secret, then drop the old one.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import secrets

from admin.keys import changed_meanwhile
from admin.target import Target
from admin.terminal import Terminal
from shared.workspaces import Workspace


def rotate(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    confirmed = target.existing(arguments.workspace)
    kept = () if arguments.drop_old else confirmed.webhook_secrets[:1]
    lost = len(confirmed.webhook_secrets) - len(kept)
    if lost:
        terminal.confirm(
            f"Within a minute {_secrets(lost)} of {confirmed.workspace_id} will no longer sign: receivers without "
            "a newer one will refuse its webhooks.",
            "Rotate?",
        )
    secret = new_secret()
    workspace = _set(target, confirmed, (secret, *kept))
    given = {"workspaceId": workspace.workspace_id, "webhookSecret": secret, "webhookSecretCount": 1 + len(kept)}
    terminal.give(given, secret)
    terminal.say("\nKeep it now: it is not shown again.")
    if kept:
        terminal.say(
            "Webhooks are signed with this one and the previous one. When the receivers have it: "
            + target.command(f"webhook-secret drop-old {workspace.workspace_id}")
        )


def drop_old(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    confirmed = target.existing(arguments.workspace)
    lost = len(confirmed.webhook_secrets[1:])
    if lost:
        terminal.confirm(
            f"Within a minute {_secrets(lost)} of {confirmed.workspace_id} will no longer sign.", "Drop the old?"
        )
    workspace = _set(target, confirmed, confirmed.webhook_secrets[:1])
    left = len(workspace.webhook_secrets)
    given = {"workspaceId": workspace.workspace_id, "webhookSecretCount": left}
    terminal.give(given, f"{_secrets(lost)} dropped; {workspace.workspace_id} signs with {left or 'none'}.")


def new_secret() -> str:
    """A secret in Standard Webhooks' format: `whsec_` and 32 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _set(target: Target, confirmed: Workspace, to: tuple[str, ...]) -> Workspace:
    def change(seen: Workspace) -> Workspace:
        # `to` may be stored already, if this repeats a write that succeeded.
        if seen.webhook_secrets not in (confirmed.webhook_secrets, to):
            raise changed_meanwhile(seen)
        return dataclasses.replace(seen, webhook_secrets=to)

    return target.updated(confirmed.workspace_id, change)


def _secrets(number: int) -> str:
    return "1 secret" if number == 1 else f"{number} secrets"
