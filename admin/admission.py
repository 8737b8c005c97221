"""Admits waiting calls at once after an operator has made way for them, as the reconciler does each minute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from admin.target import Target
from admin.terminal import Terminal
from shared.errors import StoreError
from shared.workspaces import Workspace

# Lines that are filled at the same time; a DynamoDB client keeps 20 connections.
THREADS = 10


def fill(target: Target, terminal: Terminal, workspaces: Callable[[], Iterable[Workspace]]) -> None:
    """Admits what may ring now from these workspaces' lines and says so. Never fails: the change is made, and what
    cannot be admitted from here the reconciler admits.
    """
    line = target.line
    if line is None:
        terminal.say(
            "\nCalls that wait are admitted by the reconciler, within a minute; with --stack, or CALLS_TABLE and "
            "DIAL_QUEUE_URL, at once."
        )
        return

    def admitted(workspace: Workspace) -> int | StoreError:
        try:
            standing = target.limits.standing(workspace)
            return line.fill(standing.workspace or workspace, standing)
        except StoreError as exc:
            return exc

    try:
        with ThreadPoolExecutor(THREADS) as threads:
            results = list(threads.map(admitted, workspaces()))
    except StoreError as exc:
        results = [exc]
    if number := sum(result for result in results if isinstance(result, int)):
        terminal.say(f"\n{number} {'call that waited is' if number == 1 else 'calls that waited are'} admitted.")
    if failed := [result for result in results if isinstance(result, StoreError)]:
        terminal.say(
            f"\nCalls that wait cannot be admitted from here ({failed[0]}): the reconciler admits them, within a "
            "minute."
        )
