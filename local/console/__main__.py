"""`python -m local.console`: the console as a process. Prints one line `READY {"url": ...}`.

The variable RINGONCE_CONSOLE holds what the stack says of itself (`local.stack`), as JSON.
"""

from __future__ import annotations

import json
import os

from local.console.event_sources import Stack
from local.console.server import create_app
from local.http_server import serve

if __name__ == "__main__":
    serve(create_app(Stack.from_info(json.loads(os.environ["RINGONCE_CONSOLE"]))), port=0)
