"""Many calls, one in twenty with a fault of LiveKit: each ends once and says so once.

As many as fit beside the other tests of the whole stack into ten minutes; RINGONCE_CALLS=1000 places a thousand.
"""

from __future__ import annotations

import collections
import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched

CALLS = int(os.environ.get("RINGONCE_CALLS", "200"))
FAULTS = (
    "busy",
    "no_answer",
    "rejected",
    "invalid_number",
    "carrier_error",
    "agent_never_joins",
    "cut_after_answer",
    "cut_while_ringing",
    "unavailable",
    "unavailable_once",
    "bad_gateway",
    "trunk_auth",
    "unknown_trunk",
    "cps_limit",
    "rate_limited_once",
    "never_responds",
)
SHARE = 0.05
NUMBERS = [f"+1555020{n:04d}" for n in range(CALLS)]
# For a call that never ends; a slow machine takes some minutes for all of them.
SECONDS = 900.0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with launched(tmp_path_factory.mktemp("thousand") / "state") as running, Client(running.info()) as client:
        client.make_room()
        faults = {
            "talkSeconds": 0.5,
            "ringSeconds": 0.3,
            "agentJoinSeconds": 0.1,
            "seed": 7,
            "rates": {fault: SHARE / len(FAULTS) for fault in FAULTS},
            # A refusal whose SIP code was lost on the way.
            "numbers": {number: {"outcome": "busy", "withoutMeta": True} for number in NUMBERS[::50]},
            "dispatches": {"lose": SHARE},
            "webhooks": {"drop": SHARE, "duplicate": SHARE},
            "createRoom": {"fail": "unavailable", "probability": SHARE},
            "listParticipants": {"fail": "html502", "probability": SHARE},
            "deleteRoom": {"fail": "cut", "probability": SHARE},
        }
        client.livekit.put("/_standin/faults", json=faults).raise_for_status()
        yield client


def test_every_one_of_them_ends_once_and_rings_at_most_once(
    client: Client, report_table: list[tuple[str, ...]]
) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        call_ids = list(threads.map(lambda number: client.place(number, key=f"call-{number[1:]}"), NUMBERS))
    accepted = time.monotonic() - started
    calls: dict[str, dict[str, Any]] = {}
    looks = itertools.count()
    dead_agents = 0

    def all_ended() -> bool:
        nonlocal dead_agents
        if next(looks) % 8 == 0:
            dead_agents += an_agent_dies(client, at_once=dead_agents % 2 == 0)
        for call_id in call_ids:
            if call_id not in calls:
                call = client.call(call_id)
                if not call.get("endedAt"):
                    # One call that is still open is enough to go on waiting.
                    time.sleep(0.5)
                    return False
                calls[call_id] = call
        return True

    eventually(all_ended, "every call ends", SECONDS)
    ended = time.monotonic() - started

    def all_told() -> bool:
        time.sleep(0.5)
        return told_of(client).keys() >= set(call_ids)

    eventually(all_told, "every end is told", SECONDS)
    told = told_of(client)
    assert all(len(ids) == 1 for ids in told.values())
    assert all([event["type"] for event in call["events"]].count("call.ended") == 1 for call in calls.values())
    rings = collections.Counter(
        placed["number"] for placed in client.livekit.get("/_standin/calls").json()["calls"]
    )
    assert set(rings) <= set(NUMBERS)
    assert max(rings.values()) == 1
    eventually(lambda: not client.active_calls(), "every slot is free", SECONDS)
    reasons = collections.Counter(call["endReason"] for call in calls.values())
    report_table.append((f"{CALLS} calls, {SHARE:.0%} faults of every kind",))
    report_table.append(("accepted, ended after (s)", f"{accepted:.0f}, {ended:.0f}"))
    report_table.append(("rang, ended, told", f"{len(rings)}, {len(calls)}, {len(told)}"))
    report_table.append(("agents that died", str(dead_agents)))
    report_table += [(reason, str(count)) for reason, count in reasons.most_common()]


def an_agent_dies(client: Client, *, at_once: bool) -> int:
    """The agent of the first room that has one; LiveKit hears of it at once, or by its silence. Returns 1 or 0."""
    for room in client.livekit.get("/_standin/rooms").json()["rooms"]:
        death = {"roomName": room["name"], "atOnce": at_once}
        if client.livekit.post("/_standin/agent-death", json=death).is_success:
            return 1
    return 0


def told_of(client: Client) -> dict[str, set[str]]:
    """The ids of the `call.ended` events received, by call."""
    told: dict[str, set[str]] = collections.defaultdict(set)
    for event in client.receiver.get("/_receiver/events").json()["events"]:
        if event["type"] == "call.ended":
            assert event["verified"]
            told[event["id"].split("_")[1]].add(event["id"])
    return told
