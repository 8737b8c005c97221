"""The local stack leaves no process, port or temporary folder, however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launch import END_SECONDS, ROOT, all_listening, eventually, launched, listening, processes_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into Linux's /proc")

# Answers, and talks until it is hung up.
LONG_CALL = "+15550000012"
MOMENTS = ["starting", "translating", "deploying", "starting the functions", "READY"]


def place_call(info: dict[str, Any], to: str) -> None:
    body = {"to": to, "call_agent_id": "a1", "callback_url": f"{info['receiverUrl']}/hook"}
    headers = {"x-workspace-id": info["workspaceId"], "x-api-key": info["apiKey"]}
    request = urllib.request.Request(f"{info['apiUrl']}/v1/api/call", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=END_SECONDS) as answer:
        assert answer.status == 200


def rings(info: dict[str, Any]) -> bool:
    with urllib.request.urlopen(f"{info['liveKitUrl']}/_standin/calls", timeout=END_SECONDS) as answer:
        return bool(json.loads(answer.read())["calls"])


def closed(sockets: AbstractSet[tuple[int, str]]) -> None:
    """Waits until the sockets are closed: a dying process loses its environment, by which `processes_of` finds it,
    before it closes its files."""
    eventually(lambda: not sockets & set(all_listening()), "its ports are free")


def nothing_is_left(state: Path, sockets: AbstractSet[tuple[int, str]] = frozenset()) -> None:
    """Asserts that no process, none of these sockets and no file but logs and kills is left."""
    assert processes_of(state) == {}
    closed(sockets)
    assert {path.name for path in state.iterdir()} <= {"said", "lock", "logs", "deaths"}
    assert (state / "lock").read_text() == ""


def stop(state: Path) -> str:
    """Runs `make stop`'s command; returns its stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "local.stack", "stop"],
        cwd=ROOT,
        env={**os.environ, "RINGONCE_LOCAL_DIR": str(state)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_nothing_behind(moment: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        stack.says(moment)
        sockets = listening(processes_of(state))
        assert stack.interrupt() == 0
        nothing_is_left(state, sockets)
        assert "Traceback" not in stack.said()


@pytest.mark.parametrize("moment", MOMENTS[:-1])
def test_a_stack_that_is_killed_while_it_starts_leaves_files_only_and_stop_removes_them(
    moment: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        stack.says(moment)
        stack.process.kill()
        stack.process.wait()
        eventually(lambda: not processes_of(state), "its processes have ended")
        stop(state)
        nothing_is_left(state)


def test_ctrl_c_while_a_phone_rings_leaves_nothing_behind(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        info = stack.info()
        place_call(info, LONG_CALL)
        eventually(lambda: rings(info), "the phone rings")
        before = processes_of(state)
        assert any("ministack-lambda" in command for command in before.values())
        sockets = listening(before)
        assert stack.interrupt() == 0
        nothing_is_left(state, sockets)


def test_a_killed_stack_takes_everything_with_it_and_the_next_one_has_its_port(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        info = stack.info()
        place_call(info, LONG_CALL)
        eventually(lambda: rings(info), "the phone rings")
        before = processes_of(state)
        sockets = listening(before)
        assert len({port for port, _ in sockets}) >= 4
        stack.process.kill()
        stack.process.wait()
        # Immediately, before the other processes have noticed.
        with launched(state, {"PORT": info["apiUrl"].rpartition(":")[2]}) as following:
            eventually(lambda: not before.keys() & processes_of(state).keys(), "its processes have ended")
            closed(sockets)
            eventually(lambda: following.said().count("READY ") == 2, "the next one is ready")
            assert following.interrupt() == 0
        nothing_is_left(state)


def test_a_killed_emulator_ends_the_stack_and_says_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        os.kill(stack.info()["pids"]["aws"], signal.SIGKILL)
        assert stack.process.wait(END_SECONDS) == 1
        assert "aws ended with -9" in stack.said()
        nothing_is_left(state)


def test_stop_ends_a_running_stack_and_says_when_there_is_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        info = stack.info()
        assert json.loads((state / "stack.json").read_text()) == info
        assert f"process {info['pids']['stack']}" in stop(state)
        assert stack.process.wait(END_SECONDS) == 0
        nothing_is_left(state)
    assert "no local stack is running" in stop(state)


def test_a_second_stack_in_the_same_folder_is_refused_and_the_first_lives(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as first:
        first.says("starting")
        with launched(state) as second:
            assert second.process.wait(END_SECONDS) == 1
        assert "a stack is running in" in first.said()
        assert first.info()["apiUrl"]


def test_a_taken_port_is_named_and_nothing_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with launched(state, {"PORT": str(port)}) as stack:
            assert stack.process.wait(END_SECONDS) == 1
            assert f"port {port} is in use" in stack.said()
            assert processes_of(state) == {}
