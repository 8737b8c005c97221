"""Each message is read as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.messages import (
    DeliveryMessage,
    DialMessage,
    agent_left_message,
    all_deliveries_message,
    delivery_message,
    dial_message,
    read_delivery_message,
    read_dial_message,
)


def record(body: Any) -> dict[str, Any]:
    return {"body": json.dumps(body), "attributes": {"SentTimestamp": "1000"}}


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (dial_message("c", "w"), DialMessage("c", "w", since_ms=1000)),
        (dial_message("c", "w", since_ms=7), DialMessage("c", "w", since_ms=7)),
        (agent_left_message("c", "w"), DialMessage("c", "w", since_ms=1000, agent_left=True)),
    ],
)
def test_a_message_to_the_dial_worker(body: dict[str, Any], read: DialMessage) -> None:
    assert read_dial_message(record(body)) == read


def test_since_is_written_only_when_it_is_known() -> None:
    assert dial_message("c", "w") == {"callId": "c", "workspaceId": "w"}
    assert dial_message("c", "w", since_ms=7)["since"] == 7


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (delivery_message("c", 3), DeliveryMessage("c", 3)),
        (all_deliveries_message("c", "event"), DeliveryMessage("c", None)),
        ({"sequence": 3}, None),
        ([], None),
    ],
)
def test_a_message_to_deliver(body: Any, read: DeliveryMessage | None) -> None:
    assert read_delivery_message(record(body)) == read


def test_what_is_no_json_is_no_delivery_message() -> None:
    assert read_delivery_message({"body": "{"}) is None
