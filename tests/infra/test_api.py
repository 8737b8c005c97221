"""Invariants of the API: its throttles, and the access log, the only record of requests that reach no function."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from local.template_for_emulator import translate

ROOT = Path(__file__).parents[2]
LIVEKIT = "POST /v1/livekit/events"


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        found: dict[str, Any] = translate(ROOT / "template.yaml", "s3://bucket/key")["Resources"]
    return found


@pytest.fixture(scope="module")
def stage(resources: dict[str, Any]) -> dict[str, Any]:
    (found,) = (r["Properties"] for r in resources.values() if r["Type"] == "AWS::ApiGatewayV2::Stage")
    assert isinstance(found, dict)
    return found


def test_livekits_events_have_a_throttle_of_their_own_far_above_the_others(
    resources: dict[str, Any], stage: dict[str, Any]
) -> None:
    """API Gateway's 429 counts as delivered at LiveKit: a throttle that clients can fill would lose ends."""
    others, own = stage["DefaultRouteSettings"], stage["RouteSettings"]
    assert own.keys() == {LIVEKIT}
    for limit in ("ThrottlingRateLimit", "ThrottlingBurstLimit"):
        assert own[LIVEKIT][limit] >= 10 * others[limit], limit
    # A route's key that no route has is refused at the deployment.
    paths = resources["HttpApi"]["Properties"]["Body"]["paths"]
    keys = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    assert own.keys() <= keys


def test_the_page_on_capacity_knows_both_throttles(stage: dict[str, Any]) -> None:
    quotas = tomllib.loads((ROOT / "docs" / "prices.toml").read_text())["quota"]
    assert quotas["route-throttle"]["limit"] == stage["DefaultRouteSettings"]["ThrottlingRateLimit"]
    assert quotas["livekit-route"]["limit"] == stage["RouteSettings"][LIVEKIT]["ThrottlingRateLimit"]
    # AWS does not honour more than the account's quota.
    assert quotas["livekit-route"]["limit"] <= quotas["api-account"]["limit"]


def test_the_access_log_tells_why_a_request_reached_no_function(stage: dict[str, Any]) -> None:
    form = stage["AccessLogSettings"]["Format"]
    variables = set(re.findall(r"\$context\.([\w.]+)", form))
    assert {"error.message", "error.messageString", "integrationErrorMessage", "integrationStatus"} <= variables
    assert {"requestId", "routeKey", "status"} <= variables
    # One line of JSON whose every value is a variable; an absent one is written as "-".
    assert "\n" not in form
    assert set(json.loads(re.sub(r"\$context\.[\w.]+", "-", form)).values()) == {"-"}


def test_lambda_may_read_the_stream_as_aws_asks_for(resources: dict[str, Any]) -> None:
    """Without all four the mapping is refused (DynamoDB's guide, the policy for stream records)."""
    statements = resources["FanOutRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    listed = [entry["Action"] if isinstance(entry["Action"], list) else [entry["Action"]] for entry in statements]
    actions = {action for some in listed for action in some}
    assert {
        f"dynamodb:{a}" for a in ("DescribeStream", "GetRecords", "GetShardIterator", "ListStreams")
    } <= actions


def test_what_the_runbooks_look_for_in_logs_is_written_so(resources: dict[str, Any]) -> None:
    """Lambda's own lines are `REPORT` and `Task timed out` with the log format Text only; JSON has other names."""
    runbook = (ROOT / "docs" / "operations.md").read_text()
    assert "REPORT" in runbook
    assert "Task timed out" in runbook
    functions = [r["Properties"] for r in resources.values() if r["Type"] == "AWS::Lambda::Function"]
    assert {function["LoggingConfig"]["LogFormat"] for function in functions} == {"Text"}
