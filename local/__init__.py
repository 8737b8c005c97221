"""The local stack: the whole system in processes of one machine, without Docker or accounts.

stack.py            `make run`: starts all of it and ends with it; demo.py is `make demo`
processes.py        how processes are started, watched and ended; signals.py, ports.py beside it
state_folder.py     the stack's folder and its `stack.json`; stack_lock.py: one stack in a folder, `make stop`
emulated_aws.py     the emulator; aws_client.py: its clients
deployment.py       template.yaml, adapted by template_for_emulator.py, on it; warm_up.py starts the functions
lambda_triggers.py  invokes functions in the emulator's place, with stream_poller.py
api_gateway.py      the API's plain address; docs_page.py: its description as a page
livekit_settings.py a real LiveKit or its stand-in (livekit/)
receiver.py         the webhook receiver
demo_workspace.py   the workspace that every stack has
console/            the page that shows the stack at work
process_hooks/      imported into every process at its start: ends it, kills it where asked, logs its steps
http_server.py      runs one of the servers as a process
dashboard.py        the dashboard without AWS
sam_local.py        `sam local` against a running stack
"""
