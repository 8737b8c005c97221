"""Runs one of the local stack's aiohttp applications as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl

from aiohttp import web

from local.command_line import CommandLine

# How long requests in progress may take after a signal.
SHUTDOWN_SECONDS = 1.0


class CannotListenError(Exception):
    """The port is taken or not allowed. `str()` says why."""


def serve(command: CommandLine, app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Serves `app` on 127.0.0.1 until SIGTERM or SIGINT. Port 0 means any free one. As soon as it accepts
    connections, prints `READY {"url": "http://127.0.0.1:PORT"}` on a line of its own.

    Ends the process with an error of `command` when the port is taken.
    """
    try:
        asyncio.run(_serve(app, port, tls))
    except CannotListenError as exc:
        command.error(f"argument --port: {exc}")


async def _serve(app: web.Application, port: int, tls: ssl.SSLContext | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # Bodies are not decompressed: signatures cover the bytes that were sent, and a proxy passes them on.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, auto_decompress=False)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
        except OSError as exc:
            raise CannotListenError(f"127.0.0.1:{port}: {os.strerror(exc.errno or 0)}") from exc
        url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        print("READY", json.dumps({"url": url}), flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
