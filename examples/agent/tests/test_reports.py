"""Reports in the background: in order, none lost at the end, and never too large."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from reports import TRANSCRIPTS, Reports, transcripts
from ringonce_agent import ReportRefusedError, read_dispatch
from tests.fakes import ROOM, dispatch_metadata


def test_closing_waits_for_every_report_in_order_and_one_that_fails_stops_no_other() -> None:
    sent: list[str] = []

    async def send(kind: str, data: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        if kind == "agent.b":
            raise ReportRefusedError(409, "reports_full", "no more")
        if kind == "agent.c":
            raise RuntimeError("unforeseen")
        sent.append(kind)

    async def run() -> None:
        reports = Reports(read_dispatch(dispatch_metadata()), ROOM, send)
        for kind in ("agent.a", "agent.b", "agent.c", "agent.d"):
            reports.tell(kind)
        assert sent == []
        await reports.close()

    asyncio.run(run())
    assert sent == ["agent.a", "agent.d"]


@pytest.mark.parametrize("text", ["a", "é" * 200, '"\\\n' * 300, "x" * 100_000, "\x00" * 10_000])
def test_a_long_transcript_is_split_into_reports_within_the_limits(text: str) -> None:
    turns = [("agent" if n % 2 else "callee", text) for n in range(2000)]
    parts = list(transcripts(turns))
    assert 1 <= len(parts) <= TRANSCRIPTS
    bodies = [json.dumps({"type": "agent.transcript", "data": part}, ensure_ascii=False) for part in parts]
    assert max(len(body.encode()) for body in bodies) <= 32 * 1024
    said = [turn for part in parts for turn in part["turns"]]
    assert [turn["speaker"] for turn in said] == [speaker for speaker, _ in turns[: len(said)]]
    assert all(text.startswith(turn["text"]) for turn in said)


def test_a_short_conversation_is_one_report_and_none_is_none() -> None:
    assert list(transcripts([])) == []
    assert list(transcripts([("agent", "Hello")])) == [{"turns": [{"speaker": "agent", "text": "Hello"}]}]
