"""Runs one of the local stack's aiohttp applications as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl

from aiohttp import web

# How long requests under way may take to end after a signal.
SHUTDOWN_SECONDS = 1.0


def serve(app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> None:
    """Serves `app` on 127.0.0.1 until SIGTERM or SIGINT. Port 0 means any free one. As soon as it accepts
    connections, prints `READY {"url": "http://127.0.0.1:PORT"}` on a line of its own."""
    asyncio.run(_serve(app, port, tls))


async def _serve(app: web.Application, port: int, tls: ssl.SSLContext | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    # A body is what was sent: signatures are over its bytes, and a proxy passes it on.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
        url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        print("READY", json.dumps({"url": url}), flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
