"""A field without an attribute would be lost in the table."""

from __future__ import annotations

import dataclasses

import pytest

from shared.call import CALL_ATTRIBUTES, Call
from shared.delivery_store import DELIVERY_ATTRIBUTES, Delivery
from shared.workspaces import WORKSPACE_ATTRIBUTES, Workspace


@pytest.mark.parametrize(
    ("record", "attributes"),
    [(Call, CALL_ATTRIBUTES), (Delivery, DELIVERY_ATTRIBUTES), (Workspace, WORKSPACE_ATTRIBUTES)],
)
def test_every_field_of_a_record_has_its_attribute(record: type, attributes: dict[str, str]) -> None:
    assert list(attributes) == [field.name for field in dataclasses.fields(record)]
    assert len(set(attributes.values())) == len(attributes)
