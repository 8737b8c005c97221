"""`admin switch`: pause, resume, status."""

from __future__ import annotations

import argparse

from admin.admission import fill
from admin.target import Target
from admin.terminal import Terminal
from shared.call import iso
from shared.clock import now_ms
from shared.errors import StoreError


def pause(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    # Without confirmation: it loses nothing and may be urgent.
    target.limits.pause(now_ms())
    status(target, terminal, arguments)


def resume(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    target.limits.resume(now_ms())
    status(target, terminal, arguments)
    fill(target, terminal, lambda: target.limits.everything().workspaces.values())


def status(target: Target, terminal: Terminal, arguments: argparse.Namespace) -> None:
    paused_at = target.limits.switch().paused_at_ms
    since = None if paused_at is None else iso(paused_at)
    text = (
        "Dialling is on."
        if since is None
        else f"Dialling is paused since {since}: calls under way go on, accepted ones wait. "
        f"`{target.command('switch resume')}` resumes dialling."
    )
    marked = _marked(target)
    if marked is False:
        text += (
            "\nThe table of numbers has no marker: nothing is dialled. In a new stack the reconciler writes it "
            "within a minute; otherwise opt-outs may be lost (docs/operations.md, Numbers marker missing)."
        )
    terminal.give({"paused": since is not None, "pausedAt": since, "numbersMarked": marked}, text)


def _marked(target: Target) -> bool | None:
    """Whether the table of numbers has its marker. None: not known; a pause must not fail because of it."""
    try:
        return None if target.numbers is None else target.numbers.marked()
    except StoreError:
        return None
