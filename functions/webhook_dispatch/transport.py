"""HTTP to addresses that were checked, and to no others.

httpx with a transport of its own on httpcore's connection pool, whose network backend resolves the name, checks
every address and connects to one of those. The pool is keyed by host name, TLS verifies the host name, and there
is no second look-up between check and connect that could answer differently (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import httpcore
import httpx

from webhook_dispatch.address_guard import Policy, check_addresses, check_url, resolve


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
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
                found = await asyncio.to_thread(resolve, host, port)
        except TimeoutError as exc:
            raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from exc
        except OSError as exc:
            raise httpcore.ConnectError(f"{host} has no address") from exc
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in check_addresses(host, found, self._policy):
            left = give_up - time.monotonic() if timeout else None
            if left is not None and left <= 0:
                break
            try:
                return await self._network.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure

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
    """Raises AddressRefused for a URL or address that may not be called, httpcore's errors for the rest."""

    def __init__(self, policy: Policy, ssl_context: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpx.create_ssl_context(),
            max_connections=20,
            keepalive_expiry=30,
            network_backend=_GuardedBackend(policy),
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
            headers=answer.headers,
            stream=_AnswerStream(cast(AsyncIterator[bytes], answer.stream)),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()
