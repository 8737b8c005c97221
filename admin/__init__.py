"""The operator's command: workspaces and their limits, keys, webhook secrets, and the switch that stops all
dialling.
"""
