"""A campaign in virtual time: `make simulate`, `python -m simulate`.

campaign.py            runs it: one or more deployments with a part of the calls each
plan.py                what happens, drawn from the seed: calls, opt-outs, pauses, changes of policies
world.py               a deployment: the product's own classes, and clients, callees and operators around it
ledger.py              what is noted beside the product, and what must hold
report.py              the table that is printed
process.py             invocations with faults (invocation.py), and queues in memory
livekit.py             LiveKit and phones in memory
dynamodb.py            DynamoDB in memory (dynamodb_in_memory.py), with its stream
virtual_time.py        the loop whose time jumps from one event to the next
"""
