"""However the local stack ends, no process, port or temporary folder of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.launch import ROOT, eventually, launched, ports_in_use, ports_of, processes_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into Linux's /proc")

# Answers, and talks until somebody hangs up.
LONG_CALL = "+15550000012"


def place_call(info: dict[str, Any], to: str) -> None:
    body = {"to": to, "call_agent_id": "a1", "callback_url": f"{info['receiverUrl']}/hook"}
    headers = {"x-workspace-id": info["workspaceId"], "x-api-key": info["apiKey"]}
    request = urllib.request.Request(f"{info['apiUrl']}/v1/api/call", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def rings(info: dict[str, Any]) -> bool:
    with urllib.request.urlopen(f"{info['liveKitUrl']}/_standin/calls", timeout=10) as answer:
        return bool(json.loads(answer.read())["calls"])


@pytest.mark.parametrize("moment", ["starting", "translating", "deploying", "starting the functions", "READY"])
def test_ctrl_c_leaves_nothing_behind(moment: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        stack.says(moment)
        ports = ports_of(processes_of(state))
        assert stack.interrupt() == 0
        assert processes_of(state) == {}
        assert ports_in_use(ports) == set()
        assert not (state / "tmp").exists()
        assert not (state / "stack.json").exists()
        assert "Traceback" not in stack.said()


def test_ctrl_c_while_a_phone_rings_leaves_nothing_behind(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        info = stack.info()
        place_call(info, LONG_CALL)
        eventually(lambda: rings(info), "the phone rings")
        before = processes_of(state)
        assert any("ministack-lambda" in command for command in before.values())
        assert stack.interrupt() == 0
        assert processes_of(state) == {}
        assert ports_in_use(ports_of(before)) == set()
        assert not (state / "tmp").exists()


def test_a_killed_stack_takes_everything_with_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        info = stack.info()
        place_call(info, LONG_CALL)
        eventually(lambda: rings(info), "the phone rings")
        ports = ports_of(processes_of(state))
        assert len(ports) >= 4
        stack.process.kill()
        stack.process.wait()
        eventually(lambda: not processes_of(state), "its processes have ended")
        assert ports_in_use(ports) == set()
        eventually(lambda: not (state / "tmp").exists(), "the temporary folder is gone")


def test_a_killed_emulator_ends_the_stack_and_says_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as stack:
        os.kill(stack.info()["pids"]["aws"], signal.SIGKILL)
        assert stack.process.wait(15) == 1
        assert "aws ended with -9" in stack.said()
        assert processes_of(state) == {}


def test_stop_ends_a_running_stack_and_says_when_there_is_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    stop = [sys.executable, "-m", "local.stack", "stop"]
    environment = {**os.environ, "RINGONCE_LOCAL_DIR": str(state)}
    with launched(state) as stack:
        info = stack.info()
        assert json.loads((state / "stack.json").read_text()) == info
        first = subprocess.run(stop, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert f"process {info['pids']['stack']}" in first.stderr
        assert stack.process.wait(5) == 0
        assert processes_of(state) == {}
    second = subprocess.run(stop, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "no local stack is running" in second.stderr


def test_a_second_stack_in_the_same_folder_is_refused_and_the_first_lives(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with launched(state) as first:
        first.says("starting")
        with launched(state) as second:
            assert second.process.wait(15) == 1
        assert "a stack is running in" in first.said()
        assert first.info()["apiUrl"]


def test_a_taken_port_is_named_and_nothing_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with launched(state, {"PORT": str(port)}) as stack:
            assert stack.process.wait(15) == 1
            assert f"port {port} is in use" in stack.said()
            assert processes_of(state) == {}
