"""Invariants of infra/monitoring.yaml, of the code that emits its metrics, and of the runbook it refers to."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from samtranslator.yaml_helper import yaml_parse

from bench.capacity import custom_metrics
from local.dashboard import dashboard_body, evaluate, metrics_of
from shared.call import ENDED
from shared.delivery_store import State
from shared.durations import END_BOUND, Durations

ROOT = Path(__file__).parents[2]
MONITORING = yaml_parse((ROOT / "infra" / "monitoring.yaml").read_text())
TEMPLATE = yaml_parse((ROOT / "template.yaml").read_text())
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()
ALARMS: dict[str, dict[str, Any]] = {
    name: resource["Properties"]
    for name, resource in MONITORING["Resources"].items()
    if resource["Type"] == "AWS::CloudWatch::Alarm"
}
# What a dimension's values may be: CloudWatch bills each of them as a metric.
VALUES = {"status": set(ENDED), "outcome": set(get_args(State))}

# (metric's name, the dimension's name and value or None)
Series = tuple[str, tuple[str, str] | None]


def emitted() -> set[Series]:
    """Every series that a call of `count` or `measure` in the functions can make."""
    found: set[Series] = set()
    for path in (ROOT / "functions").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("count", "measure")):
                continue
            names = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            dimensions = [word.arg for word in node.keywords if word.arg not in (None, "value")]
            assert names, f"{path.name}:{node.lineno}: the metric's name must be written out"
            assert len(dimensions) <= 1, f"{path.name}:{node.lineno}: more than one dimension multiplies the cost"
            for name in names:
                assert isinstance(name, str)
                if not dimensions:
                    found.add((name, None))
                for dimension in dimensions:
                    assert dimension is not None
                    found |= {(name, (dimension, value)) for value in VALUES[dimension]}
    return found


def alarm_metrics(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of an alarm, each with Namespace, MetricName and Dimensions."""
    if "Metrics" in alarm:
        return [entry["MetricStat"]["Metric"] for entry in alarm["Metrics"] if "MetricStat" in entry]
    return [alarm]


def own_series(metric: dict[str, Any]) -> Series | None:
    """An alarm's metric as a series of ours; None when it is one of AWS's."""
    if metric["Namespace"] != {"Ref": "Namespace"}:
        return None
    dimensions = metric.get("Dimensions", [])
    assert len(dimensions) <= 1
    return metric["MetricName"], next(((d["Name"], d["Value"]) for d in dimensions), None)


def on_the_dashboard() -> set[Series]:
    return {
        (metric.name, metric.dimensions[0] if metric.dimensions else None)
        for widget in dashboard_body()["widgets"]
        for metric in metrics_of(widget)
        if metric.namespace == "${Namespace}"
    }


def in_alarms() -> set[Series]:
    return {
        series for alarm in ALARMS.values() for metric in alarm_metrics(alarm) if (series := own_series(metric))
    }


def headings(text: str) -> set[str]:
    """As GitHub makes links of them."""
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }


def test_every_metric_that_is_shown_or_alarmed_on_is_emitted() -> None:
    assert on_the_dashboard() | in_alarms() <= emitted()


def test_every_metric_that_is_emitted_is_shown_or_alarmed_on() -> None:
    assert emitted() <= on_the_dashboard() | in_alarms()


def test_the_bill_has_every_metric_that_is_emitted() -> None:
    assert custom_metrics() == len(emitted())


def test_every_alarm_says_what_to_do_and_where_it_is_written() -> None:
    known = headings(RUNBOOK)
    for name, alarm in ALARMS.items():
        found = re.search(r"Runbook: docs/operations\.md#([\w-]+)$", alarm["AlarmDescription"])
        assert found, name
        assert found[1] in known, f"{name}: the runbook has no heading {found[1]}"
        assert len(alarm["AlarmDescription"]) <= 1024, name


def test_every_heading_of_the_alarms_chapter_belongs_to_an_alarm() -> None:
    chapter = RUNBOOK.split("\n## Alarms\n")[1].split("\n## ")[0]
    told = {alarm["AlarmDescription"].rpartition("#")[2] for alarm in ALARMS.values()}
    assert headings(chapter) == told


def test_every_alarm_tells_somebody_and_says_what_silence_means() -> None:
    for name, alarm in ALARMS.items():
        assert alarm["AlarmActions"] == [{"Ref": "AlarmTopic"}], name
        assert alarm["TreatMissingData"] in ("notBreaching", "breaching"), name


def test_lateness_rings_before_a_call_can_end_later_than_published() -> None:
    """A minute's lateness is normal; lateness beyond the slack has already broken the bound."""
    alarm = ALARMS["CallsOverdueAlarm"]
    slack = END_BOUND - Durations().end_margin
    events = TEMPLATE["Resources"]["ReconcileCalls"]["Properties"]["Events"]
    assert {event["Properties"]["Schedule"] for event in events.values()} == {"rate(1 minute)"}
    assert (alarm["MetricName"], alarm["Statistic"], alarm["EvaluationPeriods"]) == ("DueLateness", "Maximum", 1)
    assert 60_000 < alarm["Threshold"] < slack * 1000
    minutes = alarm["Threshold"] / 60_000
    assert f"more than {minutes:g} minutes late" in alarm["AlarmDescription"]
    told = RUNBOOK.split("### Calls overdue")[1].split("###")[0]
    assert f"more than {minutes:g} minutes after it was due" in told


def test_one_schedule_of_the_reconciler_that_is_off_rings() -> None:
    """It has no metric of its own: the items of its shards would only get later and later."""
    alarm = ALARMS["ReconcilerSilentAlarm"]
    schedules = len(TEMPLATE["Resources"]["ReconcileCalls"]["Properties"]["Events"])
    minutes = alarm["Period"] // 60
    assert (alarm["ComparisonOperator"], alarm["Statistic"]) == ("LessThanThreshold", "Sum")
    assert (schedules - 1) * minutes < alarm["Threshold"] < schedules * minutes
    assert f"less than {alarm['Threshold']} times in {minutes} minutes" in alarm["AlarmDescription"]
    assert f"{schedules} schedules start it {schedules * minutes} times" in alarm["AlarmDescription"]


def test_every_alarm_is_on_the_dashboard() -> None:
    (shown,) = (widget for widget in dashboard_body()["widgets"] if widget["type"] == "alarm")
    assert shown["properties"]["alarms"] == [f"${{{name}.Arn}}" for name in ALARMS]


def test_every_function_and_every_queue_has_an_alarm() -> None:
    watched = json.dumps([[alarm_metrics(alarm)] for alarm in ALARMS.values()])
    errors = {
        metric["Dimensions"][0]["Value"]["Ref"]
        for alarm in ALARMS.values()
        for metric in alarm_metrics(alarm)
        if metric["MetricName"] == "Errors"
    }
    for name, resource in TEMPLATE["Resources"].items():
        match resource["Type"]:
            case "AWS::Serverless::Function":
                assert name in errors, name
            case "AWS::SQS::Queue" | "AWS::DynamoDB::Table":
                assert json.dumps({"Ref": name}) in watched, name


def test_the_template_hands_over_every_parameter() -> None:
    nested = TEMPLATE["Resources"]["Monitoring"]["Properties"]
    assert set(nested["Parameters"]) == set(MONITORING["Parameters"])
    # The functions' metrics go where the alarms look for them.
    variables = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    assert nested["Parameters"]["Namespace"] == variables["POWERTOOLS_METRICS_NAMESPACE"]


def test_the_dashboards_places_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for widget in dashboard_body()["widgets"]:
        columns = range(widget["x"], widget["x"] + widget["width"])
        rows = range(widget["y"], widget["y"] + widget["height"])
        assert columns.stop <= 24
        places = {(x, y) for x in columns for y in rows}
        assert not places & taken, widget["properties"].get("title")
        taken |= places


# A queue's minute: messages that wait for a worker, and messages that workers took.
MINUTES = {
    "silence": (None, None, False),
    "every message is taken at once": (0, 1800, False),
    "taken at once, and looked at just before": (20, 1800, False),
    "one message, hidden since its worker died": (0, 0, False),
    "hidden since its worker died, and others go on": (3, 600, False),
    "workers are all busy, the last message waits for a minute": (1800, 1800, False),
    "the last message waits for seven minutes": (12600, 1800, True),
    "nothing takes the only message": (1, 0, True),
    "nothing takes any message": (500, 0, True),
}


@pytest.mark.parametrize("minute", list(MINUTES))
@pytest.mark.parametrize("name", ["DialQueueAgeAlarm", "WebhookQueueAgeAlarm"])
def test_the_alarm_of_a_queue_rings_for_what_waits_and_not_for_what_is_worked_on(name: str, minute: str) -> None:
    alarm = ALARMS[name]
    waiting, taken, rings = MINUTES[minute]
    (expression,) = (entry["Expression"] for entry in alarm["Metrics"] if "Expression" in entry)
    metrics = {entry["Id"]: entry["MetricStat"] for entry in alarm["Metrics"] if "MetricStat" in entry}
    assert {(m["Metric"]["MetricName"], m["Stat"], m["Period"]) for m in metrics.values()} == {
        ("ApproximateNumberOfMessagesVisible", "Maximum", 60),
        ("NumberOfMessagesReceived", "Sum", 60),
    }
    value = evaluate(expression, {"waiting": waiting, "taken": taken})
    assert value is not None
    assert (alarm["ComparisonOperator"], alarm["EvaluationPeriods"]) == ("GreaterThanThreshold", 3)
    assert (value > alarm["Threshold"]) == rings


# What is counted in each minute, the older first: times that a trunk was stopped, and trunks that are.
STOPS: dict[str, tuple[list[tuple[float | None, float | None]], bool]] = {
    "silence": ([(None, None), (None, None)], False),
    "a trunk is stopped just now": ([(None, None), (1, None)], True),
    "it is stopped, or one call at a time tries it": ([(None, 1), (None, 1)], True),
    "the reconciler's run fell into the minute before": ([(None, 2), (None, None)], True),
    "it is in use again": ([(None, None), (None, None)], False),
}


@pytest.mark.parametrize("minutes", list(STOPS))
def test_the_alarm_of_a_trunk_rings_at_once_and_for_as_long_as_it_is_stopped(minutes: str) -> None:
    alarm = ALARMS["TrunkStoppedAlarm"]
    values, rings = STOPS[minutes]
    (expression,) = (entry["Expression"] for entry in alarm["Metrics"] if "Expression" in entry)
    metrics = {entry["Id"]: entry["MetricStat"] for entry in alarm["Metrics"] if "MetricStat" in entry}
    assert {name: (one["Metric"]["MetricName"], one["Stat"], one["Period"]) for name, one in metrics.items()} == {
        "stops": ("TrunkStops", "Sum", 60),
        "stopped": ("TrunksStopped", "Sum", 60),
    }
    assert alarm["ComparisonOperator"] == "GreaterThanThreshold"
    assert (alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) == (2, 1)
    above = [
        (evaluate(expression, {"stops": stops, "stopped": stopped}) or 0) > alarm["Threshold"]
        for stops, stopped in values
    ]
    assert (sum(above) >= alarm["DatapointsToAlarm"]) == rings


def test_a_lost_marker_rings_within_a_minute_and_the_alarm_says_what_ends_it() -> None:
    alarm = ALARMS["NumbersMarkerMissingAlarm"]
    # The reconciler counts one in each of its runs, one a minute.
    assert (alarm["MetricName"], alarm["Statistic"], alarm["Period"]) == ("NumbersMarkerMissing", "Sum", 60)
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanOrEqualToThreshold", 1)
    assert alarm["DatapointsToAlarm"] == 1
    for words in ("nothing is dialled", "admin suppression mark"):
        assert words in alarm["AlarmDescription"]
    told = RUNBOOK.split("### Numbers marker missing")[1].split("\n###")[0]
    assert "admin suppression mark" in told
    assert "(#numberstable-is-lost)" in told


def test_throttles_of_every_index_ring() -> None:
    indexes = [
        index
        for resource in TEMPLATE["Resources"].values()
        if resource["Type"] == "AWS::DynamoDB::Table"
        for index in resource["Properties"].get("GlobalSecondaryIndexes", ())
    ]
    watched = {
        dimension["Value"]
        for metric in alarm_metrics(ALARMS["TableThrottlesAlarm"])
        for dimension in metric["Dimensions"]
        if dimension["Name"] == "GlobalSecondaryIndexName"
    }
    assert watched == {index["IndexName"] for index in indexes}


def test_no_alarm_takes_a_message_that_is_worked_on_for_one_that_waits() -> None:
    """A dead worker's message is hidden for twelve minutes, and its age is counted all the time."""
    used = {metric["MetricName"] for alarm in ALARMS.values() for metric in alarm_metrics(alarm)}
    assert "ApproximateAgeOfOldestMessage" not in used
    assert "ApproximateNumberOfMessagesNotVisible" not in used


def test_the_streams_alarm_says_how_long_records_are_tried() -> None:
    tried = TEMPLATE["Resources"]["FanOutFromStream"]["Properties"]["MaximumRecordAgeInSeconds"]
    assert f"After {tried / 3600:g} h records are given up" in ALARMS["StreamAgeAlarm"]["AlarmDescription"]
