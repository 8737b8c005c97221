"""Invokes functions for the table's stream and the schedules, in place of the emulator."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local.aws_client import REGION, aws_client
from local.processes import Running

if TYPE_CHECKING:
    from local.stream_poller import Record
    from local.template_for_emulator import Schedule, StreamMapping


def log_to(logger: logging.Logger, path: Path) -> None:
    """Sends the lines of a logger to a file only."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False


def poll_stream(running: Running, mapping: StreamMapping) -> None:
    """Passes the stream's records to its function until the stack ends."""
    from botocore.exceptions import BotoCoreError, ClientError

    from local import stream_poller

    endpoint, resources = running.info["awsEndpointUrl"], running.info["resources"]
    log_to(stream_poller.log, running.state / "logs" / "stream.log")
    functions = aws_client("lambda", endpoint)
    queues = aws_client("sqs", endpoint)
    function = resources[mapping.function]
    function_arn = functions.get_function(FunctionName=function)["Configuration"]["FunctionArn"]
    table = aws_client("dynamodb", endpoint).describe_table(TableName=resources[mapping.table])["Table"]
    stream_arn = table["LatestStreamArn"]
    settings = stream_poller.Settings.from_properties(mapping.properties).scaled(running.time_scale)

    def invoke(event: dict[str, Any]) -> object:
        try:
            answer = functions.invoke(FunctionName=function, Payload=json.dumps(event).encode())
        except (ClientError, BotoCoreError) as exc:
            raise stream_poller.NotInvokedError(str(exc)) from exc
        payload = answer["Payload"].read()
        if "FunctionError" in answer:
            raise stream_poller.FunctionFailedError(payload.decode(errors="replace"))
        return json.loads(payload) if payload else None

    def batches(shard_id: str) -> stream_poller.Batches:
        def give_up(records: Sequence[Record], condition: str, attempts: int) -> None:
            if mapping.on_failure is None:
                return
            body = stream_poller.failure_record(
                records,
                condition,
                attempts,
                function_arn=function_arn,
                stream_arn=stream_arn,
                shard_id=shard_id,
            )
            queues.send_message(QueueUrl=resources[mapping.on_failure], MessageBody=json.dumps(body))

        return stream_poller.Batches(
            settings, invoke, give_up, wait=lambda seconds: running.done.wait(seconds * running.time_scale)
        )

    stream_poller.poll(aws_client("dynamodbstreams", endpoint), stream_arn, settings, batches, running.done)


def run_schedule(running: Running, schedule: Schedule) -> None:
    """Invokes a function at its interval (scaled), asynchronously, with the event that EventBridge sends."""
    functions = aws_client("lambda", running.info["awsEndpointUrl"])
    log = running.state / "logs" / "schedule.log"
    while not running.done.wait(schedule.seconds * running.time_scale):
        event = schedule.input or json.dumps(
            {
                "version": "0",
                "id": str(uuid.uuid4()),
                "detail-type": "Scheduled Event",
                "source": "aws.events",
                "account": "000000000000",
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "region": REGION,
                "resources": [],
                "detail": {},
            }
        )
        try:
            functions.invoke(
                FunctionName=running.info["resources"][schedule.function],
                InvocationType="Event",
                Payload=event.encode(),
            )
        except Exception as exc:  # the next invocation may succeed
            with log.open("a") as lines:
                print(schedule.function, exc, file=lines)
