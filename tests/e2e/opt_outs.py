"""Callees who opt out at random moments of their calls, on the local stack: who is rung after that, and when the
call was fenced.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.e2e.client import Client
from tests.e2e.launch import eventually

# Most calls of a stack that is not busy are fenced by then.
LATEST_SECONDS = 2.5
END_SECONDS = 900.0


@dataclasses.dataclass(frozen=True, slots=True)
class Rung:
    """A phone that rang after its opt-out had been answered. Times are epoch ms."""

    number: str
    answered_ms: int
    fenced_ms: int
    rung_ms: int

    def __str__(self) -> str:
        fenced, rung = self.fenced_ms - self.answered_ms, self.rung_ms - self.answered_ms
        return f"{self.number}: fenced {fenced:+d} ms, rang {rung:+d} ms from the opt-out's answer"


@dataclasses.dataclass(slots=True)
class Seen:
    """What became of the calls. early: rang before the opt-out was answered. rung: after it. Each of the rest must
    be empty: calls by id.
    """

    calls: int
    opt_outs: int = 0
    early: int = 0
    suppressed: int = 0
    rung: list[Rung] = dataclasses.field(default_factory=list)
    ended_otherwise: list[str] = dataclasses.field(default_factory=list)
    rung_twice: list[str] = dataclasses.field(default_factory=list)
    rung_and_suppressed: list[str] = dataclasses.field(default_factory=list)
    ended_twice: list[str] = dataclasses.field(default_factory=list)

    @property
    def fenced_after(self) -> list[Rung]:
        """Those that must not have been rung."""
        return [one for one in self.rung if one.fenced_ms >= one.answered_ms]

    def wrong(self) -> dict[str, int]:
        return {
            "fenced after their opt-out's answer": len(self.fenced_after),
            "neither rung nor suppressed": len(self.ended_otherwise),
            "rung twice": len(self.rung_twice),
            "rung and ended as suppressed": len(self.rung_and_suppressed),
            "ended twice": len(self.ended_twice),
        }


def opt_out_at_random(client: Client, calls: int, opt_outs: int, seed: int) -> Seen:
    """Places so many calls, each to a number of its own; of so many of them the callee opts out meanwhile."""
    dice = random.Random(seed)
    numbers = [f"+1555{6_000_000 + n}" for n in range(calls)]
    waits = {number: dice.uniform(0, LATEST_SECONDS) for number in dice.sample(numbers, opt_outs)}
    answered: dict[str, int] = {}

    def opt_out(number: str, at: float) -> None:
        time.sleep(max(0.0, at - time.monotonic()))

        def suppressed() -> bool:
            answer = client.api.put(f"/v1/api/suppression/{number}", json={"reason": "asked"})
            return answer.status_code == 200

        eventually(suppressed, f"{number} is suppressed")
        answered[number] = time.time_ns() // 1_000_000

    with ThreadPoolExecutor(4) as placing, ThreadPoolExecutor(8) as opting_out:

        def place(number: str) -> str:
            def accepted() -> str | None:
                answer = client.api.post(
                    "/v1/api/call",
                    json={"to": number, "call_agent_id": "agent-1"},
                    headers={"idempotency-key": f"opt-out-{seed}-{number[1:]}"},
                )
                return str(answer.json()["callId"]) if answer.status_code == 200 else None

            call_id = eventually(accepted, f"the call to {number} is accepted")
            assert call_id is not None
            if number in waits:
                opting_out.submit(opt_out, number, time.monotonic() + waits[number])
            return call_id

        call_ids = dict(zip(numbers, placing.map(place, numbers), strict=True))
    ended: dict[str, dict[str, Any]] = {}

    def all_ended() -> bool:
        for number, call_id in call_ids.items():
            if number not in ended:
                call = client.call(call_id)
                if not call.get("endedAt"):
                    time.sleep(0.2)
                    return False
                ended[number] = call
        return True

    eventually(all_ended, "every call ends", END_SECONDS)
    assert answered.keys() == waits.keys()
    placed = client.livekit.get("/_standin/calls").json()["calls"]
    rings = collections.defaultdict(list)
    for ring in placed:
        rings[ring["number"]].append(ring["atMs"])
    seen = Seen(calls, opt_outs)
    for number, call in ended.items():
        _judge(seen, number, call, rings[number], answered.get(number))
    return seen


def _judge(seen: Seen, number: str, call: dict[str, Any], rings: list[int], answered_ms: int | None) -> None:
    call_id, suppressed = call["callId"], call["endReason"] == "suppressed"
    if len(rings) > 1:
        seen.rung_twice.append(call_id)
    if [event["type"] for event in call["events"]].count("call.ended") != 1:
        seen.ended_twice.append(call_id)
    if rings and suppressed:
        seen.rung_and_suppressed.append(call_id)
    if not rings and not (suppressed and answered_ms is not None):
        seen.ended_otherwise.append(call_id)
    seen.suppressed += suppressed
    if rings and answered_ms is not None:
        if rings[0] <= answered_ms:
            seen.early += 1
        else:
            fenced = datetime.datetime.fromisoformat(call["dialedAt"])
            seen.rung.append(Rung(number, answered_ms, round(fenced.timestamp() * 1000), rings[0]))
