"""Unit tests never open a socket to anywhere. Some have a table of workspaces, faked by moto."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from pytest_socket import disable_socket, enable_socket

if TYPE_CHECKING:
    from tests.stored_call import StoredCall
    from tests.workspaces_table import OneAtATime

# How long an example takes, or takes to be made, says something of the machine and nothing of the code.
settings.register_profile(
    "any machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _no_sockets() -> Iterator[None]:
    # An event loop wakes itself through a pair of Unix sockets.
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture(params=["moto", "memory"])
def client(request: pytest.FixtureRequest) -> Iterator[OneAtATime]:
    """Of an empty table of workspaces."""
    from tests.workspaces_table import workspaces_table

    with workspaces_table(request.param) as client:
        yield client


@pytest.fixture(scope="module", params=["moto", "memory"])
def client_of_module(request: pytest.FixtureRequest) -> Iterator[OneAtATime]:
    from tests.workspaces_table import workspaces_table

    with workspaces_table(request.param) as client:
        yield client


@pytest.fixture
def stored(client_of_module: OneAtATime) -> StoredCall:
    from tests.stored_call import StoredCall

    return StoredCall(client_of_module)
