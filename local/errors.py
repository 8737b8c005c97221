"""The local stack's error."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start or has lost a process. `str()` says which, with the end of its log."""
