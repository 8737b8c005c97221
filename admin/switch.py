"""`admin switch`: pause, resume, status."""

from __future__ import annotations

import argparse

from admin.admission import fill
from admin.target import Target
from admin.terminal import Terminal
from shared.call import iso
from shared.clock import now_ms


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
    terminal.give({"paused": since is not None, "pausedAt": since}, text)
