"""A process that can die at each of its steps."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Death(BaseException):
    """The process is dead: raised at the point of death, and at every operation that it would still make."""


class MortalProcess:
    """What runs its external operations: in memory, over HTTP. The `dies_at`-th is the last.

    after: the last one takes effect, only its answer is not seen.
    """

    def __init__(self, dies_at: int | None = None, *, after: bool = False) -> None:
        self.operations = 0
        self.dead = False
        self._dies_at = dies_at
        self._after = after
        self._lock = threading.Lock()

    def run(self, operation: Callable[[], T]) -> T:
        with self._lock:
            last = self._counts_last()
            if not last or self._after:
                result = operation()
            if last:
                raise Death
            return result

    async def run_async(self, operation: Callable[[], Awaitable[T]]) -> T:
        with self._lock:
            last = self._counts_last()
        if not last or self._after:
            result = await operation()
        if last or self.dead:
            raise Death
        return result

    def _counts_last(self) -> bool:
        if self.dead:
            raise Death
        self.operations += 1
        self.dead = self.operations == self._dies_at
        return self.dead
