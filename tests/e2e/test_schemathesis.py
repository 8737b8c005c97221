"""Requests that schemathesis generates from infra/openapi.yaml, valid and not, are answered as the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.client import Client
from tests.e2e.launch import END_SECONDS, eventually
from tests.openapi_page import CLOSED, operations

# A number, not a time: a slow machine generates as many.
EXAMPLES = 30
EXAMPLE_CALL = "f9e8d7c6b5a4f3e2d1c0b9a8"
# Both refuse a body without a signature over it.
SIGNED = {"POST /v1/livekit/events", "POST /v1/api/call/{callId}/events"}
MOVES = "PATCH /v1/api/call/{callId}"

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

# Its times may be made up so that they cannot be.
[[operations]]
include-operation-id = "previewCall"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404"]

# The same; and a body without a time moves nothing.
[[operations]]
include-operation-id = "moveCall"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "409"]

# The same.
[[operations]]
include-operation-id = "suppress"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404"]

# A made-up cursor is none of this API's.
[[operations]]
include-operation-id = "listSuppressed"

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404"]

# Each suppression is answered by itself.
[[operations]]
include-operation-id = "importSuppressions"

[operations.checks.negative_data_rejection]
enabled = false

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

# A header that came twice with equal values counts once, so the page's pattern, which is one value's, does not
# forbid it.
HOOKS = """
import schemathesis


@schemathesis.hook
def filter_case(context, case):
    joined = [str(value).split(",") for value in (case.headers or {}).values()]
    return not any(len(parts) > 1 and len({part.strip() for part in parts}) == 1 for parts in joined)
"""


def test_made_up_requests_are_answered_as_the_page_says(stack: dict[str, Any], tmp_path: Path) -> None:
    headers = {"x-workspace-id": stack["workspaceId"], "x-api-key": stack["apiKey"]}
    with Client(stack) as client:
        cursor, call_id = real_cursor(client), call_with_deliveries(client)
    # JSON, which YAML takes too: an answer with a field that does not stand on the page is a failure here.
    page = json.dumps(CLOSED)
    assert EXAMPLE_CALL in page
    (tmp_path / "openapi.yaml").write_text(page.replace(EXAMPLE_CALL, call_id))
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(cursor=json.dumps(cursor)))
    (tmp_path / "schemathesis_hooks.py").write_text(HOOKS)
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            *("--no-color", "--config-file", "schemathesis.toml", "run", "openapi.yaml"),
            *("--report-har-path", "requests.har"),
            *("--url", stack["apiUrl"], "--max-examples", str(EXAMPLES)),
            *("--request-timeout", str(END_SECONDS)),
            *(f"--header={name}: {value}" for name, value in headers.items()),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " ".join(f"Tested: {len(operations())}".split()) in " ".join(run.stdout.split())
    answered = statuses(json.loads((tmp_path / "requests.har").read_text()))
    successful = {route for route, found in answered.items() if 200 in found}
    assert successful == set(operations()) - SIGNED - {MOVES}, answered
    # The call of the page's example has been dialled.
    assert 409 in answered[MOVES], answered
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


def real_cursor(client: Client) -> str:
    """Two calls are placed, so that a page of one has another behind it."""
    for _ in range(2):
        client.place("+15550000001", callback_url=None)
    cursor = client.read("/v1/api/call?limit=1")["cursor"]
    assert isinstance(cursor, str)
    return cursor


def call_with_deliveries(client: Client) -> str:
    """The page's links lead from this call to its deliveries and to one that can be sent again."""
    call_id = client.place("+15550000001")

    def delivered() -> bool:
        arrived = {found["state"] for found in client.deliveries(call_id)} == {"delivered"}
        return arrived and client.call(call_id)["endedAt"] is not None

    eventually(delivered, "every webhook of the call arrives")
    return call_id
