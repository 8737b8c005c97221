"""The tables that a command works on, and one-line explanations of AWS errors."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)

from admin.terminal import AdminError, UsageError
from local.aws_client import aws_client
from local.state_folder import read_info, state_folder
from shared.aws import CONFIG
from shared.call_store import CallStore
from shared.clock import now_ms
from shared.delivery_store import DeliveryStore
from shared.durations import Durations
from shared.limits import LimitStore
from shared.line import Line
from shared.livekit.secret import LiveKitSecretCache
from shared.numbers import NumberStore
from shared.queues import Queue
from shared.workspaces import Workspace, WorkspaceStore

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_BAD_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
CREDENTIAL_ERRORS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
    SSOError,
)
_LOG_IN = "set AWS_PROFILE or pass --profile, run `aws sso login`, or set AWS_ACCESS_KEY_ID and the rest"

# The secret's name in the local stack, and the parameter's default in template.yaml.
LIVEKIT_CREDENTIALS = "ringonce/livekit"
# Beside WORKSPACES_TABLE, what names the other things of a stack.
ENVIRONMENT = ("CALLS_TABLE", "LIVEKIT_SECRET_NAME", "DIAL_QUEUE_URL", "NUMBERS_TABLE")
# A command reads LiveKit's secret once.
SECRET_SECONDS = 600

# The command's path after `make setup`, without an activated environment.
COMMAND = ".venv/bin/admin"


@dataclasses.dataclass(frozen=True, slots=True)
class CallsTable:
    """Direct access to the table of calls, for operations that no function performs."""

    client: DynamoDBClient
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The tables of one stack. name: for messages. api_url: base URL of the stack's API, if known.

    options: command-line options that select this stack. calls, deliveries, calls_table: None if the calls' table
    is unknown. livekit_secret: makes a reader of LiveKit's secret; None if its name is unknown. dial_queue: makes
    the queue of dial messages; None if its URL is unknown. numbers: None if its table is unknown.
    """

    store: WorkspaceStore
    limits: LimitStore
    name: str
    api_url: str | None = None
    local: bool = False
    options: str = ""
    calls: CallStore | None = None
    deliveries: DeliveryStore | None = None
    calls_table: CallsTable | None = None
    livekit_secret: Callable[[], LiveKitSecretCache] | None = None
    dial_queue: Callable[[], Queue] | None = None
    numbers: NumberStore | None = None

    @property
    def line(self) -> Line | None:
        """What admits waiting calls; None when the calls' table or the queue of dial messages is unknown."""
        if self.calls is None or self.dial_queue is None:
            return None
        return Line(self.calls, self.limits, self.dial_queue(), Durations(), now_ms)

    @property
    def of_calls(self) -> tuple[CallStore, DeliveryStore]:
        """Raises UsageError when the calls' table is unknown."""
        if self.calls is None or self.deliveries is None:
            raise UsageError("this needs the calls' table: name it with CALLS_TABLE, or use --stack or --local")
        return self.calls, self.deliveries

    @property
    def of_numbers(self) -> NumberStore:
        """Raises UsageError when the table of numbers is unknown."""
        if self.numbers is None:
            raise UsageError(
                "this needs the table of numbers: name it with NUMBERS_TABLE, or use --stack or --local"
            )
        return self.numbers

    def command(self, words: str) -> str:
        """The command line that runs `words` on these tables, to be copied."""
        return " ".join(part for part in (COMMAND, self.options, words) if part)

    def existing(self, workspace_id: str) -> Workspace:
        """Raises AdminError when there is no such workspace."""
        return self._found(workspace_id, self.store.get(workspace_id))

    def updated(self, workspace_id: str, change: Callable[[Workspace], Workspace]) -> Workspace:
        """As WorkspaceStore.update. Raises AdminError when there is no such workspace."""
        return self._found(workspace_id, self.store.update(workspace_id, change))

    def _found(self, workspace_id: str, workspace: Workspace | None) -> Workspace:
        if workspace is None:
            raise AdminError(f"no workspace {workspace_id} in {self.name}; `workspace list` shows them")
        return workspace


def find(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Target:
    """The tables selected by the options, or else by the environment.

    Raises UsageError when none or more than one is selected, AdminError when they do not exist, and botocore's
    errors.
    """
    if sum(map(bool, (arguments.table, arguments.stack, arguments.local))) > 1:
        raise UsageError("name one of --table, --stack and --local")
    if arguments.local:
        return _local(arguments)
    table, stack = arguments.table, arguments.stack
    if not (table or stack):
        table, stack = environment.get("WORKSPACES_TABLE"), environment.get("RINGONCE_STACK")
    if not (table or stack):
        raise UsageError(
            "name the table: --stack NAME (the CloudFormation stack), --table NAME or --local, or set "
            "RINGONCE_STACK or WORKSPACES_TABLE"
        )
    session = boto3.Session(profile_name=arguments.profile, region_name=arguments.region)
    api_url = None
    calls_table, secret, queue, numbers_table = (environment.get(name) for name in ENVIRONMENT)
    if not table:
        outputs = _outputs(session, stack)
        table, api_url, calls_table, secret, queue, numbers_table = (
            outputs.get(name)
            for name in (
                *("WorkspacesTableName", "ApiUrl", "CallsTableName", "LiveKitSecretName", "DialQueueUrl"),
                "NumbersTableName",
            )
        )
        if not table:
            raise AdminError(f"the stack {stack} has no output WorkspacesTableName: is it one of Ringonce's?")
    client = session.client("dynamodb", config=CONFIG)
    given = {name: getattr(arguments, name) for name in ("stack", "table", "profile", "region")}
    options = " ".join(f"--{name} {shlex.quote(value)}" for name, value in given.items() if value)
    name = f"table {table} in {client.meta.region_name}"
    return Target(
        WorkspaceStore(client, table),
        LimitStore(client, table),
        name,
        api_url,
        options=options,
        livekit_secret=(lambda: _secret(session.client("secretsmanager", config=CONFIG), secret))
        if secret
        else None,
        dial_queue=(lambda: Queue(session.client("sqs", config=CONFIG), queue)) if queue else None,
        numbers=NumberStore(client, numbers_table) if numbers_table else None,
        **_stores(client, calls_table),
    )


def _secret(client: Any, name: str) -> LiveKitSecretCache:
    return LiveKitSecretCache(client, name, SECRET_SECONDS)


def _stores(client: Any, calls_table: str | None) -> dict[str, Any]:
    if not calls_table:
        return {}
    return {
        "calls": CallStore(client, calls_table),
        "deliveries": DeliveryStore(client, calls_table),
        "calls_table": CallsTable(client, calls_table),
    }


def _local(arguments: argparse.Namespace) -> Target:
    if arguments.profile or arguments.region:
        raise UsageError("--profile and --region are for AWS; the local stack has neither")
    folder = state_folder()
    try:
        info = read_info(folder)
        endpoint, resources = info["awsEndpointUrl"], info["resources"]
        table, calls_table, queue, numbers_table = (
            resources["WorkspacesTable"],
            *(resources.get(name) for name in ("CallsTable", "DialQueue", "NumbersTable")),
        )
    except FileNotFoundError as exc:
        raise AdminError("no local stack is running: start it with `make run`") from exc
    except (OSError, ValueError, LookupError, TypeError) as exc:
        path = folder / "stack.json"
        raise AdminError(f"{path} cannot be read ({type(exc).__name__}): restart `make run`") from exc
    client = aws_client("dynamodb", endpoint, CONFIG)
    name = f"table {table} in the local stack at {endpoint}"
    return Target(
        WorkspaceStore(client, table),
        LimitStore(client, table),
        name,
        info.get("apiUrl"),
        local=True,
        options="--local",
        livekit_secret=lambda: _secret(aws_client("secretsmanager", endpoint, CONFIG), LIVEKIT_CREDENTIALS),
        dial_queue=(lambda: Queue(aws_client("sqs", endpoint, CONFIG), queue)) if queue else None,
        numbers=NumberStore(client, numbers_table) if numbers_table else None,
        **_stores(client, calls_table),
    )


def _outputs(session: boto3.Session, stack: str) -> dict[str, str]:
    client = session.client("cloudformation", config=CONFIG)
    try:
        found = client.describe_stacks(StackName=stack)["Stacks"][0]
    except ClientError as exc:
        if exc.response["Error"]["Code"] == "ValidationError":
            region = client.meta.region_name
            raise AdminError(f"no stack {stack} in {region} in the account of these credentials") from exc
        raise
    return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}


def explain(exc: ClientError | BotoCoreError, name: str, calls_table: CallsTable | None = None) -> str:
    """A one-line explanation of an AWS error. name: of the workspaces' table. Uses types and codes, never message
    texts.
    """
    if isinstance(exc, ClientError):
        code, message = exc.response["Error"]["Code"], exc.response["Error"].get("Message", "")
        if code in _BAD_CREDENTIALS:
            return f"AWS does not accept these credentials ({code}): {_LOG_IN}"
        if code in ("AccessDenied", "AccessDeniedException"):
            return (
                "these credentials may not do this; needed are GetItem, BatchGetItem, PutItem, UpdateItem and "
                "Scan on the table (for calls and deliveries on the calls' table: GetItem, BatchGetItem, PutItem, "
                "UpdateItem and Query, and Query on its indexes byWorkspace and line; for suppressions on the "
                "numbers' table: GetItem, BatchGetItem, UpdateItem, and Query on its index suppressed) and "
                "cloudformation:DescribeStacks for --stack; "
                f"docs/operations.md lists them by command. {message}"
            )
        if code == "ResourceNotFoundException":
            other = f", or no table {calls_table.name} beside it" if calls_table else ""
            return f"there is no {name} in the account of these credentials{other}"
        return f"AWS refused: {code}. {message}"
    if isinstance(exc, CREDENTIAL_ERRORS):
        return f"no AWS credentials ({exc}): {_LOG_IN}"
    if isinstance(exc, NoRegionError):
        return "no AWS region: pass --region, set AWS_DEFAULT_REGION, or name one in the profile"
    return f"{name}: {exc}"
