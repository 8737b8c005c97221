"""A first deployment in prod that fails can go back, be removed and be repeated (docs/operations.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from samtranslator.yaml_helper import yaml_parse

from tests.e2e.client import Client
from tests.e2e.launch import eventually

TEMPLATE = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text())
STACK = "a-first-deployment"
# Of calls, workspaces and numbers.
TABLES = 3


def tables_and_a_fault() -> dict[str, Any]:
    """The tables as they stand in the template, and behind them something that cannot be made."""
    tables = {n: res for n, res in TEMPLATE["Resources"].items() if res["Type"] == "AWS::DynamoDB::Table"}
    fault = {
        "Type": "AWS::SQS::Queue",
        "DependsOn": list(tables),
        "Properties": {"VisibilityTimeout": 43201},
    }
    return {
        "AWSTemplateFormatVersion": TEMPLATE["AWSTemplateFormatVersion"],
        "Parameters": {"Stage": TEMPLATE["Parameters"]["Stage"]},
        "Conditions": {"IsProd": TEMPLATE["Conditions"]["IsProd"]},
        "Resources": {**tables, "Fault": fault},
    }


@pytest.fixture
def client(stack: dict[str, Any]) -> Iterator[Client]:
    with Client(stack) as client:
        yield client


def test_protected_tables_do_not_stop_the_way_back(client: Client) -> None:
    cloudformation, dynamodb = client.aws("cloudformation"), client.aws("dynamodb")

    def status() -> str:
        return str(cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"])

    def kept() -> list[str]:
        return [table for table in dynamodb.list_tables()["TableNames"] if table.startswith(f"{STACK}-")]

    name = cloudformation.create_stack(
        StackName=STACK,
        TemplateBody=json.dumps(tables_and_a_fault()),
        Parameters=[{"ParameterKey": "Stage", "ParameterValue": "prod"}],
    )["StackId"]
    eventually(lambda: not status().endswith("IN_PROGRESS"), "the stack went back")
    assert status() == "ROLLBACK_COMPLETE"
    assert len(kept()) == TABLES
    cloudformation.delete_stack(StackName=name)
    eventually(lambda: status() == "DELETE_COMPLETE", "the stack is gone")
    assert len(kept()) == TABLES
    for table in kept():
        with pytest.raises(ClientError):
            dynamodb.delete_table(TableName=table)
        dynamodb.update_table(TableName=table, DeletionProtectionEnabled=False)
        dynamodb.delete_table(TableName=table)
    assert kept() == []
