"""Hooks that let a test run code between two steps of a handler, independent of timing."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jwt
import pytest

from shared.call import CALL_ATTRIBUTES
from shared.dynamo import to_wire
from shared.table_keys import call_key
from tests.system import DEADLINE_SECONDS, LIVEKIT_KEY, LIVEKIT_SECRET, Context, System, http_event


def nothing() -> None:
    """What happens by default."""


def once(
    patch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    *,
    before: Callable[[], object] = nothing,
    after: Callable[[], object] = nothing,
) -> None:
    """Runs `before` ahead of the next call of a method and `after` after it; later calls are unchanged."""
    original = getattr(owner, method)

    def plain(*given: Any, **named: Any) -> Any:
        patch.setattr(owner, method, original)
        before()
        result = original(*given, **named)
        after()
        return result

    async def awaited(*given: Any, **named: Any) -> Any:
        patch.setattr(owner, method, original)
        # In a thread, because a handler that runs there has a loop of its own.
        await asyncio.to_thread(before)
        try:
            return await original(*given, **named)
        finally:
            await asyncio.to_thread(after)

    patch.setattr(owner, method, awaited if inspect.iscoroutinefunction(original) else plain)


@contextmanager
def just_before(system: System, handler: str, does: Callable[[], Any]) -> Iterator[None]:
    """Does something at the moment that this handler's next UpdateItem is about to leave."""
    events = system.modules[handler].dynamodb.meta.events
    done: list[Any] = []

    def hook(**_: Any) -> None:
        events.unregister("before-send.dynamodb.UpdateItem", hook)
        done.append(does())

    events.register_first("before-send.dynamodb.UpdateItem", hook)
    yield
    assert done


def change_durations(patch: pytest.MonkeyPatch, system: System, module: str, **changes: float) -> None:
    """Other durations (seconds, unscaled) for one function, until the test ends."""
    settings = system.modules[module].settings
    durations = dataclasses.replace(settings.durations, **changes)
    patch.setattr(system.modules[module], "settings", dataclasses.replace(settings, durations=durations))


def other_worker(system: System, records: list[dict[str, Any]], context: Context | None = None) -> dict[str, Any]:
    """What a second dial worker answers: a process of its own has an event loop of its own."""

    def work() -> Any:
        return asyncio.run(system.modules["dial_worker"].dial_batch(records, context or Context(120)))

    with ThreadPoolExecutor(1) as other:
        answer = other.submit(work).result(DEADLINE_SECONDS)
    assert isinstance(answer, dict)
    return answer


@contextmanager
def dialling(system: System, context: Context | None = None) -> Iterator[Future[Any]]:
    """A dial worker at work on what the queue holds, in a thread of its own; it has finished when this is left."""
    records = system.receive("DialQueue")
    batch = system.modules["dial_worker"].dial_batch

    with ThreadPoolExecutor(1) as other:
        work = other.submit(lambda: asyncio.run(batch(records, context or Context(120))))
        yield work
        work.result(DEADLINE_SECONDS)


def standin(system: System, control: str, **given: Any) -> None:
    """One of the stand-in's controls under /_standin/."""
    system.http.post(f"{system.servers.livekit_url}/_standin/{control}", json=given).raise_for_status()


def tell(system: System, event: dict[str, Any]) -> int:
    """LiveKit posts an event (its JSON), signed. The handler's HTTP status."""
    return tell_bytes(system, json.dumps(event).encode())


def tell_bytes(system: System, body: bytes) -> int:
    """As `tell`, with a body that need not be an event."""
    now = int(time.time())
    claims = {
        "iss": LIVEKIT_KEY,
        "nbf": now,
        "exp": now + 300,
        "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
    }
    headers = {"authorization": jwt.encode(claims, LIVEKIT_SECRET, algorithm="HS256")}
    answer = system.handlers["livekit_events"](
        http_event("POST /v1/livekit/events", body, headers, in_base64=True), Context(10)
    )
    status = answer["statusCode"]
    assert isinstance(status, int)
    return status


def phone_left(system: System, call_id: str, reason: str, call_status: str, **room: str) -> dict[str, Any]:
    """The event of the phone's leaving."""
    item = system.item(call_id)
    return {
        "event": "participant_left",
        "id": "EV_1",
        "createdAt": str(int(time.time())),
        "room": {"name": item["roomName"], "sid": item.get("roomSid", "")} | room,
        "participant": {
            "identity": f"call-{call_id}",
            "kind": "SIP",
            "disconnectReason": reason,
            "attributes": {"sip.callStatus": call_status},
        },
    }


def room_finished(system: System, call_id: str) -> dict[str, Any]:
    item = system.item(call_id)
    room = {"name": item["roomName"], "sid": item.get("roomSid", ""), "metadata": json.dumps({"callId": call_id})}
    return {"event": "room_finished", "id": "EV_2", "createdAt": str(int(time.time())), "room": room}


def rooms(system: System) -> list[str]:
    """The names of the rooms that LiveKit has."""
    answer = system.http.get(f"{system.servers.livekit_url}/_standin/rooms").json()["rooms"]
    return [room["name"] for room in answer]


def requests(system: System) -> dict[str, int]:
    """The number of requests to LiveKit, by method."""
    counts = system.http.get(f"{system.servers.livekit_url}/_standin/requests").json()["counts"]
    assert isinstance(counts, dict)
    return counts


def change(system: System, call_id: str, **fields: Any) -> None:
    """Puts the record into a state that a crash or elapsed time would have left. None removes a field. fields:
    of Call; `expiresAt` is an attribute that Call does not have."""
    attributes = {CALL_ATTRIBUTES.get(field, field): value for field, value in fields.items()}
    sets = {name: value for name, value in attributes.items() if value is not None}
    removes = [f"#{name}" for name, value in attributes.items() if value is None]
    request: dict[str, Any] = {"ExpressionAttributeNames": {f"#{name}": name for name in attributes}}
    if sets:
        request["ExpressionAttributeValues"] = to_wire({f":{name}": value for name, value in sets.items()})
    update = " ".join(
        ([f"SET {', '.join(f'#{name} = :{name}' for name in sets)}"] if sets else [])
        + ([f"REMOVE {', '.join(removes)}"] if removes else [])
    )
    system.dynamodb.update_item(TableName="CallsTable", Key=call_key(call_id), UpdateExpression=update, **request)
