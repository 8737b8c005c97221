"""What a person types wrong at a command of the local stack is answered in one line, with exit code 2."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from local.api_gateway import main as api_gateway
from local.console.__main__ import main as console
from local.dashboard import main as dashboard
from local.demo import main as demo
from local.livekit.__main__ import main as livekit
from local.receiver import main as receiver
from local.signals import StoppedError
from local.stack import main as stack
from local.stack import run

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
LIVEKIT = "--api-key k --api-secret s"
MAINS: dict[str, Callable[[list[str]], object]] = {
    "receiver": lambda arguments: receiver(),
    "livekit": lambda arguments: livekit(),
    "api_gateway": lambda arguments: api_gateway(),
    "console": lambda arguments: console(),
    "dashboard": dashboard,
    "demo": demo,
    "stack": stack,
}


def refusal(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `python -m local.<line>` ends with."""
    name, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        MAINS[name](arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (told,) = said.err.splitlines()
    assert told.startswith(f"python -m local.{name}: ")
    return told


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("receiver --port x", "--port"),
        ("receiver --port -1", "--port"),
        ("receiver --port 65536", "--port"),
        ("receiver --port 9000.5", "--port"),
        ("receiver --port ''", "--port"),
        ("receiver --secret nonsense", "--secret"),
        ("receiver --secret ''", "--secret"),
        ("receiver --secret whsec_", "--secret"),
        ("receiver --secret whsec_nonsense", "--secret"),
        (f"receiver --secret {SECRET.removeprefix('whsec_')}", "--secret"),
        (f"receiver --secret '{SECRET[:-5]}!!!!'", "--secret"),
        (f"receiver --secret {SECRET} --secret whsec_ü", "--secret"),
        ("receiver --certificate /does/not/exist", "/does/not/exist"),
        ("receiver --key /does/not/exist", "--certificate"),
        ("receiver --nonsense", "--nonsense"),
        ("receiver 9000", "9000"),
        ("livekit", "--api-key"),
        (f"livekit {LIVEKIT} --port 70000", "--port"),
        (f"livekit {LIVEKIT} --time-scale 0", "--time-scale"),
        (f"livekit {LIVEKIT} --time-scale nan", "--time-scale"),
        (f"livekit {LIVEKIT} --ring-seconds -1", "--ring-seconds"),
        (f"livekit {LIVEKIT} --slack inf", "--slack"),
        (f"livekit {LIVEKIT} --webhook-url 127.0.0.1:9000", "--webhook-url"),
        (f"livekit {LIVEKIT} --webhook-url http://[", "--webhook-url"),
        ("api_gateway", "--target"),
        ("api_gateway --target nonsense", "--target"),
        ("api_gateway --target http://127.0.0.1:99999", "--target"),
        ("api_gateway --target http://127.0.0.1:1 --timeout soon", "--timeout"),
        ("console", "RINGONCE_CONSOLE"),
        ("console --port 1", "--port"),
        ("dashboard --page", "--page"),
        ("demo three", "three"),
        ("stack start", "start"),
        ("stack stop now", "now"),
    ],
)
def test_a_wrong_option_is_named(
    line: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RINGONCE_CONSOLE", raising=False)
    assert named in refusal(line, monkeypatch, capsys)


@pytest.mark.parametrize(
    "line",
    ["receiver", f"livekit {LIVEKIT}", "api_gateway --target http://127.0.0.1:1"],
    ids=lambda line: line[:8],
)
def test_a_taken_port_is_named(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: Address already in use" in refusal(f"{line} --port {port}", monkeypatch, capsys)


def test_a_certificate_that_is_none_or_not_the_keys_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = trustme.CA()
    one, other = authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.1")
    certificate, key, text = tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "text"
    one.cert_chain_pems[0].write_to_path(certificate)
    other.private_key_pem.write_to_path(key)
    text.write_text("not a certificate")
    assert str(text) in refusal(f"receiver --certificate {text}", monkeypatch, capsys)
    assert str(key) in refusal(f"receiver --certificate {certificate} --key {key}", monkeypatch, capsys)


@pytest.mark.parametrize(
    "described", ["nonsense", "{}", "[]", '{"resources": null}', '{"resources": {"CallsTable": "c"}}']
)
def test_a_console_of_no_stack_says_so(
    described: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RINGONCE_CONSOLE", described)
    assert "make run" in refusal("console", monkeypatch, capsys)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PORT", "x"),
        ("PORT", "-1"),
        ("PORT", "70000"),
        ("TIME_SCALE", "fast"),
        ("TIME_SCALE", "0"),
        ("TIME_SCALE", "-1"),
        ("TIME_SCALE", "nan"),
        ("RINGONCE_LOCAL_DIR", str(Path(__file__) / "state")),
    ],
)
def test_a_wrong_variable_is_named(
    variable: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PORT", "TIME_SCALE", "LIVEKIT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RINGONCE_LOCAL_DIR", str(tmp_path))
    monkeypatch.setattr("local.stack.stop_on_signals", lambda: None)
    monkeypatch.setenv(variable, text)
    assert variable in refusal("stack", monkeypatch, capsys)


def test_a_dashboard_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = {"Namespace": "n", "Dimensions": [[]], "Metrics": [{"Name": "Placed"}]}
    line = {"_aws": {"Timestamp": 1, "CloudWatchMetrics": [metric]}, "Placed": 1}
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "DialWorker.log").write_text(json.dumps(line) + "\n")
    monkeypatch.setenv("RINGONCE_LOCAL_DIR", str(tmp_path))
    assert str(tmp_path) in refusal(f"dashboard {tmp_path}", monkeypatch, capsys)


INFO: dict[str, Any] = {
    "apiUrl": "http://127.0.0.1:1111",
    "consoleUrl": "http://127.0.0.1:2222",
    "receiverUrl": "http://127.0.0.1:3333",
    "workspaceId": "demo",
    "apiKey": "rk_key",
    "webhookSecret": SECRET,
    "liveKitStandIn": True,
    "resources": {"CallsTable": "not-shown"},
}


class Output(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_running_stack_says_how_to_place_a_call_and_tells_programs_where_it_is(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def started(state: Path, port: int) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(info=INFO)

    def stopped(seconds: float) -> None:
        raise StoppedError

    monkeypatch.setattr("local.stack.stack", started)
    monkeypatch.setattr("local.stack.pause", stopped)
    output = Output(terminal)
    with pytest.raises(StoppedError):
        run(tmp_path, 0, output)
    assert output.getvalue() == ("" if terminal else f"READY {json.dumps(INFO)}\n")
    assert json.loads((tmp_path / "stack.json").read_text()) == INFO
    told = capsys.readouterr().err
    for wanted in ("http://127.0.0.1:1111/docs", INFO["consoleUrl"], "rk_key", SECRET, f"{tmp_path}/stack.json"):
        assert re.search(rf"[ ]{re.escape(wanted)}$", told, re.MULTILINE), told
    assert "not-shown" not in told
    assert "export API_URL=http://127.0.0.1:1111 API_KEY=rk_key\n" in told
    found = re.search(r"^curl (?:.*\\\n)*.*", told, re.MULTILINE)
    assert found is not None
    curl = shlex.split(found[0])
    assert {"http://127.0.0.1:1111/v1/api/call", "x-workspace-id: demo", "x-api-key: rk_key"} <= set(curl)
    assert json.loads(curl[-1])["callback_url"] == "http://127.0.0.1:3333/hook"
