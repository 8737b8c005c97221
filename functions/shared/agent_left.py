"""An agent that leaves a call under way: a message to DialQueue has the dial worker look after `agent_return`.

The reconciler, which comes once a minute, would let the callee listen to silence for that long.
"""

from __future__ import annotations

from shared.call import Call
from shared.durations import Durations
from shared.messages import agent_left_message
from shared.queues import Queue


def send_agent_left(dial_queue: Queue, call: Call, durations: Durations) -> None:
    """Raises QueueError."""
    message = agent_left_message(call.call_id, call.workspace_id)
    dial_queue.send(message, group=call.workspace_id, delay_seconds=durations.agent_return)
