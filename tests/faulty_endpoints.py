"""Webhook endpoints that fail in every way, on real sockets, each at a name of its own; and a good one."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import socket
import ssl
from collections.abc import AsyncIterator

import httpx
import trustme

from shared.callback_url import Policy
from webhook_dispatch.transport import GuardedTransport

# Stands for a byte a second, at the scale of a test.
DRIP_SECONDS = 0.02

# Those that take an attempt's whole time stand together, so that one batch holds them.
KINDS = (
    "good",
    "answers 204",
    "answers 10 MB",
    "drips its answer",
    "hangs",
    "drips its headers",
    "refuses",
    "resets",
    "speaks no HTTP",
    "answers 500",
    "answers 429",
    "redirects to loopback",
    "has another name's certificate",
    "has a certificate of its own making",
    "answers TLS with plain HTTP",
    "hangs at TLS",
)
NO_TLS = ("answers TLS with plain HTTP", "hangs at TLS")


@dataclasses.dataclass
class Endpoints:
    """url: by kind. posts: the webhook ids each got, as often as it got them. forbidden: who came to where the
    redirect leads. let_go: ends what hangs.
    """

    url: dict[str, str]
    authority: trustme.CA
    posts: dict[str, list[str]]
    connections: collections.Counter[str]
    forbidden: list[str]
    serving: set[asyncio.Task[None]] = dataclasses.field(default_factory=set)
    let_go: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def transport(self) -> GuardedTransport:
        """What deliver posts through: these names are on loopback, their authority is trusted."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        ports = frozenset(httpx.URL(url).port or 443 for url in self.url.values())
        return GuardedTransport(Policy(ports, loopback=True), context, lambda host, port: ["127.0.0.1"])


def name_of(kind: str) -> str:
    return kind.lower().replace(" ", "-").replace("'", "") + ".example.com"


@contextlib.asynccontextmanager
async def endpoints(plain: bool = False) -> AsyncIterator[Endpoints]:
    """All of them, as long as the context lasts. plain: HTTP by address, as the local stack's own receiver."""
    authority, impostor = trustme.CA(), trustme.CA()
    found = Endpoints({}, authority, collections.defaultdict(list), collections.Counter(), [])
    async with contextlib.AsyncExitStack() as stack:

        async def listen(serve: asyncio.base_events.Server) -> int:
            await stack.enter_async_context(serve)
            port: int = serve.sockets[0].getsockname()[1]
            return port

        async def forbidden(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.forbidden.append(str(writer.get_extra_info("peername")))
            writer.close()

        elsewhere = await listen(await asyncio.start_server(forbidden, "127.0.0.1", 0))
        for kind in KINDS:
            if kind == "refuses":
                # Bound and not listening: no other process gets the port, and connections are refused.
                reserved = stack.enter_context(socket.socket())
                reserved.bind(("127.0.0.1", 0))
                port = reserved.getsockname()[1]
            else:
                signer = impostor if kind == "has a certificate of its own making" else authority
                named = "else.example.com" if kind == "has another name's certificate" else name_of(kind)
                tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                signer.issue_cert(named).configure_cert(tls)
                serve = _Serve(found, kind, f"http://127.0.0.1:{elsewhere}/admin")
                context = None if plain or kind in NO_TLS else tls
                port = await listen(await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
            found.url[kind] = f"http://127.0.0.1:{port}/in" if plain else f"https://{name_of(kind)}:{port}/in"
        yield found
        for task in found.serving:
            task.cancel()
        await asyncio.gather(*found.serving, return_exceptions=True)


class _Serve:
    """One kind of endpoint."""

    def __init__(self, found: Endpoints, kind: str, elsewhere: str) -> None:
        self._found = found
        self._kind = kind
        self._elsewhere = elsewhere

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._found.serving.add(task)
        self._found.connections[self._kind] += 1
        try:
            with contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError
            ):
                await self._serve(reader, writer)
        finally:
            # At once: a TLS connection's orderly shutdown waits for a peer that may be gone.
            writer.transport.abort()
            self._found.serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._kind in NO_TLS:
            await reader.read(1)
            if self._kind == "answers TLS with plain HTTP":
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            # Until the client goes away.
            while await reader.read(1000):
                pass
            return
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            await reader.readexactly(int(headers["content-length"]))
            self._found.posts[self._kind].append(headers["webhook-id"])
            if not await self._answer(reader, writer):
                return

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays."""
        match self._kind:
            case "resets":
                writer.transport.abort()
                return False
            case "hangs":
                ends = [asyncio.ensure_future(one) for one in (reader.read(), self._found.let_go.wait())]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for one in ends:
                    one.cancel()
                return False
            case "speaks no HTTP":
                writer.write(b"220 mail.example.com ESMTP\r\n\r\n")
                await reader.read()
                return False
            case "drips its headers":
                return await self._drip(reader, writer, b"HTTP/1.1 200 OK\r\nX-Slow: ")
            case "drips its answer":
                return await self._drip(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            case "answers 10 MB":
                size = 10 * 1024 * 1024
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                for _ in range(size // 65536):
                    writer.write(b"x" * 65536)
                    await writer.drain()
                return True
            case "answers 500":
                answer = "500 Oops\r\nContent-Length: 4\r\n\r\nOops"
            case "answers 429":
                answer = "429 Slow\r\nRetry-After: 7200\r\nContent-Length: 0\r\n\r\n"
            case "redirects to loopback":
                answer = f"301 Moved\r\nLocation: {self._elsewhere}\r\nContent-Length: 0\r\n\r\n"
            case "answers 204":
                answer = "204 No Content\r\n\r\n"
            case _:
                answer = "200 OK\r\nContent-Length: 2\r\n\r\nok"
        writer.write(f"HTTP/1.1 {answer}".encode())
        await writer.drain()
        return True

    async def _drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> bool:
        writer.write(first)
        gone = asyncio.ensure_future(reader.read())
        try:
            while not (await asyncio.wait([gone], timeout=DRIP_SECONDS))[0]:
                writer.write(b".")
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        return False
