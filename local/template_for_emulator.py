"""template.yaml, translated as SAM does on AWS, and adapted where the emulator differs from AWS.

The template itself is deployed locally: every difference is in this module, with its reason.

- The emulator makes no routes from an HTTP API's OpenAPI `Body`: it becomes Integration and Route resources.
- The emulator ignores a stream mapping's retries, bisection and partial failures: the mapping is left out and
  `local.stream_poller` works from its properties.
- A rule of every minute is too slow for a stack with scaled time: the rule is left out, and the stack invokes its
  function itself.
- The longest duration of a dial follows the time scale: a lease lasts as long as its process, and the recovery
from
  a crash must be scaled like everything else. The time for answers (`LEAST_PATIENCE`) is added.
- The emulator passes the value of a Number parameter as text: a reference to one becomes the number. - On AWS,
SendMessage permits SendMessageBatch (there is no such IAM action); the emulator requires an action of that
  name: it is added.
- Resource types that the emulator refuses and no call needs are left out: `LEFT_OUT`. Among them is the nested
  stack of alarms and dashboard, which `tests/e2e/test_monitoring.py` deploys by itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Resource = dict[str, Any]

# Alarms of alarms, saved log queries, gradual deployments, nested stacks: for operators, not for calls.
LEFT_OUT = (
    "AWS::CloudWatch::CompositeAlarm",
    "AWS::Logs::QueryDefinition",
    "AWS::CodeDeploy::Application",
    "AWS::CodeDeploy::DeploymentGroup",
    "AWS::CloudFormation::Stack",
)

# Durations, in seconds, that follow the time scale.
SCALED = {"DialWorker": "Timeout", "DialQueue": "VisibilityTimeout"}

# Seconds that an answer may take at any time scale (`shared.durations`): a busy machine may stall this long.
LEAST_PATIENCE = 4
# How many times LEAST_PATIENCE is added to each of SCALED: the worker waits for the room, the agent and the dial's
# answer; a message stays invisible for six times the worker's time-out.
ANSWERS = {"DialWorker": 3, "DialQueue": 18}

# Limits for a machine with few cores: each function process takes one core for a second at its start.
PARAMETERS = {"MaximumDialBatches": 3, "MaximumDeliveryBatches": 5}

_METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "x-amazon-apigateway-any-method"}
_RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}


@dataclasses.dataclass(frozen=True, slots=True)
class StreamMapping:
    """A DynamoDB stream's mapping to a function: logical ids and the mapping's own properties.

    function, table: logical ids. on_failure: logical id of the queue for records that could not be processed.
    """

    function: str
    table: str
    on_failure: str | None
    properties: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """A function (logical id) that is invoked at an interval. seconds: unscaled. input: JSON, the event that
    replaces EventBridge's own."""

    function: str
    seconds: int
    input: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Adapted:
    """The template for the emulator, and what the stack does in place of the emulator.

    routes: `METHOD /path` of the API and the function (logical id) behind it.
    """

    template: dict[str, Any]
    functions: tuple[str, ...]
    routes: tuple[tuple[str, str], ...]
    stream_mappings: tuple[StreamMapping, ...]
    schedules: tuple[Schedule, ...]


def translate(path: Path, code_uri: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The CloudFormation template that SAM makes of `path`, its functions' code at `code_uri` (s3://bucket/key).

    parameters: values other than the defaults; SAM reads some of them.

    Needs a region in the environment (AWS_DEFAULT_REGION), as samtranslator asks boto3 for one.
    """
    from samtranslator.translator.transform import transform
    from samtranslator.yaml_helper import yaml_parse

    class NoManagedPolicies:
        """No names of AWS's managed policies: the template uses none, and reading them from IAM needs an
        account."""

        def load(self) -> dict[str, str]:
            return {}

    template = yaml_parse(path.read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"].pop("CodeUri", None)
    template.setdefault("Globals", {}).setdefault("Function", {})["CodeUri"] = code_uri
    translated: dict[str, Any] = transform(template, dict(parameters or {}), NoManagedPolicies())
    return translated


def adapt(
    translated: Mapping[str, Any], environments: Mapping[str, Mapping[str, str]], time_scale: float
) -> Adapted:
    """Adapts a translated template.

    environments: variables added to a function's own, by logical id; `""` holds those of all functions.
    time_scale: factor on the durations in SCALED, where it is below 1.
    """
    numbers = {
        name: int(parameter["Default"])
        for name, parameter in translated.get("Parameters", {}).items()
        if parameter["Type"] == "Number"
    } | PARAMETERS
    resources: dict[str, Resource] = _with_numbers(translated["Resources"], numbers)
    functions = tuple(name for name, res in resources.items() if res["Type"] == "AWS::Lambda::Function")

    mappings = _take_stream_mappings(resources)
    schedules = _take_schedules(resources)
    gone = {name for name, res in resources.items() if res["Type"] in LEFT_OUT}
    gone |= translated["Resources"].keys() - resources.keys()
    for name in gone:
        resources.pop(name, None)
    # The permission for a rule to invoke a function is removed with the rule.
    for name, res in list(resources.items()):
        if res["Type"] == "AWS::Lambda::Permission" and gone.intersection(_references(res)):
            del resources[name]

    for name in functions:
        resources[name] = _with_environment(
            resources[name], {**environments.get("", {}), **environments.get(name, {})}
        )
    if time_scale < 1:
        for name, key in SCALED.items():
            if key in resources.get(name, {}).get("Properties", {}):
                properties = resources[name]["Properties"]
                scaled = math.ceil(properties[key] * time_scale) + ANSWERS[name] * LEAST_PATIENCE
                resources[name] = {**resources[name], "Properties": {**properties, key: scaled}}
    for name, res in resources.items():
        if res["Type"] == "AWS::IAM::Role":
            resources[name] = _with_batch_action(res)
    for name, res in list(resources.items()):
        if res["Type"] == "AWS::ApiGatewayV2::Api" and "Body" in res["Properties"]:
            resources.update(_api_with_routes(name, res))

    template = {key: value for key, value in translated.items() if key != "Transform"}
    template["Resources"] = resources
    template["Outputs"] = {
        name: output
        for name, output in translated.get("Outputs", {}).items()
        if not gone.intersection(_references(output))
    }
    return Adapted(template, functions, tuple(_routes(resources)), mappings, schedules)


def _take_stream_mappings(resources: dict[str, Resource]) -> tuple[StreamMapping, ...]:
    taken = []
    for name, res in list(resources.items()):
        if res["Type"] != "AWS::Lambda::EventSourceMapping":
            continue
        properties = res["Properties"]
        match properties["EventSourceArn"]:
            case {"Fn::GetAtt": [str(table), "StreamArn"]}:
                failure = properties.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
                queue = next(_references(failure), None) if failure else None
                taken.append(StreamMapping(properties["FunctionName"]["Ref"], table, queue, properties))
                del resources[name]
    return tuple(taken)


def _routes(resources: Mapping[str, Resource]) -> Iterator[tuple[str, str]]:
    for res in resources.values():
        if res["Type"] == "AWS::ApiGatewayV2::Route":
            integration = resources[next(_references(res["Properties"]["Target"]))]
            yield res["Properties"]["RouteKey"], next(_references(integration["Properties"]["IntegrationUri"]))


def _take_schedules(resources: dict[str, Resource]) -> tuple[Schedule, ...]:
    taken = []
    for name, res in list(resources.items()):
        expression = res.get("Properties", {}).get("ScheduleExpression")
        if res["Type"] == "AWS::Events::Rule" and expression:
            rate = _RATE.fullmatch(expression)
            if rate is None:
                raise ValueError(f"{name}: the local stack knows rate(...), not {expression!r}")
            seconds = int(rate[1]) * _SECONDS[rate[2]]
            for target in res["Properties"]["Targets"]:
                taken.append(Schedule(target["Arn"]["Fn::GetAtt"][0], seconds, target.get("Input")))
            del resources[name]
    return tuple(taken)


def _with_environment(function: Resource, added: Mapping[str, str]) -> Resource:
    properties = function["Properties"]
    variables = {**properties.get("Environment", {}).get("Variables", {}), **added}
    return {**function, "Properties": {**properties, "Environment": {"Variables": variables}}}


def _api_with_routes(name: str, api: Resource) -> dict[str, Resource]:
    """An HTTP API whose routes are resources. Integrations of equal target are one."""
    properties = dict(api["Properties"])
    body = properties.pop("Body")
    made = {
        name: {
            **api,
            "Properties": {
                "Name": body.get("info", {}).get("title", name),
                "ProtocolType": "HTTP",
                **properties,
            },
        }
    }
    integrations: dict[str, str] = {}
    for path, operations in body["paths"].items():
        for method, operation in operations.items():
            if method not in _METHODS:
                continue
            integration = operation["x-amazon-apigateway-integration"]
            target = str(integration["uri"])
            if target not in integrations:
                integrations[target] = f"{name}Integration{len(integrations) + 1}"
                made[integrations[target]] = {
                    "Type": "AWS::ApiGatewayV2::Integration",
                    "Properties": {
                        "ApiId": {"Ref": name},
                        "IntegrationType": integration["type"].upper(),
                        "IntegrationUri": integration["uri"],
                        "PayloadFormatVersion": integration.get("payloadFormatVersion", "2.0"),
                    },
                }
            verb = "ANY" if method == "x-amazon-apigateway-any-method" else method.upper()
            made[f"{name}Route{len(made)}"] = {
                "Type": "AWS::ApiGatewayV2::Route",
                "Properties": {
                    "ApiId": {"Ref": name},
                    "RouteKey": "$default" if path == "/$default" else f"{verb} {path}",
                    "Target": {"Fn::Join": ["/", ["integrations", {"Ref": integrations[target]}]]},
                },
            }
    return made


def _with_batch_action(value: Any) -> Any:
    match value:
        case {"Action": "sqs:SendMessage", **rest}:
            return {"Action": ["sqs:SendMessage", "sqs:SendMessageBatch"], **rest}
        case {"Action": [*actions], **rest} if "sqs:SendMessage" in actions:
            return {"Action": [*actions, "sqs:SendMessageBatch"], **rest}
        case dict():
            return {key: _with_batch_action(inner) for key, inner in value.items()}
        case list():
            return [_with_batch_action(inner) for inner in value]
    return value


def _with_numbers(value: Any, numbers: Mapping[str, int]) -> Any:
    match value:
        case {"Ref": str(name)} if name in numbers:
            return numbers[name]
        case dict():
            # The values of an environment are text: there the emulator's handling of parameters is right.
            return {
                key: inner if key == "Variables" else _with_numbers(inner, numbers) for key, inner in value.items()
            }
        case list():
            return [_with_numbers(inner, numbers) for inner in value]
    return value


def _references(value: object) -> Iterator[str]:
    """The names of resources and parameters that `value` refers to."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "Ref":
                yield inner
            elif key == "Fn::GetAtt":
                yield inner.split(".")[0] if isinstance(inner, str) else inner[0]
            elif key == "Fn::Sub":
                text, names = (inner, {}) if isinstance(inner, str) else inner
                names_in_text = (match.split(".")[0] for match in re.findall(r"\$\{([^!}]+)\}", text))
                yield from (name for name in names_in_text if not name.startswith("AWS::"))
                yield from _references(names)
            else:
                yield from _references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _references(inner)
