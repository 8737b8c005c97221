"""LiveKit's errors that do not come from the carrier; those are made by `wire.sip_failure`.

Sources: livekit/sip `pkg/sip/outbound.go`, `pkg/sip/errors.go`; livekit/livekit `pkg/service/roommanager.go`.
"""

from __future__ import annotations

from local.livekit.wire import Failure, rpc_failure

CANCELED = rpc_failure("canceled", "sip request timed out")
DEADLINE = rpc_failure("deadline_exceeded", "request timed out")
NOT_PUBLISHED = rpc_failure("internal", "update room failed: timed out publishing track")
NO_NODE = rpc_failure("unavailable", "no response from servers")
RATE_LIMITED = Failure("resource_exhausted", "rate limit exceeded")
NO_TRUNK = Failure("not_found", "requested sip trunk does not exist")
NO_JOIN = rpc_failure("internal", "update room failed: could not join")
LONG_IDENTITY = rpc_failure(
    "internal", "update room failed: participant identity length exceeds limits: max length 256"
)
TRUNK_DNS = rpc_failure(
    "invalid_argument",
    'fail to resolve target for "sip.example.com": '
    "lookup _sip._udp.sip.example.com on 192.0.2.53:53: no such host",
)
TRUNK_REFUSED = rpc_failure(
    "failed_precondition", "transport<TCP> dial err=dial tcp :0->127.0.0.1:5060: connect: connection refused"
)
TRUNK_SILENT = rpc_failure("canceled", "transaction failed to complete (0 intermediate responses)")
NO_CODEC = rpc_failure("failed_precondition", "common audio codec not found")
TRUNK_AUTH = rpc_failure(
    "failed_precondition", "sip server required auth, but no username or password was provided"
)
NO_NODES = Failure("unknown", "could not find any available nodes")
