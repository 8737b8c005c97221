"""The locally deployed template is template.yaml; these tests allow only the intended differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from local.stream_poller import Settings
from local.template_for_emulator import (
    ANSWERS,
    LEAST_PATIENCE,
    LEFT_OUT,
    PARAMETERS,
    SCALED,
    Adapted,
    Schedule,
    adapt,
    translate,
)
from shared.durations import Durations

TEMPLATE = Path(__file__).parents[2] / "template.yaml"


@pytest.fixture(scope="module")
def translated() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        return translate(TEMPLATE, "s3://code/functions.zip")


@pytest.fixture(scope="module")
def adapted(translated: dict[str, Any]) -> Adapted:
    return adapt(translated, {"": {"TIME_SCALE": "0.05"}, "FanOut": {"ONLY": "here"}}, 0.05)


def of_type(template: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: res for name, res in template["Resources"].items() if res["Type"] == kind}


def test_every_route_of_the_api_becomes_a_resource(translated: dict[str, Any], adapted: Adapted) -> None:
    body = translated["Resources"]["HttpApi"]["Properties"]["Body"]
    expected = {
        f"{'ANY' if method.startswith('x-') else method.upper()} {path}"
        for path, operations in body["paths"].items()
        for method in operations
    }
    routes = of_type(adapted.template, "AWS::ApiGatewayV2::Route").values()
    assert {route["Properties"]["RouteKey"] for route in routes} == expected
    assert "POST /v1/api/call" in expected


def test_a_route_leads_to_the_function_that_the_template_names(
    translated: dict[str, Any], adapted: Adapted
) -> None:
    paths = translated["Resources"]["HttpApi"]["Properties"]["Body"]["paths"]
    wanted = paths["/v1/api/call"]["post"]["x-amazon-apigateway-integration"]["uri"]
    (route,) = (
        route["Properties"]
        for route in of_type(adapted.template, "AWS::ApiGatewayV2::Route").values()
        if route["Properties"]["RouteKey"] == "POST /v1/api/call"
    )
    integration = adapted.template["Resources"][route["Target"]["Fn::Join"][1][1]["Ref"]]["Properties"]
    assert integration["IntegrationUri"] == wanted
    assert (integration["IntegrationType"], integration["PayloadFormatVersion"]) == ("AWS_PROXY", "2.0")
    assert ("POST /v1/api/call", "InitiateCall") in adapted.routes
    assert "Body" not in adapted.template["Resources"]["HttpApi"]["Properties"]


def test_the_stream_mapping_is_left_to_the_stack_with_its_properties(
    translated: dict[str, Any], adapted: Adapted
) -> None:
    (mapping,) = adapted.stream_mappings
    assert (mapping.function, mapping.table, mapping.on_failure) == (
        "FanOut",
        "CallsTable",
        "WebhookDeadLetterQueue",
    )
    assert mapping.properties == translated["Resources"]["FanOutFromStream"]["Properties"]
    assert "FanOutFromStream" not in adapted.template["Resources"]


def test_the_poller_knows_every_comparison_of_the_mappings_filters(adapted: Adapted) -> None:
    (mapping,) = adapted.stream_mappings
    settings = Settings.from_properties(mapping.properties)
    call: dict[str, Any] = {"dynamodb": {"Keys": {"sk": {"S": "CALL"}}, "NewImage": {"callbackUrl": {"S": "x"}}}}
    assert settings.wants(call)
    assert not settings.wants({"dynamodb": {**call["dynamodb"], "NewImage": {}}})
    assert not settings.wants({"dynamodb": {**call["dynamodb"], "Keys": {"sk": {"S": "DELIVERY#000001"}}}})


def test_the_queues_mappings_are_deployed(adapted: Adapted) -> None:
    deployed = of_type(adapted.template, "AWS::Lambda::EventSourceMapping")
    assert set(deployed) == {"DialFromQueue", "DeliverFromQueue"}
    # The emulator compares this with a number and would otherwise get the parameter's text.
    limits = {"DialFromQueue": "MaximumDialBatches", "DeliverFromQueue": "MaximumDeliveryBatches"}
    for mapping, parameter in limits.items():
        concurrency = deployed[mapping]["Properties"]["ScalingConfig"]["MaximumConcurrency"]
        assert concurrency == PARAMETERS[parameter]
        assert type(concurrency) is int


def test_the_schedule_is_left_to_the_stack_with_its_permission(adapted: Adapted) -> None:
    ranges = ("[0,1,2,3]", "[4,5,6,7]", "[8,9,10,11]", "[12,13,14,15]")
    assert set(adapted.schedules) == {
        Schedule("ReconcileCalls", 60, f'{{"shards":{shards}}}') for shards in ranges
    }
    assert not of_type(adapted.template, "AWS::Events::Rule")
    assert "events.amazonaws.com" not in json.dumps(of_type(adapted.template, "AWS::Lambda::Permission"))


def test_every_function_gets_the_added_variables_and_keeps_its_own(
    translated: dict[str, Any], adapted: Adapted
) -> None:
    assert set(adapted.functions) == set(of_type(translated, "AWS::Lambda::Function"))
    for name in adapted.functions:
        own = translated["Resources"][name]["Properties"]["Environment"]["Variables"]
        variables = adapted.template["Resources"][name]["Properties"]["Environment"]["Variables"]
        added = {"TIME_SCALE": "0.05"} | ({"ONLY": "here"} if name == "FanOut" else {})
        assert variables == {**own, **added}


def test_only_the_dials_own_durations_are_scaled(translated: dict[str, Any], adapted: Adapted) -> None:
    for name, resource in adapted.template["Resources"].items():
        before = translated["Resources"].get(name, {}).get("Properties", {})
        for key in ("Timeout", "VisibilityTimeout"):
            if key in before:
                scaled = before[key]
                if SCALED.get(name) == key:
                    scaled = -(-before[key] // 20) + ANSWERS[name] * LEAST_PATIENCE
                assert resource["Properties"][key] == scaled, name


def test_the_local_stacks_time_outs_nest_as_those_on_aws_do(adapted: Adapted) -> None:
    d = Durations.from_environment({"TIME_SCALE": "0.05", "LEAST_PATIENCE": str(LEAST_PATIENCE)})
    resources = adapted.template["Resources"]
    worker = resources["DialWorker"]["Properties"]["Timeout"]
    dial = 60 * d.scale + d.answer_margin
    assert d.livekit_request + d.agent_wait + d.pacing_hold + dial + d.fence_margin <= worker
    assert resources["DialQueue"]["Properties"]["VisibilityTimeout"] >= 6 * worker
    assert d.webhook_connect < d.webhook_attempt < d.webhook_lease


def test_at_real_time_nothing_is_scaled(translated: dict[str, Any]) -> None:
    resources = adapt(translated, {}, 1.0).template["Resources"]
    for name, key in SCALED.items():
        assert resources[name]["Properties"][key] == translated["Resources"][name]["Properties"][key]


def test_nothing_else_is_missing_or_changed(translated: dict[str, Any], adapted: Adapted) -> None:
    """Every resource is deployed unchanged, except the types that the tests above cover."""
    touched = (
        "AWS::Lambda::Function",
        "AWS::Lambda::EventSourceMapping",
        "AWS::Lambda::Permission",
        "AWS::Events::Rule",
        "AWS::ApiGatewayV2::Api",
        "AWS::IAM::Role",
        "AWS::Logs::LogGroup",  # their retention is a Number parameter
        *LEFT_OUT,
    )
    for name, resource in translated["Resources"].items():
        if resource["Type"] not in touched and name not in SCALED:
            assert adapted.template["Resources"][name] == resource
    assert "Transform" not in adapted.template


def test_roles_allow_what_they_allow_and_the_batch_of_it(translated: dict[str, Any], adapted: Adapted) -> None:
    def statements(template: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [
                statement
                for policy in role["Properties"].get("Policies", [])
                for statement in policy["PolicyDocument"]["Statement"]
            ]
            for name, role in of_type(template, "AWS::IAM::Role").items()
        }

    before, after = statements(translated), statements(adapted.template)
    assert before.keys() == after.keys()
    for name in before:
        for told, deployed in zip(before[name], after[name], strict=True):
            actions = [told["Action"]] if isinstance(told["Action"], str) else told["Action"]
            extra = ["sqs:SendMessageBatch"] if "sqs:SendMessage" in actions else []
            found = [deployed["Action"]] if isinstance(deployed["Action"], str) else deployed["Action"]
            assert found == actions + extra
            assert deployed == {**told, "Action": deployed["Action"]}


def test_resources_that_the_emulator_refuses_go_with_what_refers_to_them() -> None:
    function = {"Type": "AWS::Lambda::Function", "Properties": {}}
    composite = {"Type": "AWS::CloudWatch::CompositeAlarm", "Properties": {"AlarmRule": "x"}}
    small = adapt(
        {
            "Resources": {"F": function, "Composite": composite},
            "Outputs": {
                "Gone": {"Value": {"Fn::Sub": "name ${Composite.Arn}"}},
                "Kept": {"Value": {"Ref": "F"}},
            },
        },
        {},
        1.0,
    )
    assert set(small.template["Resources"]) == {"F"}
    assert set(small.template["Outputs"]) == {"Kept"}


def test_a_schedule_that_is_not_a_rate_is_refused() -> None:
    rule = {
        "Type": "AWS::Events::Rule",
        "Properties": {"ScheduleExpression": "cron(0 * * * ? *)", "Targets": []},
    }
    with pytest.raises(ValueError, match="cron"):
        adapt({"Resources": {"Rule": rule}}, {}, 1.0)
