"""Every role's policies, executed by a simulator that has AWS's service authorization data.

What CloudFormation asks for a resource stands in AWS's own schema of its type (`handlers`), which cfn-lint brings
along. So a permission that a type gains with a newer cfn-lint is asked for here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from local.template_for_emulator import translate
from shared.limits import SCANNED
from tests.infra.iam import ACCOUNT, REGION, UUID, Request, Simulator, Stack, Statement, listed, statements

ROOT = Path(__file__).parents[2]
REPOSITORY = {"Repository": "acme/calls", "RepositoryOwnerId": "123456", "RepositoryId": "456789"}
BUCKET = "arn:aws:s3:::aws-sam-cli-managed-default-samclisourcebucket-1a2b3c"
GITHUB = "token.actions.githubusercontent.com"
TRANSFORM = f"arn:aws:cloudformation:{REGION}:aws:transform/Serverless-2016-10-31"
API = f"arn:aws:apigateway:{REGION}::"
DOMAIN = "calls.example.com"
STAGES = [("dev", ""), ("dev", DOMAIN), ("prod", ""), ("prod", DOMAIN)]

# What a handler asks for only where the resource has a certain property (or attribute, as UpdatePolicy). The role
# lacks it on purpose as long as no resource has; a template that sets the property fails the test.
ONLY_WITH: dict[str, dict[str, str]] = {
    "AWS::ApiGatewayV2::Api": {"BodyS3Location": "s3:getObject"},
    "AWS::ApiGatewayV2::DomainName": {"MutualTlsAuthentication": "s3:GetObject s3:GetObjectVersion"},
    "AWS::CloudFormation::Stack": {
        "RoleARN": "iam:PassRole",
        "EnableTerminationProtection": "cloudformation:UpdateTerminationProtection",
        "StackPolicyBody": "cloudformation:SetStackPolicy",
    },
    "AWS::DynamoDB::Table": {
        "ContributorInsightsSpecification": "dynamodb:UpdateContributorInsights",
        "ImportSourceSpecification": "dynamodb:DescribeImport dynamodb:ImportTable s3:GetObject"
        " s3:GetObjectMetadata s3:ListBucket logs:CreateLogGroup logs:CreateLogStream logs:DescribeLogGroups"
        " logs:DescribeLogStreams logs:PutLogEvents logs:PutRetentionPolicy",
        "KinesisStreamSpecification": "dynamodb:EnableKinesisStreamingDestination"
        " dynamodb:DisableKinesisStreamingDestination dynamodb:UpdateKinesisStreamingDestination"
        " kinesis:DescribeStream kinesis:PutRecords",
        "KMSMasterKeyId": "kms:ListAliases kms:Encrypt kms:RevokeGrant",
        # Of AWS::DynamoDB::GlobalTable, which has the same handlers.
        "Replicas": "dynamodb:CreateTableReplica dynamodb:AssociateTableReplica dynamodb:Scan dynamodb:Query"
        " dynamodb:UpdateItem dynamodb:PutItem dynamodb:GetItem dynamodb:DeleteItem dynamodb:BatchWriteItem"
        " iam:CreateServiceLinkedRole",
        "ResourcePolicy": "dynamodb:PutResourcePolicy dynamodb:DeleteResourcePolicy",
    },
    "AWS::Events::Rule": {"RoleArn": "iam:PassRole"},
    "AWS::Lambda::EventSourceMapping": {"KmsKeyArn": "kms:DescribeKey kms:GenerateDataKey kms:Decrypt"},
    "AWS::Lambda::Function": {
        "CapacityProviderConfig": "lambda:PassCapacityProvider",
        "CodeSigningConfigArn": "lambda:GetCodeSigningConfig lambda:PutFunctionCodeSigningConfig"
        " lambda:DeleteFunctionCodeSigningConfig",
        "FileSystemConfigs": "elasticfilesystem:DescribeMountTargets s3files:ListMountTargets",
        "FunctionScalingConfig": "lambda:PutFunctionScalingConfig",
        "KmsKeyArn": "kms:CreateGrant kms:Decrypt kms:DescribeKey kms:Encrypt kms:GenerateDataKey",
        "Layers": "lambda:GetLayerVersion",
        "ReservedConcurrentExecutions": "lambda:PutFunctionConcurrency lambda:DeleteFunctionConcurrency",
        "RuntimeManagementConfig": "lambda:PutRuntimeManagementConfig",
        "S3ObjectVersion": "s3:GetObjectVersion",
        "VpcConfig": "ec2:DescribeSecurityGroups ec2:DescribeSubnets ec2:DescribeVpcs"
        " ec2:DescribeNetworkInterfaces",
    },
    "AWS::Logs::LogGroup": {
        "BearerTokenAuthenticationEnabled": "logs:PutBearerTokenAuthentication",
        "DataProtectionPolicy": "logs:PutDataProtectionPolicy firehose:TagDeliveryStream",
        "DeletionProtectionEnabled": "logs:PutLogGroupDeletionProtection",
        "FieldIndexPolicies": "logs:PutIndexPolicy logs:DeleteIndexPolicy",
        "KmsKeyId": "logs:AssociateKmsKey logs:DisassociateKmsKey",
        "ResourcePolicyDocument": "logs:DeleteResourcePolicy",
    },
    "AWS::SNS::Subscription": {"SubscriptionRoleArn": "iam:GetRole iam:PassRole"},
    "AWS::SNS::Topic": {
        "DataProtectionPolicy": "sns:PutDataProtectionPolicy",
        "DeliveryStatusLogging": "iam:GetRole iam:PassRole",
    },
}
# Of API Gateway, on the paths of APIs of version 2: AWS lists them on a page of its own (see tests/node/iam.mjs).
HTTP_VERBS = {f"apigateway:{verb}" for verb in ("GET", "POST", "PUT", "PATCH", "DELETE")}
# Removing the boundary from a role must be impossible.
NEVER = {"iam:DeleteRolePermissionsBoundary"}
# What the schemas leave out, each with the page of AWS's that says so.
BESIDES = {
    # API Gateway, "Configure logging for HTTP APIs": with AccessLogSettings.
    "AWS::ApiGatewayV2::Stage": "logs:DescribeLogGroups logs:CreateLogDelivery logs:GetLogDelivery"
    " logs:UpdateLogDelivery logs:DeleteLogDelivery logs:ListLogDeliveries logs:PutResourcePolicy"
    " logs:DescribeResourcePolicies",
    # API Gateway, "Using service-linked roles": made with an account's first domain.
    "AWS::ApiGatewayV2::DomainName": "iam:CreateServiceLinkedRole",
    # CloudFormation, "Control access with IAM": stacks with tags, which `sam deploy` gives; the nested template.
    "AWS::CloudFormation::Stack": "cloudformation:TagResource cloudformation:UntagResource s3:GetObject",
}
# What no resource asks for, but the expansion of a template (CloudFormation, "Control access with IAM").
OF_THE_TRANSFORM = {"cloudformation:CreateChangeSet"}


@pytest.fixture(scope="module")
def simulator(node_modules: Path) -> Iterator[Simulator]:
    started = Simulator(node_modules)
    yield started
    started.close()


@functools.cache
def translated() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        return translate(ROOT / "template.yaml", f"s3://{BUCKET.rpartition(':')[2]}/ringonce/code")


def product(stage: str, domain: str = "") -> Stack:
    """The stack as the workflow deploys it."""
    parameters = {
        "Stage": stage,
        "DomainName": domain,
        "CertificateArn": f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/{UUID}" if domain else "",
        "AlarmEmail": "operator@example.com",
        "PermissionsBoundaryArn": roles().arn("FunctionBoundary"),
    }
    return Stack(translated(), f"ringonce-{stage}", parameters)


def nested(outer: Stack) -> Stack:
    """Its stack of alarms."""
    template = yaml_parse((ROOT / "infra" / "monitoring.yaml").read_text())
    given = outer.resolve(outer.template["Resources"]["Monitoring"]["Properties"]["Parameters"])
    return Stack(template, outer.physical("Monitoring"), given)


@functools.cache
def roles() -> Stack:
    template = yaml_parse((ROOT / "infra" / "deploy-role.yaml").read_text())
    return Stack(template, "deploy-ringonce", REPOSITORY)


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """AWS's schema of a resource type."""
    (folder,) = (ROOT / ".venv-sam").glob("lib/python*/site-packages/cfnlint/data/schemas")
    name = json.loads((folder / "providers" / f"{REGION}.json").read_text())[kind]
    found: dict[str, Any] = json.loads((folder / "resources" / f"{name}.json").read_text())
    return found


def asked_by_handlers(kind: str) -> set[str]:
    """What CloudFormation may ask for to create, read, update, delete and tag a resource of this type."""
    found = schema(kind)
    steps = [found["handlers"].get(step, {}) for step in ("create", "read", "update", "delete")]
    return {action for step in [*steps, found.get("tagging", {})] for action in step.get("permissions", ())}


def mentions(value: Any, name: str) -> bool:
    if isinstance(value, dict):
        return name in value or any(mentions(inner, name) for inner in value.values())
    return isinstance(value, list) and any(mentions(inner, name) for inner in value)


def needed(resource: Mapping[str, Any]) -> set[str]:
    """The permissions that this resource takes."""
    kind = resource["Type"]
    spared = {
        action
        for name, actions in ONLY_WITH.get(kind, {}).items()
        if not mentions(resource, name)
        for action in actions.split()
    }
    return (asked_by_handlers(kind) - spared - NEVER) | set(BESIDES.get(kind, "").split())


def targets(stack: Stack, name: str, action: str) -> list[str]:
    """What a handler's action works on, for a resource of a stack."""
    resource = stack.template["Resources"][name]
    properties = resource.get("Properties", {})
    service, _, verb = action.partition(":")
    match service, resource["Type"]:
        case "kms", _:
            return [f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{UUID}"]
        case "s3", _:
            return [f"{BUCKET}/{stack.name}/0123456789abcdef"]
        case "iam", "AWS::Lambda::Function":
            return [stack.resolve(properties["Role"])]
        case "iam", "AWS::ApiGatewayV2::DomainName":
            folder = "aws-service-role/ops.apigateway.amazonaws.com"
            return [f"arn:aws:iam::{ACCOUNT}:role/{folder}/AWSServiceRoleForAPIGateway"]
        case "apigateway", "AWS::ApiGatewayV2::Api":
            return [f"{API}/apis", f"{API}/apis/a1b2c3", f"{API}/tags/arn%3Aaws%3Aapigateway"]
        case "apigateway", "AWS::ApiGatewayV2::Stage":
            return [f"{API}/apis/a1b2c3/stages", f"{API}/apis/a1b2c3/stages/$default"]
        case "apigateway", "AWS::ApiGatewayV2::DomainName" if verb.endswith("Domain"):
            return [f"{API}/domainnames/{DOMAIN}"]
        case "apigateway", "AWS::ApiGatewayV2::DomainName":
            return [f"{API}/domainnames", f"{API}/domainnames/{DOMAIN}", f"{API}/tags/arn%3Aaws%3Aapigateway"]
        case "apigateway", "AWS::ApiGatewayV2::ApiMapping":
            mappings = f"{API}/domainnames/{DOMAIN}/apimappings"
            return [mappings, f"{mappings}/m1"]
        case "lambda", "AWS::Lambda::Permission":
            return [stack.function(properties["FunctionName"])]
        case "sns", "AWS::SNS::Subscription":
            return [stack.resolve(properties["TopicArn"])]
    return [stack.arn(name)]


def contexts(stack: Stack, name: str) -> dict[str, str | list[str]]:
    """The condition keys that AWS has for a resource's requests; the simulator takes those of the action."""
    resource = stack.template["Resources"][name]
    found: dict[str, str | list[str]] = {
        "kms:ViaService": f"dynamodb.{REGION}.amazonaws.com",
        "iam:PassedToService": "lambda.amazonaws.com",
        "iam:AWSServiceName": "ops.apigateway.amazonaws.com",
        "iam:PermissionsBoundary": roles().arn("FunctionBoundary"),
    }
    if resource["Type"] == "AWS::Lambda::EventSourceMapping":
        found["lambda:FunctionArn"] = stack.function(resource["Properties"]["FunctionName"])
    return found


# ── content of the policies ─────────────────────────────────────────────────────────────────────────


def all_statements() -> Iterator[tuple[str, Statement]]:
    for role in ("FunctionBoundary", "DeployRole", "CloudFormationRole"):
        yield from ((role, statement) for statement in statements(roles().policies(role)))
    stack = product("prod")
    for name, resource in stack.resources().items():
        if resource["Type"] == "AWS::IAM::Role":
            yield from ((name, statement) for statement in statements(stack.policies(name)))


@functools.cache
def meet(one: str, other: str) -> bool:
    """Whether there is a text that both patterns (`*`) match."""
    if one.startswith("*"):
        return meet(one[1:], other) or (other != "" and meet(one, other[1:]))
    if other.startswith("*"):
        return meet(other, one)
    return one == other == "" or (one[:1] == other[:1] != "" and meet(one[1:], other[1:]))


def faults(facts: Mapping[str, Mapping[str, Any] | None], statement: Statement) -> Iterator[str]:
    """What of a statement AWS's authorization data does not know, so that it would never hold."""
    for action in listed(statement["Action"]):
        known = facts[action]
        if known is None:
            yield f"{action}: no such action"
            continue
        patterns = [re.sub(r"\$\{\w+\}", "*", arn) for kind in known["types"] for arn in kind["arns"]]
        for resource in listed(statement["Resource"]):
            if resource == TRANSFORM and action == "cloudformation:CreateChangeSet":
                # CloudFormation, "Control access with IAM", has it; the authorization data does not.
                continue
            if not patterns and resource != "*":
                yield f"{action}: takes no resource, so never {resource}"
            if patterns and not any(meet(resource, pattern) for pattern in patterns):
                yield f"{action}: not on {resource}"
        keys = known["conditionKeys"] + [key for kind in known["types"] for key in kind["conditionKeys"]]
        for key in (key for test in statement.get("Condition", {}).values() for key in test):
            if not key.startswith("aws:") and key not in keys:
                yield f"{action}: has no {key}"


def test_every_action_takes_the_resources_and_conditions_that_it_is_given(simulator: Simulator) -> None:
    found = list(all_statements())
    facts = simulator.about(action for _, statement in found for action in listed(statement["Action"]))
    wrong = [f"{role}: {fault}" for role, statement in found for fault in faults(facts, statement)]
    assert not wrong, "\n".join(wrong)


def test_only_what_takes_no_resource_is_allowed_on_all(simulator: Simulator) -> None:
    wide = [
        (role, action) for role, s in all_statements() if s["Resource"] == "*" for action in listed(s["Action"])
    ]
    facts = simulator.about(action for _, action in wide)
    narrow = {action for _, action in wide if (facts[action] or {"types": ()})["types"]}
    # Alarms are described, and summaries of templates asked for, without a name: AWS then looks for "*".
    assert narrow == {"cloudwatch:DescribeAlarms", "cloudformation:GetTemplateSummary"}


# ── the role that CloudFormation has ────────────────────────────────────────────────────────────────


def test_what_is_spared_is_asked_by_a_handler() -> None:
    """After AWS renames a property or permission, the exception would no longer match, or match wrongly."""
    for kind, properties in ONLY_WITH.items():
        spared = {action for actions in properties.values() for action in actions.split()}
        assert spared <= asked_by_handlers(kind), kind
    assert asked_by_handlers("AWS::IAM::Role") >= NEVER


@pytest.mark.parametrize(("stage", "domain"), STAGES)
def test_cloudformation_may_make_read_change_tag_and_remove_every_resource(
    simulator: Simulator, stage: str, domain: str
) -> None:
    outer = product(stage, domain)
    stacks = [outer, nested(outer)]
    wanted = [
        (action, stack, name)
        for stack in stacks
        for name, resource in stack.resources().items()
        for action in sorted(needed(resource))
    ]
    facts = simulator.about(action for action, _, _ in wanted)
    requests = [
        Request(action, target, contexts(stack, name), unlisted=action in HTTP_VERBS)
        for action, stack, name in wanted
        # AWS's schemas ask for a few permissions that there are not.
        if (known := facts[action]) is not None
        for target in (targets(stack, name, action) if known["types"] else ["*"])
    ]
    assert len(requests) > 500
    denied = simulator.denied(requests, roles().policies("CloudFormationRole"))
    assert not denied, denied


def test_cloudformation_may_do_nothing_that_no_resource_asks_for(simulator: Simulator) -> None:
    """Permissions that no resource needs any more are removed."""
    asked = {
        action.lower()
        for outer in (product(*stage) for stage in STAGES)
        for stack in (outer, nested(outer))
        for resource in stack.resources().values()
        for action in needed(resource)
    }
    policies = roles().policies("CloudFormationRole")
    allowed = {action for statement in statements(policies) for action in listed(statement["Action"])}
    assert {action for action in allowed if action.lower() not in asked} == OF_THE_TRANSFORM
    transform = [Request(action, TRANSFORM, unlisted=True) for action in OF_THE_TRANSFORM]
    assert simulator.results(transform, policies) == ["Allowed"]


@pytest.mark.parametrize(
    ("action", "name"),
    [
        ("lambda:CreateEventSourceMapping", "FanOutFromStream"),
        ("lambda:GetFunctionScalingConfig", "InitiateCall"),
        ("events:ListTagsForResource", "ReconcileCallsShards0To3"),
        ("iam:UpdateAssumeRolePolicy", "DeliverRole"),
        ("iam:ListRoleTags", "DeliverRole"),
        ("iam:CreateServiceLinkedRole", "ApiDomain"),
        ("cloudformation:TagResource", "Monitoring"),
        ("cloudwatch:TagResource", "Monitoring/Dashboard"),
        ("sns:GetSubscriptionAttributes", "Monitoring/AlarmMail"),
    ],
)
def test_a_first_deployment_asks_for(simulator: Simulator, action: str, name: str) -> None:
    """What stopped one, or the next one after it, is among what is asked for each resource, and allowed."""
    stack = product("prod", DOMAIN)
    if name.startswith("Monitoring/"):
        stack, name = nested(stack), name.partition("/")[2]
    assert action in needed(stack.resources()[name])
    target = "*" if action == "lambda:CreateEventSourceMapping" else targets(stack, name, action)[0]
    policies = roles().policies("CloudFormationRole")
    assert simulator.results([Request(action, target, contexts(stack, name))], policies) == ["Allowed"]


def test_cloudformation_may_touch_no_other_stacks_things(simulator: Simulator) -> None:
    arn = f"{REGION}:{ACCOUNT}"
    boundary = {"iam:PermissionsBoundary": roles().arn("FunctionBoundary")}
    role, other_role = (f"arn:aws:iam::{ACCOUNT}:role/{name}" for name in ("ringonce-dev-DeliverRole", "admin"))
    requests = [
        Request("dynamodb:DeleteTable", f"arn:aws:dynamodb:{arn}:table/others"),
        Request("lambda:UpdateFunctionCode", f"arn:aws:lambda:{arn}:function:others"),
        Request(
            "lambda:CreateEventSourceMapping", "*", {"lambda:FunctionArn": f"arn:aws:lambda:{arn}:function:others"}
        ),
        Request("lambda:CreateEventSourceMapping", "*"),
        Request("sqs:DeleteQueue", f"arn:aws:sqs:{arn}:others"),
        Request("cloudformation:UpdateStack", f"arn:aws:cloudformation:{arn}:stack/others/{UUID}"),
        # A role without the boundary, under another one, or of another name.
        Request("iam:CreateRole", role),
        Request("iam:CreateRole", role, {"iam:PermissionsBoundary": f"arn:aws:iam::{ACCOUNT}:policy/wide"}),
        Request("iam:CreateRole", other_role, boundary),
        Request("iam:PutRolePolicy", role),
        Request("iam:UpdateAssumeRolePolicy", role),
        Request("iam:UpdateAssumeRolePolicy", other_role, boundary),
        Request("iam:DeleteRolePermissionsBoundary", role, boundary),
        Request("iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"}),
        Request("iam:PassRole", other_role, {"iam:PassedToService": "lambda.amazonaws.com"}),
        Request(
            "iam:CreateServiceLinkedRole",
            f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot",
            {"iam:AWSServiceName": "spot.amazonaws.com"},
        ),
    ]
    results = simulator.results(requests, roles().policies("CloudFormationRole"))
    assert results == ["ImplicitlyDenied"] * len(requests)


# ── the role that GitHub has ────────────────────────────────────────────────────────────────────────


def hand_over(stack: str) -> list[Request]:
    """What `sam deploy` asks for as the workflow calls it."""
    arn = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{stack}/{UUID}"
    role = {"iam:PassedToService": "cloudformation.amazonaws.com"}
    on_stack = ["CreateChangeSet", "TagResource", "DescribeChangeSet", "ExecuteChangeSet", "DescribeStacks"]
    on_stack += ["DescribeStackEvents", "GetTemplate"]
    return [
        *(Request(f"cloudformation:{action}", arn) for action in on_stack),
        *(Request(f"s3:{action}", f"{BUCKET}/{stack}/0123456789abcdef") for action in ("GetObject", "PutObject")),
        Request("iam:PassRole", roles().arn("CloudFormationRole"), role),
    ]


def test_github_may_hand_over_the_templates_of_its_stacks(simulator: Simulator) -> None:
    managed = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/aws-sam-cli-managed-default/{UUID}"
    requests = [
        *hand_over("ringonce-dev"),
        *hand_over("ringonce-prod"),
        Request("cloudformation:CreateChangeSet", TRANSFORM, unlisted=True),
        Request("cloudformation:GetTemplateSummary", "*"),
        Request("cloudformation:DescribeStacks", managed),
        Request("s3:GetBucketLocation", BUCKET),
    ]
    denied = simulator.denied(requests, roles().policies("DeployRole"))
    assert not denied, denied


def test_github_may_do_nothing_else(simulator: Simulator) -> None:
    stack = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/ringonce-prod/{UUID}"
    requests = [
        *(each for each in hand_over("others") if not each.action.startswith("iam:")),
        Request("cloudformation:UpdateStack", stack),
        Request("cloudformation:DeleteStack", stack),
        Request(
            "iam:PassRole", roles().arn("CloudFormationRole"), {"iam:PassedToService": "lambda.amazonaws.com"}
        ),
        Request(
            "iam:PassRole",
            f"arn:aws:iam::{ACCOUNT}:role/admin",
            {"iam:PassedToService": "cloudformation.amazonaws.com"},
        ),
        Request("dynamodb:GetItem", f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/ringonce-prod-CallsTable"),
        Request("lambda:InvokeFunction", f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:ringonce-prod-CallsApi"),
    ]
    results = simulator.results(requests, roles().policies("DeployRole"))
    assert results == ["ImplicitlyDenied"] * len(requests)


BELIEVED = [
    f"repo:{names}:environment:{stage}"
    for names in ("acme/calls", "acme@123456/calls@456789")
    for stage in ("dev", "prod")
]
NOT_BELIEVED = [
    "repo:acme/others:environment:prod",
    "repo:others/calls:environment:prod",
    "repo:acme/calls:environment:staging",
    "repo:acme/calls:ref:refs/heads/main",
    "repo:acme/calls:pull_request",
    # A repository of the same name that another owner created after this one was deleted, or half of it.
    "repo:acme@999/calls@999:environment:prod",
    "repo:acme@123456/calls@999:environment:prod",
    "repo:acme@999/calls@456789:environment:prod",
    "repo:acme@123456/others@456789:environment:prod",
    "repo:acme@123456/calls@456789:environment:staging",
    "repo:acme@123456/calls@456789:ref:refs/heads/main",
    "repo:acme@123456/calls:environment:prod",
    "repo:acme@1234567/calls@456789:environment:prod",
    "repo:acme@123456/calls@456789:environment:prod:more",
]


def test_github_is_believed_for_one_repository_and_its_two_environments(simulator: Simulator) -> None:
    (trust,) = roles().resolve(
        roles().template["Resources"]["DeployRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
    )
    assert trust.pop("Principal") == {"Federated": roles().arn("GitHubProvider")}
    policy = {"Version": "2012-10-17", "Statement": [{**trust, "Resource": "*"}]}
    said = [(subject, "sts.amazonaws.com") for subject in BELIEVED + NOT_BELIEVED]
    said += [(subject, "https://github.com/acme") for subject in BELIEVED]
    requests = [
        # The authorization data has only the newer claims of GitHub's tokens; IAM's guide on OIDC has these two.
        Request(
            "sts:AssumeRoleWithWebIdentity",
            roles().arn("DeployRole"),
            {f"{GITHUB}:sub": subject, f"{GITHUB}:aud": audience},
            unlisted=True,
        )
        for subject, audience in said
    ]
    results = simulator.results(requests, [policy])
    believed = [each for each, result in zip(said, results, strict=True) if result == "Allowed"]
    assert believed == [(subject, "sts.amazonaws.com") for subject in BELIEVED]


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("Repository", "acme"),
        ("Repository", "acme@1/calls@2"),
        ("Repository", "acme/*"),
        ("RepositoryOwnerId", ""),
        ("RepositoryOwnerId", "*"),
        ("RepositoryId", "calls"),
    ],
)
def test_the_trust_takes_no_pattern_for_a_name(parameter: str, wrong: str) -> None:
    pattern = roles().template["Parameters"][parameter]["AllowedPattern"]
    assert re.fullmatch(pattern, REPOSITORY[parameter])
    assert not re.fullmatch(pattern, wrong)


# ── the functions' roles ────────────────────────────────────────────────────────────────────────────

KEYS = ("demo", "demo#slots", "demo#slots#24", "demo#rate", "trunk#ST_1", "#switch", "#numbers")
SLOTS = ("demo#slots", "demo#slots#24")
TRUNK, RATE, SWITCH, MARKER = "trunk#ST_1", "demo#rate", "#switch", "#numbers"
# What each function may do to the items of WorkspacesTable. What reads workspaces may read any item: the id of a
# workspace may be any text.
MAY: dict[str, dict[str, tuple[str, ...]]] = {
    "InitiateCall": {"GetItem": KEYS, "BatchGetItem": KEYS, "UpdateItem": (RATE,)},
    "DialWorker": {"GetItem": KEYS, "BatchGetItem": KEYS, "UpdateItem": (*SLOTS, TRUNK)},
    "LivekitEvents": {"UpdateItem": SLOTS},
    "FanOut": {},
    "Deliver": {"GetItem": KEYS},
    "ReconcileCalls": {
        "GetItem": (SWITCH, MARKER, *SLOTS),
        "BatchGetItem": (SWITCH, MARKER, *SLOTS),
        "UpdateItem": (MARKER, *SLOTS),
    },
    "CallsApi": {"GetItem": KEYS},
}
# And to those of NumbersTable. A transaction is authorized by its parts: UpdateItem, ConditionCheckItem.
NUMBERS = ("demo#+12025550123", MARKER)
MAY_NUMBERS: dict[str, dict[str, tuple[str, ...]]] = {
    "InitiateCall": {"GetItem": NUMBERS, "BatchGetItem": NUMBERS},
    "DialWorker": {
        "GetItem": NUMBERS,
        "BatchGetItem": NUMBERS,
        "UpdateItem": NUMBERS,
        "ConditionCheckItem": NUMBERS,
    },
    "ReconcileCalls": {"GetItem": (MARKER,), "UpdateItem": (MARKER,)},
    "CallsApi": {"GetItem": NUMBERS[:1], "BatchGetItem": NUMBERS[:1], "UpdateItem": NUMBERS[:1]},
}
ON_ITEMS = [
    "GetItem",
    "BatchGetItem",
    "Query",
    "PutItem",
    "UpdateItem",
    "DeleteItem",
    "BatchWriteItem",
    "ConditionCheckItem",
]


def test_every_function_is_held_to_its_items_of_the_table() -> None:
    functions = {name for name, res in translated()["Resources"].items() if res["Type"] == "AWS::Lambda::Function"}
    assert functions == MAY.keys()


@pytest.mark.parametrize("function", MAY)
@pytest.mark.parametrize(
    ("table", "there", "may"), [("WorkspacesTable", KEYS, MAY), ("NumbersTable", NUMBERS, MAY_NUMBERS)]
)
def test_a_function_touches_only_its_items(
    simulator: Simulator,
    function: str,
    table: str,
    there: tuple[str, ...],
    may: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> None:
    stack = product("prod")
    cases = {
        (action, key): Request(f"dynamodb:{action}", stack.arn(table), {"dynamodb:LeadingKeys": [key]})
        for action in ON_ITEMS
        for key in there
    }
    boundary = roles().policies("FunctionBoundary")[0]
    results = simulator.results(list(cases.values()), stack.policies(f"{function}Role"), boundary=boundary)
    allowed = {case for case, result in zip(cases, results, strict=True) if result == "Allowed"}
    assert allowed == {(action, key) for action, keys in may.get(function, {}).items() for key in keys}


@pytest.mark.parametrize("function", MAY)
def test_no_request_without_or_with_more_keys_passes_by_the_narrow_ones(
    simulator: Simulator, function: str
) -> None:
    """`ForAllValues` is true for an absent key."""
    stack = product("prod")
    table = stack.arn("WorkspacesTable")
    requests = [
        Request("dynamodb:UpdateItem", table),
        *(Request("dynamodb:UpdateItem", table, {"dynamodb:LeadingKeys": [key, "demo"]}) for key in KEYS),
        Request("dynamodb:Scan", table),
        Request("dynamodb:Scan", table, {"dynamodb:Select": "ALL_ATTRIBUTES"}),
        Request("dynamodb:Scan", table, {"dynamodb:Attributes": ["activeCalls"]}),
        Request(
            "dynamodb:Scan",
            table,
            {"dynamodb:Attributes": ["workspaceId", "webhookSecrets"], "dynamodb:Select": "SPECIFIC_ATTRIBUTES"},
        ),
    ]
    results = simulator.results(requests, stack.policies(f"{function}Role"))
    assert results == ["ImplicitlyDenied"] * len(requests)


def test_the_reconciler_alone_may_look_at_all_workspaces(simulator: Simulator) -> None:
    stack = product("prod")
    asked: dict[str, str | list[str]] = {
        "dynamodb:Attributes": list(SCANNED),
        "dynamodb:Select": "SPECIFIC_ATTRIBUTES",
    }
    look = Request("dynamodb:Scan", stack.arn("WorkspacesTable"), asked)
    boundary = roles().policies("FunctionBoundary")[0]
    may = {
        f for f in MAY if simulator.results([look], stack.policies(f"{f}Role"), boundary=boundary) == ["Allowed"]
    }
    assert may == {"ReconcileCalls"}


def test_a_scan_of_the_workspaces_is_held_to_the_attributes_that_the_code_reads() -> None:
    held = [
        statement["Condition"]["ForAllValues:StringEquals"]["dynamodb:Attributes"]
        for function in MAY
        for statement in statements(product("prod").policies(f"{function}Role"))
        if "dynamodb:Scan" in listed(statement["Action"])
    ]
    assert held == [list(SCANNED)]
    assert not {"apiKeyHashes", "apiKeys", "webhookSecrets", "fromNumbers"} & set(SCANNED)


INDEXES = ("byWorkspace", "due", "line")
QUERIES = {
    "DialWorker": {"line"},
    "LivekitEvents": {"line"},
    "ReconcileCalls": {"due", "line"},
    "CallsApi": {"byWorkspace"},
}


@pytest.mark.parametrize("function", MAY)
def test_a_function_queries_only_the_indexes_that_it_uses(simulator: Simulator, function: str) -> None:
    stack = product("prod")
    table = stack.arn("CallsTable")
    boundary = roles().policies("FunctionBoundary")[0]
    requests = [Request("dynamodb:Query", f"{table}/index/{index}") for index in INDEXES]
    results = simulator.results(requests, stack.policies(f"{function}Role"), boundary=boundary)
    allowed = {index for index, result in zip(INDEXES, results, strict=True) if result == "Allowed"}
    assert allowed == QUERIES.get(function, set())


@pytest.mark.parametrize("stage", ["dev", "prod"])
def test_the_boundary_allows_what_the_functions_are_allowed(simulator: Simulator, stage: str) -> None:
    stack = product(stage)
    boundary = roles().policies("FunctionBoundary")[0]
    found = [
        (statement, action, resource)
        for function in MAY
        for statement in statements(stack.policies(f"{function}Role"))
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    ]
    requests = [
        Request(action, resource.replace("??????", "AbCdEf"), met(statement.get("Condition", {})))
        for statement, action, resource in found
    ]
    policies = [policy for function in MAY for policy in stack.policies(f"{function}Role")]
    assert len(requests) > 40
    denied = simulator.denied(requests, policies, boundary=boundary)
    assert not denied, denied
    # The managed policies that SAM gives to each function: its log, its traces.
    log = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{stack.physical('DeliverLog')}:log-stream:1"
    managed = [
        Request("logs:CreateLogStream", log),
        Request("logs:PutLogEvents", log),
        Request("xray:PutTraceSegments", "*"),
    ]
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    denied = simulator.denied(managed, [everything], boundary=boundary)
    assert not denied, denied


def met(condition: Mapping[str, Mapping[str, Any]]) -> dict[str, str | list[str]]:
    """Values that fulfil a condition of a function's policy."""
    return {
        key: wanted[0].replace("*", "demo") if isinstance(wanted, list) else wanted
        for operator, keys in condition.items()
        if operator != "Null"
        for key, wanted in keys.items()
    }
