"""Ties a process of the local stack to the stack. Python imports this module at start-up when its folder is on
PYTHONPATH: in the emulator, in the functions' processes that it starts, and in the stack's servers.

- The process ends with its parent and with the stack, also when those were killed: a killed process cannot stop
its
  children, so the children poll.
- A function's process writes its output immediately to the function's log. The emulator passes output on only at
the
  end of an invocation, and of an import error only the message.
- A function's process is killed where a test or the console asks for it (`kill_points.py`), and logs its steps
  (`step_log.py`).
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import traceback
from typing import Any, TextIO

LOOK_EVERY_SECONDS = 0.2


def watch(stack: int) -> None:
    """Ends this process when its parent or the stack (a process id) is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        try:
            os.kill(stack, 0)
        except OSError:
            break
        time.sleep(LOOK_EVERY_SECONDS)
    if folder := os.environ.get("RINGONCE_TEMPORARY_FOLDER"):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


class Copied:
    """A text stream that also writes its text to a log."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Answers(Copied):
    """The stream on which a function's process answers the emulator; only tracebacks are written to the log."""

    def write(self, text: str) -> int:
        if text.startswith('{"status": "error"') and sys.exc_info()[0]:
            self._log.write(traceback.format_exc())
        return self._stream.write(text)


if stack_pid := os.environ.get("RINGONCE_STACK_PID"):
    threading.Thread(target=watch, args=(int(stack_pid),), daemon=True, name="watch").start()
if log_path := os.environ.get("RINGONCE_FUNCTION_LOG"):
    # Line by line and appending, so that the processes of one function share the file.
    function_log = open(log_path, "a", buffering=1)  # noqa: SIM115 - open as long as the process
    sys.stderr = Copied(sys.stderr, function_log)
    sys.stdout = Answers(sys.stdout, function_log)
if os.environ.get("RINGONCE_DEATHS"):
    import kill_points

    kill_points.install()
