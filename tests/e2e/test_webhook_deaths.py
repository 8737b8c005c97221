"""Processes of fan_out and deliver that die at steps beyond those of tests/e2e/test_deaths.py, on the local stack:
every event still arrives, under its one id."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.client import Client
from tests.e2e.launch import eventually, launched


@dataclasses.dataclass(frozen=True, slots=True)
class Death:
    """refuses_once: the receiver, the first webhook of this call."""

    what: str
    function: str
    point: str
    when: str
    refuses_once: bool = False


DEATHS = [
    Death("all rows are made, no message sent", "FanOut", "Queue.send_batch", "before"),
    Death("the messages are sent, the stream does not know", "FanOut", "Queue.send_batch", "after"),
    Death("posting, no answer yet", "Deliver", "GuardedTransport.handle_async_request", "during"),
    Death("refused, not noted", "Deliver", "DeliveryStore.finish", "before", refuses_once=True),
    Death("refused and noted, no message for the retry", "Deliver", "Queue.send", "before", refuses_once=True),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A stack whose functions take one message at a time, so that a death is one call's alone."""
    with (
        launched(tmp_path_factory.mktemp("webhook-deaths") / "state") as running,
        Client(running.info()) as client,
    ):
        lambdas = client.aws("lambda")
        for mapping in lambdas.list_event_source_mappings()["EventSourceMappings"]:
            lambdas.update_event_source_mapping(UUID=mapping["UUID"], BatchSize=1)
        faults = {"talkSeconds": 0.3, "ringSeconds": 0.2, "agentJoinSeconds": 0.0}
        client.livekit.put("/_standin/faults", json=faults).raise_for_status()
        yield client


def test_whatever_dies_every_event_arrives_under_its_one_id(
    client: Client, report_table: list[tuple[str, ...]]
) -> None:
    calls = {}
    for n, death in enumerate(DEATHS):
        key = f"webhook-death-{n}"
        if death.refuses_once:
            refusal = {f"/{key}": {"status": 500, "times": 1}}
            client.receiver.put("/_receiver/behaviour", json=refusal).raise_for_status()
        asked = Path(client.info["deaths"]) / f"{n}.json"
        wish = {
            "function": death.function,
            "point": death.point,
            "when": death.when,
            "call": client.call_id_of(key),
        }
        asked.with_suffix(".new").write_text(json.dumps(wish))
        asked.with_suffix(".new").rename(asked)
        calls[death] = client.place(f"+1555040{n:04d}", key)
    report_table.append(("the process dies when", "it died", "events", "POSTs"))
    for n, (death, call_id) in enumerate(calls.items()):
        died = Path(client.info["deaths"]) / f"{n}.done"
        eventually(died.exists, f"a process dies: {death.what}")
        eventually(lambda call_id=call_id: client.call(call_id).get("endedAt"), "it ends")  # type: ignore[misc]
        events = client.call(call_id)["events"]
        wanted = {f"evt_{call_id}_{sequence}" for sequence in range(1, len(events) + 1)}

        def all_delivered(call_id: str = call_id, count: int = len(events)) -> bool:
            return [found["state"] for found in client.deliveries(call_id)] == ["delivered"] * count

        eventually(all_delivered, f"every event is delivered: {death.what}")
        received = client.received(call_id)
        assert all(event["verified"] for event in received)
        posts = collections.Counter(event["id"] for event in received)
        assert set(posts) == wanted
        assert len({(event["id"], event["body"]) for event in received}) == len(wanted)
        report_table.append((death.what, "yes", str(len(wanted)), str(posts.total())))
    eventually(lambda: client.due() == 0, "nothing is due")
