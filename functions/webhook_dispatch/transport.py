"""An HTTP transport that connects only to checked addresses.

An httpx transport on httpcore's connection pool, whose network backend resolves the name, checks every address and
connects to one of them. The pool is keyed by host name, TLS verifies the host name, and there is no second look-up
between check and connect that could answer differently (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpcore
import httpx

from shared.callback_url import LookUp, Policy, check_addresses, check_url, resolve
from shared.durations import Durations

# A look-up cannot be canceled: one that hangs occupies its thread until the system's resolver gives up. So
# look-ups have a separate pool from AWS requests, large enough for batches full of dead names.
LOOK_UP_THREADS = 32

# The response extension that holds the `Location` header.
LOCATION = "ringonce.location"


class _Connection(httpcore.AsyncNetworkStream):
    """An httpcore connection with access to its socket.

    At every request the pool checks for each connection whether the peer has closed it, and anyio's check costs a
    system call for every attribute of a socket. Also, a canceled TLS handshake closes the socket at once rather
    than at garbage collection.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, raw: Any) -> None:
        self._stream = stream
        self._raw = raw

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return _Connection(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._raw)
        except asyncio.CancelledError:
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return _is_readable(self._raw) if info == "is_readable" else self._stream.get_extra_info(info)


def _is_readable(raw: Any) -> bool:
    """Whether an idle connection has input: the peer has closed it, or sent data without a request."""
    if raw.fileno() < 0:
        return True
    waiting = select.poll()
    waiting.register(raw, select.POLLIN)
    return bool(waiting.poll(0))


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, policy: Policy, look_up: LookUp) -> None:
        self._policy = policy
        self._look_up = look_up
        self._threads = ThreadPoolExecutor(LOOK_UP_THREADS, thread_name_prefix="look-up")
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        give_up = time.monotonic() + (timeout or 0)
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().run_in_executor(self._threads, self._look_up, host, port)
        except TimeoutError as exc:
            raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from exc
        except (OSError, UnicodeError) as exc:
            raise httpcore.ConnectError(f"{host} has no address") from exc
        addresses = check_addresses(found, self._policy)
        failure: Exception = httpcore.ConnectTimeout(f"no address of {host} was reached in time")
        for place, address in enumerate(addresses):
            # Each address gets a share of the time, so that one that does not answer leaves some for the next.
            left = (give_up - time.monotonic()) / (len(addresses) - place) if timeout else None
            if left is not None and left <= 0:
                break
            try:
                stream = await self._network.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
            else:
                return _Connection(stream, stream.get_extra_info("socket"))
        raise failure

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class _AnswerStream(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        await cast(Any, self._stream).aclose()


class GuardedTransport(httpx.AsyncBaseTransport):
    """Raises AddressRefusedError for a URL or address that may not be called, and httpcore's errors.

    ssl_context: the default trusts certifi's authorities. look_up: the default is the system's resolver.
    """

    def __init__(
        self, policy: Policy, ssl_context: ssl.SSLContext | None = None, look_up: LookUp = resolve
    ) -> None:
        self._policy = policy
        self._backend = _GuardedBackend(policy, look_up)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpx.create_ssl_context(),
            max_connections=20,
            keepalive_expiry=30,
            network_backend=self._backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        check_url(str(request.url), self._policy)
        answer = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=cast(Any, request.stream),
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            answer.status,
            # All tenants share one client: one tenant's cookies must not be sent with another's webhook.
            headers=[(name, value) for name, value in answer.headers if name.lower() != b"set-cookie"],
            stream=_AnswerStream(cast(AsyncIterator[bytes], answer.stream)),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()
        self._backend.close()


def webhook_client(transport: httpx.AsyncBaseTransport, durations: Durations) -> httpx.AsyncClient:
    """The client for webhooks: one per process, which keeps its connections."""
    return httpx.AsyncClient(
        transport=transport,
        timeout=httpx.Timeout(durations.webhook_attempt, connect=durations.webhook_connect),
        follow_redirects=False,
        event_hooks={"response": [_put_location_aside]},
    )


async def _put_location_aside(answer: httpx.Response) -> None:
    """Moves `Location` into the extension LOCATION, as raw bytes. httpx builds the next request of every redirect,
    even if it is not followed, and would raise for a `Location` that is not a URL.
    """
    given = [value for name, value in answer.headers.raw if name.lower() == b"location"]
    if given:
        del answer.headers["location"]
        answer.extensions[LOCATION] = given[0]
