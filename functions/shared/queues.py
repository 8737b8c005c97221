"""Sends messages to the project's own queues. A message is a hint; the record decides."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import QueueError
from shared.telemetry import logger

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

# SQS's limit; the reconciler repeats what is due later.
MAXIMUM_DELAY_SECONDS = 900

# SQS's limit of messages per request.
MAXIMUM_BATCH = 10


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

    def send_batch(
        self, messages: Sequence[tuple[dict[str, Any], str]], delays_seconds: Sequence[float] = ()
    ) -> set[int]:
        """Sends messages (body, group) in as few requests as SQS allows. Returns the indexes of those that it
        did not confirm: they may be sent again. delays: one for each message, if given.
        """
        failed: set[int] = set()
        for start in range(0, len(messages), MAXIMUM_BATCH):
            entries: list[Any] = [
                {"Id": str(n), "MessageBody": json.dumps(body), "MessageGroupId": group}
                for n, (body, group) in enumerate(messages[start : start + MAXIMUM_BATCH], start)
            ]
            for entry, delay in zip(entries, delays_seconds[start : start + MAXIMUM_BATCH], strict=False):
                if delay > 0:
                    entry["DelaySeconds"] = min(math.ceil(delay), MAXIMUM_DELAY_SECONDS)
            try:
                answer = self._client.send_message_batch(QueueUrl=self._url, Entries=entries)
            except (ClientError, BotoCoreError):
                logger.exception("messages not sent")
                failed |= {int(entry["Id"]) for entry in entries}
            else:
                failed |= {int(entry["Id"]) for entry in answer.get("Failed", [])}
        return failed
