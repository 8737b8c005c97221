"""The lock on a stack's state folder: one stack per folder, which another process can end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from local.errors import SettingError, StackError
from local.processes import GONE_SECONDS
from local.state_folder import clear

# How long a stack may take after SIGTERM before it is killed.
STOP_SECONDS = 60.0
# A file descriptor above any that a process opens at its start, so that it is closed last.
LAST_DESCRIPTOR = 200


@contextlib.contextmanager
def locked(state: Path) -> Iterator[int]:
    """Holds the state folder's lock, which this process and its children release at their end; yields its
    descriptor.

    Raises StackError when another stack holds it. Waits for the processes of a killed stack: they end by
    themselves and hold its ports until then."""
    until = time.monotonic() + GONE_SECONDS
    with _lock_file(state) as lock:
        while not _taken(lock):
            pid = _holder(lock)
            if (pid is not None and _alive(pid)) or time.monotonic() > until:
                raise StackError(f"a stack is running in {state} (process {pid})")
            time.sleep(0.02)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        # A dying process closes its files in the order of their descriptors: the lock after its sockets, so that
        # the ports are free for the next holder of the lock.
        descriptor = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, LAST_DESCRIPTOR)
        try:
            yield descriptor
        finally:
            lock.truncate(0)
            os.close(descriptor)


def _lock_file(state: Path) -> TextIO:
    """Opens the folder's lock, and makes both if need be. Raises SettingError when that is not possible."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        return (state / "lock").open("a+")
    except OSError as exc:
        raise SettingError(f"RINGONCE_LOCAL_DIR: {state} cannot be used: {exc.strerror}") from exc


def stop(state: Path) -> int | None:
    """Ends the stack of a state folder and waits for all its processes; its process id, None if no stack runs.

    Raises StackError when a process of it does not end, such as a suspended one of a killed stack.
    """
    stopped: int | None = None
    until = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), (state / "lock").open("r+") as lock:
        while not _taken(lock):
            pid = _holder(lock)
            if pid is not None and pid != stopped:
                if stopped is not None:
                    # Another stack has been started meanwhile.
                    break
                stopped = pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if stopped is not None and time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stopped, signal.SIGKILL)
            if time.monotonic() > until + GONE_SECONDS:
                raise StackError(f"what runs in {state} does not end: end the process that holds {state / 'lock'}")
            time.sleep(0.05)
        else:
            clear(state)
            lock.truncate(0)
    return stopped


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: TextIO) -> int | None:
    """The process id in a lock; None while it is empty."""
    lock.seek(0)
    text = lock.read()
    return int(text) if text else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
