"""Consumer of CallsTable's stream, which makes the deliveries."""

from __future__ import annotations

import os
from typing import Any

from shared import aws
from shared.clock import now_ms
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.queues import Queue
from webhook_dispatch.fan_out import FanOut

sqs = aws.client("sqs")
fan_out = FanOut(
    deliveries=DeliveryStore(aws.client("dynamodb"), os.environ["CALLS_TABLE"]),
    webhook_queue=Queue(sqs, os.environ["WEBHOOK_QUEUE_URL"]),
    durations=Durations.from_environment(os.environ),
    clock=now_ms,
)
dead_letters = Queue(sqs, os.environ["WEBHOOK_DEAD_LETTER_QUEUE_URL"])


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Reports the first record that failed: Lambda repeats the stream from there."""
    records = event["Records"]
    failed = fan_out.process(dead_letters, records)
    if failed is None:
        return {"batchItemFailures": []}
    return {"batchItemFailures": [{"itemIdentifier": records[failed]["dynamodb"]["SequenceNumber"]}]}
