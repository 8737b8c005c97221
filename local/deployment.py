"""Deploys template.yaml on the emulated AWS: the functions' package and variables, the CloudFormation stack."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from local.aws_client import aws_client
from local.errors import StackError
from local.paths import PACKAGES, PROCESS_HOOKS
from local.processes import START_SECONDS, Running
from local.signals import pause

if TYPE_CHECKING:
    from local.template_for_emulator import Adapted

STACK_NAME = "ringonce-local"


def zipped(folder: Path) -> bytes:
    """The functions' sources as a deployment package; PYTHONPATH provides their third-party packages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.py")):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def function_environments(running: Running, api_url: str, functions: Sequence[str]) -> dict[str, dict[str, str]]:
    """The variables that only the local stack sets, by function; `""`: those of all functions."""
    from local import template_for_emulator

    everywhere = {
        "TIME_SCALE": str(running.time_scale),
        "LEAST_PATIENCE": str(template_for_emulator.LEAST_PATIENCE),
        "ALLOW_LOOPBACK_CALLBACKS": "1",
        "PUBLIC_API_URL": api_url,
        "PYTHONPATH": os.pathsep.join([str(PROCESS_HOOKS), str(PACKAGES)]),
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
