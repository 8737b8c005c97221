"""A page that places calls, lists them, and shows the timeline of one call through all parts of the local stack.

The stack does not depend on it: it reads the emulated table's stream, the feeds of LiveKit's stand-in and of the
webhook receiver, the functions' logs and the steps that `local/process_hooks` logs, and acts through the public
API.

    python -m local.console     started by local/stack.py
"""
