"""One attempt at one webhook: whether it is made, what is stored of it, and what follows."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from shared.delivery_store import Delivery
from shared.durations import Durations
from shared.errors import StoreError
from shared.table_keys import RETENTION_SECONDS
from shared.workspaces import WorkspaceCache
from tests.one_call import CALL_ID, NOW, WORKSPACE, OneCall
from tests.simulation import SECRET
from webhook_dispatch.attempt import Attempted
from webhook_dispatch.deliver import DEATHS_FORGIVEN, Deliverer, what_follows

LEASE = 45_000
SCHEDULE = Durations().webhook_schedule


class Endpoint(OneCall):
    """An ended call whose first event's delivery is due. answer: of the endpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.workspaces.put(dataclasses.replace(WORKSPACE, webhook_secrets=(SECRET,)))
        events = ({"type": "call.queued", "at": NOW}, {"type": "call.dialing", "at": NOW + 400})
        self.place(callback_url="https://hooks.example/in", metadata='{"a": 1}', events=events)
        self.deliveries.create(CALL_ID, "demo", 1, NOW, NOW + 60_000)
        self.answer: Callable[[httpx.Request], httpx.Response]
        self.status(200)
        self.posted: list[httpx.Request] = []
        self.begun = 0

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert self.begun == len(self.posted) + 1
        self.posted.append(request)
        self.now += 250
        return self.answer(request)

    def deliver(self, sequence: int = 1) -> Delivery:
        def began() -> None:
            self.begun += 1

        async def attempt() -> None:
            async with httpx.AsyncClient(transport=httpx.MockTransport(self._answer)) as client:
                deliverer = Deliverer(
                    calls=self.calls,
                    deliveries=self.deliveries,
                    workspaces=WorkspaceCache(self.workspaces, 0),
                    webhook_queue=self.webhook_queue,
                    client=client,
                    durations=self.durations,
                    clock=lambda: self.now,
                )
                await deliverer.deliver(CALL_ID, sequence, began)

        asyncio.run(attempt())
        row = self.deliveries.get(CALL_ID, 1)
        assert row is not None
        return row

    def row(self, **attributes: Any) -> None:
        self.dynamodb.table("calls")[f"CALL#{CALL_ID}", "DELIVERY#0001"].update(attributes)

    def status(self, status: int, **headers: str) -> None:
        self.answer = lambda request: httpx.Response(status, headers=headers, stream=httpx.ByteStream(b"told"))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    return Endpoint(monkeypatch)


def test_an_event_that_is_taken_is_delivered(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.now = NOW + 1_000
    with caplog.at_level("INFO"):
        row = endpoint.deliver()
    [line] = [record.__dict__ for record in caplog.records if record.message == "webhook"]
    assert (line["call_id"], line["sequence"], line["attempt"], line["state"]) == (CALL_ID, 1, 1, "delivered")
    assert row.attempts == ({"at": NOW + 1_000, "ms": 250, "status": 200, "answer": "told"},)
    assert (row.state, row.attempt, row.begun, row.lease_id, row.check_at_ms) == ("delivered", 1, 0, None, None)
    [request] = endpoint.posted
    assert str(request.url) == "https://hooks.example/in"
    assert request.headers["webhook-id"] == f"evt_{CALL_ID}_1"
    assert request.headers["webhook-timestamp"] == str(NOW // 1000 + 1)
    assert request.headers["metadata"] == '{"a":1}'
    item = endpoint.dynamodb.table("calls")[f"CALL#{CALL_ID}", "DELIVERY#0001"]
    assert item["expiresAt"] == NOW // 1000 + 1 + RETENTION_SECONDS
    assert endpoint.counted == {"WebhookAttempts": 1, "WebhookDelay": 1_250}
    assert endpoint.webhook_queue.sent == []


def test_an_event_that_is_taken_after_a_replay_is_not_measured(endpoint: Endpoint) -> None:
    endpoint.row(replayed=True)
    assert endpoint.deliver().state == "delivered"
    assert endpoint.counted == {"WebhookAttempts": 1}


@pytest.mark.parametrize(
    "attributes",
    [{"nextAttemptAt": NOW + 1}, {"state": "delivered"}, {"leaseUntil": NOW, "leaseId": "other"}],
)
def test_what_is_not_due_is_not_posted(endpoint: Endpoint, attributes: dict[str, Any]) -> None:
    endpoint.row(**attributes)
    before = endpoint.deliveries.get(CALL_ID, 1)
    assert (endpoint.deliver(), endpoint.posted, endpoint.counted) == (before, [], {})
    assert endpoint.deliver(sequence=3) == before


# ── no POST ─────────────────────────────────────────────────────────────────────────────────────────


def ends(endpoint: Endpoint, state: str, error: str) -> None:
    row = endpoint.deliver()
    assert (row.state, endpoint.posted, endpoint.begun) == (state, [], 0)
    assert [attempt["error"] for attempt in row.attempts] == [error]
    assert endpoint.counted["WebhooksDead"] == (state == "dead")


@pytest.mark.parametrize("begun", [DEATHS_FORGIVEN, DEATHS_FORGIVEN + 1])
def test_an_event_that_kills_its_process_is_given_up_without_reading_its_call(
    endpoint: Endpoint, begun: int
) -> None:
    endpoint.row(begun=begun)
    del endpoint.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]["status"]
    ends(endpoint, "dead", "given up: attempt after attempt died before it could be noted")
    assert DEATHS_FORGIVEN == 100


def test_a_hundred_deaths_are_forgiven(endpoint: Endpoint) -> None:
    endpoint.row(begun=DEATHS_FORGIVEN - 1)
    assert endpoint.deliver().state == "delivered"


@pytest.mark.parametrize("gone", ["call", "callback", "event"])
def test_an_event_without_its_record_is_dead(endpoint: Endpoint, gone: str) -> None:
    item = endpoint.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]
    if gone == "call":
        del endpoint.dynamodb.table("calls")[f"CALL#{CALL_ID}", "CALL"]
    elif gone == "callback":
        del item["callbackUrl"]
    else:
        item["events"] = []
    ends(endpoint, "dead", "the call's record is gone")


@pytest.mark.parametrize("replayed", [False, True])
def test_a_receiver_that_wants_no_more_gets_what_is_replayed(endpoint: Endpoint, replayed: bool) -> None:
    endpoint.calls.stop_webhooks(CALL_ID, NOW)
    endpoint.row(replayed=replayed)
    if replayed:
        assert endpoint.deliver().state == "delivered"
    else:
        ends(endpoint, "stopped", "the receiver answered 410 to an earlier event")


@pytest.mark.parametrize(
    ("secrets", "error"),
    [((), "the workspace has no webhook secret"), (("x",), "the workspace's webhook secret is not valid")],
)
@pytest.mark.parametrize("there", [True, False])
def test_without_a_secret_the_event_waits(
    endpoint: Endpoint, secrets: tuple[str, ...], error: str, there: bool
) -> None:
    endpoint.workspaces.put(dataclasses.replace(WORKSPACE, webhook_secrets=secrets))
    if not there:
        endpoint.dynamodb.table("workspaces").clear()
        error = "the workspace has no webhook secret"
    ends(endpoint, "pending", error)


# ── a table that fails or is slow ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("slow", "posts"), [(LEASE - 15_001, True), (LEASE - 15_000, False)])
def test_a_post_that_could_outlive_its_lease_is_not_begun(endpoint: Endpoint, slow: int, posts: bool) -> None:
    endpoint.after(endpoint.calls, "get", endpoint.pass_to(NOW + slow))
    if posts:
        assert endpoint.deliver().state == "delivered"
        return
    with pytest.raises(StoreError, match=f"delivery 1 of call {CALL_ID}"):
        endpoint.deliver()
    row = endpoint.deliveries.get(CALL_ID, 1)
    assert row is not None
    assert (row.state, row.begun, row.lease_id, row.check_at_ms) == ("pending", 0, None, NOW + LEASE)
    assert endpoint.posted == []


@pytest.mark.parametrize("what", ["call", "workspace", "release too"])
def test_a_table_that_cannot_be_read_does_not_count_as_a_death(endpoint: Endpoint, what: str) -> None:
    def fails() -> None:
        raise StoreError("throttled")

    endpoint.before(endpoint.workspaces if what == "workspace" else endpoint.calls, "get", fails)
    if what == "release too":
        endpoint.before(endpoint.deliveries, "release", fails)
    with pytest.raises(StoreError, match="throttled"):
        endpoint.deliver()
    row = endpoint.deliveries.get(CALL_ID, 1)
    assert row is not None
    assert row.begun == (1 if what == "release too" else 0)


def test_an_attempt_whose_lease_was_lost_stores_and_sends_nothing(endpoint: Endpoint) -> None:
    endpoint.status(500)
    endpoint.before(endpoint.deliveries, "finish", lambda: endpoint.row(leaseId="other"))
    row = endpoint.deliver()
    assert (row.attempt, row.lease_id) == (0, "other")
    assert (endpoint.webhook_queue.sent, endpoint.counted) == ([], {})


# ── what follows ────────────────────────────────────────────────────────────────────────────────────


def test_410_stops_the_webhooks_before_the_row_says_so(endpoint: Endpoint) -> None:
    stopped: list[int | None] = []
    endpoint.before(endpoint.deliveries, "finish", lambda: stopped.append(endpoint.call.webhooks_stopped_at_ms))
    endpoint.status(410)
    row = endpoint.deliver()
    assert (row.state, stopped) == ("stopped", [NOW + 250])
    assert endpoint.counted == {"WebhookAttempts": 1}


@pytest.mark.parametrize(("attempt", "delay"), [(0, 5.25), (1, 315.0)])
def test_a_short_wait_has_a_message_and_a_long_one_the_reconciler(
    endpoint: Endpoint, attempt: int, delay: float
) -> None:
    endpoint.status(500)
    endpoint.row(attempt=attempt)
    row = endpoint.deliver()
    assert (row.state, row.attempt) == ("pending", attempt + 1)
    assert row.attempts == ({"at": NOW, "ms": 250, "status": 500, "answer": "told"},)
    assert row.next_attempt_at_ms == NOW + 250 + int(delay * 1000)
    grace = 60_000 if attempt == 0 else 0
    assert row.check_at_ms == row.next_attempt_at_ms + grace
    message: dict[str, Any] = {"callId": CALL_ID, "sequence": 1}
    assert endpoint.webhook_queue.sent == ([(message, "demo", delay)] if attempt == 0 else [])


def test_a_wait_of_a_minute_is_the_reconcilers(endpoint: Endpoint) -> None:
    endpoint.durations = Durations(webhook_schedule=(0, 40), webhook_message=42.0)
    endpoint.status(500)
    row = endpoint.deliver()
    assert (row.check_at_ms, endpoint.webhook_queue.sent) == (row.next_attempt_at_ms, [])


def test_the_last_attempt_leaves_a_dead_event(endpoint: Endpoint) -> None:
    endpoint.status(302, location="https://elsewhere")
    endpoint.row(attempt=len(SCHEDULE) - 1)
    row = endpoint.deliver()
    assert (row.state, row.check_at_ms) == ("dead", None)
    assert endpoint.counted == {"WebhookAttempts": 1, "WebhooksDead": 1}
    assert endpoint.webhook_queue.sent == []


def test_refusals_of_earlier_attempts_count(endpoint: Endpoint) -> None:
    endpoint.status(404)
    endpoint.row(attempt=2, attempts=[{"at": 1, "ms": 1, "status": 404}, {"at": 2, "ms": 1, "status": 400}])
    assert endpoint.deliver().state == "dead"


@pytest.mark.parametrize(
    ("status", "attempts", "earlier", "state", "delay"),
    [
        (200, 1, [], "delivered", None),
        (299, 1, [], "delivered", None),
        (199, 1, [], "pending", 5),
        (300, 1, [], "pending", 5),
        (410, 1, [], "stopped", None),
        (None, 1, [], "pending", 5),
        (None, 9, [], "pending", SCHEDULE[9]),
        (None, 10, [], "dead", None),
        (500, 3, [500, 500], "pending", SCHEDULE[3]),
        # Three refusals, with whatever in between; those before a replay do not count.
        (400, 1, [], "pending", 5),
        (400, 2, [400], "pending", SCHEDULE[2]),
        (499, 3, [400, 404], "dead", None),
        (400, 4, [400, None, 400], "dead", None),
        (500, 4, [400, 400, 400], "pending", SCHEDULE[4]),
        (400, 1, [400, 400], "pending", 5),
        (400, 2, [400, 400, 400], "pending", SCHEDULE[2]),
        (400, 3, [400], "pending", SCHEDULE[3]),
        *((status, 3, [status, status], "pending", SCHEDULE[3]) for status in (408, 409, 425, 429, 399, 500)),
        *((status, 3, [status, status], "dead", None) for status in (400, 404, 426, 428, 430, 499)),
    ],
)
def test_what_follows_an_attempt(
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    attempts: int,
    earlier: list[int | None],
    state: str,
    delay: float | None,
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: low * high)
    expected = delay and delay * 1.1
    assert what_follows(Attempted(status), attempts, earlier, Durations()) == (state, expected)


@pytest.mark.parametrize(
    ("asked", "scale", "delay"),
    [(None, 1, 5), (4, 1, 5), (6, 1, 6), (12, 0.5, 6), (90_000, 1, 86_400), (86_399, 1, 86_399)],
)
def test_a_receiver_may_ask_for_a_longer_wait(
    monkeypatch: pytest.MonkeyPatch, asked: float | None, scale: float, delay: float
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 1)
    attempted = Attempted(503, retry_after=asked)
    assert what_follows(attempted, 1, [], Durations(scale=scale)) == ("pending", delay)
