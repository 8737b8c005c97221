"""A stand-in for a LiveKit server and for the telephone network behind its SIP trunk.

It speaks LiveKit's real wire protocol to the unmodified `livekit-api` client, keeps rooms, participants and
calls, sends signed webhooks, and is as unkind as the original: a repeated dial rings a second time, a client
that hangs up does not stop the call, and webhooks can be lost. The last four digits of the number dialled
decide what becomes of a call (`scripts.SCRIPTS`); a control API under `/_standin/` (`control.py`) shows what
happened, makes things fail (`faults.py`) and processes die. What it answers and tells is held against a record of
real servers (`tests/integration/test_livekit_recorded.py`).

In process: `create_app(Settings(...))`; as a process: `python -m local.livekit`.
"""

from local.livekit.faults import Faults
from local.livekit.rooms import Settings
from local.livekit.server import create_app

__all__ = ["Faults", "Settings", "create_app"]
