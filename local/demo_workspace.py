"""The workspace `demo` of every local stack.

It has the policies of infra/policies/, so that a call or a preview can name one, and none named `default`: a call
that names none rings at any hour.
"""

from __future__ import annotations

import hashlib
import os
import time

from local.aws_client import aws_client
from local.livekit_settings import from_numbers, listed, real_livekit
from local.processes import Running


def write_workspace(running: Running) -> None:
    """Writes the workspace `demo` with the id, key and webhook secret in `info`, and the numbers' marker."""
    from admin import policy_input
    from shared.clock import now_ms
    from shared.limits import LimitStore
    from shared.numbers import NumberStore, ensure_marker
    from shared.workspaces import Workspace, WorkspaceStore

    info = running.info
    dynamodb, tables = aws_client("dynamodb", info["awsEndpointUrl"]), info["resources"]
    limits = LimitStore(dynamodb, tables["WorkspacesTable"])
    ensure_marker(limits, NumberStore(dynamodb, tables["NumbersTable"]), now_ms())
    store = WorkspaceStore(dynamodb, tables["WorkspacesTable"])
    store.put(
        Workspace(
            workspace_id=info["workspaceId"],
            name="Demo",
            agent_name=os.environ.get("AGENT_NAME", "outbound-caller"),
            sip_trunk_id=os.environ["SIP_TRUNK_ID"] if real_livekit() else "ST_localstandin",
            from_numbers=from_numbers(),
            api_key_hashes=frozenset({hashlib.sha256(info["apiKey"].encode()).hexdigest()}),
            allowed_calling_codes=frozenset((listed("CALLING_CODES") if real_livekit() else []) or ["+1"]),
            max_concurrent_calls=50,
            calls_per_minute=60_000,
            calls_per_second=10,
            webhook_secrets=(info["webhookSecret"],),
            policies={name: policy_input.read(name).policy(name, 1) for name in policy_input.templates()},
            created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
    )
