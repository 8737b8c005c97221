"""CallsTable's stream → deliveries."""

from __future__ import annotations

import os
from typing import Any

from shared import aws
from shared.clock import now_ms
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.errors import RingonceError
from shared.queues import Queue
from shared.telemetry import logger
from webhook_dispatch.fan_out import FanningOut, fan_out

sqs = aws.client("sqs")
parts = FanningOut(
    deliveries=DeliveryStore(aws.client("dynamodb"), os.environ["CALLS_TABLE"]),
    webhook_queue=Queue(sqs, os.environ["WEBHOOK_QUEUE_URL"]),
    dead_letters=Queue(sqs, os.environ["WEBHOOK_DEAD_LETTER_QUEUE_URL"]),
    durations=Durations.from_environment(os.environ),
    clock=now_ms,
)


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Stops at the first record that fails: the stream goes on from there."""
    for record in event["Records"]:
        try:
            fan_out(parts, record)
        except RingonceError:
            logger.exception("fan out failed", extra={"event_id": record["eventID"]})
            return {"batchItemFailures": [{"itemIdentifier": record["dynamodb"]["SequenceNumber"]}]}
    return {"batchItemFailures": []}
