"""Faults that the console injects into the next call: in its phone, in a process, in its webhook endpoint.

A fault of the phone is an override of its number in LiveKit's stand-in (`PUT /_standin/faults`). It holds until
the number is called from the console again or the override is removed. A kill is a file that
`local/process_hooks/kill_points.py` reads; it happens once. A fault of the endpoint is set at the local receiver
for one path, so the page gives such a call a callback path of its own.
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

# A client repeats a request without an answer, with the same key.
TRIES = 2
# The stand-in's outcomes while its trunk's password is wrong: every number gets this one.
WRONG_PASSWORD = {"trunk_auth": 1.0}


class FaultRefusedError(Exception):
    """The fault cannot be injected. `str()` says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One choice of the form. expect: what the call is expected to do. Exactly one of these is set:

    kill: the function, the point and the moment (before, during, after) at which its process is killed.
    outcome: what the phone does, one of the stand-in's outcomes. behaviour: how the local receiver answers.
    """

    name: str
    group: str
    label: str
    expect: str
    kill: tuple[str, str, str] | None = None
    outcome: str | None = None
    behaviour: Json | None = None


def _does(script: Script) -> str:
    return script.does.replace("talkSeconds", f"{Faults().talk_seconds:.0f}\u00a0s").replace("`", "")


KILL, PHONE, ENDPOINT = "A process is killed", "The phone, at any number", "The webhook endpoint"
FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            name="before_fence",
            group=KILL,
            label="the worker, right before the fence",
            expect="Its lease ends, another worker takes over, and the phone rings once.",
            kill=("DialWorker", "CallStore.fence", "before"),
        ),
        Fault(
            name="after_fence",
            group=KILL,
            label="the worker, right after the fence",
            expect="It is unknown whether the phone rang, so the call is not dialled again: it ends once, as "
            "outcome_unknown.",
            kill=("DialWorker", "CallStore.fence", "after"),
        ),
        Fault(
            name="while_ringing",
            group=KILL,
            label="the worker, while the phone rings",
            expect="The call goes on without it; the reconciler finds it in the room. It rings once.",
            kill=("DialWorker", "LiveKit.dial", "during"),
        ),
        Fault(
            name="answer_not_written",
            group=KILL,
            label="the worker, answered but not written",
            expect="The answer is found in LiveKit's room or in its events. It rings once.",
            kill=("DialWorker", "CallStore.answered", "before"),
        ),
        Fault(
            name="accepted_unanswered",
            group=KILL,
            label="the API, record written, no answer given",
            expect="The client gets a 5xx and repeats with the same Idempotency-Key: one call.",
            kill=("InitiateCall", "CallStore.create", "after"),
        ),
        Fault(
            name="fan_out",
            group=KILL,
            label="fan out, delivery row written, no message",
            expect="The stream delivers the record again, or the reconciler finds the row. The event arrives.",
            kill=("FanOut", "DeliveryStore.create", "after"),
        ),
        Fault(
            name="after_post",
            group=KILL,
            label="deliver, right after the POST",
            expect="The answer was not stored, so the event is sent again: the same id and the same bytes.",
            kill=("Deliver", "GuardedTransport.handle_async_request", "after"),
        ),
        *(
            Fault(f"phone_{script.outcome}", PHONE, _does(script), expect="", outcome=script.outcome)
            for script in SCRIPTS
        ),
        Fault(
            name="endpoint_503",
            group=ENDPOINT,
            label="answers 503 at first, then 204",
            expect="The event is retried, after longer and longer pauses: the same id and the same bytes.",
            behaviour={"status": 503, "times": 1},
        ),
        Fault(
            name="endpoint_410",
            group=ENDPOINT,
            label="answers 410: no more webhooks of this call",
            expect="What was not sent stays listed and can be sent again.",
            behaviour={"status": 410, "times": 1},
        ),
    )
}


def choices(stand_in: bool) -> list[Json]:
    """The faults that can be chosen; those of the phone only with the stand-in. path: whether the call needs a
    callback path of its own."""
    return [
        {
            "name": fault.name,
            "group": fault.group,
            "label": fault.label,
            "expect": fault.expect,
            "path": fault.behaviour is not None,
        }
        for fault in FAULTS.values()
        if stand_in or fault.outcome is None
    ]


def numbers() -> list[Json]:
    """The numbers that have a script, with what each does."""
    return [{"number": f"+1555000{script.digits}", "does": _does(script)} for script in SCRIPTS]


def call_id_of(workspace_id: str, key: str) -> str:
    """The id of the call that is placed with this Idempotency-Key (docs/architecture.md)."""
    return hashlib.sha256(json.dumps([workspace_id, key]).encode()).hexdigest()[:24]


async def set_number(client: aiohttp.ClientSession, stack: Stack, number: str, outcome: str | None) -> None:
    """Overrides the outcome of a number in the stand-in. None: removes the override, so that its digits decide."""
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
    """The stand-in's overrides, by number."""
    async with client.get(f"{stack.livekit_url}/_standin/faults") as answer:
        answer.raise_for_status()
        return dict((await answer.json())["numbers"])


async def trunk_refuses(client: aiohttp.ClientSession, stack: Stack) -> bool:
    """Whether the stand-in's trunk refuses every call for a wrong password, but to numbers with an override."""
    async with client.get(f"{stack.livekit_url}/_standin/faults") as answer:
        answer.raise_for_status()
        return bool((await answer.json())["rates"] == WRONG_PASSWORD)


async def set_trunk(client: aiohttp.ClientSession, stack: Stack, *, refuses: bool) -> None:
    wanted = {"rates": WRONG_PASSWORD if refuses else {}}
    async with client.put(f"{stack.livekit_url}/_standin/faults", json=wanted) as answer:
        answer.raise_for_status()


async def _set_behaviour(client: aiohttp.ClientSession, stack: Stack, url: str, behaviour: Json) -> None:
    if not url.startswith(stack.receiver_url + "/"):
        raise FaultRefusedError(
            "only the local receiver can answer with a fault: use its address as the callback URL"
        )
    by_path = {urlsplit(url).path: behaviour}
    async with client.put(f"{stack.receiver_url}/_receiver/behaviour", json=by_path) as answer:
        answer.raise_for_status()


async def place(client: aiohttp.ClientSession, sources: EventSources, text: str, fault_name: str) -> Json:
    """Places a call through the API with the fault of that name ("": none).

    text: the request's body, sent unchanged. Returns the API's last answer: status, body, and the call's id.
    Raises FaultRefusedError; aiohttp.ClientError when a part of the stack does not answer.
    """
    stack = sources.stack
    fault = FAULTS.get(fault_name)
    if fault_name and (fault is None or (fault.outcome and not stack.stand_in)):
        raise FaultRefusedError(f"there is no fault {fault_name!r} here")
    request = _decoded(text)
    key = f"console-{uuid.uuid4()}"
    call_id = call_id_of(stack.workspace_id, key)
    number = "".join(character for character in str(request.get("to", "")) if character in "+0123456789")
    if fault and fault.behaviour:
        await _set_behaviour(client, stack, str(request.get("callback_url") or ""), fault.behaviour)
    if stack.stand_in:
        await set_number(client, stack, number, fault.outcome if fault else None)
    kill_file = stack.deaths / f"{key}.json"
    if fault and fault.kill:
        function, point, when = fault.kill
        # Renamed when it is complete: functions look for it at every step.
        kill = {"function": function, "point": point, "when": when, "call": call_id}
        kill_file.with_suffix(".new").write_text(json.dumps(kill))
        kill_file.with_suffix(".new").rename(kill_file)
    history = sources.history(call_id)
    history.fault = {"label": f"{fault.group}: {fault.label}", "expect": fault.expect} if fault else None
    status, answer = 0, ""
    for attempt in range(TRIES):
        at = now_ms()
        status, answer = await _post(client, stack, text, key)
        what = "POST again" if attempt else "POST"
        history.requests.append(
            {"at": at, "what": what, "detail": f"to {number}", "status": status, "ms": now_ms() - at}
        )
        if status < 500:
            break
    if status != 200:
        kill_file.unlink(missing_ok=True)
        sources.histories.pop(call_id, None)
    return {"status": status, "answer": _decoded(answer), "callId": call_id if status == 200 else None}


async def _post(client: aiohttp.ClientSession, stack: Stack, text: str, key: str) -> tuple[int, str]:
    headers = credentials(stack) | {"idempotency-key": key, "content-type": "application/json"}
    async with client.post(f"{stack.api_url}/v1/api/call", data=text.encode(), headers=headers) as answer:
        return answer.status, await answer.text()


def credentials(stack: Stack) -> dict[str, str]:
    return {"x-workspace-id": stack.workspace_id, "x-api-key": stack.api_key}


def _decoded(text: str) -> Json:
    """The decoded JSON object; `{"message": text}` when the text is anything else."""
    try:
        decoded = json.loads(text)
    except ValueError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"message": text}
