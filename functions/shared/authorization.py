"""Authorization of a request for a workspace: the same rule for every route that a client calls."""

from __future__ import annotations

import hmac

from shared.errors import RequestRefusedError, workspace_not_allowed
from shared.http_api import Event, header
from shared.workspaces import Workspace, WorkspaceCache, key_hash


def authorized_workspace(workspaces: WorkspaceCache, workspace_id: str | None, api_key: str | None) -> Workspace:
    """The workspace this request may act for. Raises RequestRefusedError: 400 no id, 401 key, 403 workspace."""
    if not workspace_id:
        raise RequestRefusedError(400, "missing_workspace", "The header x-workspace-id is required")
    known = workspace_id.isascii() and workspace_id.isprintable() and len(workspace_id) <= 64
    workspace = workspaces.get(workspace_id) if known and "#" not in workspace_id else None
    if workspace is None or workspace.disabled:
        raise workspace_not_allowed()
    if workspace.api_key_hashes or not workspace.open:
        given = key_hash(api_key or "")
        # Every hash is compared, each in constant time: the response time reveals nothing about a key.
        if sum(hmac.compare_digest(given, known) for known in workspace.api_key_hashes) == 0:
            # That none was sent its sender may know. Of a wrong one nothing is said.
            how = "wrong" if api_key else "missing: send it as x-api-key, or as Authorization: Bearer"
            raise RequestRefusedError(401, "invalid_api_key", f"The API key is {how}")
    return workspace


def key_of(workspace: Workspace, api_key: str | None) -> dict[str, str]:
    """The key with which an authorized request was made, for the record of what it changed: its id, as `admin key
    list` shows it, and its label if it has one. Empty for a workspace that needs no key.
    """
    hashed = key_hash(api_key or "")
    if hashed not in workspace.api_key_hashes:
        return {}
    label = workspace.key_notes.get(hashed, {}).get("label")
    return {"key": hashed[:8]} | ({} if label is None else {"label": label})


def api_key(event: Event) -> str | None:
    """`x-api-key`, or `Authorization: Bearer`."""
    return header(event, "x-api-key") or bearer_token(event)


def bearer_token(event: Event) -> str | None:
    """The token of `Authorization: Bearer <token>`, None for another scheme or without the header."""
    scheme, _, token = (header(event, "authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
