"""The processes of a running stack: starts them, watches them, waits for them and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.aws_client import CREDENTIALS, REGION
from local.errors import StackError
from local.paths import PROCESS_HOOKS, ROOT
from local.signals import pause
from local.state_folder import temporary_folder

# A deadline for processes that hang: one that dies is noticed immediately, and a slow machine must not reach it.
START_SECONDS = 300.0
# How long the API waits for a function's answer, including the start of its process.
ANSWER_SECONDS = 120.0
# How long a server may take to end after SIGTERM.
GRACE_SECONDS = 2.0
# How long killed processes may take to disappear.
GONE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def fail_if_dead(self) -> None:
        """Raises StackError if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise StackError(f"{self.name} ended with {code}\n{tail(self.log)}")


@dataclass(slots=True)
class Running:
    """A running stack. info: the content of its `stack.json`. lock: the descriptor that `locked` yields."""

    state: Path
    time_scale: float
    lock: int
    children: dict[str, Child] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    broken: BaseException | None = None

    def in_background(self, work: Callable[..., None], *arguments: Any) -> None:
        """Runs `work` in a thread until it returns. An exception before the stack's end becomes `broken`."""

        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as exc:
                if not self.done.is_set():
                    self.broken = exc

        threading.Thread(target=guarded, name=work.__name__, daemon=True).start()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Starts a process in a session of its own; its output goes to `logs/<name>.log`. It inherits the state
        folder's lock: when this process is killed, the lock is released by the last of the others."""
        log = self.state / "logs" / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(self.lock,),
            )
        self.children[name] = Child(name, process, log)
        return self.children[name]

    def check(self) -> None:
        """Raises StackError if a process has ended or background work has failed."""
        for child in self.children.values():
            child.fail_if_dead()
        if self.broken:
            # A dying process closes its connections before it ends: the emulator's end may be the cause.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.children["aws"].process.wait(GRACE_SECONDS)
            self.children["aws"].fail_if_dead()
            raise StackError(f"the stack's own part failed: {self.broken!r}") from self.broken

    def stop(self) -> None:
        """Ends every process. The emulator is killed with the functions' processes in its group: it stores
        nothing."""
        self.done.set()
        for child in self.children.values():
            number = signal.SIGKILL if child.name == "aws" else signal.SIGTERM
            _signal_group(child.process.pid, number)
        until = time.monotonic() + GRACE_SECONDS
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))
            _signal_group(child.process.pid, signal.SIGKILL)
            child.process.wait()
        until = time.monotonic() + GONE_SECONDS
        for child in self.children.values():
            # A function's process is not this one's child, so its end can only be polled.
            while _lives(child.process.pid) and time.monotonic() < until:
                time.sleep(0.01)


def _signal_group(group: int, number: int) -> bool:
    """Whether a process got the signal: a group whose leader is dead may still have members."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _lives(group: int) -> bool:
    """Whether a process of a group still runs. A zombie, as in a container without an init, gets signals too and
    does not count."""
    if not _signal_group(group, 0):
        return False
    if not Path("/proc/self/stat").exists():
        return True
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may contain any character: state, parent, group (proc_pid_stat(5)).
            state, _, its_group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in ("Z", "X"):
                return True
    return False


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log; a message when it is empty or absent."""
    if not log.exists() or not (text := log.read_text(errors="replace")):
        return f"({log.name} is empty)"
    return "\n".join(text.splitlines()[-lines:])


def wait_for(found: Callable[[], Any], what: str, running: Running, seconds: float = START_SECONDS) -> Any:
    """Polls until `found` returns a true value, and returns it. Raises StackError after `seconds` or when a
    process ends, StoppedError on a signal."""
    until = time.monotonic() + seconds
    pause(0)
    while not (result := found()):
        running.check()
        if time.monotonic() > until:
            raise StackError(f"{what} was not ready within {seconds:.0f} s")
        pause(0.02)
    return result


def ready_line(child: Child) -> str | None:
    """The URL in the READY line of a server of this package; None before it accepts connections."""
    for line in child.log.read_text(errors="replace").splitlines(keepends=True):
        # A line without a newline is still being written.
        if line.startswith("READY ") and line.endswith("\n"):
            url: str = json.loads(line.removeprefix("READY "))["url"]
            return url
    return None


def child_environment(state: Path) -> dict[str, str]:
    """The environment of a child: without the user's AWS and LiveKit settings, and tied to this process's end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LIVEKIT_"))}
    return {
        **kept,
        **CREDENTIALS,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(PROCESS_HOOKS),
        "PYTHONUNBUFFERED": "1",
        "RINGONCE_STACK_PID": str(os.getpid()),
        "TMPDIR": str(temporary_folder(state)),
    }
