"""Starts the local stack by its public command, and finds processes and sockets that it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).parents[2]
# Deadlines that only a failure reaches: nothing here takes nearly as long, even on a slow machine.
START_SECONDS = 400.0
END_SECONDS = 180.0
LISTENING = "0A"  # a socket's state in /proc/net/tcp

T = TypeVar("T")


def eventually(found: Callable[[], T], what: str, seconds: float = END_SECONDS) -> T:
    """What `found` returns, as soon as it is true; fails the test when that takes longer than `seconds`."""
    until = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)
    return result


@dataclass(frozen=True, slots=True)
class Launched:
    """A stack's process. `state`: its state folder, whose `said` holds what it prints."""

    process: subprocess.Popen[bytes]
    state: Path

    def said(self) -> str:
        return (self.state / "said").read_text()

    def says(self, text: str) -> None:
        """Waits until the stack has printed `text`; fails the test when it ends before that."""

        def found() -> bool:
            if text in self.said():
                return True
            if self.process.poll() is not None:
                pytest.fail(f"the stack ended with {self.process.returncode}:\n{self.said()}")
            return False

        eventually(found, f"the stack prints {text!r}", START_SECONDS)

    def info(self) -> dict[str, Any]:
        """The stack's READY line, parsed."""
        self.says("READY ")
        eventually(lambda: self.said().endswith("\n"), "the line is whole")
        (line,) = (line for line in self.said().splitlines() if line.startswith("READY "))
        told: dict[str, Any] = json.loads(line.removeprefix("READY "))
        return told

    def interrupt(self) -> int:
        """Does what Ctrl-C does: SIGINT to the process group. Returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(END_SECONDS)


def tied_to_this() -> dict[str, str]:
    """The environment that ends a Python process with this one if the tests are killed (`local/process_hooks`)."""
    return {"PYTHONPATH": str(ROOT / "local" / "process_hooks"), "RINGONCE_STACK_PID": str(os.getpid())}


@contextlib.contextmanager
def launched(state: Path, environment: Mapping[str, str] | None = None) -> Iterator[Launched]:
    """`python -m local.stack` with a state folder of its own; ended with the context, if it still runs."""
    state.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIVEKIT_")}
    with (state / "said").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "local.stack"],
            cwd=ROOT,
            env={**kept, **tied_to_this(), "RINGONCE_LOCAL_DIR": str(state), "PORT": "", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    stack = Launched(process, state)
    try:
        yield stack
    finally:
        if process.poll() is None:
            stack.interrupt()


def processes_of(state: Path) -> dict[int, str]:
    """The processes that belong to a state folder, by its name in their environment: id and command line."""
    mark = f"RINGONCE_LOCAL_DIR={state}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(folder.name)] = command.strip()
    return found


def listening(processes: Mapping[int, str]) -> set[tuple[int, str]]:
    """The TCP sockets on which these processes listen: port and inode, since others may get the port later."""
    sockets = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(handle))
    return {(port, inode) for port, inode in all_listening() if f"socket:[{inode}]" in sockets}


def all_listening() -> Iterator[tuple[int, str]]:
    """Port and inode of every listening socket."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == LISTENING:
                    yield int(columns[1].rsplit(":", 1)[1], 16), columns[9]
