"""`python -m local.demo`: starts the local stack, places three calls, shows what happens as it happens, stops.

One call is answered, one is busy and one is not answered, each through the real HTTP route. The timeline merges
three sources: the call's record (GET /v1/api/call/{callId}), LiveKit's stand-in and the webhook receiver. When an
event is missing, it prints the end of the log of the function at fault and exits with 1.

With a real LiveKit (see `local.stack`) it places one call, to the number in the variable TO.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.command_line import CommandLine
from local.errors import SettingError, StackError
from local.livekit_settings import real_livekit
from local.processes import ANSWER_SECONDS, Running, tail
from local.signals import StoppedError, pause, stop_on_signals
from local.stack import stack
from local.state_folder import state_folder

# The sources are polled in turn, so a line is held for this long in case another source has an earlier one.
MERGE_SECONDS = 0.25
ASK_EVERY_SECONDS = 0.05
# A deadline that only a failure reaches: a slow machine takes longer to start a process than a phone rings.
SCENE_SECONDS = 180.0

EXAMPLE: dict[str, Any] = {
    "to": "+1234567890",
    "call_agent_id": "a1b2c3d4e5f6a7b8c9d0e1f2",
    "dynamic_variables": {
        "firstName": "Ada",
        "lastName": "Lovelace",
        "Zipcode": "94105",
        "address": "12 Analytical Way",
        "email": "ada@example.com",
    },
    "metadata": {"crmId": "0042", "campaign": {"name": "autumn", "wave": 2}},
}


class DemoError(Exception):
    """An expected event is missing. `suspects`: the functions whose logs may show why."""

    def __init__(self, what: str, *suspects: str) -> None:
        super().__init__(what)
        self.suspects = suspects


@dataclass(frozen=True, slots=True)
class Scene:
    """A call to place and the status and reason it must end with (None: any)."""

    title: str
    to: str
    status: str | None
    reason: str | None


@dataclass(slots=True)
class Watched:
    """One call in progress, with what each source has reported. Times are epoch milliseconds."""

    placed_at: int
    call_id: str
    room: str
    record: dict[str, Any] = field(default_factory=dict)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[tuple[int, str, str, str]] = field(default_factory=list)
    livekit_sequence: int = 0
    room_closed: bool = False
    hung_up: bool = False


# ── printing ────────────────────────────────────────────────────────────────────────────────────

_COLOURS = {"call": "36", "livekit": "35", "webhook": "32", "client": "1", "dim": "2", "bad": "31"}


def coloured(text: str, kind: str) -> str:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m"


def show(text: str = "") -> None:
    print(text, flush=True)


def show_line(milliseconds: int, who: str, what: str, detail: str) -> None:
    show(f"{milliseconds:>9,}  {coloured(f'{who:<8}', who)}  {what:<15} {coloured(detail, 'dim')}".rstrip())


def show_due(watched: Watched, everything: bool = False) -> None:
    """Prints, in the order of their times, the lines that are older than MERGE_SECONDS, or all lines."""
    limit = now() - int(MERGE_SECONDS * 1000)
    watched.waiting.sort(key=lambda line: line[0])
    while watched.waiting and (everything or watched.waiting[0][0] <= limit):
        at, who, what, detail = watched.waiting.pop(0)
        show_line(at - watched.placed_at, who, what, detail)


# ── the sources ─────────────────────────────────────────────────────────────────────────────────


def now() -> int:
    return time.time_ns() // 1_000_000


def fetch(url: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> tuple[int, Any]:
    """The status and the decoded JSON of an answer, also of an error."""
    request = urllib.request.Request(url, body, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as exc:
        content = exc.read()
        try:
            return exc.code, json.loads(content)
        except ValueError:
            return exc.code, content.decode(errors="replace")


def credentials(info: dict[str, Any]) -> dict[str, str]:
    return {"x-workspace-id": info["workspaceId"], "x-api-key": info["apiKey"]}


def ask_record(info: dict[str, Any], watched: Watched) -> None:
    status, call = fetch(f"{info['apiUrl']}/v1/api/call/{watched.call_id}", credentials(info))
    if status != 200:
        raise DemoError(f"GET /v1/api/call/{watched.call_id}: {status} {call}", "CallsApi")
    for event in call["events"][len(watched.record.get("events", ())) :]:
        at = datetime.datetime.fromisoformat(event["timestamp"])
        detail = ""
        if event["type"] == "call.ended":
            code = f", SIP {call['sipStatusCode']}" if call["sipStatusCode"] else ""
            detail = f"{call['status']}: {call['endReason']}{code}"
        name = event["type"].removeprefix("call.")
        watched.waiting.append((int(at.timestamp() * 1000), "call", name, detail))
    watched.record = call


def ask_livekit(info: dict[str, Any], watched: Watched) -> None:
    _, answer = fetch(f"{info['liveKitUrl']}/_standin/events?after={watched.livekit_sequence}")
    for event in answer["events"]:
        watched.livekit_sequence = event["sequence"]
        if event.get("roomName") != watched.room:
            continue
        line: tuple[str, str] | None = None
        match event["kind"]:
            case "room_started":
                line = ("room created", event["roomName"])
            case "participant_joined" if event.get("participantKind") == "AGENT":
                line = ("agent joined", event["identity"])
            case "invite":
                line = ("INVITE", f"to {event['number']}")
            case "ringing":
                line = ("ringing", "")
            case "active":
                line = ("picked up", "")
            case "hangup":
                line = ("hung up", "")
                watched.hung_up = True
            case "room_finished":
                line = ("room closed", "")
                watched.room_closed = True
        if line:
            watched.waiting.append((event["atMs"], "livekit", *line))


def ask_receiver(info: dict[str, Any], watched: Watched, metadata: object) -> None:
    _, answer = fetch(f"{info['receiverUrl']}/_receiver/events?callId={watched.call_id}")
    for hook in answer["events"][len(watched.hooks) :]:
        if not hook["verified"]:
            raise DemoError(f"the signature of {hook['type']} is not genuine: {hook['error']}", "Deliver")
        if json.loads(hook["body"])["metadata"] != metadata:
            raise DemoError(f"{hook['type']} came without the request's metadata", "Deliver")
        detail = f"{hook['id']}  signature verified"
        watched.waiting.append((hook["receivedAtMs"], "webhook", hook["type"], detail))
    watched.hooks = answer["events"]


# ── one call ────────────────────────────────────────────────────────────────────────────────────


def place(info: dict[str, Any], scene: Scene, in_full: bool) -> tuple[Watched, object]:
    """POSTs the scene's call; returns the call to watch and its metadata."""
    body = {**EXAMPLE, "to": scene.to, "callback_url": f"{info['receiverUrl']}/ringonce"}
    show(f"\n{coloured(scene.title, 'client')}\n")
    if in_full:
        show(coloured(json.dumps(body, indent=2), "dim") + "\n")
    show(f"{'ms':>9}  {'who':<8}  what")
    show_line(0, "client", "POST", f"/v1/api/call  to {scene.to}")
    started = now()
    headers = {**credentials(info), "content-type": "application/json"}
    status, answer = fetch(f"{info['apiUrl']}/v1/api/call", headers, json.dumps(body).encode())
    if status != 200:
        raise DemoError(f"POST /v1/api/call: {status} {answer}", "InitiateCall")
    watched = Watched(started, answer["callId"], answer["roomName"])
    watched.waiting.append((now(), "client", "200 accepted", f"callId {answer['callId']}"))
    return watched, body["metadata"]


def missing(watched: Watched) -> DemoError | None:
    """What is still missing, with the functions responsible; None when the call has ended and all its events are
    delivered."""
    status = watched.record.get("status", "queued")
    if status == "queued":
        return DemoError("the call was not dialled", "DialWorker")
    if status == "dialing":
        return DemoError("the dial has no outcome", "DialWorker", "LivekitEvents")
    if not watched.record.get("endedAt"):
        return DemoError("the call has not ended", "LivekitEvents" if watched.hung_up else "DialWorker")
    received = {hook["sequence"] for hook in watched.hooks}
    lacking = [event["type"] for event in watched.record["events"] if event["sequence"] not in received]
    if lacking:
        return DemoError(f"no webhook for {', '.join(lacking)}", "FanOut", "Deliver")
    return None


def watch(running: Running, scene: Scene, deadline_seconds: float, in_full: bool) -> None:
    """Places the scene's call and shows it until its end. Raises DemoError when something is missing."""
    info = running.info
    simulated = not real_livekit()
    watched, metadata = place(info, scene, in_full)
    until = time.monotonic() + deadline_seconds
    while True:
        ask_record(info, watched)
        if simulated:
            ask_livekit(info, watched)
        ask_receiver(info, watched, metadata)
        show_due(watched)
        gap = missing(watched)
        if gap is None and not watched.waiting and (watched.room_closed or not simulated):
            break
        if time.monotonic() > until:
            show_due(watched, everything=True)
            raise gap or DemoError("the room was not closed", "DialWorker", "LivekitEvents")
        running.check()
        pause(ASK_EVERY_SECONDS)
    judge(info, scene, watched, simulated)


def judge(info: dict[str, Any], scene: Scene, watched: Watched, simulated: bool) -> None:
    """Checks the three promises on a finished call and prints a summary. Raises DemoError."""
    call = watched.record
    ends = [event for event in call["events"] if event["type"] == "call.ended"]
    if len(ends) != 1:
        raise DemoError(f"the call ended {len(ends)} times", "DialWorker", "LivekitEvents")
    if scene.status and (call["status"], call["endReason"]) != (scene.status, scene.reason):
        raise DemoError(
            f"expected {scene.status}: {scene.reason}, got {call['status']}: {call['endReason']}", "DialWorker"
        )
    rang = ""
    if simulated:
        _, placed = fetch(f"{info['liveKitUrl']}/_standin/calls")
        invites = sum(one["roomName"] == watched.room for one in placed["calls"])
        if invites != 1:
            raise DemoError(f"the phone was rung {invites} times", "DialWorker")
        rang = "rang once, "
    show(
        f"\n{'':>9}  {call['status']}: {rang}ended once, {len(watched.hooks)} of {len(call['events'])}"
        " events delivered and verified"
    )


# ── the demo ────────────────────────────────────────────────────────────────────────────────────


def scenes() -> Sequence[Scene]:
    if real_livekit():
        to = os.environ.get("TO")
        if not to:
            raise SettingError("LIVEKIT_URL is set: set TO to the number to call")
        return [Scene("A call through a real LiveKit", to, None, None)]
    return [
        Scene("1. A call that is answered", EXAMPLE["to"], "completed", "hangup"),
        Scene("2. A call to a busy phone", "+15550000001", "busy", "busy"),
        Scene("3. A call that is not answered", "+15550000002", "no_answer", "no_answer"),
    ]


def perform(state: Path) -> None:
    wanted = scenes()
    show("Ringonce, on an emulated AWS in this user's own processes")
    began = time.monotonic()
    with stack(state, progress=lambda text: show(coloured(f"  {text} ...", "dim"))) as running:
        show(coloured(f"  ready after {time.monotonic() - began:.1f} s", "dim"))
        try:
            for scene in wanted:
                watch(running, scene, 300 if real_livekit() else SCENE_SECONDS, in_full=scene is wanted[0])
        except (DemoError, OSError) as exc:
            suspects = exc.suspects if isinstance(exc, DemoError) else ()
            show(coloured(f"\nfailed: {exc}", "bad"))
            for name in (*suspects, *(["stream"] if "FanOut" in suspects else []), "aws"):
                show(f"\n── end of {running.state}/logs/{name}.log")
                show(tail(running.state / "logs" / f"{name}.log", 15))
            raise
    show(f"\nDone in {time.monotonic() - began:.0f} s. `make run` leaves the stack running for calls of your own.")


def main(arguments: Sequence[str]) -> int:
    command = CommandLine(
        prog="python -m local.demo", description="Places three calls on a local stack of its own."
    )
    command.parse_args(arguments)
    stop_on_signals()
    try:
        # A folder of its own, so that it runs beside the stack of `make run`.
        perform(state_folder(".local/demo"))
    except StoppedError:
        show("\nstopped")
        return 130
    except SettingError as exc:
        command.error(str(exc))
    except StackError as exc:
        show(f"\nfailed: {exc}")
        return 1
    except (DemoError, OSError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
