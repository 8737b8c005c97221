"""The emulated AWS alone, without the rest of the local stack: for benches of what a function asks of AWS."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.finish_build import HANDLERS_ENVIRONMENT
from local.aws_client import aws_client
from local.emulated_aws import answers, start_emulator
from local.ports import reserved_port
from local.processes import Running, wait_for
from local.stack_lock import locked
from local.state_folder import temporary_folder
from tests.system import table_definition

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, slots=True)
class Emulated:
    """Both tables and all queues of template.yaml in an emulated AWS. queues: URLs by logical id."""

    endpoint: str
    queues: dict[str, str]

    def client(self, service: str) -> Any:
        return aws_client(service, self.endpoint)

    def empty(self, table: str) -> None:
        """By making it anew."""
        dynamodb = self.client("dynamodb")
        dynamodb.delete_table(TableName=table)
        dynamodb.create_table(TableName=table, **table_definition(table))

    def environment(self, functions: Path) -> dict[str, str]:
        """Of a process that loads handlers out of this folder."""
        return {
            **HANDLERS_ENVIRONMENT,
            # The only credentials that the emulator takes for the account's root.
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_ENDPOINT_URL": self.endpoint,
            "CALLS_TABLE": "CallsTable",
            "WORKSPACES_TABLE": "WorkspacesTable",
            "NUMBERS_TABLE": "NumbersTable",
            "DIAL_QUEUE_URL": self.queues["DialQueue"],
            "WEBHOOK_QUEUE_URL": self.queues["WebhookQueue"],
            "WEBHOOK_DEAD_LETTER_QUEUE_URL": self.queues["WebhookDeadLetterQueue"],
            "PYTHONPATH": os.pathsep.join([str(functions), str(ROOT)]),
        }


@contextlib.contextmanager
def emulated_aws() -> Iterator[Emulated]:
    with tempfile.TemporaryDirectory() as folder, locked(Path(folder)) as lock:
        running = Running(Path(folder), 1.0, lock)
        (running.state / "logs").mkdir()
        temporary_folder(running.state).mkdir()
        try:
            with reserved_port() as port:
                endpoint = f"http://127.0.0.1:{port}"
                start_emulator(running, port)
                wait_for(lambda: answers(f"{endpoint}/_ministack/health"), "the emulated AWS", running)
            yield _with_resources(endpoint)
        finally:
            running.stop()


def _with_resources(endpoint: str) -> Emulated:
    dynamodb, sqs = aws_client("dynamodb", endpoint), aws_client("sqs", endpoint)
    for table in ("CallsTable", "WorkspacesTable"):
        dynamodb.create_table(TableName=table, **table_definition(table))
    names = ("DialQueue", "WebhookQueue", "WebhookDeadLetterQueue")
    return Emulated(endpoint, {name: sqs.create_queue(QueueName=name)["QueueUrl"] for name in names})
