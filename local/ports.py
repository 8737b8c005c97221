"""Reserves ports for servers that start later."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from local.errors import StackError


@contextlib.contextmanager
def reserved_port(port: int = 0) -> Iterator[int]:
    """Yields a port that no other process gets meanwhile: it is bound here without listening, so that a server can
    bind it with SO_REUSEADDR, as the stack's servers do. Port 0 means any free one. Raises StackError when `port`
    is in use."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError as exc:
            raise StackError(f"port {port} is in use: {exc.strerror}") from exc
        yield holder.getsockname()[1]
