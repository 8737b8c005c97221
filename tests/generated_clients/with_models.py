"""Places and reads a call with the models of datamodel-code-generator, and reads a webhook that it is given."""

import json
import os
from enum import Enum

import httpx
from models import (
    AgentId,
    Call,
    CallAccepted,
    CallList,
    CallRequest,
    DynamicVariables,
    Error,
    JsonObject,
    PhoneNumber,
    SummaryData,
    SummaryReport,
    WebhookEvent,
)

api = httpx.Client(
    base_url=os.environ["API_URL"], headers={"x-workspace-id": "demo", "x-api-key": os.environ["API_KEY"]}
)
smallest = CallRequest(to=PhoneNumber("+12025550123"), call_agent_id=AgentId("agent-1"))
variables = {"firstName": "Ada", "openInvoices": 2, "balance": 129.5, "isMember": True, "nickname": None}
request = smallest.model_copy(
    update={
        "callback_url": "",
        "metadata": JsonObject.model_validate(
            {"orderId": "order-7", "tags": ["reminder", 2], "customer": {"vip": False}}
        ),
        "dynamic_variables": DynamicVariables.model_validate(variables),
    }
)
report = SummaryReport(
    type="agent.summary", data=SummaryData.model_validate({"text": "Ada will come.", "kept": True})
)


def sent(body: CallRequest) -> str:
    return body.model_dump_json(by_alias=True, exclude_unset=True)


def word(value: Enum | str | None) -> str | None:
    return str(value.value) if isinstance(value, Enum) else value


assert json.loads(sent(smallest)) == {"to": "+12025550123", "call_agent_id": "agent-1"}
# `null` in an optional field means that it is absent.
CallAccepted.model_validate_json(api.post("/v1/api/call", content=smallest.model_dump_json(by_alias=True)).text)
placed = CallAccepted.model_validate_json(api.post("/v1/api/call", content=sent(request)).text)
call = Call.model_validate_json(api.get(f"/v1/api/call/{placed.callId.root}").text)
page = CallList.model_validate_json(api.get("/v1/api/call", params={"limit": 1}).text)
missing = Error.model_validate_json(api.get(f"/v1/api/call/{'0' * 24}").text)
refused = Error.model_validate_json(
    api.post("/v1/api/call", content=sent(smallest).replace("2025550123", "")).text
)
event = WebhookEvent.model_validate_json(os.environ["EVENT"])
print(
    json.dumps(
        {
            "status": call.status.value,
            "waiting": [word(call.waitingFor), call.earliestRingAt],
            "events": [word(entry.type.root) for entry in call.events],
            "order": call.metadata.model_dump()["orderId"] if call.metadata else None,
            "variables": call.dynamicVariables.model_dump() if call.dynamicVariables else None,
            "listed": [entry.callId == call.callId for entry in page.calls],
            "missing": word(missing.code),
            "refused": [error.field for error in refused.errors or []],
            "event": [word(event.type.root), event.sequence.root, word(event.data.endReason), event.metadata],
            "report": report.data.model_dump(),
        }
    )
)
