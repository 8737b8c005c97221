"""A function's AWS client on the wire when AWS fails: two tries, each bounded in time."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError

from shared import aws

FUNCTIONS = Path(aws.__file__).parent.parent
ASK: dict[str, Any] = {
    "dynamodb": lambda client: client.get_item(TableName="T", Key={"pk": {"S": "a"}}),
    "sqs": lambda client: client.send_message(
        QueueUrl="https://sqs.us-east-1.amazonaws.com/1/q", MessageBody="{}"
    ),
    "secretsmanager": lambda client: client.get_secret_value(SecretId="s"),
}


class Failing(http.server.ThreadingHTTPServer):
    """AWS as it is when it fails. status: of every answer; None: the connection is cut. tries: how many came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status: int | None = 500
        self.tries = 0


class Answer(http.server.BaseHTTPRequestHandler):
    server: Failing

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.tries += 1
        if self.server.status is None:
            self.close_connection = True
            return
        self.send_response(self.server.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *given: Any) -> None:
        pass


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    server = Failing()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    # An operator's own settings change nothing.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("service", ASK)
@pytest.mark.parametrize("status", [500, 503, 429, None])
def test_a_request_that_aws_fails_is_tried_twice(failing: Failing, service: str, status: int | None) -> None:
    failing.status = status
    with pytest.raises((ClientError, EndpointConnectionError, HTTPClientError)):
        ASK[service](aws.client(service))
    assert failing.tries == 2


@pytest.mark.parametrize("service", ASK)
def test_a_try_waits_two_seconds_for_the_connection_and_three_for_the_answer(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    """Read from its socket's settings; nothing here waits for that long."""
    told: list[float | None] = []
    settimeout = socket.socket.settimeout

    def noted(self: socket.socket, seconds: float | None) -> None:
        told.append(seconds)
        settimeout(self, seconds)

    client = aws.client(service)
    monkeypatch.setattr(socket.socket, "settimeout", noted)
    with pytest.raises(ClientError):
        ASK[service](client)
    assert [seconds for seconds in told if seconds is not None] == [2, 3] * failing.tries


def test_every_function_makes_its_clients_here() -> None:
    makers = {
        str(path.relative_to(FUNCTIONS))
        for path in FUNCTIONS.rglob("*.py")
        if re.search(
            r"\bboto3\.(client|resource|[sS]ession)|\bimport botocore\b|from boto3 import", path.read_text()
        )
    }
    assert makers == {"shared/aws.py"}
