"""An event loop with virtual time: when nothing is left to do now, it jumps to the next timer.

Sockets between parts of one process (AF_UNIX) deliver their bytes at once, so when no socket is readable every
task waits for a timer. Functions for threads (`asyncio.to_thread`) run in greenlets, which switch to the loop at
each outside call: one runs at a time, in an order that depends only on the virtual time.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for no one: tells `jump` how long it would have waited."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("every task waits, and none for a timer")
        if not ready and timeout:
            self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 seconds."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def _jump(self, seconds: float) -> None:
        # A little further, so that a float's rounding leaves no timer ahead that counts as due already: a task
        # that waits for it again would wait for ever.
        self._virtual_now += seconds + 1e-7

    def time(self) -> float:
        return self._virtual_now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        return self.create_task(_Strand(functools.partial(func, *args)).finished())


class Abandoned(BaseException):
    """Raised in a function whose process was ended while it waited: it does nothing more."""


class _Strand(greenlet):
    """A function that would run in a thread: it runs while the loop stands still, and the other way round."""

    async def finished(self) -> Any:
        """What the function returns, or raises. It runs from here to here: `wait_for` hands its turn back."""
        go_on: Callable[[], Any] = self.switch
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                handed_over = go_on()
            except BaseException:
                if cancelled is None:
                    raise
            if self.dead:
                if cancelled is not None:
                    raise cancelled
                return handed_over
            # It has not returned: this is what it waits for.
            if cancelled is not None:
                handed_over.close()
                continue
            try:
                go_on = functools.partial(self.switch, await handed_over)
            except asyncio.CancelledError as exc:
                cancelled = exc
                go_on = functools.partial(self.throw, Abandoned)
            except BaseException as exc:
                go_on = functools.partial(self.throw, exc)


async def to_thread(func: Callable[..., T], /, *args: Any, **named: Any) -> T:
    """In place of `asyncio.to_thread` where its tasks, one for each function, would take too long: no turn of the
    loop unless the function waits for something.
    """
    context = contextvars.copy_context()
    result: T = await _Strand(functools.partial(context.run, func, *args, **named)).finished()
    return result


def in_thread() -> bool:
    """Whether this code runs in what the product takes for a thread."""
    return isinstance(getcurrent(), _Strand)


def wait_for(wanted: Coroutine[Any, Any, T]) -> T:
    """Called there: lets the loop run until `wanted` is done. In place of `asyncio.run`."""
    strand = getcurrent()
    assert isinstance(strand, _Strand)
    assert strand.parent is not None
    result: T = strand.parent.switch(wanted)
    return result


def sleep(seconds: float) -> None:
    """In place of `time.sleep`: in what the product takes for a thread, the loop's time passes."""
    if in_thread():
        wait_for(asyncio.sleep(seconds))
