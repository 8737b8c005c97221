"""Places and reads a call with the client of openapi-python-client, and reads a webhook that it is given."""

import json
import os

from ringonce_client import AuthenticatedClient
from ringonce_client.api.calls import get_call, list_calls, place_call
from ringonce_client.models.call import Call
from ringonce_client.models.call_accepted import CallAccepted
from ringonce_client.models.call_list import CallList
from ringonce_client.models.call_request import CallRequest
from ringonce_client.models.dynamic_variables import DynamicVariables
from ringonce_client.models.error import Error
from ringonce_client.models.json_object import JsonObject
from ringonce_client.models.summary_data import SummaryData
from ringonce_client.models.summary_report import SummaryReport
from ringonce_client.models.webhook_event import WebhookEvent

api = AuthenticatedClient(
    base_url=os.environ["API_URL"], token=os.environ["API_KEY"], raise_on_unexpected_status=True
)
smallest = CallRequest(to="+12025550123", call_agent_id="agent-1")
request = CallRequest(
    to="+12025550123",
    call_agent_id="agent-1",
    callback_url="",
    metadata=JsonObject.from_dict({"orderId": "order-7", "tags": ["reminder", 2], "customer": {"vip": False}}),
    dynamic_variables=DynamicVariables.from_dict(
        {"firstName": "Ada", "openInvoices": 2, "balance": 129.5, "isMember": True, "nickname": None}
    ),
)
# What is not given is not sent: the API has its own defaults.
assert smallest.to_dict() == {"to": "+12025550123", "call_agent_id": "agent-1"}
data = SummaryData(text="Ada will come.")
data["kept"] = True
report = SummaryReport(type_="agent.summary", data=data)

placed = place_call.sync(client=api, body=request, x_workspace_id="demo")
assert isinstance(placed, CallAccepted)
call = get_call.sync(placed.call_id, client=api, x_workspace_id="demo")
assert isinstance(call, Call)
page = list_calls.sync(client=api, x_workspace_id="demo", limit=1)
assert isinstance(page, CallList)
missing = get_call.sync("0" * 24, client=api, x_workspace_id="demo")
assert isinstance(missing, Error)
smallest.to = "+1"
refused = place_call.sync(client=api, body=smallest, x_workspace_id="demo")
assert isinstance(refused, Error)
assert refused.errors
event = WebhookEvent.from_dict(json.loads(os.environ["EVENT"]))
print(
    json.dumps(
        {
            "status": call.status,
            "waiting": [call.waiting_for, call.earliest_ring_at],
            "events": [entry.type_ for entry in call.events],
            "order": call.metadata["orderId"] if call.metadata else None,
            "variables": call.dynamic_variables.to_dict() if call.dynamic_variables else None,
            "listed": [entry.call_id == call.call_id for entry in page.calls],
            "missing": missing.code,
            "refused": [error.field for error in refused.errors],
            "event": [event.type_, event.sequence, event.data.end_reason, event.metadata],
            "report": report.to_dict()["data"],
        }
    )
)
