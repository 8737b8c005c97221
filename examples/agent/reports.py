"""The reports of one call, sent in order and in the background: the conversation does not wait for them."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import aiohttp

from ringonce_agent import Dispatch, ReportFailedError, ReportRefusedError, report

logger = logging.getLogger("ringonce.agent")

# A report has at most 32 KiB and a call's reports 128 KiB: three transcripts leave room for the others.
TRANSCRIPT_BYTES = 28 * 1024
TRANSCRIPTS = 3
# The limit of one turn, at most 24 KB in any script. The rest of a longer turn is left out.
TURN_CHARACTERS = 4000

Send = Callable[[str, dict[str, Any]], Awaitable[Any]]


class Reports:
    """The queue of one call's reports. send: sends one report; by default `ringonce_agent.report`."""

    def __init__(self, dispatch: Dispatch, room: str, send: Send | None = None) -> None:
        self._send = send or functools.partial(report, dispatch, room)
        self._waiting: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._worker = asyncio.create_task(self._work())

    def tell(self, kind: str, data: dict[str, Any] | None = None) -> None:
        """Queues a report and returns immediately. One that fails is named in the log; the call continues."""
        self._waiting.put_nowait((kind, data or {}))

    async def close(self) -> None:
        """Waits until every report is sent or has failed."""
        await self._waiting.join()
        self._worker.cancel()

    async def _work(self) -> None:
        while True:
            kind, data = await self._waiting.get()
            try:
                await self._send(kind, data)
            except (ReportRefusedError, ReportFailedError, aiohttp.ClientError) as exc:
                logger.warning("not reported: %s: %s", kind, exc)
            except Exception:
                logger.exception("not reported: %s", kind)
            finally:
                self._waiting.task_done()


def transcripts(turns: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """The turns (speaker, text) of a conversation as the `data` of at most TRANSCRIPTS reports."""
    part: list[dict[str, str]] = []
    size = parts = 0
    for number, (speaker, text) in enumerate(turns):
        turn = {"speaker": speaker, "text": text[:TURN_CHARACTERS]}
        needs = len(json.dumps(turn, ensure_ascii=False).encode()) + 2
        if part and size + needs > TRANSCRIPT_BYTES:
            yield {"turns": part}
            part, size, parts = [], 0, parts + 1
            if parts == TRANSCRIPTS:
                logger.warning("the transcript is too long: its last %s turns are left out", len(turns) - number)
                return
        part.append(turn)
        size += needs
    if part:
        yield {"turns": part}
