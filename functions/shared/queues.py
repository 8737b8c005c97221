"""Messages to the project's own queues. A message is a hint; the record decides."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import QueueError

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

# SQS takes no longer delay; what is due later than this comes back through the reconciler.
MAXIMUM_DELAY_SECONDS = 900


class Queue:
    """One SQS queue. Messages are JSON objects."""

    def __init__(self, client: SQSClient, url: str) -> None:
        self._client = client
        self._url = url

    def send(self, body: dict[str, Any], *, group: str | None = None, delay_seconds: float = 0) -> str:
        """Sends one message and returns its id. group: the tenant (SQS fair queues).

        Raises QueueError when SQS did not confirm it.
        """
        request: dict[str, Any] = {"QueueUrl": self._url, "MessageBody": json.dumps(body)}
        if group is not None:
            request["MessageGroupId"] = group
        if delay_seconds > 0:
            request["DelaySeconds"] = min(math.ceil(delay_seconds), MAXIMUM_DELAY_SECONDS)
        try:
            return self._client.send_message(**request)["MessageId"]
        except (ClientError, BotoCoreError) as exc:
            raise QueueError(str(type(exc).__name__)) from exc
