"""Invariants of samconfig.toml, of GitHub's workflows, and of the roles they deploy with."""

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
    for name, value in given.items():
        assert value in [str(one) for one in PARAMETERS[name].get("AllowedValues", [value])], name
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


def test_no_action_is_a_wildcard() -> None:
    for statement in statements():
        assert all("*" not in action for action in actions(statement))


def test_a_role_is_made_only_within_the_boundary() -> None:
    for statement in statements("CloudFormationRole"):
        if {"iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy"} & set(actions(statement)):
            assert statement["Condition"] == {
                "StringEquals": {"iam:PermissionsBoundary": {"Ref": "FunctionBoundary"}}
            }
        if "iam:PassRole" in actions(statement):
            assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}


def test_the_workflows_hold_no_key_and_ask_for_little() -> None:
    assert set(WORKFLOWS) == {"checks", "deploy"}
    for name, text in WORKFLOWS.items():
        assert "secrets." not in text, name
        assert yaml.safe_load(text)["permissions"]["contents"] == "read", name


def test_every_action_is_pinned_by_its_commit_and_names_its_version() -> None:
    """A tag can be moved to other code; Dependabot reads the version and raises both."""
    for text in WORKFLOWS.values():
        for action in re.findall(r"uses: (.+)", text):
            assert re.fullmatch(r"(actions|aws-actions)/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_dependabot_looks_after_the_actions_and_every_folder_of_requirements() -> None:
    """functions/requirements.txt is compiled from the same pyproject.toml as the files of the root."""
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    folders = {
        update["package-ecosystem"]: update.get("directories", [update.get("directory")]) for update in updates
    }
    projects = [path for path in (ROOT, *ROOT.glob("*/*/")) if (path / "pyproject.toml").exists()]
    compiled = {"/" + str(path.relative_to(ROOT)).removeprefix(".") for path in projects}
    assert {name: set(paths) for name, paths in folders.items()} == {"pip": compiled, "github-actions": {"/"}}


def test_the_checks_workflow_runs_what_a_person_runs() -> None:
    jobs = yaml.safe_load(WORKFLOWS["checks"])["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands["checks"] == ["make check", "make test"]
    assert commands["lock"] == ["make lock", "git diff --exit-code"]
    assert "make check\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_checks_run_on_the_oldest_python_and_on_the_functions_own() -> None:
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    runtime = yaml_parse((ROOT / "template.yaml").read_text())["Globals"]["Function"]["Runtime"]
    versions = yaml.safe_load(WORKFLOWS["checks"])["jobs"]["checks"]["strategy"]["matrix"]["python-version"]
    assert versions == [oldest, runtime.removeprefix("python")]


def test_the_deploy_workflow_reads_what_the_roles_template_puts_out() -> None:
    described = json.dumps([output["Description"] for output in ROLES["Outputs"].values()])
    for variable in set(re.findall(r"vars\.(\w+)", WORKFLOWS["deploy"])) - {"AWS_REGION"}:
        assert f"Variable {variable} of the repository" in described
