"""Deployed changes take effect: each change of a function reaches the configuration that is called.

A published version of a function keeps the configuration that it was made with, and CloudFormation makes a new one
only when the version's logical id changes. So the caller of a version gets what that id stands for, nothing newer.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from samtranslator.intrinsics.actions import RefAction, SubAction
from samtranslator.intrinsics.resolver import IntrinsicsResolver
from samtranslator.yaml_helper import yaml_parse

from infra.translated import translated
from local.template_for_emulator import translate

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template.yaml"
PARAMETERS: dict[str, dict[str, Any]] = yaml_parse(TEMPLATE.read_text())["Parameters"]
DEFAULTS = {name: str(parameter["Default"]) for name, parameter in PARAMETERS.items()}
# Those that a function's own configuration is made of.
REACHING = ("LiveKitSecretName", "QueueTtlSeconds", "CallbackPorts", "LogLevel", "DomainName")


@pytest.fixture(autouse=True)
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def other_value(name: str) -> str:
    parameter = PARAMETERS[name]
    if "AllowedValues" in parameter:
        return next(str(value) for value in parameter["AllowedValues"] if str(value) != DEFAULTS[name])
    return str(int(DEFAULTS[name]) + 1) if DEFAULTS[name].isdigit() else DEFAULTS[name] + "other"


def resolved(value: Any, parameters: Mapping[str, str]) -> Any:
    """With the parameters' values, also in the conditions that it asks for."""
    actions = {action.intrinsic_name: action for action in (RefAction(), SubAction())}
    return IntrinsicsResolver(dict(parameters), actions).resolve_parameter_refs(json.loads(json.dumps(value)))


def functions(template: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, str]:
    """The configuration of each function, with the conditions that it asks for."""
    resources, conditions = template["Resources"], resolved(template["Conditions"], parameters)
    found = {}
    for name, resource in resources.items():
        if resource["Type"] == "AWS::Lambda::Function":
            own = resolved(resource["Properties"], parameters)
            asked = {word: what for word, what in conditions.items() if f'["{word}", ' in json.dumps(own)}
            found[name] = json.dumps([own, asked], sort_keys=True)
    return found


def callers(template: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Who calls what: routes, queues' and streams' mappings, rules."""
    for name, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        match resource["Type"]:
            case "AWS::ApiGatewayV2::Api":
                for path, operations in properties["Body"]["paths"].items():
                    for method, operation in operations.items():
                        yield f"{method} {path}", operation["x-amazon-apigateway-integration"]["uri"]
            case "AWS::Lambda::EventSourceMapping":
                yield name, properties["FunctionName"]
            case "AWS::Events::Rule":
                for target in properties["Targets"]:
                    yield name, target["Arn"]


def called(template: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """For each caller the function and the configuration that it gets; for a version's stands its logical id."""
    configurations = functions(template, parameters)
    found = {}
    for caller, target in callers(template):
        text = json.dumps(target)
        aliases = {
            name: resource["Properties"]
            for name, resource in template["Resources"].items()
            if resource["Type"] == "AWS::Lambda::Alias" and name in text
        }
        if aliases:
            (alias,) = aliases.values()
            found[caller] = (alias["FunctionName"]["Ref"], json.dumps(alias["FunctionVersion"]))
        else:
            (function,) = (
                name
                for name in configurations
                if f'"{name}"' in text or f"${{{name}.Arn}}" in text or f"${{{name}}}" in text
            )
            found[caller] = (function, configurations[function])
    return found


@pytest.mark.parametrize("parameter", list(PARAMETERS))
def test_a_changed_parameter_changes_what_is_called_of_every_function_it_reaches(parameter: str) -> None:
    changed = DEFAULTS | {parameter: other_value(parameter)}
    before, after = translate(TEMPLATE, "s3://code/one", DEFAULTS), translate(TEMPLATE, "s3://code/one", changed)
    own_before, own_after = functions(before, DEFAULTS), functions(after, changed)
    reached = {name for name in own_before if own_before[name] != own_after[name]}
    assert reached or parameter not in REACHING
    calls_before, calls_after = called(before, DEFAULTS), called(after, changed)
    assert calls_before.keys() == calls_after.keys()
    assert {function for function, _ in calls_before.values()} == own_before.keys()
    for caller, (function, configuration) in calls_after.items():
        if function in reached:
            assert configuration != calls_before[caller][1], f"{caller} goes on with the old configuration"


CHANGES = {
    "the code": ("s3://code/two", {}),
    "another table": ("s3://code/one", {"WorkspacesTable": "OtherTable"}),
    "memory": ("s3://code/one", {"MemorySize: 512": "MemorySize: 1024", "MemorySize: 1769": "MemorySize: 3008"}),
    "tracing": ("s3://code/one", {"Tracing: Active": "Tracing: PassThrough"}),
    "a variable": ("s3://code/one", {"CALLS_TABLE: ": "MORE: x\n        CALLS_TABLE: "}),
    "the log's format": ("s3://code/one", {"LogFormat: Text": "LogFormat: JSON"}),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_of_all_functions_changes_what_every_caller_calls(change: str, tmp_path: Path) -> None:
    code, edits = CHANGES[change]
    text = TEMPLATE.read_text()
    for old, new in edits.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "template.yaml").write_text(text)
    before = called(translate(TEMPLATE, "s3://code/one", DEFAULTS), DEFAULTS)
    after = called(translate(tmp_path / "template.yaml", code, DEFAULTS), DEFAULTS)
    assert before.keys() == after.keys()
    assert [caller for caller in before if before[caller] == after[caller]] == []


def test_a_table_that_is_replaced_reaches_every_caller_by_itself() -> None:
    """CloudFormation gives functions the new name wherever !Ref refers to it; a version keeps the old one."""
    template = translate(TEMPLATE, "s3://code/one", DEFAULTS)
    names = {"CallsTable": "calls-2", "WorkspacesTable": "workspaces-2"}
    before, after = called(template, DEFAULTS), called(template, DEFAULTS | names)
    assert [caller for caller in before if before[caller] == after[caller]] == []


def test_the_translated_template_is_valid_for_cloudformation(tmp_path: Path) -> None:
    """cfn-lint sees in it what SAM's shorthand hides: the values that parameters may give each property."""
    (tmp_path / "translated.json").write_text(json.dumps(translated(TEMPLATE)))
    lint = [str(ROOT / ".venv-sam" / "bin" / "cfn-lint"), str(tmp_path / "translated.json")]
    done = subprocess.run(lint, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
