"""Invariants of template.yaml, after SAM's own transform."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.template_for_emulator import translate
from reconcile_calls.reconcile import LIVEKIT_REQUESTS, ROUND_SECONDS, WRITE_SECONDS, requests_of
from shared import aws
from shared.durations import Durations
from shared.hang_up import HANG_UP_REQUESTS
from shared.table_keys import SHARDS

ROOT = Path(__file__).parent.parent.parent
SOURCE = yaml_parse((ROOT / "template.yaml").read_text())


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        found = translate(ROOT / "template.yaml", "s3://bucket/key")["Resources"]
    assert isinstance(found, dict)
    return found


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: entry["Properties"] for name, entry in resources.items() if entry["Type"] == kind}


def statements(resources: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, role in of_type(resources, "AWS::IAM::Role").items():
        for policy in role.get("Policies", []):
            listed = policy["PolicyDocument"]["Statement"]
            yield from ((name, entry) for entry in (listed if isinstance(listed, list) else [listed]))


def test_every_permission_names_its_actions_and_resources(resources: dict[str, Any]) -> None:
    """No `*` on tables, queues, streams or anything else: exact actions on exact ARNs, or actions that take no
    resource (tests/infra/test_policies.py).
    """
    seen = 0
    for role, statement in statements(resources):
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert all("*" not in action for action in actions), (role, actions)
        assert statement["Resource"] == "*" or "*" not in json.dumps(statement["Resource"]), (role, statement)
        seen += 1
    assert seen > 20


def test_no_managed_policy_grants_more_than_logs_and_traces(resources: dict[str, Any]) -> None:
    for name, role in of_type(resources, "AWS::IAM::Role").items():
        for arn in role.get("ManagedPolicyArns", []):
            text = json.dumps(arn)
            assert (
                "AWSLambdaBasicExecutionRole" in text
                or "AWSXrayWriteOnlyAccess" in text
                or ("AWSXRayDaemonWriteAccess" in text)
            ), (name, arn)


def test_a_message_is_hidden_for_six_times_as_long_as_its_function_runs(resources: dict[str, Any]) -> None:
    """AWS's own rule for SQS sources; below it a message could be redelivered while it is processed."""
    queues, functions = of_type(resources, "AWS::SQS::Queue"), of_type(resources, "AWS::Lambda::Function")
    mappings = of_type(resources, "AWS::Lambda::EventSourceMapping")
    checked = 0
    for mapping in mappings.values():
        queue = mapping["EventSourceArn"]["Fn::GetAtt"][0]
        if queue in queues:
            timeout = functions[mapping["FunctionName"]["Ref"]]["Timeout"]
            assert queues[queue]["VisibilityTimeout"] >= 6 * timeout
            checked += 1
    assert checked == 2


def test_every_source_reports_partial_failures(resources: dict[str, Any]) -> None:
    for name, mapping in of_type(resources, "AWS::Lambda::EventSourceMapping").items():
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"], name


def test_a_stream_record_is_tried_for_as_long_as_the_stream_keeps_it(resources: dict[str, Any]) -> None:
    """Given up earlier, an event would only be known from a dead-letter queue's metadata."""
    assert (
        of_type(resources, "AWS::Lambda::EventSourceMapping")["FanOutFromStream"]["MaximumRecordAgeInSeconds"]
        == 24 * 3600
    )


def test_records_of_a_shard_are_worked_on_side_by_side(resources: dict[str, Any]) -> None:
    mapping = of_type(resources, "AWS::Lambda::EventSourceMapping")["FanOutFromStream"]
    assert mapping["ParallelizationFactor"] == 10


def test_the_reconcilers_schedules_have_each_shard_once_and_share_livekits_requests(
    resources: dict[str, Any],
) -> None:
    rules = [
        (rule["ScheduleExpression"], target)
        for rule in of_type(resources, "AWS::Events::Rule").values()
        for target in rule["Targets"]
        if target["Arn"]["Fn::GetAtt"][0] == "ReconcileCalls"
    ]
    assert {every for every, _ in rules} == {"rate(1 minute)"}
    ranges = [json.loads(target["Input"])["shards"] for _, target in rules]
    assert len(ranges) > 1
    assert sorted(itertools.chain(*ranges)) == list(range(SHARDS))
    assert sum(requests_of(shards) for shards in ranges) <= LIVEKIT_REQUESTS
    # From here on a function has a whole CPU; a Python process uses no second one.
    assert of_type(resources, "AWS::Lambda::Function")["ReconcileCalls"]["MemorySize"] == 1769


def test_callback_ports_are_the_same_where_they_are_checked_and_where_they_bind(
    resources: dict[str, Any],
) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    ports = [functions[name]["Environment"]["Variables"]["CALLBACK_PORTS"] for name in ("InitiateCall", "Deliver")]
    assert ports == [{"Ref": "CallbackPorts"}] * 2


def test_every_queue_that_is_worked_on_has_a_dead_letter_queue(resources: dict[str, Any]) -> None:
    queues = of_type(resources, "AWS::SQS::Queue")
    dead = {
        q["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0] for q in queues.values() if "RedrivePolicy" in q
    }
    for name, queue in queues.items():
        assert name in dead or "RedrivePolicy" in queue, name
        assert queue["SqsManagedSseEnabled"] is True
        if name in dead:
            assert queue["MessageRetentionPeriod"] == 1209600


def test_every_log_is_kept_for_a_set_time(resources: dict[str, Any]) -> None:
    groups = of_type(resources, "AWS::Logs::LogGroup")
    assert all("RetentionInDays" in group for group in groups.values())
    for name, function in of_type(resources, "AWS::Lambda::Function").items():
        assert function["LoggingConfig"]["LogGroup"]["Ref"] in groups, name


def test_tables_outlive_the_stack_and_can_be_restored(resources: dict[str, Any]) -> None:
    """Also a first deployment that failed: what CloudFormation keeps, it does not try to delete. Prod's protection
    would refuse that, and the stack could neither go back nor forth (docs/operations.md).
    """
    for name, entry in resources.items():
        if entry["Type"] == "AWS::DynamoDB::Table":
            assert entry["DeletionPolicy"] == "Retain", name
            assert entry["UpdateReplacePolicy"] == "Retain", name
            assert entry["Properties"]["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"]
            assert entry["Properties"]["SSESpecification"]["SSEEnabled"]


def test_every_handler_exists() -> None:
    for name, entry in SOURCE["Resources"].items():
        if entry["Type"] == "AWS::Serverless::Function":
            module, _, function = entry["Properties"]["Handler"].rpartition(".")
            spec = importlib.util.find_spec(module)
            assert spec is not None, name
            assert spec.origin is not None
            assert f"def {function}(" in Path(spec.origin).read_text(), name


def test_every_resource_says_why_it_is_there() -> None:
    lines = (ROOT / "template.yaml").read_text().split("\nResources:\n")[1].split("\nOutputs:\n")[0].splitlines()
    for number, line in enumerate(lines):
        if line.startswith("  ") and line[2] not in " #" and line.endswith(":"):
            assert lines[number + 1].strip().startswith("# Why"), line


def test_the_pages_tell_every_parameter_and_the_limits_that_it_sets() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = {
        name: default.strip()
        for names, defaults in re.findall(r"^\| (`[A-Z].*?`) \| (.*?) \|", page, re.MULTILINE)
        for name, default in zip(re.findall(r"\w+", names), itertools.cycle(defaults.split(",")))
    }
    defaults = {name: str(parameter["Default"]) for name, parameter in SOURCE["Parameters"].items()}
    assert table.keys() == defaults.keys()
    told = {name: default.strip("`") for name, default in table.items()}
    assert {name: told[name] for name in told if defaults[name]} == {n: d for n, d in defaults.items() if d}

    quotas = tomllib.loads((ROOT / "docs" / "prices.toml").read_text())["quota"]
    parameters = SOURCE["Parameters"]
    assert quotas["dial-batches"]["limit"] == parameters["MaximumDialBatches"]["Default"]
    assert quotas["delivery-batches"]["limit"] == 10 * parameters["MaximumDeliveryBatches"]["Default"]


def test_no_secret_and_no_setting_of_the_local_stack_is_in_an_environment(resources: dict[str, Any]) -> None:
    for name, function in of_type(resources, "AWS::Lambda::Function").items():
        for variable in function["Environment"]["Variables"]:
            assert variable not in {
                "TIME_SCALE",
                "LEAST_PATIENCE",
                "ALLOW_LOOPBACK_CALLBACKS",
                "AWS_ENDPOINT_URL",
            }, name
            assert not variable.endswith(("_SECRET", "_KEY", "_TOKEN", "_PASSWORD")), name


def test_time_outs_nest(resources: dict[str, Any]) -> None:
    """HTTP client < function < a sixth of the visibility (above); leases outlive functions."""
    timeout = {name: entry["Timeout"] for name, entry in of_type(resources, "AWS::Lambda::Function").items()}
    d = Durations()
    longest_ring = 60
    dial = longest_ring + d.answer_margin
    assert d.livekit_request < dial < dial + d.fence_margin < timeout["DialWorker"]
    # Room, agent and the trunk's moment fit in front of the longest dial.
    assert d.livekit_request + d.agent_wait + d.pacing_hold + dial + d.fence_margin <= timeout["DialWorker"]
    # A lease ends so long after its process: clocks differ by less, and a dial under way is answered by then.
    assert d.lease_margin >= 60
    # The reconciler's last portion: it is read, its rooms are listed, it is written.
    read, connect = aws.READ_SECONDS, aws.CONNECT_SECONDS
    assert read + d.livekit_look + read <= ROUND_SECONDS
    # What else is asked of LiveKit is asked only if the write behind it is done before the end.
    assert connect + read <= WRITE_SECONDS
    assert HANG_UP_REQUESTS * d.livekit_look + WRITE_SECONDS < timeout["ReconcileCalls"] / 2
    # Published: ten minutes after its limit. The last postponement, the next minute, the run itself.
    assert d.end_margin + d.second_look + 60 + timeout["ReconcileCalls"] <= 600
    assert d.webhook_attempt < timeout["Deliver"] < d.webhook_lease
    assert timeout["InitiateCall"] < d.orphan_drop
    assert timeout["ReconcileCalls"] < 60
    assert d.livekit_request < timeout["CallsApi"] <= 29
