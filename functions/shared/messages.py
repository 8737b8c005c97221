"""The messages of DialQueue and WebhookQueue: building and parsing them.

A message is a hint; the record decides. Keys that a reader does not know are ignored, so that two versions of the
functions can share a queue during a deployment.

    DialQueue       {"callId", "workspaceId"}                       the call may be dialled
                    {"callId", "workspaceId", "slotsItem"}          the same, of a call that was admitted from the
                                                                    line, and where a slot was free
                    {"callId", "workspaceId", "since"}              the same, of a call whose record was not found
                    {"callId", "workspaceId", "hold": true}         nothing: the call is created in the line, and
                                                                    this message's id is its `jobId`
                    {"callId", "workspaceId", "agentLeft": true}    the agent of a call under way has left
    WebhookQueue    {"callId", "sequence"}                          this delivery may be due
                    {"callId"}                                      the call's deliveries may not all exist
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class DialMessage:
    """A hint that a call may be dialled. since_ms: of the first message, for a call whose record is missing.
    slots_item: of an admitted call, the slots item that had a free slot. agent_left: the message is about a call
    under way whose agent has left instead. hold: the call waits in the line; there is nothing to do.
    """

    call_id: str
    workspace_id: str
    since_ms: int
    slots_item: int | None = None
    agent_left: bool = False
    hold: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class DeliveryMessage:
    """A hint that a delivery may be due. sequence: of the event; None means all deliveries of the call."""

    call_id: str
    sequence: int | None


def dial_message(call_id: str, workspace_id: str, *, since_ms: int | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"callId": call_id, "workspaceId": workspace_id}
    return message if since_ms is None else message | {"since": since_ms}


def hold_message(call_id: str, workspace_id: str) -> dict[str, Any]:
    return dial_message(call_id, workspace_id) | {"hold": True}


def admitted_message(call_id: str, workspace_id: str, slots_item: int) -> dict[str, Any]:
    return dial_message(call_id, workspace_id) | {"slotsItem": slots_item}


def agent_left_message(call_id: str, workspace_id: str) -> dict[str, Any]:
    return dial_message(call_id, workspace_id) | {"agentLeft": True}


def read_dial_message(record: dict[str, Any]) -> DialMessage:
    """record: an SQS record of Lambda's event. Raises ValueError, KeyError or TypeError when it is not a dial
    message.
    """
    body = json.loads(record["body"])
    since_ms = body.get("since") or int(record["attributes"]["SentTimestamp"])
    slots_item = body.get("slotsItem")
    return DialMessage(
        body["callId"],
        body["workspaceId"],
        since_ms,
        slots_item if isinstance(slots_item, int) else None,
        agent_left=body.get("agentLeft") is True,
        hold=body.get("hold") is True,
    )


def delivery_message(call_id: str, sequence: int) -> dict[str, Any]:
    return {"callId": call_id, "sequence": sequence}


def all_deliveries_message(call_id: str | None, event_id: str | None) -> dict[str, Any]:
    """event_id: of the stream record that could not be parsed, for the operator who reads the message."""
    return {"callId": call_id, "eventId": event_id}


def read_delivery_message(record: dict[str, Any]) -> DeliveryMessage | None:
    """record: an SQS record of Lambda's event. None when it is not a delivery message."""
    try:
        body = json.loads(record["body"])
    except ValueError:
        return None
    match body:
        case {"callId": str(call_id), "sequence": int(sequence)}:
            return DeliveryMessage(call_id, sequence)
        case {"callId": str(call_id)}:
            return DeliveryMessage(call_id, None)
    return None
