"""A stand-in for a LiveKit server and for the telephone network behind its SIP trunk.

It speaks LiveKit's wire protocol to the unmodified `livekit-api` client, keeps rooms, participants and calls, and
sends signed webhooks. It has the original's hazards: a repeated dial rings a second time, a client that closes its
connection does not stop the call, and webhooks can be lost. The last four digits of the number dialled select the
script of a call (`scripts.SCRIPTS`). A control API under `/_standin/` (`control.py`) shows what happened, injects
faults (`faults.py`) and kills processes. Its answers and events are compared with a record of real servers
(`tests/integration/test_livekit_recorded.py`).

In process: `create_app(Settings(...))`; as a process: `python -m local.livekit`.
"""

from local.livekit.faults import Faults
from local.livekit.rooms import Settings
from local.livekit.server import create_app

__all__ = ["Faults", "Settings", "create_app"]
