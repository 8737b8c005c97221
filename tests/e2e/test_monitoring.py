"""Alarms and dashboard on the local stack: they deploy, and show what a call does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.dashboard import dashboard_body, metrics_of, page, points_in, values_of
from tests.e2e.client import Client
from tests.e2e.launch import eventually

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring.yaml"
STACK = "monitoring-by-itself"
FUNNEL = "Calls, from request to webhook"


@pytest.fixture
def client(stack: dict[str, Any]) -> Iterator[Client]:
    with Client(stack) as client:
        yield client


def test_alarms_and_dashboard_are_deployed(client: Client) -> None:
    """The local stack leaves them out, so this deploys them, beside it, onto the same resources; all but the
    alarms on metric math, which the emulator does not know.
    """
    template = yaml_parse(MONITORING.read_text())
    math = [name for name, entry in template["Resources"].items() if "Metrics" in entry.get("Properties", {})]
    body = dashboard_body()
    for widget in body["widgets"]:
        if widget["type"] == "alarm":
            widget["properties"]["alarms"] = [
                arn for arn in widget["properties"]["alarms"] if arn not in {f"${{{name}.Arn}}" for name in math}
            ]
    template["Resources"] = {name: entry for name, entry in template["Resources"].items() if name not in math}
    template["Resources"]["Dashboard"]["Properties"]["DashboardBody"] = {"Fn::Sub": json.dumps(body)}
    resources = client.info["resources"]
    values = {name: resources[name].rpartition("/")[2] for name in template["Parameters"] if name in resources}
    values |= {
        "Namespace": "Ringonce/local",
        "DashboardName": "ringonce-local",
        "AlarmEmail": "operator@example.com",
        "Api": resources["HttpApi"],
    }
    cloudformation = client.aws("cloudformation")
    cloudformation.create_stack(
        StackName=STACK,
        TemplateBody=json.dumps(template),
        Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
    )

    def status() -> str:
        return str(cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]["StackStatus"])

    eventually(lambda: not status().endswith("IN_PROGRESS"), "the stack is made")
    events = cloudformation.describe_stack_events(StackName=STACK)["StackEvents"]
    failed = [e for e in events if e["ResourceStatus"].endswith("FAILED")]
    assert status() == "CREATE_COMPLETE", failed
    cloudwatch = client.aws("cloudwatch")
    alarms = cloudwatch.describe_alarms(AlarmNamePrefix="ringonce-local-")["MetricAlarms"]
    wanted = [name for name, entry in template["Resources"].items() if entry["Type"] == "AWS::CloudWatch::Alarm"]
    assert {alarm["AlarmName"] for alarm in alarms} == {
        f"ringonce-local-{name.removesuffix('Alarm')}" for name in wanted
    }
    body = json.loads(cloudwatch.get_dashboard(DashboardName="ringonce-local")["DashboardBody"])
    assert "${" not in json.dumps(body)
    assert len(body["widgets"]) == len(dashboard_body()["widgets"])


def test_the_dashboard_follows_a_call_from_the_request_to_the_report(client: Client) -> None:
    began = int(time.time() * 1000)
    call_id = client.place("+15550000000")
    eventually(lambda: any(event["type"] == "call.ended" for event in client.received(call_id)), "the end is told")
    logs = Path(client.info["logs"])

    def funnel() -> dict[str, float | None]:
        since = [point for point in points_in(logs) if point.at >= began]
        (widget,) = (w for w in dashboard_body()["widgets"] if w["properties"].get("title") == FUNNEL)
        metrics = metrics_of(widget)
        return {
            metric.label: value
            for metric, value in zip(metrics, values_of(metrics, since), strict=True)
            if metric.options.get("visible", True)
        }

    wanted = {"accepted": 1, "dialed": 1, "answered": 1, "ended": 1, "webhooks delivered": 4}
    # Other tests' calls may still be under way on the same stack.
    eventually(lambda: all((funnel()[name] or 0) >= least for name, least in wanted.items()), "the funnel is full")
    drawn = page(dashboard_body(), list(points_in(logs)), "a call")
    assert "From the POST to the ring" in drawn
    assert "<polyline" in drawn
