"""The model opens no socket."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "test")
os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "Ringonce")


@pytest.fixture(autouse=True)
def _no_sockets(socket_disabled: None) -> None:
    """`socket_disabled` is pytest-socket's."""
