"""What schemathesis makes up from infra/openapi.yaml, valid and not, is answered as the page says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.e2e.launch import END_SECONDS
from tests.openapi_page import ROOT, operations

# A number, not a time: a slow machine makes up as many.
EXAMPLES = 30
# Both take nobody's word without a signature over the body.
SIGNED = {"POST /v1/livekit/events", "POST /v1/api/call/{callId}/events"}

CONFIGURATION = """
warnings = false

[cache]
enabled = false

[generation]
database = "none"
deterministic = true

# For a method that a path does not have, API Gateway answers 404, not 405.
[phases.coverage]
unexpected-methods = []

[checks.unsupported_method]
enabled = false

# The examples share one Idempotency-Key and have different bodies. A schema has no words for the prefixes of every
# country's plan: made-up numbers may begin with one.
[[operations]]
include-operation-id = "placeCall"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "422"]

# A made-up token may hold a comma, and then reads as two.
[[operations]]
include-operation-id = "reportEvent"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "429"]

# Each is valid by itself; made up together they contradict each other.
[[operations]]
include-operation-id = "listCalls"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404"]

[operations.parameters]
created_after = "2020-01-01T00:00:00Z"
created_before = "2999-12-31T23:59:59Z"
cursor = {cursor}
"""


def test_made_up_requests_are_answered_as_the_page_says(stack: dict[str, Any], tmp_path: Path) -> None:
    headers = {"x-workspace-id": stack["workspaceId"], "x-api-key": stack["apiKey"]}
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.format(cursor=json.dumps(real_cursor(stack["apiUrl"], headers))))
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            *("--no-color", "--config-file", str(configuration), "run", str(ROOT / "infra" / "openapi.yaml")),
            *("--report-har-path", str(tmp_path / "requests.har")),
            *("--url", stack["apiUrl"], "--max-examples", str(EXAMPLES)),
            *("--request-timeout", str(END_SECONDS)),
            *(f"--header={name}: {value}" for name, value in headers.items()),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " ".join(f"Tested: {len(operations())}".split()) in " ".join(run.stdout.split())
    answered = statuses(json.loads((tmp_path / "requests.har").read_text()))
    assert {route for route, found in answered.items() if 200 in found} == set(operations()) - SIGNED, answered
    assert all(401 in answered[route] for route in SIGNED), answered


def statuses(har: dict[str, Any]) -> dict[str, dict[int, int]]:
    """Route → status → how many requests were answered with it."""
    routes = {re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route))): route for route in operations()}
    found: dict[str, dict[int, int]] = {route: {} for route in operations()}
    for entry in har["log"]["entries"]:
        asked = f"{entry['request']['method']} {urlsplit(entry['request']['url']).path}"
        for pattern, route in routes.items():
            if pattern.fullmatch(asked):
                status = entry["response"]["status"]
                found[route][status] = found[route].get(status, 0) + 1
    return found


def real_cursor(api: str, headers: dict[str, str]) -> str:
    """Two calls are placed, so that a page of one has another behind it."""
    with httpx.Client(base_url=api, headers=headers, timeout=END_SECONDS) as client:
        for _ in range(2):
            body = {"to": "+15550000001", "call_agent_id": "agent-1"}
            client.post("/v1/api/call", json=body).raise_for_status()
        cursor = client.get("/v1/api/call", params={"limit": "1"}).raise_for_status().json()["cursor"]
    assert isinstance(cursor, str)
    return cursor
