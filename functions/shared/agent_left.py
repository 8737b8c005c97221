"""An agent that leaves a call under way: a message to DialQueue has the dial worker look after `agent_return`.

The reconciler, which comes once a minute, would let the callee listen to silence for that long.
"""

from __future__ import annotations

from typing import Any

from shared.call import Call
from shared.durations import Durations
from shared.queues import Queue


def send_agent_left(dial_queue: Queue, call: Call, durations: Durations) -> None:
    """Raises QueueError."""
    message = {"callId": call.callId, "workspaceId": call.workspaceId, "agentLeft": True}
    dial_queue.send(message, group=call.workspaceId, delay_seconds=durations.agent_return)


def is_agent_left(message: dict[str, Any]) -> bool:
    return message.get("agentLeft") is True
