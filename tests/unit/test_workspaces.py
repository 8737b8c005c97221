"""Workspaces: conditional writes, and the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from botocore.exceptions import ReadTimeoutError

from shared.authorization import authorized_workspace
from shared.dynamo import from_wire, to_wire
from shared.errors import RequestRefusedError, StoreError, StoreUnclearError
from shared.limits import LimitStore
from shared.workspaces import Workspace, WorkspaceCache, WorkspaceStore, key_hash
from tests.clock import Clock
from tests.workspaces_table import TABLE, OneAtATime

ACME = Workspace(
    workspace_id="acme",
    name="Acme",
    agent_name="outbound",
    sip_trunk_id="ST_1",
    from_numbers=("+12025550100",),
    api_key_hashes=frozenset({"a" * 64}),
    allowed_calling_codes=frozenset({"+1"}),
    webhook_secrets=("whsec_AAAA",),
    created_at="2026-11-24T00:00:00.000Z",
    version=1,
)


@pytest.fixture
def store(client: OneAtATime) -> WorkspaceStore:
    return WorkspaceStore(cast(Any, client), TABLE)


def raw(client: OneAtATime, key: str) -> dict[str, Any]:
    answer = client.get_item(TableName=TABLE, Key=to_wire({"workspaceId": key}), ConsistentRead=True)
    return from_wire(answer["Item"]) if "Item" in answer else {}


def write(client: OneAtATime, item: dict[str, Any]) -> None:
    client.put_item(TableName=TABLE, Item=to_wire(item))


def named(name: str) -> Callable[[Workspace], Workspace]:
    return lambda seen: dataclasses.replace(seen, name=name)


def allowing(code: str) -> Callable[[Workspace], Workspace]:
    return lambda seen: dataclasses.replace(seen, allowed_calling_codes=seen.allowed_calling_codes | {code})


# ── the workspace ───────────────────────────────────────────────────────────────────────────────────


def test_a_workspace_is_read_as_it_was_created(store: WorkspaceStore) -> None:
    assert store.create(ACME)
    assert store.get("acme") == ACME


def test_what_a_stored_workspace_does_not_say_allows_the_least() -> None:
    """As one that was written before the attributes existed."""
    needed = {"workspaceId": "acme", "name": "Acme", "agentName": "outbound", "sipTrunkId": "ST_1"}
    workspace = Workspace.from_item(needed)
    assert (workspace.open, workspace.disabled, workspace.allow_special_numbers) == (False, False, False)
    assert (workspace.api_key_hashes, workspace.allowed_calling_codes) == (frozenset(), frozenset())
    limits = workspace.max_concurrent_calls, workspace.calls_per_minute, workspace.calls_per_second
    assert limits == (10, 60, 1)


def test_what_dynamodb_gives_as_sets_and_lists_cannot_be_changed(store: WorkspaceStore) -> None:
    store.put(dataclasses.replace(ACME, agents=frozenset({"agent-1"})))
    read = store.get("acme")
    assert read is not None
    assert {type(value) for value in (read.api_key_hashes, read.agents, read.allowed_calling_codes)} == {frozenset}
    assert {type(value) for value in (read.from_numbers, read.webhook_secrets)} == {tuple}


def test_an_unknown_workspace_is_none(store: WorkspaceStore) -> None:
    assert store.get("unknown") is None


def test_create_never_overwrites(store: WorkspaceStore) -> None:
    store.create(ACME)
    assert not store.create(dataclasses.replace(ACME, name="Another", created_at="2026-11-25T00:00:00.000Z"))
    assert store.get("acme") == ACME


def test_create_that_is_not_answered_but_was_written_has_succeeded(
    store: WorkspaceStore, client: OneAtATime
) -> None:
    client.lose = 1
    assert store.create(ACME)


def test_create_that_is_not_answered_finds_somebody_elses_workspace(
    store: WorkspaceStore, client: OneAtATime
) -> None:
    class Unheard(OneAtATime):
        def put_item(self, **arguments: Any) -> Any:
            raise ReadTimeoutError(endpoint_url="https://dynamodb")

    store.create(ACME)
    deaf = WorkspaceStore(cast(Any, Unheard(client)), TABLE)
    assert not deaf.create(dataclasses.replace(ACME, name="Another"))
    with pytest.raises(StoreUnclearError):
        deaf.create(dataclasses.replace(ACME, workspace_id="new"))


def test_an_item_without_what_it_needs_is_an_error_that_names_it(
    store: WorkspaceStore, client: OneAtATime
) -> None:
    write(client, {"workspaceId": "half", "name": "Half"})
    with pytest.raises(StoreError, match="half has no agentName, sipTrunkId"):
        store.get("half")


def test_update_changes_what_it_says_and_counts_the_version(store: WorkspaceStore) -> None:
    store.create(ACME)
    updated = store.update("acme", named("New"))
    assert updated == store.get("acme") == dataclasses.replace(ACME, name="New", version=2)


def test_update_of_an_unknown_workspace_makes_none(store: WorkspaceStore) -> None:
    assert store.update("unknown", named("New")) is None
    assert store.get("unknown") is None


def test_update_keeps_attributes_it_does_not_know(store: WorkspaceStore, client: OneAtATime) -> None:
    write(client, ACME.to_item() | {"ofALaterVersion": {"deep": [1]}})
    store.update("acme", named("New"))
    assert raw(client, "acme")["ofALaterVersion"] == {"deep": [1]}


@pytest.mark.parametrize("notes", [None, {}, {"a" * 64: {}}, {"b" * 64: {"last4": "1234"}}, [1], "x"])
def test_what_is_noted_of_keys_decides_nothing(store: WorkspaceStore, client: OneAtATime, notes: Any) -> None:
    """The hashes alone do, whatever an older or a later version left there."""
    key = "rk_a"
    write(
        client, ACME.to_item() | {"apiKeyHashes": {key_hash(key)}} | ({} if notes is None else {"apiKeys": notes})
    )
    cache = WorkspaceCache(store, 60)
    assert authorized_workspace(cache, "acme", key).workspace_id == "acme"
    with pytest.raises(RequestRefusedError):
        authorized_workspace(cache, "acme", "rk_b")
    before = raw(client, "acme")
    store.update("acme", named("New"))
    assert raw(client, "acme") == before | {"name": "New", "version": 2}


def test_update_that_empties_a_set_removes_it(store: WorkspaceStore, client: OneAtATime) -> None:
    store.create(ACME)
    store.update("acme", lambda seen: dataclasses.replace(seen, api_key_hashes=frozenset()))
    assert "apiKeyHashes" not in raw(client, "acme")


def test_update_takes_an_item_without_a_version(store: WorkspaceStore, client: OneAtATime) -> None:
    item = ACME.to_item()
    del item["version"]
    write(client, item)
    updated = store.update("acme", named("New"))
    assert updated is not None
    assert updated.version == 1


def test_update_that_changes_nothing_writes_nothing(store: WorkspaceStore, client: OneAtATime) -> None:
    store.create(ACME)
    client.requests.clear()
    assert store.update("acme", named("Acme")) == ACME
    assert client.requests == ["get_item"]


@pytest.mark.parametrize("version", [0, 1])
def test_of_two_updates_at_the_same_time_both_hold(store: WorkspaceStore, version: int) -> None:
    store.put(dataclasses.replace(ACME, version=version))
    turns = 0

    def slow(seen: Workspace) -> Workspace:
        nonlocal turns
        turns += 1
        if turns == 1:
            # Another update completes between this one's read and its write.
            store.update("acme", allowing("+44"))
        return allowing("+49")(seen)

    store.update("acme", slow)
    there = store.get("acme")
    assert there is not None
    assert there.allowed_calling_codes == {"+1", "+44", "+49"}
    assert (there.version, turns) == (version + 2, 2)


def test_updates_from_many_threads_all_hold(store: WorkspaceStore) -> None:
    store.create(ACME)
    codes = [f"+{number}" for number in range(30, 38)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda code: store.update("acme", allowing(code)), codes))
    there = store.get("acme")
    assert there is not None
    assert there.allowed_calling_codes == {"+1", *codes}


def test_update_does_not_bring_back_a_workspace_deleted_meanwhile(
    store: WorkspaceStore, client: OneAtATime
) -> None:
    store.put(dataclasses.replace(ACME, version=0))

    def deleting(seen: Workspace) -> Workspace:
        client.delete_item(TableName=TABLE, Key=to_wire({"workspaceId": "acme"}))
        return named("New")(seen)

    assert store.update("acme", deleting) is None
    assert raw(client, "acme") == {}


def test_update_whose_answer_is_lost_is_made_once(store: WorkspaceStore, client: OneAtATime) -> None:
    store.create(ACME)
    client.lose = 1
    updated = store.update("acme", allowing("+44"))
    assert updated is not None
    assert updated.version == 2


def test_update_gives_up_against_a_table_that_never_stays_the_same(store: WorkspaceStore) -> None:
    store.create(ACME)
    number = 0

    def disturbed(seen: Workspace) -> Workspace:
        nonlocal number
        number += 1
        store.update("acme", named(f"Name {number}"))
        return allowing("+44")(seen)

    with pytest.raises(StoreError, match="again and again"):
        store.update("acme", disturbed)


def test_what_a_change_raises_ends_the_update(store: WorkspaceStore) -> None:
    store.create(ACME)

    def refused(seen: Workspace) -> Workspace:
        raise ValueError(seen.name)

    with pytest.raises(ValueError, match="Acme"):
        store.update("acme", refused)
    assert store.get("acme") == ACME


def test_all_reads_every_page_and_only_workspaces(store: WorkspaceStore, client: OneAtATime) -> None:
    # More than the megabyte that one answer of a scan holds.
    for number in range(4):
        write(client, ACME.to_item() | {"workspaceId": f"w{number}", "ballast": "x" * 300_000})
    limits = LimitStore(cast(Any, client), TABLE)
    limits.take_slot("w1", "call", 5)
    limits.reserve_trunk("ST_1", 1000, 5, 10**9)
    limits.pause(5)
    client.requests.clear()
    assert [workspace.workspace_id for workspace in store.all()] == ["w0", "w1", "w2", "w3"]
    assert client.requests.count("scan") > 1


# ── the cache ───────────────────────────────────────────────────────────────────────────────────────


def test_a_workspace_is_read_once_in_sixty_seconds(store: WorkspaceStore, client: OneAtATime) -> None:
    store.create(ACME)
    clock = Clock()
    cache = WorkspaceCache(store, 60, clock.seconds)
    client.requests.clear()
    assert cache.get("acme") == ACME
    clock.advance(59.9)
    assert cache.get("acme") == ACME
    assert client.requests == ["get_item"]
    clock.advance(0.1)
    assert cache.get("acme") == ACME
    assert client.requests == ["get_item"] * 2


def test_a_disabled_workspace_is_seen_within_sixty_seconds(store: WorkspaceStore) -> None:
    store.create(ACME)
    clock = Clock()
    cache = WorkspaceCache(store, 60, clock.seconds)
    cache.get("acme")
    store.update("acme", lambda seen: dataclasses.replace(seen, disabled=True))
    clock.advance(60)
    seen = cache.get("acme")
    assert seen is not None
    assert seen.disabled


def test_a_revoked_key_is_refused_within_sixty_seconds(store: WorkspaceStore) -> None:
    old, new = (key_hash(key) for key in ("rk_old", "rk_new"))
    store.put(dataclasses.replace(ACME, api_key_hashes=frozenset({old, new})))
    clock = Clock()
    cache = WorkspaceCache(store, 60, clock.seconds)
    for key in ("rk_old", "rk_new"):
        assert authorized_workspace(cache, "acme", key)
    store.update("acme", lambda seen: dataclasses.replace(seen, api_key_hashes=frozenset({new})))
    clock.advance(60)
    with pytest.raises(RequestRefusedError):
        authorized_workspace(cache, "acme", "rk_old")
    assert authorized_workspace(cache, "acme", "rk_new")


def test_a_new_workspace_is_seen_within_sixty_seconds(store: WorkspaceStore) -> None:
    clock = Clock()
    cache = WorkspaceCache(store, 60, clock.seconds)
    assert cache.get("acme") is None
    store.create(ACME)
    assert cache.get("acme") is None
    clock.advance(60)
    assert cache.get("acme") == ACME


class Counting:
    """A store of nothing that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get(self, workspace_id: str) -> Workspace | None:
        self.asked.append(workspace_id)
        return None


def test_a_flood_of_unknown_ids_is_remembered_only_so_far() -> None:
    counting = Counting()
    cache = WorkspaceCache(cast(WorkspaceStore, counting), 60, Clock().seconds)
    most = 0
    for number in range(5_000):
        cache.get(f"invented-{number}")
        most = max(most, len(cache._entries))
    assert most <= 1_001
    assert len(counting.asked) == 5_000


def test_a_thousand_workspaces_are_remembered() -> None:
    counting = Counting()
    cache = WorkspaceCache(cast(WorkspaceStore, counting), 60, Clock().seconds)
    for number in [*range(1_000), *range(1_000)]:
        cache.get(f"workspace-{number}")
    assert len(counting.asked) == 1_000


def test_one_unknown_id_is_asked_for_once() -> None:
    counting = Counting()
    cache = WorkspaceCache(cast(WorkspaceStore, counting), 60, Clock().seconds)
    for _ in range(100):
        assert cache.get("unknown") is None
    assert counting.asked == ["unknown"]


def test_a_failed_read_is_not_remembered(store: WorkspaceStore, client: OneAtATime) -> None:
    class Failing(WorkspaceStore):
        failing = True

        def get(self, workspace_id: str) -> Workspace | None:
            if self.failing:
                raise StoreUnclearError("ReadTimeoutError")
            return super().get(workspace_id)

    store.create(ACME)
    failing = Failing(cast(Any, client), TABLE)
    cache = WorkspaceCache(failing, 60, Clock().seconds)
    with pytest.raises(StoreUnclearError):
        cache.get("acme")
    failing.failing = False
    assert cache.get("acme") == ACME
