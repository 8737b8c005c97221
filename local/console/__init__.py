"""A page that shows the local stack at work: places calls, lists them, and lays one call's way through all parts
out in milliseconds.

It is a witness, not a part: it reads the emulated table's stream, the feeds of LiveKit's stand-in and of the
webhook receiver, the functions' logs and the steps that `local/process_hooks` notes, and acts through the public
API.

    python -m local.console     started by local/stack.py
"""
