"""`python -m local.console`: the console as a process. Prints one line `READY {"url": ...}`.

`local.stack` starts it. The variable RINGONCE_CONSOLE holds the stack's addresses and keys, as JSON.
"""

from __future__ import annotations

import json
import os

from local.command_line import CommandLine
from local.console.event_sources import Stack
from local.console.server import create_app
from local.http_server import serve


def main() -> None:
    command = CommandLine(prog="python -m local.console", description="The console of a running local stack.")
    command.parse_args()
    try:
        stack = Stack.from_info(json.loads(os.environ["RINGONCE_CONSOLE"]))
    except (KeyError, TypeError, ValueError):
        command.error("RINGONCE_CONSOLE does not describe a stack: `make run` starts one with its console")
    serve(command, create_app(stack), port=0)


if __name__ == "__main__":
    main()
