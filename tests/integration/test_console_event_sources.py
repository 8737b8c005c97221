"""The console reads each event and line exactly once, also when a feed or a file fails."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

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


def stack(folder: Path) -> Stack:
    """A stack of which nothing answers."""
    return Stack(
        api_url="",
        workspace_id="demo",
        api_key="",
        webhook_secret="",
        livekit_url="",
        stand_in=False,
        receiver_url="http://127.0.0.1:1",
        aws_url="",
        calls_table="",
        workspaces_table="",
        functions={"physical": "DialWorker"},
        logs=folder,
        deaths=folder,
        time_scale=1,
    )


def test_data_is_used_once_and_only_after_all_sources_have_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = stack(tmp_path)
    rows = [[("CALL", {"callId": "c1", "roomName": "r1", "createdAt": "2026-11-25T09:00:00.000Z"})]]
    monkeypatch.setattr(EventSources, "_read_table", lambda sources: rows.pop() if rows else [])
    monkeypatch.setattr(EventSources, "_read_limits", lambda sources: None)
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


def test_an_admission_names_the_call_whose_slot_was_freed_for_it_by_the_same_process(tmp_path: Path) -> None:
    def record(call_id: str, to: str, status: str) -> tuple[str, Json]:
        return "CALL", {"callId": call_id, "roomName": call_id, "to": to, "status": status}

    def step(point: str, call_id: str, at: int, process: int = 1, **fields: Any) -> Json:
        named = {"point": point, "phase": "ended", "call": call_id, "at": at, "ms": 1}
        return named | {"function": "F", "process": process, **fields}

    def free(call_id: str, at: int, process: int = 1) -> Json:
        return step("LimitStore.free_slot", call_id, at, process)

    def admit(call_id: str, at: int, process: int = 1, *, won: bool = True) -> Json:
        return step("CallStore.admit", call_id, at, process, won=won)

    sources = EventSources(stack(tmp_path))
    sources._note_changes([record(f"over{n}", f"+1555000000{n}", "completed") for n in range(5)])
    sources._note_changes([record(f"next{n}", f"+1555000001{n}", "queued") for n in range(6)])
    # Into the line with its slot freed: that admits no call.
    sources._note_changes([record("back", "+15550000020", "queued")])
    steps = [
        free("over0", 1_000),
        free("over1", 1_001, process=2),
        admit("next5", 1_002, won=False),
        admit("next0", 1_005),
        admit("next1", 1_006),
        free("back", 1_007),
        admit("next2", 1_008),
        admit("next3", 1_900, process=2),
        free("over2", 2_000, process=3),
        admit("next4", 3_001, process=3),
    ]
    changed = sources._note_files(steps)
    for_whom = {one["call"]: one["freed"]["by"] for one in steps if "freed" in one}
    assert for_whom == {"next0": "+15550000000", "next3": "+15550000001"}
    assert {one["call"]: one["admits"] for one in steps if "admits" in one} == {
        "over0": "+15550000010",
        "over1": "+15550000013",
    }
    assert {"over0", "next0"} <= changed
    # The admission comes to the console after the slot that was freed.
    sources._note_files([free("over3", 5_000)])
    assert sources._note_files([admit("next2", 5_001)]) == {"next2", "over3"}
