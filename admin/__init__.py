"""The operator's command: workspaces and their limits, keys, webhook secrets, calls and their webhooks, those that
wait, trunks, and the switch that stops all dialling.
"""
