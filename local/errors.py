"""The local stack's errors."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start or has lost a process. `str()` says which, with the end of its log."""


class SettingError(StackError):
    """A variable of the environment is missing or wrong. `str()` names it."""
