"""What must hold of samconfig.toml, of GitHub's workflows, and of the roles they deploy with."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from samtranslator.yaml_helper import yaml_parse

from local.template_for_emulator import translate

ROOT = Path(__file__).parents[2]
ROLES = yaml_parse((ROOT / "infra" / "deploy-role.yaml").read_text())
PARAMETERS = yaml_parse((ROOT / "template.yaml").read_text())["Parameters"]
WORKFLOWS = {path.stem: path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")}
# What AWS lets nobody narrow down, each with its reason in the template.
UNBOUND = {
    "xray:PutTraceSegments", "xray:PutTelemetryRecords", "cloudformation:GetTemplateSummary",
    "cloudwatch:DescribeAlarms", "logs:DescribeLogGroups", "logs:CreateLogDelivery", "logs:GetLogDelivery",
    "logs:UpdateLogDelivery", "logs:DeleteLogDelivery", "logs:ListLogDeliveries", "logs:PutResourcePolicy",
    "logs:DescribeResourcePolicies",
}  # fmt: skip
# One action without which a resource of that type cannot be made.
MAKES = {
    "AWS::ApiGatewayV2": "apigateway:POST",
    "AWS::CloudFormation::Stack": "cloudformation:CreateStack",
    "AWS::CloudWatch::Alarm": "cloudwatch:PutMetricAlarm",
    "AWS::CloudWatch::Dashboard": "cloudwatch:PutDashboard",
    "AWS::DynamoDB::Table": "dynamodb:CreateTable",
    "AWS::Events::Rule": "events:PutRule",
    "AWS::IAM::Role": "iam:CreateRole",
    "AWS::Lambda::Alias": "lambda:CreateAlias",
    "AWS::Lambda::EventSourceMapping": "lambda:CreateEventSourceMapping",
    "AWS::Lambda::Function": "lambda:CreateFunction",
    "AWS::Lambda::Permission": "lambda:AddPermission",
    "AWS::Lambda::Version": "lambda:PublishVersion",
    "AWS::Logs::LogGroup": "logs:CreateLogGroup",
    "AWS::SNS::Subscription": "sns:Subscribe",
    "AWS::SNS::Topic": "sns:CreateTopic",
    "AWS::SQS::Queue": "sqs:CreateQueue",
}


def statements(*names: str) -> Iterator[dict[str, Any]]:
    for name in names or ("FunctionBoundary", "DeployRole", "CloudFormationRole"):
        properties = ROLES["Resources"][name]["Properties"]
        documents = [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
        for document in documents + [policy["PolicyDocument"] for policy in properties.get("Policies", [])]:
            yield from document["Statement"]


def actions(statement: dict[str, Any]) -> list[str]:
    return [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


@pytest.fixture(scope="module")
def translated() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        return translate(ROOT / "template.yaml", "s3://bucket/key")


def test_every_parameter_is_explained_and_optional() -> None:
    for name, parameter in PARAMETERS.items():
        assert "Default" in parameter, f"`sam deploy` without questions needs a default for {name}"
        assert len(parameter["Description"]) > 20, name


@pytest.mark.parametrize(("block", "stage"), [("default", "dev"), ("prod", "prod")])
def test_both_stages_stand_in_samconfig(block: str, stage: str) -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())[block]
    given = dict(pair.split("=", 1) for pair in config["deploy"]["parameters"]["parameter_overrides"].split())
    assert given["Stage"] == stage
    assert given.keys() <= PARAMETERS.keys()
    assert config["global"]["parameters"]["stack_name"] == f"ringonce-{stage}"
    assert "CAPABILITY_AUTO_EXPAND" in config["deploy"]["parameters"]["capabilities"]


def test_production_keeps_its_tables(translated: dict[str, Any]) -> None:
    for name, resource in translated["Resources"].items():
        if resource["Type"] == "AWS::DynamoDB::Table":
            assert resource["Properties"]["DeletionProtectionEnabled"] == {"Fn::If": ["IsProd", True, False]}, name
    assert translated["Conditions"]["IsProd"] == {"Fn::Equals": [{"Ref": "Stage"}, "prod"]}


def test_every_role_of_the_stack_takes_the_boundary(translated: dict[str, Any]) -> None:
    for name, resource in translated["Resources"].items():
        if resource["Type"] == "AWS::IAM::Role":
            assert resource["Properties"]["PermissionsBoundary"]["Fn::If"][0] == "HasBoundary", name


def test_the_boundary_allows_what_the_functions_need(translated: dict[str, Any]) -> None:
    bound = {action for statement in statements("FunctionBoundary") for action in actions(statement)}
    needed = {
        action
        for resource in translated["Resources"].values()
        if resource["Type"] == "AWS::IAM::Role"
        for policy in resource["Properties"].get("Policies", [])
        for statement in policy["PolicyDocument"]["Statement"]
        for action in actions(statement)
    }
    assert needed <= bound


def test_cloudformation_may_make_every_resource(translated: dict[str, Any]) -> None:
    allowed = {action for statement in statements("CloudFormationRole") for action in actions(statement)}
    monitoring = yaml_parse((ROOT / "infra" / "monitoring.yaml").read_text())
    kinds = {res["Type"] for part in (translated, monitoring) for res in part["Resources"].values()}
    for kind in kinds:
        (action,) = (action for prefix, action in MAKES.items() if kind.startswith(prefix))
        assert action in allowed, kind


def test_no_action_is_a_wildcard_and_no_resource_but_those_that_must_be() -> None:
    for statement in statements():
        assert all("*" not in action for action in actions(statement))
        if statement["Resource"] == "*":
            assert set(actions(statement)) <= UNBOUND


def test_a_role_is_made_only_within_the_boundary() -> None:
    for statement in statements("CloudFormationRole"):
        if {"iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy"} & set(actions(statement)):
            assert statement["Condition"] == {
                "StringEquals": {"iam:PermissionsBoundary": {"Ref": "FunctionBoundary"}}
            }
        if "iam:PassRole" in actions(statement):
            assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}


def test_github_is_believed_for_one_repository_and_its_two_environments() -> None:
    (trust,) = ROLES["Resources"]["DeployRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Action"] == "sts:AssumeRoleWithWebIdentity"
    condition = trust["Condition"]["StringEquals"]
    assert condition["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com"
    assert [entry["Fn::Sub"] for entry in condition["token.actions.githubusercontent.com:sub"]] == [
        "repo:${Repository}:environment:dev",
        "repo:${Repository}:environment:prod",
    ]


def test_the_workflows_hold_no_key_and_ask_for_little() -> None:
    assert set(WORKFLOWS) == {"checks", "deploy"}
    for name, text in WORKFLOWS.items():
        assert "secrets." not in text, name
        assert yaml.safe_load(text)["permissions"]["contents"] == "read", name
        for action in re.findall(r"uses: (\S+)", text):
            assert re.fullmatch(r"(actions|aws-actions)/[\w-]+@v\d+", action), action


def test_the_checks_workflow_runs_what_a_person_runs() -> None:
    steps = yaml.safe_load(WORKFLOWS["checks"])["jobs"]["checks"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make check", "make test"]
    assert "make check\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_deploy_workflow_reads_what_the_roles_template_puts_out() -> None:
    described = json.dumps([output["Description"] for output in ROLES["Outputs"].values()])
    for variable in set(re.findall(r"vars\.(\w+)", WORKFLOWS["deploy"])) - {"AWS_REGION"}:
        assert f"Variable {variable} of the repository" in described
