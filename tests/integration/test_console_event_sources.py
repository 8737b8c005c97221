"""The console reads each event and line exactly once, also when a feed or a file fails."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from local import receiver
from local.console.event_sources import EventSources, LogFile, Stack, events_after
from local.console.timeline import Json


def test_a_feed_is_read_from_its_last_event_and_after_a_reset_from_its_beginning() -> None:
    async def run() -> None:
        async with (
            TestServer(receiver.create_app(), host="127.0.0.1") as server,
            aiohttp.ClientSession(base_url=f"http://127.0.0.1:{server.port}") as client,
        ):

            async def arrive(kind: str) -> None:
                (await client.post("/hook", json={"type": kind})).release()

            async def read(last: Json | None) -> list[Json]:
                return await events_after(client, "/_receiver/events", last, "number")

            assert await read(None) == []
            await arrive("1")
            await arrive("2")
            first = await read(None)
            assert [event["type"] for event in first] == ["1", "2"]
            assert await read(first[-1]) == []
            await arrive("3")
            assert [event["type"] for event in await read(first[-1])] == ["3"]
            (await client.post("/_receiver/reset")).release()
            assert await read(first[-1]) == []
            for kind in "456":
                await arrive(kind)
            assert [event["type"] for event in await read(first[-1])] == ["4", "5", "6"]

    asyncio.run(run())


def test_a_line_is_read_once_when_it_is_complete(tmp_path: Path) -> None:
    feed = LogFile(tmp_path / "log")
    assert feed.read() == []
    with (tmp_path / "log").open("a", buffering=1) as log:
        log.write("one\ntw")
        log.flush()
        assert feed.read() == ["one"]
        assert feed.read() == []
        log.write("o\nthree\n")
        assert feed.read() == ["two", "three"]


def test_data_is_used_once_and_only_after_all_sources_have_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = Stack(
        api_url="",
        workspace_id="demo",
        api_key="",
        webhook_secret="",
        livekit_url="",
        stand_in=False,
        receiver_url="http://127.0.0.1:1",
        aws_url="",
        calls_table="",
        functions={"physical": "DialWorker"},
        logs=tmp_path,
        deaths=tmp_path,
        time_scale=1,
    )
    rows = [[("CALL", {"callId": "c1", "roomName": "r1", "createdAt": "2026-11-25T09:00:00.000Z"})]]
    monkeypatch.setattr(EventSources, "_read_table", lambda sources: rows.pop() if rows else [])
    (tmp_path / "steps.log").write_text(json.dumps({"call": "c1", "function": "physical"}) + "\n")
    (tmp_path / "DialWorker.log").write_text(json.dumps({"call_id": "c1"}) + "\n")

    async def run() -> None:
        sources = EventSources(down)
        async with (
            TestServer(receiver.create_app(), host="127.0.0.1") as server,
            aiohttp.ClientSession() as client,
        ):
            for _ in range(2):
                with pytest.raises(aiohttp.ClientError):
                    await sources._ask(client)
                assert sources.histories == {}
            sources.stack = dataclasses.replace(down, receiver_url=f"http://127.0.0.1:{server.port}")
            assert [await sources._ask(client) for _ in range(2)] == [{"c1"}, set()]
        history = sources.histories["c1"]
        assert history.item["roomName"] == "r1"
        assert ([step["function"] for step in history.steps], len(history.lines)) == (["DialWorker"], 1)

    asyncio.run(run())
