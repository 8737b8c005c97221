"""What `make build` makes, run as AWS runs it: Lambda's runtime interface client under its emulator, on Python
3.13, with nothing but the artifact to import from, against the local stack.

A wrong handler path, a package that was left out, a library of another machine or stale bytecode shows here.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from samtranslator.yaml_helper import yaml_parse

from local.ports import reserved_port
from local.sam_local import OWN, artifact_folder
from tests.e2e.client import Client
from tests.e2e.launch import END_SECONDS, eventually

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / ".venv-runtime" / "bin" / "python"
ARM = platform.machine() in ("arm64", "aarch64")
TEMPLATE = yaml_parse((ROOT / "template.yaml").read_text())
FUNCTIONS: dict[str, dict[str, Any]] = {
    name: resource["Properties"]
    for name, resource in TEMPLATE["Resources"].items()
    if resource["Type"] == "AWS::Serverless::Function"
}
# ELF's header, at byte 18: the machine that a library is for.
AARCH64 = (0xB7).to_bytes(2, "little")

STALE = """
import importlib.util, pathlib, sys
stale = []
for source in pathlib.Path(sys.argv[1]).rglob("*.py"):
    compiled = pathlib.Path(importlib.util.cache_from_source(str(source)))
    code = compiled.read_bytes() if compiled.exists() else b""
    unchecked = (1).to_bytes(4, "little")
    if code[:16] != importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(source.read_bytes()):
        stale.append(str(source))
print(len(list(pathlib.Path(sys.argv[1]).rglob("*.pyc"))), *stale)
"""


def make_build(architecture: str) -> None:
    done = subprocess.run(["make", "build", f"ARCH={architecture}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def artifact() -> Path:
    """The functions as they are uploaded, for this machine."""
    assert RUNTIME.exists(), "no .venv-runtime with a Python 3.13: `make test` makes it"
    make_build("arm64" if ARM else "x86_64")
    return ROOT / artifact_folder()


@pytest.fixture(scope="module")
def arm_artifact() -> Path:
    """The functions as they are uploaded to AWS."""
    make_build("arm64")
    return ROOT / ".aws-sam" / "build" / "InitiateCall-Shared"


@dataclasses.dataclass(frozen=True, slots=True)
class Runtime:
    """One function's process. log: what it prints, for when it fails."""

    url: str
    log: Path

    def invoke(self, event: Any) -> Any:
        answer = httpx.post(self.url, content=json.dumps(event), timeout=END_SECONDS)
        assert "errorType" not in answer.text, f"{answer.text}\n{self.log.read_text()}"
        return answer.json()


@contextlib.contextmanager
def runtime(name: str, artifact: Path, variables: dict[str, str], log: Path) -> Iterator[Runtime]:
    """Starts a function as Lambda does: the emulator starts the client, the client imports the handler."""
    (emulator,) = (ROOT / ".venv-sam").glob(
        f"lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-{'arm64' if ARM else 'x86_64'}"
    )
    properties = FUNCTIONS[name]
    with reserved_port() as listening, reserved_port() as runtime_api, log.open("wb") as output:
        # Both are the emulator's as long as it runs: it takes them as it comes to need them.
        process = subprocess.Popen(
            [
                *(str(emulator), "--runtime-interface-emulator-address", f"127.0.0.1:{listening}"),
                *("--runtime-api-address", f"127.0.0.1:{runtime_api}"),
                *(str(RUNTIME), "-m", "awslambdaric", properties["Handler"]),
            ],
            cwd=artifact,
            env={
                **variables,
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(artifact),
                "LAMBDA_TASK_ROOT": str(artifact),
                "_HANDLER": properties["Handler"],
                "AWS_LAMBDA_FUNCTION_NAME": name,
                # A machine without load needs a tenth of it; what a function may take on AWS is not asked here.
                "AWS_LAMBDA_FUNCTION_TIMEOUT": str(max(properties["Timeout"], 120)),
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            eventually(lambda: accepts(listening), f"{name}'s runtime answers")
            yield Runtime(f"http://127.0.0.1:{listening}/2015-03-31/functions/function/invocations", log)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def event_of(function: str, info: dict[str, Any]) -> dict[str, Any]:
    """The function's file in events/, with this stack's keys."""
    name = FUNCTIONS[function]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
    event: dict[str, Any] = json.loads((ROOT / "events" / f"{name}.json").read_text())
    if "x-api-key" in event.get("headers", {}):
        event["headers"]["x-api-key"] = info["apiKey"]
    if name == "livekit_events":
        body = base64.b64decode(event["body"])
        claims = {
            "iss": info["liveKitApiKey"],
            "exp": int(time.time()) + 300,
            "sha256": base64.b64encode(hashlib.sha256(body).digest()).decode(),
        }
        event["headers"]["authorization"] = jwt.encode(claims, info["liveKitApiSecret"], algorithm="HS256")
    return event


NO_FAILURES: dict[str, list[Any]] = {"batchItemFailures": []}


@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_the_artifact_runs_every_handler_under_lambdas_own_runtime(
    function: str,
    artifact: Path,
    stack: dict[str, Any],
    tmp_path: Path,
) -> None:
    state = Path(stack["logs"]).parent
    given = json.loads((state / "sam-env.json").read_text())[function]
    # From a container the stack has another address.
    endpoint = given["AWS_ENDPOINT_URL"]
    host = endpoint.removeprefix("http://").rpartition(":")[0]
    variables = {name: value.replace(host, "127.0.0.1") for name, value in given.items()}
    with runtime(function, artifact, variables, tmp_path / "log") as process:
        answer = process.invoke(event_of(function, stack))
        match function:
            case "InitiateCall":
                assert answer["statusCode"] == 200, answer
                call_id = json.loads(answer["body"])["callId"]
                with Client(stack) as client:
                    assert client.call(call_id)["callId"] == call_id
            case "CallsApi":
                assert json.loads(answer["body"])["code"] == "call_not_found"
            case "LivekitEvents":
                assert answer["statusCode"] == 200, answer
            case "ReconcileCalls":
                assert isinstance(answer, dict)
            case _:
                assert answer == NO_FAILURES


def test_sam_local_is_told_every_variable(stack: dict[str, Any]) -> None:
    """`sam local` passes on only what the template declares."""
    state = Path(stack["logs"]).parent
    given = json.loads((state / "sam-env.json").read_text())
    declared = yaml_parse((state / "sam-template.yaml").read_text())["Resources"]
    assert set(given) == set(declared) == set(FUNCTIONS)
    for name, variables in given.items():
        own = declared[name]["Properties"]["Environment"]["Variables"]
        assert set(variables) == set(own)
        assert FUNCTIONS[name]["Environment"]["Variables"].keys() <= set(own)
        assert not set(OWN) & set(own)
        assert {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(own)


def test_the_bytecode_is_that_of_the_sources(artifact: Path) -> None:
    """AWS does not compare them, so stale bytecode would run in place of its source."""
    told = subprocess.run([str(RUNTIME), "-c", STALE, str(artifact)], capture_output=True, text=True, check=True)
    count, *stale = told.stdout.split()
    assert stale == []
    assert int(count) > 500


def test_the_artifact_for_aws_holds_libraries_of_its_machine_only(arm_artifact: Path) -> None:
    libraries = [path for path in arm_artifact.rglob("*") if path.is_file() and is_elf(path)]
    assert len(libraries) > 3
    for path in libraries:
        assert path.read_bytes()[18:20] == AARCH64, path


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def test_the_artifact_for_aws_fits(arm_artifact: Path) -> None:
    """Lambda's limit is 250 MB; far below it a cold start already pays for every file."""
    size = sum(path.stat().st_size for path in arm_artifact.rglob("*") if path.is_file())
    assert size < 60_000_000
