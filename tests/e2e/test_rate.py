"""The rate holds over the processes that Lambda starts when many requests come at once."""

from __future__ import annotations

import collections
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from shared.workspaces import Workspace, WorkspaceStore, key_hash
from tests.e2e.client import Client
from tests.e2e.launch import END_SECONDS

LIMIT = 20
KEY = "rk_of_the_rate"


def test_many_processes_accept_no_more_than_the_limit_in_any_minute(stack: dict[str, Any]) -> None:
    with Client(stack) as operator:
        store = WorkspaceStore(operator.aws("dynamodb"), stack["resources"]["WorkspacesTable"])
    assert store.create(
        Workspace(
            "rate",
            "Rate",
            "outbound",
            "ST_rate",
            (),
            api_key_hashes=frozenset({key_hash(KEY)}),
            allowed_calling_codes=frozenset({"+1"}),
            calls_per_minute=LIMIT,
            calls_per_second=100,
        )
    )
    headers = {"x-workspace-id": "rate", "x-api-key": KEY}
    with httpx.Client(base_url=stack["apiUrl"], headers=headers, timeout=END_SECONDS) as client:

        def post(n: int) -> httpx.Response:
            return client.post("/v1/api/call", json={"to": f"+1555040{n:04d}", "call_agent_id": "agent-1"})

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(post, range(3 * LIMIT)))
        calls = client.get("/v1/api/call", params={"limit": "100"}).json()["calls"]
    statuses = collections.Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert len(calls) == statuses[200] > LIMIT // 2
    for answer in answers:
        if answer.status_code == 429:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.headers["ratelimit"] == f'"calls";r=0;t={answer.headers["retry-after"]}'
            assert answer.headers["ratelimit-policy"] == f'"calls";q={LIMIT};w=60'
    minutes = collections.Counter(call["createdAt"][:16] for call in calls)
    assert max(minutes.values()) <= LIMIT
