"""The operator's command: workspaces and their limits, keys, webhook secrets, calls and their webhooks, and the
switch that stops all dialling.
"""
