"""`admin webhook-test`, against real endpoints: what it shows of each."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook

from admin.command import main
from admin.target import Target
from tests.faulty_endpoints import Endpoints, endpoints
from tests.system import DEADLINE_SECONDS, System


@pytest.fixture(scope="module")
def found() -> Iterator[Endpoints]:
    """Endpoints on a loop and thread of their own: the command runs a loop itself."""
    loop = asyncio.new_event_loop()
    down = asyncio.Event()
    there: list[Endpoints] = []

    async def serve() -> None:
        async with endpoints() as them:
            there.append(them)
            started.set()
            await down.wait()

    started = threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(DEADLINE_SECONDS)
    yield there[0]
    loop.call_soon_threadsafe(down.set)
    thread.join(DEADLINE_SECONDS)
    loop.close()


@pytest.fixture
def admin(
    system: System, found: Endpoints, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """The command in an account with the demo workspace; the endpoints' names are public."""
    monkeypatch.setattr("admin.webhook_test.GuardedTransport", lambda policy: found.transport())
    monkeypatch.setattr("admin.webhook_test.check_url", lambda url, policy: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(url: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = main(["--table", "WorkspacesTable", "webhook-test", url, "--workspace", "demo", "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return run


def test_it_shows_where_a_webhook_went_and_what_came_back(admin: Any, system: System, found: Endpoints) -> None:
    code, told, err = admin(found.url["good"])
    assert (code, err) == (0, "")
    assert (told["status"], told["error"], told["answer"]) == (200, None, "ok")
    assert told["address"].startswith("127.0.0.1 port ")
    assert told["tls"]["version"].startswith("TLSv1.")
    assert told["tls"]["names"] == ["good.example.com"]
    assert ["Content-Length", "2"] in told["answerHeaders"]
    [secret] = (system.workspaces.get("demo") or pytest.fail("no workspace")).webhook_secrets
    event = Webhook(secret).verify(told["sentBody"], told["sentHeaders"])
    assert (event["type"], event["sequence"], event["metadata"]) == ("webhook.test", 0, None)
    assert event["id"] == told["sentHeaders"]["webhook-id"] == found.posts["good"][-1]


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("answers 500", 500, "the answer was 500, not 2xx"),
        ("redirects to loopback", 301, "the answer was 301, not 2xx"),
        ("refuses", None, "ConnectError"),
        ("has another name's certificate", None, "CERTIFICATE_VERIFY_FAILED"),
        ("speaks no HTTP", None, "RemoteProtocolError"),
    ],
)
def test_what_did_not_arrive_fails_and_says_why(
    admin: Any, found: Endpoints, kind: str, status: int | None, said: str
) -> None:
    code, told, err = admin(found.url[kind])
    assert (code, told["status"]) == (1, status)
    assert err.startswith("admin: it did not arrive: ")
    assert said in err
    # The output shows where it failed: no connection, no certificate.
    assert (told["address"] is None) == (kind == "refuses")
    assert (told["tls"] is None) == (kind in ("refuses", "has another name's certificate"))
    assert found.forbidden == []


def test_a_person_reads_it_and_no_answer_moves_the_cursor(
    admin: Any, found: Endpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--table", "WorkspacesTable", "webhook-test", found.url["good"], "--workspace", "demo"]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "\nStatus                  200\n" in out
    assert "\nAnswer                  ok\n" in out
    assert all(char.isprintable() or char == "\n" for char in out)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "https://10.0.0.1/", "https://localhost/", "nonsense"])
def test_a_url_that_no_call_may_have_is_refused(
    system: System, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["--table", "WorkspacesTable", "webhook-test", url, "--workspace", "demo"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no call with it would be accepted" in err


def test_the_local_stacks_own_receiver_may_be_tested_and_verifies_it(
    system: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target(system.workspaces, system.limits, "here", local=True)
    monkeypatch.setattr("admin.target.find", lambda arguments, environment: target)
    url = f"{system.servers.receiver_url}/tested"
    assert main(["webhook-test", url, "--workspace", "demo"]) == 0
    events = system.http.get(f"{system.servers.receiver_url}/_receiver/events", params={"path": "/tested"}).json()
    [event] = events["events"]
    assert (event["type"], event["verified"]) == ("webhook.test", True)
