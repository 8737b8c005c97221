"""`admin switch`: pause, resume, status."""

from __future__ import annotations

import argparse

from admin.place import Place
from admin.terminal import Terminal
from shared.call import iso
from shared.clock import now_ms


def pause(place: Place, terminal: Terminal, arguments: argparse.Namespace) -> None:
    # Without confirmation: it loses nothing and may be urgent.
    place.limits.pause(now_ms())
    status(place, terminal, arguments)


def resume(place: Place, terminal: Terminal, arguments: argparse.Namespace) -> None:
    place.limits.resume()
    status(place, terminal, arguments)


def status(place: Place, terminal: Terminal, arguments: argparse.Namespace) -> None:
    paused_at = place.limits.paused_at()
    since = None if paused_at is None else iso(paused_at)
    text = (
        "Dialling is on."
        if since is None
        else f"Dialling is paused since {since}: calls under way go on, accepted ones wait. "
        f"`{place.command('switch resume')}` resumes dialling."
    )
    terminal.give({"paused": since is not None, "pausedAt": since}, text)
