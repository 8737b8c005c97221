"""The workspace `demo`, which every local stack has."""

from __future__ import annotations

import hashlib
import os
import time

from local.aws_client import aws_client
from local.livekit_settings import from_numbers, listed, real_livekit
from local.processes import Running


def write_workspace(running: Running) -> None:
    """Writes the workspace `demo`, as `info` says."""
    from shared.workspaces import Workspace, WorkspaceStore

    info = running.info
    store = WorkspaceStore(aws_client("dynamodb", info["awsEndpointUrl"]), info["resources"]["WorkspacesTable"])
    store.put(
        Workspace(
            workspaceId=info["workspaceId"],
            name="Demo",
            agentName=os.environ.get("AGENT_NAME", "outbound-caller"),
            sipTrunkId=os.environ["SIP_TRUNK_ID"] if real_livekit() else "ST_localstandin",
            fromNumbers=from_numbers(),
            apiKeyHashes=frozenset({hashlib.sha256(info["apiKey"].encode()).hexdigest()}),
            allowedCallingCodes=frozenset((listed("CALLING_CODES") if real_livekit() else []) or ["+1"]),
            maxConcurrentCalls=50,
            callsPerMinute=60_000,
            callsPerSecond=10,
            webhookSecrets=(info["webhookSecret"],),
            createdAt=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
    )
