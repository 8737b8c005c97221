"""The command's input and output: tables for people, JSON for scripts, confirmations before a loss."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, TextIO

_BAR_CELLS = 30


class AdminError(Exception):
    """The command cannot be carried out; `str()` is a one-line reason."""


class UsageError(AdminError):
    """Arguments are missing or contradict each other."""


@dataclasses.dataclass(frozen=True, slots=True)
class Terminal:
    """as_json: stdout gets one JSON value and nothing else. assume_yes: no confirmation is asked for."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    as_json: bool = False
    assume_yes: bool = False

    def confirm(self, consequence: str, question: str) -> None:
        """Asks before something is lost. Raises AdminError unless the answer is yes."""
        if self.assume_yes:
            return
        if not self.stdin.isatty():
            raise AdminError(f"{consequence} There is no terminal to ask on: repeat with --yes to do it.")
        # On stderr, so that the output can be redirected while the question is still seen.
        print(f"{consequence}\n{question} [y/N] ", end="", file=self.stderr, flush=True)
        if self.stdin.readline().strip().lower() not in ("y", "yes"):
            raise AdminError("nothing was changed")

    def progress(self, done: int, total: int | None, what: str) -> None:
        """Shows the progress of a long command on one line, which is overwritten; only on a terminal. total: None
        while unknown. Ends with done == total."""
        if not self.stderr.isatty():
            return
        if total is None:
            text = f"{done:,} {what}"
        else:
            filled = _BAR_CELLS * done // max(total, 1)
            text = f"[{'#' * filled}{'.' * (_BAR_CELLS - filled)}] {done:,} of {total:,} {what}"
        print(f"\r\x1b[K{text}", end="\n" if done == total else "", file=self.stderr, flush=True)

    def say(self, text: str = "") -> None:
        """Prints text for people: to stderr if stdout is for a script."""
        print(text, file=self.stderr if self.as_json else self.stdout)

    def give(self, value: Any, text: str) -> None:
        """Prints the result, as JSON or as text."""
        print(json.dumps(value, indent=2) if self.as_json else text, file=self.stdout)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, each as wide as its widest cell."""
    lines = [[name.upper() for name in header], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def card(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair per line."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in facts)
