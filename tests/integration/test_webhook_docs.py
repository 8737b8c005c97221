"""docs/webhooks.md is correct: its bodies are the code's, and its programs, in two languages, verify what deliver
sends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.call import Call, event, event_id, webhook_body
from shared.callback_url import Policy
from shared.clock import now_ms
from shared.durations import Durations
from tests.calls import call_record
from tests.node_packages import PROJECT
from tests.simulation import Simulation, run
from webhook_dispatch.batch import deliver_batch
from webhook_dispatch.transport import GuardedTransport

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "webhooks.md").read_text()
START = 1_795_600_800_000
DEADLINE_SECONDS = 120.0
SECRET, NEW_SECRET, OTHER_SECRET = (f"whsec_{letter * 43}=" for letter in ("a", "b", "c"))
CALL_ID = "f9e8d7c6b5a4f3e2d1c0b9a8"
CALL = call_record(
    START,
    call_id=CALL_ID,
    call_agent_id="a1b2c3d4e5f6a7b8c9d0e1f2",
    to="+1234567890",
    status="completed",
    events=(
        event("call.queued", START),
        event("call.dialing", START + 1_204, **{"from": "+12025550100"}),
        event("call.answered", START + 9_870),
        event("agent.note", START + 30_115, data='{"mood": "good"}'),
        event("call.ended", START + 71_342, status="completed", reason="hangup", retryable=False),
    ),
    room_name="a1b2c3d4e5f6a7b8c9d0e1f2-x7k2m9p4q1",
    job_id="059f36b4-87a3-44ab-83d2-661975830a7d",
    metadata='{"orderId": "o-1"}',
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


# ── what it says ────────────────────────────────────────────────────────────────────────────────────


def test_the_bodies_of_the_page_are_those_of_the_code() -> None:
    wanted = [json.loads(webhook_body(CALL, sequence)) for sequence in range(1, len(CALL.events) + 1)]
    assert [json.loads(block) for block in blocks("json")] == wanted


def test_every_type_that_the_code_knows_stands_on_the_page() -> None:
    source = "".join(path.read_text() for path in (ROOT / "functions").rglob("*.py"))
    types = set(re.findall(r'"(call\.[a-z]+)"', source))
    assert types == set(re.findall(r"^\| `(call\.[a-z]+)`", PAGE, re.MULTILINE))


def test_the_schedule_of_the_page_is_the_codes() -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    [text] = re.findall(r"repeated after (.*?), each", PAGE.replace("\n", " "))
    waits = tuple(float(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)\b", text))
    assert (0, *waits) == Durations().webhook_schedule
    assert f"2xx within {Durations().webhook_attempt:g} seconds" in PAGE
    assert f"{Durations().webhook_connect:g} seconds to connect" in PAGE


# ── its programs ────────────────────────────────────────────────────────────────────────────────────


class Program:
    """A program of the page, at work. said: the lines it has printed."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}/hook"
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line.strip())

    def end(self) -> list[str]:
        """Everything it said."""
        self.process.terminate()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()
        return self.said


@contextlib.contextmanager
def port_for_another() -> Iterator[int]:
    """A loopback port that this process holds without listening: the system does not assign it to another process.

    Linux lets a second socket listen on it, if both allow that, as servers do. Elsewhere it is only free just now.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()
        yield port


@contextlib.contextmanager
def program(language: str, secret: str, folder: Path) -> Iterator[Program]:
    """folder: where the program lies, in a folder of its own."""
    [code] = blocks(language)
    with contextlib.ExitStack() as stack:
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        port = stack.enter_context(port_for_another())
        path = own / {"python": "receiver.py", "js": "receiver.mjs"}[language]
        path.write_text(code)
        errors = path.with_suffix(".errors")
        process = subprocess.Popen(
            [sys.executable if language == "python" else "node", str(path)],
            env=os.environ | {"PORT": str(port), "WEBHOOK_SECRET": secret},
            stdout=subprocess.PIPE,
            stderr=stack.enter_context(errors.open("w")),
            text=True,
        )
        running = Program(process, port)
        stack.callback(running.end)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS).close()
                break
            except OSError:
                assert process.poll() is None, errors.read_text()
                assert time.monotonic() < deadline, errors.read_text()
                time.sleep(0.02)
        yield running


def statuses_of(simulation: Simulation, keys: list[int]) -> list[int | None]:
    """Delivers these events, one attempt each, and says what was answered."""

    async def once() -> list[int | None]:
        records = [{"messageId": str(n), "body": json.dumps({"callId": CALL_ID, "sequence": n})} for n in keys]
        deliverer = simulation.deliverer()
        assert await deliver_batch(deliverer, records) == {"batchItemFailures": []}
        await deliverer.client.aclose()
        return [simulation.tables.rows[CALL_ID, n].attempts[-1].get("status") for n in keys]

    return run(once())


def simulation_with(call: Call, *secrets: str) -> Simulation:
    """A simulation at the machine's time: the libraries refuse what is more than five minutes old.

    Each event waits for the one before it, however slow this machine is: the program names them in order.
    """
    in_order = dataclasses.replace(Durations(), webhook_order=DEADLINE_SECONDS)
    simulation = Simulation(in_order, transport=GuardedTransport(Policy(loopback=True)))
    simulation.clock.now = now_ms()
    simulation.tables.calls[CALL_ID] = call
    workspace = simulation.tables.workspaces["demo"]
    simulation.tables.workspaces["demo"] = dataclasses.replace(workspace, webhook_secrets=secrets)
    for sequence in range(1, len(call.events) + 1):
        simulation.deliveries.create(CALL_ID, "demo", sequence, simulation.clock(), simulation.clock())
    return simulation


@pytest.mark.parametrize("language", ["python", "js"])
def test_the_pages_program_verifies_what_deliver_sends_and_nothing_else(
    language: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # Node looks for packages from the program's own folder upwards.
    folder = request.getfixturevalue("node_modules") if language == "js" else tmp_path
    everything = list(range(1, len(CALL.events) + 1))
    # Other scripts, emoji, big numbers: what is signed is bytes.
    metadata = '{"who": "Zoë 📞 ", "big": 12345678901234567890123, "one": 1.0, "esc": "\\u00e9"}'
    with program(language, SECRET, folder) as receiver:
        call = dataclasses.replace(CALL, callback_url=receiver.url, metadata=metadata)
        assert statuses_of(simulation_with(call, SECRET), everything) == [204] * 5
        # During a rotation, in either order; the receiver still knows the old one only.
        assert statuses_of(simulation_with(call, NEW_SECRET, SECRET), everything) == [204] * 5
        assert statuses_of(simulation_with(call, SECRET, NEW_SECRET), everything) == [204] * 5
        # Another's signature, and one of ten minutes ago.
        assert statuses_of(simulation_with(call, OTHER_SECRET), [1]) == [400]
        old = simulation_with(call, SECRET)
        old.clock.now -= 600_000
        old.tables.rows[CALL_ID, 1] = dataclasses.replace(old.tables.rows[CALL_ID, 1], next_attempt_at_ms=0)
        assert statuses_of(old, [1]) == [400]
        said = receiver.end()
    # Each event once, though it came three times.
    states: list[Any] = [json.loads(webhook_body(CALL, n))["data"]["status"] for n in everything]
    assert said == [f"{CALL.events[n - 1]['type']} {n} {states[n - 1]}" for n in everything]
    assert event_id(CALL_ID, 1) == f"evt_{CALL_ID}_1"


def test_the_new_secret_verifies_during_a_rotation(tmp_path: Path) -> None:
    with program("python", NEW_SECRET, tmp_path) as receiver:
        call = dataclasses.replace(CALL, callback_url=receiver.url)
        assert statuses_of(simulation_with(call, NEW_SECRET, SECRET), [1]) == [204]


def test_no_registry_is_named_in_the_lock_of_the_node_library() -> None:
    lock = json.loads((PROJECT / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert all(package["integrity"].startswith("sha512-") and "resolved" not in package for package in packages)
