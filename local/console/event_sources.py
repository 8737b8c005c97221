"""Reads the console's sources while a page is open, and keeps what they report by call.

The sources are not read while no page is open: each keeps its own history, so a page that is opened later, or
again, gets all of it."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from botocore.config import Config

from local.aws_client import aws_client
from local.console.timeline import CallHistory, Json
from shared.call import ENDED
from shared.dynamo import from_wire
from shared.limits import Everything, LimitStore
from shared.workspaces import WorkspaceStore

ASK_EVERY_SECONDS = 0.1
# The interval between two scans of WorkspacesTable.
LIMITS_EVERY_SECONDS = 0.5
# An admission this soon after a slot was freed, by the same process, is for that slot.
ADMITTED_AFTER_MS = 1000
LIST_SHARDS_SECONDS = 10.0
# Older calls are forgotten, so that a load test does not fill the memory.
CALLS_KEPT = 500
LINES_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Stack:
    """The stack's addresses, keys and folders. functions: logical name by physical name. stand_in: whether LiveKit
    is the stand-in."""

    api_url: str
    workspace_id: str
    api_key: str
    webhook_secret: str
    livekit_url: str
    stand_in: bool
    receiver_url: str
    aws_url: str
    calls_table: str
    workspaces_table: str
    functions: Mapping[str, str]
    logs: Path
    deaths: Path
    time_scale: float

    @classmethod
    def from_info(cls, info: Json) -> Stack:
        resources: dict[str, str] = info["resources"]
        return cls(
            api_url=info["apiUrl"],
            workspace_id=info["workspaceId"],
            api_key=info["apiKey"],
            webhook_secret=info["webhookSecret"],
            livekit_url=info["liveKitUrl"],
            stand_in=info["liveKitStandIn"],
            receiver_url=info["receiverUrl"],
            aws_url=info["awsEndpointUrl"],
            calls_table=resources["CallsTable"],
            workspaces_table=resources["WorkspacesTable"],
            functions={physical: logical for logical, physical in resources.items()},
            logs=Path(info["logs"]),
            deaths=Path(info["deaths"]),
            time_scale=info["timeScale"],
        )


class TableStream:
    """Every change of CallsTable, in order, from its stream's beginning. Its methods block: they run in a
    thread."""

    def __init__(self, stack: Stack) -> None:
        self._streams = aws_client("dynamodbstreams", stack.aws_url, Config())
        tables = aws_client("dynamodb", stack.aws_url, Config())
        table = tables.describe_table(TableName=stack.calls_table)["Table"]
        self._stream = table["LatestStreamArn"]
        self._shards: list[str] = []
        self._listed = 0.0
        self._places: dict[str, dict[str, str]] = {}
        self._iterators: dict[str, str] = {}

    def read(self) -> Iterator[tuple[str, Json]]:
        """The changes since the last call: sort key and new item.

        Raises botocore's errors when the emulator does not answer."""
        if time.monotonic() - self._listed > LIST_SHARDS_SECONDS or not self._shards:
            listed = self._streams.describe_stream(StreamArn=self._stream)["StreamDescription"]["Shards"]
            self._shards, self._listed = [shard["ShardId"] for shard in listed], time.monotonic()
        for shard in self._shards:
            yield from self._read_shard(shard)

    def _read_shard(self, shard: str) -> Iterator[tuple[str, Json]]:
        while True:
            place: Any = self._places.get(shard, {"ShardIteratorType": "TRIM_HORIZON"})
            iterator = (
                self._iterators.get(shard)
                or self._streams.get_shard_iterator(StreamArn=self._stream, ShardId=shard, **place)[
                    "ShardIterator"
                ]
            )
            try:
                answer = self._streams.get_records(ShardIterator=iterator, Limit=1000)
            except self._streams.exceptions.ExpiredIteratorException:
                self._iterators.pop(shard, None)
                continue
            for record in answer["Records"]:
                change = record["dynamodb"]
                self._places[shard] = {
                    "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
                    "SequenceNumber": change["SequenceNumber"],
                }
                if "NewImage" in change:
                    item = from_wire(change["NewImage"])
                    yield item["sk"], item
            self._iterators[shard] = answer.get("NextShardIterator", "")
            if len(answer["Records"]) < 1000:
                return


class LogFile:
    """Reads the complete lines that were appended to a file since the last read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


@dataclass(eq=False, slots=True)
class Watcher:
    """One open page. changed: the calls whose changes it has not been sent; None: it has not been sent
    anything."""

    changed: set[str] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class EventSources:
    """All sources of one stack. Belongs to one event loop."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.histories: dict[str, CallHistory] = {}
        # WorkspacesTable as last read: limits, slots, trunks and the switch.
        self.limits = Everything()
        self.trouble: str | None = None
        self.watchers: set[Watcher] = set()
        self._forgotten: set[str] = set()
        self._rooms: dict[str, list[Json]] = {}
        self._wanted = asyncio.Event()
        self._table: TableStream | None = None
        self._limit_store: LimitStore | None = None
        self._limits_read = 0.0
        # The step that last freed a slot, by process.
        self._freed: dict[int, Json] = {}
        # Read, but not yet added to the histories.
        self._rows: list[tuple[str, Json]] = []
        self._said: list[Json] = []
        self._livekit_last: Json | None = None
        self._hook_last: Json | None = None
        self._steps = LogFile(stack.logs / "steps.log")
        names = sorted(set(stack.functions.values()))
        self._logs = {name: LogFile(stack.logs / f"{name}.log") for name in names}

    def listen(self) -> Watcher:
        watcher = Watcher()
        self.watchers.add(watcher)
        self._wanted.set()
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self.watchers.discard(watcher)
        if not self.watchers:
            self._wanted.clear()

    def known(self, call_id: str) -> CallHistory | None:
        """The call's history; None before its record has been read."""
        history = self.histories.get(call_id)
        return history if history is not None and history.item else None

    def history(self, call_id: str) -> CallHistory:
        """The call's history, created if there is none. For a removed call it is a new one, which no page
        shows."""
        if call_id in self._forgotten:
            return CallHistory(call_id)
        return self.histories.setdefault(call_id, CallHistory(call_id))

    async def run(self, client: aiohttp.ClientSession) -> None:
        """Polls the sources while a page is open. Never returns."""
        while True:
            await self._wanted.wait()
            before, limits = self.trouble, self.limits
            try:
                changed = await self._ask(client)
                self.trouble = None
            except Exception as exc:
                # The page shows the error, and the next poll may succeed.
                changed, self.trouble = set(), f"{type(exc).__name__}: {exc}"
                if self.trouble != before:
                    traceback.print_exc()
            for watcher in self.watchers:
                if watcher.changed is None or changed or self.trouble != before or self.limits != limits:
                    if watcher.changed is not None:
                        watcher.changed |= changed
                    watcher.news.set()
            await asyncio.sleep(ASK_EVERY_SECONDS)

    async def _ask(self, client: aiohttp.ClientSession) -> set[str]:
        """Reads all sources; the ids of the calls that have changed.

        The table is read first, and no source's data is used before all have answered: the causes of the table's
        changes are then among the data, so no page shows an end, or a delivery, without the steps before it.
        """
        # These two return each item once, so it is kept in case another source does not answer.
        self._rows += await asyncio.to_thread(self._read_table)
        self._said += await asyncio.to_thread(self._read_files)
        events = await self._read_livekit(client) if self.stack.stand_in else []
        hooks = await self._read_receiver(client)
        limits = await asyncio.to_thread(self._read_limits)
        self.limits = limits or self.limits
        rows, said = self._rows, self._said
        # Cleared before they are used: an item that raises must not be retried at every poll.
        self._rows, self._said = [], []
        changed = self._note_changes(rows) | self._note_files(said)
        changed |= self._note_events(events) | self._note_hooks(hooks)
        self._forget()
        return changed & self.histories.keys()

    def policies(self) -> list[str]:
        """The names of the workspace's policies. Blocks: it runs in a thread."""
        client = aws_client("dynamodb", self.stack.aws_url, Config())
        workspace = WorkspaceStore(client, self.stack.workspaces_table).get(self.stack.workspace_id)
        return sorted(workspace.policies) if workspace else []

    # The blocking methods run in a thread and share no state with the event loop.

    def _read_table(self) -> list[tuple[str, Json]]:
        if self._table is None:
            self._table = TableStream(self.stack)
        return list(self._table.read())

    def _read_limits(self) -> Everything | None:
        """WorkspacesTable; None when it was read a moment ago."""
        if time.monotonic() - self._limits_read < LIMITS_EVERY_SECONDS:
            return None
        if self._limit_store is None:
            client = aws_client("dynamodb", self.stack.aws_url, Config())
            self._limit_store = LimitStore(client, self.stack.workspaces_table)
        found = self._limit_store.everything()
        self._limits_read = time.monotonic()
        return found

    def _read_files(self) -> list[Json]:
        """The steps, and the lines of the functions' logs that name a call: call, function, at, text."""
        steps = [json.loads(line) for line in self._steps.read()]
        return steps + [
            {"call": said["call_id"], "function": name, "at": said.get("timestamp", ""), "text": line}
            for name, feed in self._logs.items()
            for line in feed.read()
            if (said := _said_about_a_call(line)) is not None
        ]

    def _note_changes(self, changes: list[tuple[str, Json]]) -> set[str]:
        for sort_key, item in changes:
            history = self.history(item["callId"])
            if sort_key == "CALL":
                history.item = item
                history.livekit = self._rooms.setdefault(item["roomName"], [])
            else:
                history.deliveries[item["sequence"]] = item
        return {item["callId"] for _, item in changes}

    def _note_files(self, said: list[Json]) -> set[str]:
        changed = {one["call"] for one in said}
        for one in said:
            if "text" in one:
                kept = self.history(one["call"]).lines
                kept.append(one)
                del kept[:-LINES_KEPT]
            else:
                one["function"] = self.stack.functions.get(one["function"], one["function"])
                self.history(one["call"]).steps.append(one)
                changed |= self._note_admission(one)
        return changed

    def _note_admission(self, step: Json) -> set[str]:
        """Notes in an admission which ended call's slot was freed for it, and in that call's step whose admission
        it led to. Returns the id of the ended call, if there is one."""
        if step.get("phase") != "ended" or "error" in step:
            return set()
        if step["point"] == "LimitStore.free_slot" and self.history(step["call"]).item.get("status") in ENDED:
            self._freed[step["process"]] = step
        if step["point"] != "CallStore.admit" or not step.get("won"):
            return set()
        # One freed slot admits one call.
        freed = self._freed.pop(step["process"], None)
        if freed is None or step["at"] - freed["at"] > ADMITTED_AFTER_MS:
            return set()
        freed["admits"] = self.history(step["call"]).item.get("to", step["call"])
        step["freed"] = {"by": self.history(freed["call"]).item.get("to", freed["call"]), "at": freed["at"]}
        return {freed["call"]}

    async def _read_livekit(self, client: aiohttp.ClientSession) -> list[Json]:
        return await events_after(
            client, f"{self.stack.livekit_url}/_standin/events", self._livekit_last, "sequence"
        )

    async def _read_receiver(self, client: aiohttp.ClientSession) -> list[Json]:
        return await events_after(client, f"{self.stack.receiver_url}/_receiver/events", self._hook_last, "number")

    def _note_events(self, events: list[Json]) -> set[str]:
        changed = set()
        for event in events:
            self._livekit_last = event
            if room := event.get("roomName"):
                self._rooms.setdefault(room, []).append(event)
                changed.add(room)
        return {call_id for call_id, history in self.histories.items() if history.item.get("roomName") in changed}

    def _note_hooks(self, events: list[Json]) -> set[str]:
        changed = set()
        for event in events:
            self._hook_last = event
            if isinstance(call_id := event["callId"], str):
                self.history(call_id).hooks.append(event)
                changed.add(call_id)
        return changed

    def _forget(self) -> None:
        kept = [history for history in self.histories.values() if history.item]
        for history in sorted(kept, key=lambda history: history.placed_at)[: max(0, len(kept) - CALLS_KEPT)]:
            self._forgotten.add(history.call_id)
            self._rooms.pop(history.item["roomName"], None)
            del self.histories[history.call_id]


async def events_after(client: aiohttp.ClientSession, url: str, last: Json | None, counter: str) -> list[Json]:
    """The events of a numbered feed after `last`.

    `last` is read again: if it differs, the feed was reset and is read from its beginning."""
    after = last[counter] - 1 if last else 0
    async with client.get(url, params={"after": str(after)}) as answer:
        events: list[Json] = (await answer.json())["events"]
    if last is None:
        return events
    if events and events[0] == last:
        return events[1:]
    async with client.get(url) as answer:
        return list((await answer.json())["events"])


def _said_about_a_call(line: str) -> Json | None:
    """A function's log line, decoded; None when it names no call."""
    if '"call_id"' not in line:
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and isinstance(said.get("call_id"), str) else None


def now_ms() -> int:
    return time.time_ns() // 1_000_000
