"""Ports of this machine for servers that are yet to start."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from local.errors import StackError


@contextlib.contextmanager
def reserved_port(port: int = 0) -> Iterator[int]:
    """A port that no other process is given in the meantime: bound here, but not listening, so that a server may
    take it with SO_REUSEADDR, as they all do. Raises StackError when `port` is in use."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError as exc:
            raise StackError(f"port {port} is in use: {exc.strerror}") from exc
        yield holder.getsockname()[1]
