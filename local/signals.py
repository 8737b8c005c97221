"""The end by SIGINT, SIGTERM or SIGHUP: a flag, looked at between steps, so that no signal interrupts the start
of a process."""

from __future__ import annotations

import signal
import threading
from types import FrameType

stopping = threading.Event()


class StoppedError(Exception):
    """A signal asked for the end."""


def stop_on_signals() -> None:
    """From here on SIGINT, SIGTERM and SIGHUP set `stopping`."""

    def note(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)


def pause(seconds: float) -> None:
    """Sleeps. Raises StoppedError as soon as a signal asks for the end."""
    if stopping.wait(seconds):
        raise StoppedError
