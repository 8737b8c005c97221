"""The whole system in this user's own processes: `python -m local.stack`, ended by Ctrl-C or
`python -m local.stack stop`.

An emulated AWS on which template.yaml is deployed, the API's plain address in front of it, a LiveKit stand-in,
a webhook receiver and the console, a page that shows all of it at work. Prints one line `READY {json}` and writes
the same JSON to `stack.json` in the state folder: apiUrl, consoleUrl, workspaceId, apiKey, webhookSecret,
liveKitUrl, liveKitApiKey, liveKitApiSecret, liveKitStandIn (whether it is one), receiverUrl, awsEndpointUrl,
timeScale, logs and deaths (folders), resources {logical id: physical id; a queue's is its URL}, pids.

Environment:
    PORT                the API's port; any free one without it
    TIME_SCALE          factor on every duration of the system, 0.05 without it; answers have 4 s at least
    RINGONCE_LOCAL_DIR  the state folder, .local without it: stacks with different ones run side by side
    LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET, SIP_TRUNK_ID, FROM_NUMBERS
                        a real LiveKit in place of the stand-in, its outbound trunk and the trunk's numbers
                        ("+15550100,+15550101"); time then runs as it does (TIME_SCALE 1)
    AGENT_NAME, CALLING_CODES
                        with those: the agent, `outbound-caller` without it, and the calling codes that may be
                        called ("+1,+44"), +1 without it

Every server binds 127.0.0.1. However this process ends, the others end too (`local/tether`).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from local.stream_poller import Record
    from local.template_for_emulator import Adapted, Schedule, StreamMapping

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = ROOT / "functions"
PACKAGES = ROOT / ".local" / "packages"
TETHER = ROOT / "local" / "tether"
AWS_PYTHON = ROOT / ".venv-aws" / "bin" / "python"

REGION = "us-east-1"
STACK_NAME = "ringonce-local"
# The only credentials that the emulator takes for the account's root; they open nothing else.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
# Deadlines are for what hangs: a part that dies is noticed at once, and a slow machine is not a broken one.
START_SECONDS = 300.0
STOP_SECONDS = 60.0
# What the API waits for a function's answer: its processes may have to start first.
ANSWER_SECONDS = 120.0
# What a server gets to end by itself.
GRACE_SECONDS = 2.0
# Above the handles of whatever a process opens at its start.
LAST_HANDLE = 200
# What the killed get until they are gone.
GONE_SECONDS = 30.0


class StackError(Exception):
    """The stack cannot start or has lost a process. `str()` says which, with the end of its log."""


class Stopped(Exception):
    """A signal asked for the end."""


# ── signals: a flag, looked at between steps, so that none interrupts the start of a process ─────

stopping = threading.Event()


def stop_on_signals() -> None:
    """From here on SIGINT, SIGTERM and SIGHUP set `stopping`."""

    def note(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)


def pause(seconds: float) -> None:
    """Sleeps. Raises Stopped as soon as a signal asks for the end."""
    if stopping.wait(seconds):
        raise Stopped


# ── processes ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def fail_if_dead(self) -> None:
        """Raises StackError if the process has ended."""
        code = self.process.poll()
        if code is not None:
            raise StackError(f"{self.name} ended with {code}\n{tail(self.log)}")


@dataclass(slots=True)
class Running:
    """The parts of a running stack, and what its users are told (`info`). lock: of `locked`."""

    state: Path
    time_scale: float
    lock: int
    children: dict[str, Child] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    broken: BaseException | None = None

    def in_background(self, work: Callable[..., None], *arguments: Any) -> None:
        """Runs `work` in a thread until it returns; if it fails before the end, the stack is broken."""

        def guarded() -> None:
            try:
                work(*arguments)
            except Exception as exc:
                if not self.done.is_set():
                    self.broken = exc

        threading.Thread(target=guarded, name=work.__name__, daemon=True).start()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Starts a process in a session of its own; what it prints goes to `logs/<name>.log`. It holds the state
        folder's lock too: when this process is killed, the lock ends with the last of the others."""
        log = self.state / "logs" / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(self.lock,),
            )
        self.children[name] = Child(name, process, log)
        return self.children[name]

    def check(self) -> None:
        """Raises StackError if a process, or what runs in the background, has ended by itself."""
        for child in self.children.values():
            child.fail_if_dead()
        if self.broken:
            # A process that dies lets go of its connections first: whose end was it?
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.children["aws"].process.wait(GRACE_SECONDS)
            self.children["aws"].fail_if_dead()
            raise StackError(f"the stack's own part failed: {self.broken!r}") from self.broken

    def stop(self) -> None:
        """Ends every process. The emulator keeps nothing, and its group holds the functions' processes."""
        self.done.set()
        for child in self.children.values():
            number = signal.SIGKILL if child.name == "aws" else signal.SIGTERM
            _signal_group(child.process.pid, number)
        until = time.monotonic() + GRACE_SECONDS
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))
            _signal_group(child.process.pid, signal.SIGKILL)
            child.process.wait()
        until = time.monotonic() + GONE_SECONDS
        for child in self.children.values():
            # A killed function's process is not this one's child: nothing but a look tells when it is gone.
            while _lives(child.process.pid) and time.monotonic() < until:
                time.sleep(0.01)


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anybody to get the signal: a group whose leader is dead may still have members."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _lives(group: int) -> bool:
    """Whether anybody of a group still runs. The dead that nobody has collected yet, as in a container without an
    init, would get signals too."""
    if not _signal_group(group, 0):
        return False
    if not Path("/proc/self/stat").exists():
        return True
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything: state, parent, group (proc_pid_stat(5)).
            state, _, its_group = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in ("Z", "X"):
                return True
    return False


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log; a message in its place when there is none."""
    if not log.exists() or not (text := log.read_text(errors="replace")):
        return f"({log.name} is empty)"
    return "\n".join(text.splitlines()[-lines:])


def wait_for(found: Callable[[], Any], what: str, running: Running, seconds: float = START_SECONDS) -> Any:
    """What `found` returns, once it is true. Raises StackError after `seconds` or when a process ends."""
    until = time.monotonic() + seconds
    pause(0)
    while not (result := found()):
        running.check()
        if time.monotonic() > until:
            raise StackError(f"{what} was not ready within {seconds:.0f} s")
        pause(0.02)
    return result


def ready_line(child: Child) -> str | None:
    """The URL that a server of this package prints when it accepts connections."""
    for line in child.log.read_text(errors="replace").splitlines(keepends=True):
        # A line without its end is still being written.
        if line.startswith("READY ") and line.endswith("\n"):
            url: str = json.loads(line.removeprefix("READY "))["url"]
            return url
    return None


@contextlib.contextmanager
def reserved_port(port: int = 0) -> Iterator[int]:
    """A port that nobody else is given in the meantime: bound here, but not listening, so that a server may
    take it with SO_REUSEADDR, as they all do. Raises StackError when `port` is in use."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError as exc:
            raise StackError(f"port {port} is in use: {exc.strerror}") from exc
        yield holder.getsockname()[1]


# ── the state folder ────────────────────────────────────────────────────────────────────────────


def state_folder(default: str = ".local") -> Path:
    return (ROOT / os.environ.get("RINGONCE_LOCAL_DIR", default)).resolve()


@contextlib.contextmanager
def locked(state: Path) -> Iterator[int]:
    """Holds the state folder's lock, which ends with this process and those that it starts; yields its handle.

    Raises StackError when another stack has it. The processes of one that was killed are waited for: they end by
    themselves, and until then they have its ports.
    """
    state.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + GONE_SECONDS
    with (state / "lock").open("a+") as lock:
        while not _taken(lock):
            pid = _holder(lock)
            if (pid is not None and _alive(pid)) or time.monotonic() > until:
                raise StackError(f"a stack is running in {state} (process {pid})")
            time.sleep(0.02)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        # A process that dies closes its files in the order of their handles: the lock after its sockets, so that
        # whoever gets the lock gets the ports.
        handle = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, LAST_HANDLE)
        try:
            yield handle
        finally:
            lock.truncate(0)
            os.close(handle)


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: TextIO) -> int | None:
    """Who wrote itself into a lock; None while nobody has."""
    lock.seek(0)
    text = lock.read()
    return int(text) if text else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def clear(state: Path) -> None:
    """Removes what a stack leaves for itself; the logs stay until the next one starts. For who holds the lock."""
    for folder in state.glob("tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("stack.json", "stack.json.new", "sam-env.json", "sam-template.yaml"):
        (state / name).unlink(missing_ok=True)


def temporary_folder(state: Path) -> Path:
    """This stack's own: the emulator of one that was killed removes its folder when it comes to notice."""
    return state / f"tmp-{os.getpid()}"


# ── the emulated AWS ────────────────────────────────────────────────────────────────────────────


def child_environment(state: Path) -> dict[str, str]:
    """The environment without the user's AWS settings, tied to this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LIVEKIT_"))}
    return {
        **kept,
        **CREDENTIALS,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(TETHER),
        "PYTHONUNBUFFERED": "1",
        "RINGONCE_STACK_PID": str(os.getpid()),
        "TMPDIR": str(temporary_folder(state)),
    }


def start_emulator(running: Running, port: int) -> Child:
    return running.start(
        "aws",
        [str(AWS_PYTHON), "-m", "emulator"],
        {
            **child_environment(running.state),
            "GATEWAY_PORT": str(port),
            "MINISTACK_HOST": "127.0.0.1",
            "BIND_HOST": "127.0.0.1",
            # It listens on every address otherwise.
            "IOT_MTLS_ENABLED": "0",
            "MINISTACK_REGION": REGION,
            # The functions' execution roles are enforced: what the template does not allow fails here too.
            "AUTH": "true",
            # It looks for containers of its own at start and end.
            "DOCKER_HOST": f"unix://{running.state}/no-docker.sock",
            "RINGONCE_TEMPORARY_FOLDER": str(temporary_folder(running.state)),
        },
    )


def aws_client(service: Any, endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        # An invocation is answered when it ends, and is not to be repeated.
        config=Config(connect_timeout=60, read_timeout=930, retries={"total_max_attempts": 1}),
    )


def answers(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def zipped(folder: Path) -> bytes:
    """The functions' sources as a deployment package; their third-party packages come by PYTHONPATH."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.py")):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def function_environments(running: Running, api_url: str, functions: Sequence[str]) -> dict[str, dict[str, str]]:
    """The variables that only the local stack sets, by function; `""`: of all."""
    from local import template_for_emulator

    everywhere = {
        "TIME_SCALE": str(running.time_scale),
        "LEAST_PATIENCE": str(template_for_emulator.LEAST_PATIENCE),
        "ALLOW_LOOPBACK_CALLBACKS": "1",
        "PUBLIC_API_URL": api_url,
        "PYTHONPATH": os.pathsep.join([str(TETHER), str(PACKAGES)]),
        "RINGONCE_DEATHS": str(running.state / "deaths"),
        "RINGONCE_STEPS": str(running.state / "logs" / "steps.log"),
    }
    logs = running.state / "logs"
    return {"": everywhere} | {name: {"RINGONCE_FUNCTION_LOG": str(logs / f"{name}.log")} for name in functions}


def deploy(endpoint: str, adapted: Adapted, package: bytes, code_uri: str) -> dict[str, str]:
    """Creates the stack; returns the physical ids by logical id. Raises StackError with the reason."""
    s3 = aws_client("s3", endpoint)
    bucket, key = code_uri.removeprefix("s3://").split("/", 1)
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key=key, Body=package)
    cloudformation = aws_client("cloudformation", endpoint)
    cloudformation.create_stack(
        StackName=STACK_NAME, TemplateBody=json.dumps(adapted.template), Capabilities=["CAPABILITY_IAM"]
    )
    until = time.monotonic() + START_SECONDS
    while (status := _stack_status(cloudformation)) == "CREATE_IN_PROGRESS":
        if time.monotonic() > until:
            raise StackError("template.yaml was not deployed in time")
        pause(0.05)
    if status != "CREATE_COMPLETE":
        events = cloudformation.describe_stack_events(StackName=STACK_NAME)["StackEvents"]
        reasons = [
            f"{event['LogicalResourceId']}: {event.get('ResourceStatusReason', '')}"
            for event in reversed(events)
            if event["ResourceStatus"].endswith("FAILED")
        ]
        raise StackError("template.yaml was not deployed: " + "\n".join([status, *reasons]))
    found = cloudformation.describe_stack_resources(StackName=STACK_NAME)["StackResources"]
    return {resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in found}


def _stack_status(cloudformation: Any) -> str:
    status: str = cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"][0]["StackStatus"]
    return status


# ── what the stack does in the emulator's place ─────────────────────────────────────────────────


def log_to(logger: logging.Logger, path: Path) -> None:
    """Sends what the stack's own parts say to a file, and nowhere else."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False


def poll_stream(running: Running, mapping: StreamMapping) -> None:
    """Hands the stream's records to its function until the stack is done."""
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
            raise stream_poller.NotInvoked(str(exc)) from exc
        payload = answer["Payload"].read()
        if "FunctionError" in answer:
            raise stream_poller.FunctionFailed(payload.decode(errors="replace"))
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
    """Invokes a function at its pace, asynchronously, with the event that EventBridge sends."""
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
        except Exception as exc:  # the next one may get through
            with log.open("a") as lines:
                print(schedule.function, exc, file=lines)


def warm_up(running: Running, adapted: Adapted) -> None:
    """Starts every function once, side by side: an empty batch, or a request without credentials.

    Where time runs twenty times faster a cold start would take as long as a ringing phone. Raises StackError
    when a function cannot be started.
    """
    from concurrent.futures import ThreadPoolExecutor

    functions = aws_client("lambda", running.info["awsEndpointUrl"])
    routes = {function: route for route, function in adapted.routes}

    def failure(name: str) -> str | None:
        # Not by the API, which waits no longer than API Gateway does.
        event = request_event(routes[name]) if name in routes else {"Records": []}
        answer = functions.invoke(FunctionName=running.info["resources"][name], Payload=json.dumps(event).encode())
        if "FunctionError" in answer:
            return str(answer["Payload"].read().decode())
        if name not in routes:
            return None
        method, path = routes[name].split(" ", 1)
        status = request_status(method, running.info["apiUrl"] + re.sub(r"\{[^}]+\}", "none", path))
        return None if status < 500 else f"it answered {status}"

    pool = ThreadPoolExecutor(len(adapted.functions))
    try:
        started = {name: pool.submit(failure, name) for name in adapted.functions}
        wait_for(lambda: all(one.done() for one in started.values()), "every function", running)
    finally:
        # When the end has come, the emulator's end lets go of those that wait.
        pool.shutdown(wait=False, cancel_futures=True)
    for name, one in started.items():
        if failed := one.result():
            log = tail(running.state / "logs" / f"{name}.log")
            raise StackError(f"the function {name} does not start: {failed}\n{log}")


def request_event(route: str) -> dict[str, Any]:
    """What a function gets from an HTTP API for a request to `METHOD /path` without a body or credentials."""
    method, path = route.split(" ", 1)
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {},
        "pathParameters": dict.fromkeys(re.findall(r"\{([^}]+)\}", path), "none"),
        "requestContext": {"http": {"method": method, "path": path}, "requestId": "start", "routeKey": route},
        "isBase64Encoded": False,
    }


def request_status(method: str, url: str) -> int:
    """The status of an answer to a request without a body or credentials."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=ANSWER_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code


# ── LiveKit, the receiver, the workspace ────────────────────────────────────────────────────────


def real_livekit() -> bool:
    return bool(os.environ.get("LIVEKIT_URL"))


def check_real_livekit() -> None:
    """Raises StackError when a real LiveKit is named without what a call through it needs.

    What the stand-in has in its place would ring phones from a number that is not the trunk's.
    """
    if not real_livekit():
        return
    needed = ("LIVEKIT_API_KEY", "LIVEKIT_API_SECRET", "SIP_TRUNK_ID", "FROM_NUMBERS")
    missing = [name for name in needed if not os.environ.get(name, "").strip(" ,")]
    if missing:
        raise StackError(f"LIVEKIT_URL is set, but {' and '.join(missing)} not")
    from_numbers()


def from_numbers() -> tuple[str, ...]:
    """The numbers that calls are made from, in the form that the API compares them in. Raises StackError."""
    if not real_livekit():
        return ("+15550009999",)
    sys.path.insert(0, str(FUNCTIONS))
    from shared.phone_number import e164

    try:
        return tuple(map(e164, listed("FROM_NUMBERS")))
    except ValueError as exc:
        raise StackError(f"FROM_NUMBERS: each {exc}") from exc


def listed(name: str) -> list[str]:
    """The parts of a variable of the environment that are separated by commas."""
    return [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]


def livekit_settings(running: Running, webhook_url: str) -> tuple[str, str, str, Child | None]:
    """LiveKit's URL, API key and secret, and the stand-in's process if it is one (the URL is then empty)."""
    if real_livekit():
        url = os.environ["LIVEKIT_URL"].replace("wss://", "https://").replace("ws://", "http://")
        return url, os.environ["LIVEKIT_API_KEY"], os.environ["LIVEKIT_API_SECRET"], None
    key, secret = "API" + secrets.token_hex(6), secrets.token_urlsafe(32)
    child = running.start(
        "livekit",
        [
            *(sys.executable, "-m", "local.livekit", "--port", "0"),
            *("--webhook-url", webhook_url, "--time-scale", str(running.time_scale)),
            *("--api-key", key, f"--api-secret={secret}"),
            # A worker's lease lasts longer here (`template_for_emulator`): so must the room that it left empty.
            *("--slack", "30"),
        ],
        child_environment(running.state),
    )
    return "", key, secret, child


def write_workspace(running: Running) -> None:
    """Writes the workspace `demo`, as `info` says."""
    sys.path.insert(0, str(FUNCTIONS))
    from shared.workspaces import Workspace, WorkspaceStore

    info = running.info
    store = WorkspaceStore(aws_client("dynamodb", info["awsEndpointUrl"]), info["resources"]["WorkspacesTable"])
    store.put(
        Workspace(
            workspaceId=info["workspaceId"],
            name="Demo",
            agentName=os.environ.get("AGENT_NAME", "outbound-caller"),
            sipTrunkId=os.environ["SIP_TRUNK_ID"] if real_livekit() else "ST_localstandin",
            fromNumbers=from_numbers(),
            apiKeyHashes=frozenset({hashlib.sha256(info["apiKey"].encode()).hexdigest()}),
            allowedCallingCodes=frozenset((listed("CALLING_CODES") if real_livekit() else []) or ["+1"]),
            maxConcurrentCalls=50,
            callsPerMinute=60_000,
            callsPerSecond=10,
            webhookSecrets=(info["webhookSecret"],),
            createdAt=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
    )


def start_console(running: Running) -> Child:
    """The page that shows the stack at work. Its environment tells it what `info` says, the API key among it:
    a command line can be read by every user of the machine."""
    environment = child_environment(running.state)
    packages = os.pathsep.join([environment["PYTHONPATH"], str(FUNCTIONS)])
    return running.start(
        "console",
        [sys.executable, "-m", "local.console"],
        {**environment, "PYTHONPATH": packages, "RINGONCE_CONSOLE": json.dumps(running.info)},
    )


def write_sam_files(running: Running, functions: Sequence[str]) -> None:
    """What `sam local invoke` needs (`local.sam_local`), and its containers' way to the emulated AWS."""
    from local import sam_local

    endpoint = running.info["awsEndpointUrl"]
    lambdas = aws_client("lambda", endpoint)
    variables = {
        name: lambdas.get_function_configuration(FunctionName=running.info["resources"][name])["Environment"][
            "Variables"
        ]
        for name in functions
    }
    credentials = {**CREDENTIALS, "AWS_DEFAULT_REGION": REGION}
    sam_local.write(running.state, ROOT, variables, endpoint, credentials)
    if (host := sam_local.bridge_address()) is not None:
        sam_local.open_door(host, int(endpoint.rpartition(":")[2]), running.done)


# ── the whole ───────────────────────────────────────────────────────────────────────────────────


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check_packages() -> None:
    """Raises StackError unless the environments that `make setup` makes are there and up to date."""
    installed = PACKAGES / "installed-requirements.txt"
    if not AWS_PYTHON.exists() or not installed.exists():
        raise StackError("run `make setup` first")
    if installed.read_bytes() != (FUNCTIONS / "requirements.txt").read_bytes():
        raise StackError("functions/requirements.txt has changed: run `make setup`")


@contextlib.contextmanager
def stack(state: Path, port: int = 0, progress: Callable[[str], None] = say) -> Iterator[Running]:
    """A running stack; all of it ends with the context.

    progress: told what is being done. Raises StackError when something does not start, Stopped when a signal
    comes before it is ready.
    """
    check_packages()
    check_real_livekit()
    scale = 1.0 if real_livekit() else float(os.environ.get("TIME_SCALE", "0.05"))
    with locked(state) as lock:
        running = Running(state, scale, lock)
        clear(state)
        shutil.rmtree(state / "logs", ignore_errors=True)
        (state / "logs").mkdir()
        shutil.rmtree(state / "deaths", ignore_errors=True)
        (state / "deaths").mkdir()
        temporary_folder(state).mkdir()
        try:
            _start(running, port, progress)
            yield running
        finally:
            running.stop()
            clear(state)


def _start(running: Running, port: int, progress: Callable[[str], None]) -> None:
    with reserved_port(port) as api_port, reserved_port() as aws_port:
        api_url, endpoint = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{aws_port}"
        progress("starting the emulated AWS, LiveKit and the webhook receiver")
        start_emulator(running, aws_port)
        livekit_url, livekit_key, livekit_secret, livekit = livekit_settings(
            running, f"{api_url}/v1/livekit/events"
        )
        webhook_secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        receiver = running.start(
            "receiver",
            [sys.executable, "-m", "local.receiver", "--port", "0", "--secret", webhook_secret],
            child_environment(running.state),
        )
        pause(0)

        progress("translating template.yaml")
        os.environ.setdefault("AWS_DEFAULT_REGION", REGION)
        from local import template_for_emulator

        code_uri = "s3://ringonce-local-code/functions.zip"
        translated = template_for_emulator.translate(ROOT / "template.yaml", code_uri)
        names = [n for n, r in translated["Resources"].items() if r["Type"] == "AWS::Lambda::Function"]
        adapted = template_for_emulator.adapt(
            translated, function_environments(running, api_url, names), running.time_scale
        )
        wait_for(lambda: answers(f"{endpoint}/_ministack/health"), "the emulated AWS", running)
        if livekit:
            livekit_url = wait_for(lambda: ready_line(livekit), "the LiveKit stand-in", running)
        receiver_url = wait_for(lambda: ready_line(receiver), "the webhook receiver", running)

        progress("deploying template.yaml")
        resources = deploy(endpoint, adapted, zipped(FUNCTIONS), code_uri)
        pause(0)
        aws_client("secretsmanager", endpoint).create_secret(
            Name="ringonce/livekit",
            SecretString=json.dumps({"url": livekit_url, "apiKey": livekit_key, "apiSecret": livekit_secret}),
        )
        target = f"{endpoint}/_aws/execute-api/{resources['HttpApi']}/$default"
        front = running.start(
            "front",
            [
                *(sys.executable, "-m", "local.front", "--port", str(api_port), "--target", target),
                *("--timeout", str(ANSWER_SECONDS)),
            ],
            child_environment(running.state),
        )
        wait_for(lambda: ready_line(front), "the API", running)
    running.info = {
        "apiUrl": api_url,
        "workspaceId": "demo",
        "apiKey": "rk_" + secrets.token_urlsafe(24),
        "webhookSecret": webhook_secret,
        "liveKitUrl": livekit_url,
        "liveKitApiKey": livekit_key,
        "liveKitApiSecret": livekit_secret,
        "liveKitStandIn": livekit is not None,
        "receiverUrl": receiver_url,
        "awsEndpointUrl": endpoint,
        "timeScale": running.time_scale,
        "logs": str(running.state / "logs"),
        "deaths": str(running.state / "deaths"),
        "resources": resources,
    }
    write_workspace(running)
    console = start_console(running)
    write_sam_files(running, adapted.functions)
    progress("starting the functions")
    warm_up(running, adapted)
    running.info["consoleUrl"] = wait_for(lambda: ready_line(console), "the console", running)
    running.info["pids"] = {"stack": os.getpid()} | {c.name: c.process.pid for c in running.children.values()}
    for mapping in adapted.stream_mappings:
        running.in_background(poll_stream, running, mapping)
    # One run has all shards here: on a machine of few processors several would only slow each other down.
    for schedule in {each.function: dataclasses.replace(each, input=None) for each in adapted.schedules}.values():
        running.in_background(run_schedule, running, schedule)


def run(state: Path, port: int, output: TextIO) -> None:
    """Runs a stack until a signal, telling on `output` when it is ready."""
    with stack(state, port) as running:
        text = json.dumps(running.info)
        # Whole or not at all: tests read it as soon as it is there.
        (state / "stack.json.new").write_text(text)
        (state / "stack.json.new").replace(state / "stack.json")
        say(f"see it work: {running.info['consoleUrl']}")
        say(f"the API's description: {running.info['apiUrl']}/docs")
        print("READY", text, file=output, flush=True)
        while True:
            pause(0.5)
            running.check()


def stop(state: Path) -> None:
    """Ends the stack of a state folder, if there is one, and waits until all of it has.

    Raises StackError when something of it does not end: a process of a killed stack that is itself stopped.
    """
    stopped: int | None = None
    until = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(FileNotFoundError), (state / "lock").open("r+") as lock:
        while not _taken(lock):
            pid = _holder(lock)
            if pid is not None and pid != stopped:
                if stopped is not None:
                    # Another one has been started in its place.
                    break
                stopped = pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if stopped is not None and time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stopped, signal.SIGKILL)
            if time.monotonic() > until + GONE_SECONDS:
                raise StackError(f"what runs in {state} does not end: end who holds {state / 'lock'}")
            time.sleep(0.05)
        else:
            clear(state)
            lock.truncate(0)
    say("no local stack is running" if stopped is None else f"stopped the local stack (process {stopped})")


def main(arguments: Sequence[str]) -> int:
    state = state_folder()
    if arguments not in ([], ["stop"]):
        say(__doc__)
        return 2
    try:
        if arguments:
            stop(state)
            return 0
        stop_on_signals()
        run(state, int(os.environ.get("PORT") or 0), sys.stdout)
    except Stopped:
        say("stopped")
    except StackError as exc:
        say(f"local stack: {exc}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
