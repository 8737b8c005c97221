"""The local stack: the whole system in processes of one machine, without Docker or accounts.

stack.py            `make run`: starts all of it and ends with it; demo.py is `make demo`
processes.py        starts, watches and ends processes; signals.py, ports.py
command_line.py     the errors and types of the options of `python -m local.*`
state_folder.py     the stack's folder and its `stack.json`; stack_lock.py: one stack per folder, `make stop`
emulated_aws.py     the emulator; aws_client.py: its clients
deployment.py       deploys template.yaml, adapted by template_for_emulator.py; warm_up.py starts the functions
lambda_triggers.py  invokes functions in place of the emulator, with stream_poller.py
api_gateway.py      serves the API at an address without a path; docs_page.py: its description as a page
livekit_settings.py selects a real LiveKit or its stand-in (livekit/)
receiver.py         the webhook receiver
demo_workspace.py   the workspace of every local stack
console/            the page that places calls and shows their timelines
process_hooks/      imported by every process at its start: ends it with the stack, injects kills, logs its steps
http_server.py      runs an aiohttp application as a process
dashboard.py        the dashboard without AWS
sam_local.py        `sam local` against a running stack
"""
