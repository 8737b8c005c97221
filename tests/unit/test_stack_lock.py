"""The lock of a local stack's folder: waiting for it has a limit."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from local import stack_lock
from local.errors import StackError


def test_stop_reports_a_process_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock contains no process id, so no signal is sent."""
    monkeypatch.setattr(stack_lock, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(stack_lock, "GONE_SECONDS", 0.0)
    with (tmp_path / "lock").open("w") as left:
        fcntl.flock(left, fcntl.LOCK_EX)
        with pytest.raises(StackError, match="does not end"):
            stack_lock.stop(tmp_path)
