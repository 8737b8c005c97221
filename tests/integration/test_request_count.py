"""How often a request goes to AWS: what a client waits for, and what every call costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.system import EXAMPLE, System


@contextmanager
def aws_requests(system: System) -> Iterator[list[str]]:
    """Every HTTP request that initiate_call's clients send meanwhile, in order, by the operation's name."""
    sent: list[str] = []
    parts = system.modules["initiate_call"].parts
    clients = {parts.calls._client, parts.workspaces._store._client, parts.dial_queue._client}

    def note(request: Any, **_: Any) -> None:
        target = request.headers["X-Amz-Target"]
        sent.append((target.decode() if isinstance(target, bytes) else target).rpartition(".")[2])

    for client in clients:
        # Before the fake AWS, which answers at the same event and so ends it.
        client.meta.events.register_first("before-send", note)
    try:
        yield sent
    finally:
        for client in clients:
            client.meta.events.unregister("before-send", note)


def test_a_warm_call_is_a_message_and_then_a_record_and_nothing_else(system: System) -> None:
    with aws_requests(system) as cold:
        assert system.post(EXAMPLE)["statusCode"] == 200
    assert cold == ["GetItem", "SendMessage", "PutItem"]  # The workspace, once.
    with aws_requests(system) as warm:
        assert system.post(EXAMPLE)["statusCode"] == 200
    assert warm == ["SendMessage", "PutItem"]


def test_with_an_idempotency_key_the_record_is_read_first(system: System) -> None:
    system.post(EXAMPLE)
    key = {"idempotency-key": "order-1"}
    with aws_requests(system) as first:
        assert system.post(EXAMPLE, key)["statusCode"] == 200
    assert first == ["GetItem", "SendMessage", "PutItem"]
    with aws_requests(system) as repeat:
        assert system.post(EXAMPLE, key)["statusCode"] == 200
    assert repeat == ["GetItem"]
    with aws_requests(system) as other:
        assert system.post(EXAMPLE | {"to": "+12025550123"}, key)["statusCode"] == 422
    assert other == ["GetItem"]


def test_a_refused_request_costs_nothing(system: System) -> None:
    system.post(EXAMPLE)
    with aws_requests(system) as sent:
        assert system.post(b"{")["statusCode"] == 400
        assert system.post(EXAMPLE | {"to": "1"})["statusCode"] == 400
        assert system.post(EXAMPLE | {"to": "+442079460000"})["statusCode"] == 403
        assert system.post(EXAMPLE, {"x-api-key": "wrong"})["statusCode"] == 401
        assert system.post(EXAMPLE, {"x-workspace-id": "demo#slots"})["statusCode"] == 403
    assert sent == []


def test_an_unknown_workspace_is_looked_up_once(system: System) -> None:
    with aws_requests(system) as sent:
        for _ in range(3):
            assert system.post(EXAMPLE, {"x-workspace-id": "nobody"})["statusCode"] == 403
    assert sent == ["GetItem"]


def test_the_message_holds_ids_only(system: System) -> None:
    """Whoever can read the queue learns neither the number nor the context."""
    call_id = json.loads(system.post(EXAMPLE)["body"])["callId"]
    [message] = system.receive("DialQueue")
    assert json.loads(message["body"]) == {"callId": call_id, "workspaceId": "demo"}
    assert message["attributes"]["MessageGroupId"] == "demo"
