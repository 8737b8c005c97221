"""LiveKit's secret cannot be read: only work that needs LiveKit waits."""

from __future__ import annotations

import json

import pytest

from tests.interleaving import change
from tests.system import LIVEKIT_KEY, LIVEKIT_SECRET, Context, System


@pytest.fixture
def unreadable(system: System) -> System:
    system.secrets.delete_secret(SecretId="ringonce/livekit", ForceDeleteWithoutRecovery=True)
    return system


def mend(system: System) -> None:
    secret = {"url": system.servers.livekit_url, "apiKey": LIVEKIT_KEY, "apiSecret": LIVEKIT_SECRET}
    system.secrets.create_secret(Name="ringonce/livekit", SecretString=json.dumps(secret))
    system.forget_workspaces()


def test_the_reconciler_expires_calls_and_brings_webhooks_back(unreadable: System) -> None:
    system = unreadable
    late, talking = system.place(), system.place()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["DialQueue"])
    change(system, late, queue_deadline_ms=1, check_at_ms=1)
    change(system, talking, status="in_progress", answered_at_ms=2**42, dialed_at_ms=1, attempts=1, check_at_ms=1)
    system.pump_stream()
    system.sqs.purge_queue(QueueUrl=system.queue_urls["WebhookQueue"])
    row = system.modules["calls_api"].deliveries.of_call(late)[0]
    assert system.modules["calls_api"].deliveries.postpone(row, 1)
    assert system.reconcile() == {"expires": 1, "ended": 1, "postponed": 1, "deliveries_sent_again": 1}
    assert system.item(late)["status"] == "expired"
    assert system.item(talking)["status"] == "in_progress"
    assert system.item(talking)["checkAt"] > 1


def test_a_batch_of_dials_is_not_lost_and_each_call_waits(unreadable: System) -> None:
    system = unreadable
    calls = [system.place("+15550000000") for _ in range(2)]
    # A batch failure would make this raise the receive count of messages that have no fault.
    answer = system.handlers["dial_worker"]({"Records": (records := system.receive("DialQueue"))}, Context(120))
    assert (len(records), answer) == (2, {"batchItemFailures": []})
    assert [system.item(call_id)["status"] for call_id in calls] == ["queued"] * 2
    assert all(system.item(call_id)["waitUntil"] for call_id in calls)
    mend(system)
    system.run_until(lambda: all(system.ended(call_id) for call_id in calls))
    assert len(system.calls_placed()) == 2


def test_a_cancel_is_accepted_and_the_reconciler_hangs_up_when_it_can(system: System) -> None:
    call_id = system.place("+15550000012")
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    system.secrets.delete_secret(SecretId="ringonce/livekit", ForceDeleteWithoutRecovery=True)
    system.forget_workspaces()
    assert system.api("POST /v1/api/call/{callId}/cancel", call_id)["statusCode"] == 200
    assert system.item(call_id)["hangup"]["reason"] == "canceled_by_api"
    mend(system)
    change(system, call_id, check_at_ms=1)

    def hung_up() -> bool:
        system.reconcile()
        return system.ended(call_id)

    system.run_until(hung_up)


def test_what_has_read_the_secret_once_goes_on_without_secrets_manager(system: System) -> None:
    call_id = system.place("+15550000012")
    system.run_until(lambda: system.item(call_id)["status"] == "in_progress")
    system.secrets.delete_secret(SecretId="ringonce/livekit", ForceDeleteWithoutRecovery=True)
    for module in system.modules.values():
        if hasattr(module, "livekit_secret"):
            module.livekit_secret._read_at = -1e9
    hangup = f"{system.servers.livekit_url}/_standin/hangup"
    system.http.post(hangup, json={"number": "+15550000012"}).raise_for_status()
    system.run_until(lambda: system.ended(call_id))
    assert system.item(call_id)["events"][-1]["reason"] == "hangup"
