"""Policies as AWS evaluates them: templates with their references resolved, and a simulator that executes them."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REGION = "us-east-1"
ACCOUNT = "111122223333"
PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "AWS::URLSuffix": "amazonaws.com",
}
# Names that CloudFormation and the services generate.
SUFFIX = "1A2B3C4D5E6F"
UUID = "0a1b2c3d-1111-2222-3333-444455556666"
ARNS = {
    "AWS::CloudFormation::Stack": "arn:aws:cloudformation:{region}:{account}:stack/{name}/{uuid}",
    "AWS::CloudWatch::Alarm": "arn:aws:cloudwatch:{region}:{account}:alarm:{name}",
    "AWS::CloudWatch::Dashboard": "arn:aws:cloudwatch::{account}:dashboard/{name}",
    "AWS::DynamoDB::Table": "arn:aws:dynamodb:{region}:{account}:table/{name}",
    "AWS::Events::Rule": "arn:aws:events:{region}:{account}:rule/{name}",
    "AWS::IAM::ManagedPolicy": "arn:aws:iam::{account}:policy/{name}",
    "AWS::IAM::OIDCProvider": "arn:aws:iam::{account}:oidc-provider/token.actions.githubusercontent.com",
    "AWS::IAM::Role": "arn:aws:iam::{account}:role/{name}",
    "AWS::Lambda::EventSourceMapping": "arn:aws:lambda:{region}:{account}:event-source-mapping:{uuid}",
    "AWS::Lambda::Function": "arn:aws:lambda:{region}:{account}:function:{name}",
    "AWS::Logs::LogGroup": "arn:aws:logs:{region}:{account}:log-group:{name}",
    "AWS::SNS::Topic": "arn:aws:sns:{region}:{account}:{name}",
    "AWS::SQS::Queue": "arn:aws:sqs:{region}:{account}:{name}",
}
REFERRED_TO_BY_ARN = {"AWS::SNS::Topic", "AWS::IAM::ManagedPolicy", "AWS::IAM::OIDCProvider"}
Statement = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stack:
    """A template as it is deployed: by the name of the stack, with these parameters over their defaults."""

    template: Mapping[str, Any]
    name: str
    parameters: Mapping[str, str]

    def resources(self) -> dict[str, dict[str, Any]]:
        """The resources that are made, by logical id, as in the template."""
        return {
            name: resource
            for name, resource in self.template["Resources"].items()
            if "Condition" not in resource or self.holds(resource["Condition"])
        }

    def holds(self, condition: str) -> bool:
        return bool(self.resolve(self.template["Conditions"][condition]))

    def physical(self, name: str) -> str:
        properties = self.template["Resources"][name].get("Properties", {})
        for key in ("AlarmName", "DashboardName", "DomainName"):
            if key in properties:
                return str(self.resolve(properties[key]))
        return f"{self.name}-{name}-{SUFFIX}"

    def arn(self, name: str) -> str:
        resource = self.template["Resources"][name]
        form = ARNS[resource["Type"]]
        return form.format(region=REGION, account=ACCOUNT, name=self.physical(name), uuid=UUID)

    def function(self, named: Any) -> str:
        """The ARN of the function that a property FunctionName names."""
        name = str(self.resolve(named))
        return name if name.startswith("arn:") else f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"

    def resolve(self, value: Any) -> Any:
        """The value without CloudFormation's functions."""
        match value:
            case {"Ref": str(name)}:
                return self._ref(name)
            case {"Fn::GetAtt": [str(name), "Arn"]}:
                return self.arn(name)
            case {"Fn::GetAtt": [str(name), "StreamArn"]}:
                return f"{self.arn(name)}/stream/2026-11-28T00:00:00.000"
            case {"Fn::GetAtt": [str(name), _]}:
                return self.physical(name)
            case {"Fn::Sub": str(text)}:
                return self._substituted(text, {})
            case {"Fn::Sub": [str(text), names]}:
                return self._substituted(text, self.resolve(names))
            case {"Fn::If": [str(condition), yes, no]}:
                return self.resolve(yes if self.holds(condition) else no)
            case {"Fn::Equals": [one, other]}:
                return self.resolve(one) == self.resolve(other)
            case {"Fn::Not": [one]}:
                return not self.resolve(one)
            case {"Fn::Join": [str(between), parts]}:
                return between.join(self.resolve(parts))
            case {"Fn::Select": [index, parts]}:
                return self.resolve(parts)[int(index)]
            case {"Fn::Split": [str(between), text]}:
                return self.resolve(text).split(between)
            case dict():
                return {key: self.resolve(inner) for key, inner in value.items()}
            case list():
                return [self.resolve(inner) for inner in value]
        return value

    def _ref(self, name: str) -> str | None:
        if name in self.parameters:
            return self.parameters[name]
        if name in self.template.get("Parameters", {}):
            return str(self.template["Parameters"][name]["Default"])
        if name in self.template["Resources"]:
            by_arn = self.template["Resources"][name]["Type"] in REFERRED_TO_BY_ARN
            return self.arn(name) if by_arn else self.physical(name)
        return None if name == "AWS::NoValue" else {**PSEUDO, "AWS::StackName": self.name}[name]

    def _substituted(self, text: str, names: Mapping[str, str]) -> str:
        def found(match: re.Match[str]) -> str:
            name, _, attribute = match[1].partition(".")
            if name in names:
                return names[name]
            return str(self.resolve({"Fn::GetAtt": [name, attribute]} if attribute else {"Ref": name}))

        return re.sub(r"\$\{([\w:.]+)\}", found, text)

    def policies(self, role: str) -> list[dict[str, Any]]:
        """The policies of a role, or of a managed policy."""
        properties = self.resolve(self.template["Resources"][role]["Properties"])
        if "PolicyDocument" in properties:
            return [properties["PolicyDocument"]]
        return [policy["PolicyDocument"] for policy in properties.get("Policies", [])]


def listed(value: Any) -> list[Any]:
    """IAM takes one string for a list of one."""
    return value if isinstance(value, list) else [value]


def statements(policies: Iterable[Mapping[str, Any]]) -> Iterator[Statement]:
    for policy in policies:
        yield from listed(policy["Statement"])


@dataclasses.dataclass(frozen=True)
class Request:
    """One request to AWS. context: values of condition keys; the simulator leaves out those that AWS does not give
    to such a request. unlisted: AWS's authorization data does not have this pair, though its guides do.
    """

    action: str
    resource: str
    context: Mapping[str, str | list[str]] = dataclasses.field(default_factory=dict)
    unlisted: bool = False


class Simulator:
    """Executes policies, and knows AWS's service authorization data. packages: where Node finds both.

    Its process of Node ends with `close`: to load the data takes longer than an answer.
    """

    def __init__(self, packages: Path) -> None:
        self._node = subprocess.Popen(
            ["node", "iam.mjs"], cwd=packages, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self._node.communicate(timeout=60)

    def about(self, actions: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """Resource types (`types`) and condition keys of actions; None for an unknown action."""
        facts: dict[str, dict[str, Any] | None] = self._ask(about=sorted(set(actions)))["facts"]
        return facts

    def results(
        self,
        requests: Sequence[Request],
        policies: Sequence[Mapping[str, Any]],
        *,
        boundary: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """The result of each request: `Allowed`, `ImplicitlyDenied`, `ExplicitlyDenied`, or an error's text."""
        asked = [dataclasses.asdict(each) for each in requests]
        results: list[str] = self._ask(simulate=asked, policies=policies, boundary=boundary)["results"]
        return results

    def denied(self, requests: Sequence[Request], *args: Any, **kwargs: Any) -> str:
        """The requests that are not allowed, a line for each: action, resource, result."""
        results = self.results(requests, *args, **kwargs)
        found = {
            f"{request.action} {request.resource} {result}"
            for request, result in zip(requests, results, strict=True)
            if result != "Allowed"
        }
        return "\n".join(sorted(found))

    def _ask(self, **question: Any) -> Any:
        assert self._node.stdin is not None
        assert self._node.stdout is not None
        self._node.stdin.write(json.dumps(question) + "\n")
        self._node.stdin.flush()
        answer = self._node.stdout.readline()
        assert answer, f"node ended with {self._node.wait(60)}"
        return json.loads(answer)
