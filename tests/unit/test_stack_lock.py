"""The lock of a local stack's folder: waiting for it ends."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from local import stack


def test_stop_says_so_when_what_was_left_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock contains no process id, so no signal is sent."""
    monkeypatch.setattr(stack, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(stack, "GONE_SECONDS", 0.0)
    with (tmp_path / "lock").open("w") as left:
        fcntl.flock(left, fcntl.LOCK_EX)
        with pytest.raises(stack.StackError, match="does not end"):
            stack.stop(tmp_path)
