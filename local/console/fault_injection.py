"""What shall happen to the next call: what its phone does, where a process dies, how its webhooks are answered.

A phone's fate is an override of its number in LiveKit's stand-in (`PUT /_standin/faults`); it stays until the
number is called from here again or the override is taken back. A death is a file for
`local/process_hooks/kill_points.py` and happens once. An endpoint's fate is told to the local receiver, for the
path that the call's webhooks go to, which the page makes the call's own.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from local.console.event_sources import EventSources, Stack, now_ms
from local.console.timeline import Json
from local.livekit import Faults
from local.livekit.scripts import SCRIPTS, Script

# A client repeats what got no answer, with the same key.
TRIES = 2


class FaultRefusedError(Exception):
    """The fate asked for cannot be had. `str()` says why."""


@dataclass(frozen=True, slots=True)
class Fate:
    """One choice. expect: what a reader may look for. Exactly one of the last three is set."""

    name: str
    group: str
    label: str
    expect: str
    death: tuple[str, str, str] | None = None
    outcome: str | None = None
    behaviour: Json | None = None


def _does(script: Script) -> str:
    return script.does.replace("talkSeconds", f"{Faults().talk_seconds:.0f}\u00a0s").replace("`", "")


DIES, PHONE, ENDPOINT = "A process is killed", "The phone, whatever its number", "The webhook endpoint"
FATES = {
    fate.name: fate
    for fate in (
        Fate("before_fence", DIES, "the worker, right before the fence",
             "Its lease ends, another worker takes over, and the phone rings once.",
             death=("DialWorker", "CallStore.fence", "before")),
        Fate("after_fence", DIES, "the worker, right after the fence",
             "Nobody can tell whether it rang, so nobody dials again: the call ends outcome_unknown, once.",
             death=("DialWorker", "CallStore.fence", "after")),
        Fate("while_ringing", DIES, "the worker, while the phone rings",
             "The call goes on without it; the reconciler finds it in the room. It rings once.",
             death=("DialWorker", "LiveKit.dial", "during")),
        Fate("answer_not_written", DIES, "the worker, answered but not written",
             "The answer is found in LiveKit's room or in its events. It rings once.",
             death=("DialWorker", "CallStore.answered", "before")),
        Fate("accepted_unanswered", DIES, "the API, record written, no answer given",
             "The client gets a 5xx and repeats with the same Idempotency-Key: one call.",
             death=("InitiateCall", "CallStore.create", "after")),
        Fate("fan_out", DIES, "fan out, delivery row written, no message",
             "The stream hands the record over again, or the reconciler finds the row. The event comes.",
             death=("FanOut", "DeliveryStore.create", "after")),
        Fate("after_post", DIES, "deliver, right after the POST",
             "Nobody noted the answer, so the event is sent again: the same id and the same bytes.",
             death=("Deliver", "GuardedTransport.handle_async_request", "after")),
        *(Fate(f"phone_{script.outcome}", PHONE, _does(script), "", outcome=script.outcome) for script in SCRIPTS),
        Fate("endpoint_503", ENDPOINT, "answers 503 at first, then 204",
             "The event is tried again, later each time, until it is taken: the same id and the same bytes.",
             behaviour={"status": 503, "times": 1}),
        Fate("endpoint_410", ENDPOINT, "answers 410: no more webhooks of this call",
             "What was not sent stays listed and can be sent again.",
             behaviour={"status": 410, "times": 1}),
    )
}  # a table: name and kind, words, how  # fmt: skip


def choices(stand_in: bool) -> list[Json]:
    """The fates that can be chosen; those of the phone only with the stand-in. path: the call needs a callback
    path of its own."""
    return [
        {
            "name": fate.name,
            "group": fate.group,
            "label": fate.label,
            "expect": fate.expect,
            "path": fate.behaviour is not None,
        }
        for fate in FATES.values()
        if stand_in or fate.outcome is None
    ]


def numbers() -> list[Json]:
    """The magic numbers, and what each does."""
    return [{"number": f"+1555000{script.digits}", "does": _does(script)} for script in SCRIPTS]


def call_id_of(workspace_id: str, key: str) -> str:
    """The id that a call of this Idempotency-Key gets (docs/architecture.md)."""
    return hashlib.sha256(json.dumps([workspace_id, key]).encode()).hexdigest()[:24]


async def set_number(client: aiohttp.ClientSession, stack: Stack, number: str, outcome: str | None) -> None:
    """Gives a number a script of its own, or (None) the one that its digits say."""
    url = f"{stack.livekit_url}/_standin/faults"
    numbers = await numbers_in_force(client, stack)
    if outcome is None and number not in numbers:
        return
    numbers.pop(number, None)
    if outcome is not None:
        numbers[number] = {"outcome": outcome}
    async with client.put(url, json={"numbers": numbers}) as answer:
        answer.raise_for_status()


async def numbers_in_force(client: aiohttp.ClientSession, stack: Stack) -> dict[str, Any]:
    """The numbers that have a script of their own in the stand-in."""
    async with client.get(f"{stack.livekit_url}/_standin/faults") as answer:
        answer.raise_for_status()
        return dict((await answer.json())["numbers"])


async def _set_behaviour(client: aiohttp.ClientSession, stack: Stack, url: str, behaviour: Json) -> None:
    if not url.startswith(stack.receiver_url + "/"):
        raise FaultRefusedError(
            "only the local receiver can be told how to answer: use its address as callback URL"
        )
    told = {urlsplit(url).path: behaviour}
    async with client.put(f"{stack.receiver_url}/_receiver/behaviour", json=told) as answer:
        answer.raise_for_status()


async def place(client: aiohttp.ClientSession, sources: EventSources, text: str, fate_name: str) -> Json:
    """Places a call through the API with the fate of that name ("": none).

    text: the request's body, passed on as it is. Returns the API's last answer: status, body, and the call's id.
    Raises FaultRefusedError; aiohttp.ClientError when a part of the stack does not answer.
    """
    stack = sources.stack
    fate = FATES.get(fate_name)
    if fate_name and (fate is None or (fate.outcome and not stack.stand_in)):
        raise FaultRefusedError(f"there is no fate {fate_name!r} here")
    asked_for = _decoded(text)
    key = f"console-{uuid.uuid4()}"
    call_id = call_id_of(stack.workspace_id, key)
    number = "".join(character for character in str(asked_for.get("to", "")) if character in "+0123456789")
    if fate and fate.behaviour:
        await _set_behaviour(client, stack, str(asked_for.get("callback_url") or ""), fate.behaviour)
    if stack.stand_in:
        await set_number(client, stack, number, fate.outcome if fate else None)
    death = stack.deaths / f"{key}.json"
    if fate and fate.death:
        function, point, when = fate.death
        # Whole or not at all: functions look for it at every step.
        wish = {"function": function, "point": point, "when": when, "call": call_id}
        death.with_suffix(".new").write_text(json.dumps(wish))
        death.with_suffix(".new").rename(death)
    told = sources.history(call_id)
    told.fate = {"label": f"{fate.group}: {fate.label}", "expect": fate.expect} if fate else None
    status, answer = 0, ""
    for tried in range(TRIES):
        at = now_ms()
        status, answer = await _post(client, stack, text, key)
        what = "POST again" if tried else "POST"
        told.requests.append(
            {"at": at, "what": what, "detail": f"to {number}", "status": status, "ms": now_ms() - at}
        )
        if status < 500:
            break
    if status != 200:
        death.unlink(missing_ok=True)
        sources.histories.pop(call_id, None)
    return {"status": status, "answer": _decoded(answer), "callId": call_id if status == 200 else None}


async def _post(client: aiohttp.ClientSession, stack: Stack, text: str, key: str) -> tuple[int, str]:
    headers = credentials(stack) | {"idempotency-key": key, "content-type": "application/json"}
    async with client.post(f"{stack.api_url}/v1/api/call", data=text.encode(), headers=headers) as answer:
        return answer.status, await answer.text()


def credentials(stack: Stack) -> dict[str, str]:
    return {"x-workspace-id": stack.workspace_id, "x-api-key": stack.api_key}


def _decoded(text: str) -> Json:
    """A JSON object; anything else as the message of one."""
    try:
        decoded = json.loads(text)
    except ValueError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"message": text}
