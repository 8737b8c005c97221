"""The index `line` as DynamoDB shows it: eventually. Each entry appears late and disappears late, the changes of
one call in their order.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

Entry = tuple[str, str]  # lineOf, turn


class LineIndex:
    """clock: milliseconds. delay_ms: drawn for each change of an entry."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self.delay_ms: Callable[[], int] = lambda: 0
        self._shown: dict[str, Entry] = {}
        # By call: the changes that do not show yet, and when they do.
        self._changes: dict[str, collections.deque[tuple[int, Entry | None]]] = {}

    def note(self, call_id: str, entry: Entry | None) -> None:
        """The call's item has been written."""
        waiting = self._changes.get(call_id)
        last = waiting[-1][1] if waiting else self._shown.get(call_id)
        if entry != last:
            at_ms = max(self._clock() + self.delay_ms(), waiting[-1][0] if waiting else 0)
            self._changes.setdefault(call_id, collections.deque()).append((at_ms, entry))

    def is_stale(self) -> bool:
        self._settle()
        return bool(self._changes)

    def entries(self, line_of: str, start: str = "", end: str = "~") -> Iterator[tuple[str, str]]:
        """Call id and turn of a partition's entries from `start` to `end`, in their turn."""
        self._settle()
        found = ((turn, call_id) for call_id, (line, turn) in self._shown.items() if line == line_of)
        for turn, call_id in sorted(found):
            if start <= turn <= end:
                yield call_id, turn

    def call_ids(self) -> set[str]:
        """The calls that it shows, and those of which a change does not show yet."""
        self._settle()
        return {*self._shown, *self._changes}

    def is_empty(self) -> bool:
        return not self.call_ids()

    def _settle(self) -> None:
        now_ms = self._clock()
        for call_id, waiting in list(self._changes.items()):
            while waiting and waiting[0][0] <= now_ms:
                _, entry = waiting.popleft()
                if entry is None:
                    self._shown.pop(call_id, None)
                else:
                    self._shown[call_id] = entry
            if not waiting:
                del self._changes[call_id]
