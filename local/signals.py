"""SIGINT, SIGTERM and SIGHUP set a flag that is checked between steps, so that no signal interrupts the start of
a process."""

from __future__ import annotations

import signal
import threading
from types import FrameType

stopping = threading.Event()


class StoppedError(Exception):
    """A signal has asked the process to end."""


def stop_on_signals() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP set `stopping`."""

    def note(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)


def pause(seconds: float) -> None:
    """Sleeps. Raises StoppedError as soon as a signal has set `stopping`."""
    if stopping.wait(seconds):
        raise StoppedError
