"""Authorization of requests for a workspace."""

from __future__ import annotations

import dataclasses
import hmac
from typing import cast

import pytest

from shared.authorization import authorized_workspace
from shared.errors import RequestRefusedError
from shared.workspaces import Workspace, WorkspaceCache, key_hash

ACME = Workspace("acme", "Acme", "outbound", "ST_1", ())


class Known:
    """A cache that knows one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def get(self, workspace_id: str) -> Workspace | None:
        return self._workspace if workspace_id == self._workspace.workspace_id else None


def allowed(workspace: Workspace, workspace_id: str | None = "acme", api_key: str | None = None) -> int:
    """The status of the answer: 200 when allowed."""
    try:
        found = authorized_workspace(cast(WorkspaceCache, Known(workspace)), workspace_id, api_key)
    except RequestRefusedError as refused:
        return refused.status
    assert found == workspace
    return 200


def with_keys(*keys: str, **changes: bool) -> Workspace:
    return dataclasses.replace(ACME, api_key_hashes=frozenset(map(key_hash, keys)), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "status"), [("rk_a", 200), ("rk_b", 200), ("rk_c", 401), ("", 401), (None, 401)]
)
def test_each_of_two_keys_opens_and_nothing_else(given: str | None, status: int) -> None:
    assert allowed(with_keys("rk_a", "rk_b"), api_key=given) == status


@pytest.mark.parametrize("workspace", [with_keys("rk_a", "rk_b"), ACME], ids=["with keys", "closed"])
def test_a_missing_key_is_told_from_a_wrong_one(workspace: Workspace) -> None:
    """That none was sent its sender knows. Of a wrong one nothing is said."""

    def refused(api_key: str | None) -> tuple[str, str]:
        with pytest.raises(RequestRefusedError) as refusal:
            authorized_workspace(cast(WorkspaceCache, Known(workspace)), "acme", api_key)
        return refusal.value.code, refusal.value.message

    missing = "The API key is missing: send it as x-api-key, or as Authorization: Bearer"
    assert {refused(None), refused("")} == {("invalid_api_key", missing)}
    wrong = {refused(key) for key in ("rk_c", "rk_", "rk_a ", "x" * 9000, "\udcff", key_hash("rk_a"))}
    assert wrong == {("invalid_api_key", "The API key is wrong")}


@pytest.mark.parametrize("given", [None, "", "rk_a"])
def test_a_workspace_without_keys_is_closed(given: str | None) -> None:
    assert allowed(ACME, api_key=given) == 401


@pytest.mark.parametrize("given", [None, "", "rk_a"])
def test_an_open_workspace_without_keys_asks_for_none(given: str | None) -> None:
    assert allowed(dataclasses.replace(ACME, open=True), api_key=given) == 200


def test_an_open_workspace_with_keys_asks_for_one() -> None:
    workspace = with_keys("rk_a", open=True)
    assert allowed(workspace) == 401
    assert allowed(workspace, api_key="rk_a") == 200


def test_a_stored_hash_is_not_a_key() -> None:
    assert allowed(with_keys("rk_a"), api_key=key_hash("rk_a")) == 401


def test_a_disabled_workspace_is_refused_with_its_key() -> None:
    assert allowed(with_keys("rk_a", disabled=True), api_key="rk_a") == 403


@pytest.mark.parametrize(("workspace_id", "status"), [(None, 400), ("", 400), ("other", 403), ("acme#slots", 403)])
def test_an_id_that_is_none_is_refused(workspace_id: str | None, status: int) -> None:
    assert allowed(with_keys("rk_a"), workspace_id, "rk_a") == status


def test_only_what_may_be_an_id_is_looked_up() -> None:
    """A `#` could be the key of another item of the table; a text without an end could be any cost."""
    asked: list[str] = []

    class Asked(Known):
        def get(self, workspace_id: str) -> Workspace | None:
            asked.append(workspace_id)
            return super().get(workspace_id)

    for workspace_id in (
        "other",
        "w" * 64,
        "w" * 65,
        "caf\u00e9",
        "\u0661",
        "a\n",
        "a\x7f",
        "acme#slots",
        "w" * 65 + "#",
    ):
        with pytest.raises(RequestRefusedError, match="unknown"):
            authorized_workspace(cast(WorkspaceCache, Asked(ACME)), workspace_id, None)
    assert asked == ["other", "w" * 64]


def test_a_key_that_is_no_text_is_refused_like_any_wrong_one() -> None:
    assert allowed(with_keys("rk_a"), api_key="\udcff") == 401


def test_how_long_it_takes_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hash in force is compared, in constant time, whichever of them is the right one."""
    compared: list[set[str]] = []
    compare = hmac.compare_digest

    def note(given: str, known: str) -> bool:
        compared[-1].add(known)
        return compare(given, known)

    monkeypatch.setattr("hmac.compare_digest", note)
    workspace = with_keys("rk_a", "rk_b", "rk_c")
    for key in ("rk_a", "rk_b", "rk_c", "rk_d", None):
        compared.append(set())
        allowed(workspace, api_key=key)
    assert compared == [set(workspace.api_key_hashes)] * 5
