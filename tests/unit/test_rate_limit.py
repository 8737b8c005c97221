"""The rate: never more calls in a minute than a workspace may place, however many processes accept them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from initiate_call.rate_limit import RateLimit
from shared.errors import RequestRefusedError, StoreError, StoreUnclearError
from shared.limits import LimitStore
from shared.workspaces import Workspace
from tests.workspaces_table import TABLE, OneAtATime, workspaces_table

MINUTE = 60_000
NOW = 29_000_000 * MINUTE + 18_500


@pytest.fixture(params=["moto", "memory"])
def client(request: pytest.FixtureRequest) -> Iterator[OneAtATime]:
    with workspaces_table(request.param) as client:
        yield client


@pytest.fixture
def store(client: OneAtATime) -> LimitStore:
    return LimitStore(cast(Any, client), TABLE)


def workspace(limit: int, workspace_id: str = "acme") -> Workspace:
    return Workspace(workspace_id, "Acme", "outbound", "ST_1", (), calls_per_minute=limit)


def accepted(process: RateLimit, limit: int, now: int = NOW, tries: int = 1, workspace_id: str = "acme") -> int:
    """How many of so many tries are let through."""
    count = 0
    for _ in range(tries):
        try:
            process.spend(workspace(limit, workspace_id), now)
        except RequestRefusedError:
            continue
        count += 1
    return count


@pytest.mark.parametrize("limit", [1, 2, 9, 10, 60, 600])
def test_one_process_may_spend_all_of_a_minute_and_no_more(store: LimitStore, limit: int) -> None:
    assert accepted(RateLimit(store), limit, tries=limit + 5) == limit


def test_most_calls_ask_nobody(store: LimitStore, client: OneAtATime) -> None:
    process = RateLimit(store)
    assert accepted(process, 60, tries=6) == 6
    assert client.requests == ["update_item"]
    client.requests.clear()
    assert accepted(process, 3000, NOW + MINUTE, tries=3000) == 3000
    assert len(client.requests) < 75


def test_a_refusal_asks_nobody_twice(store: LimitStore, client: OneAtATime) -> None:
    process = RateLimit(store)
    accepted(process, 5, tries=6)
    client.requests.clear()
    assert accepted(process, 5, tries=100) == 0
    assert client.requests == []


def test_processes_at_the_same_time_never_exceed_the_limit(store: LimitStore) -> None:
    processes = [RateLimit(store) for _ in range(16)]
    together = threading.Barrier(16)

    def run(process: RateLimit) -> int:
        together.wait(timeout=30)
        # Until it is refused: then it holds no permit that it has not spent.
        return accepted(process, 60, tries=61)

    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(run, processes)) == 60


def test_threads_of_one_process_never_exceed_the_limit(store: LimitStore) -> None:
    process = RateLimit(store)
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: accepted(process, 50, tries=20), range(8))) == 50


def test_a_burst_over_many_new_processes_is_let_through(store: LimitStore) -> None:
    """A process holds at most a tenth of the remaining permits unspent."""
    assert sum(accepted(RateLimit(store), 60) for _ in range(30)) == 30


def test_the_next_minute_has_all_again_for_every_process(store: LimitStore) -> None:
    one, other = RateLimit(store), RateLimit(store)
    assert accepted(one, 5, tries=3) + accepted(other, 5, tries=9) == 5
    end = (NOW // MINUTE + 1) * MINUTE
    assert accepted(other, 5, end - 1) == 0
    assert accepted(other, 5, end) + accepted(one, 5, end, tries=9) == 5


def test_what_was_not_spent_is_not_saved_up(store: LimitStore) -> None:
    process = RateLimit(store)
    accepted(process, 100)
    assert accepted(process, 100, NOW + MINUTE, tries=120) == 100


def test_a_clock_that_is_behind_opens_no_second_minute(store: LimitStore) -> None:
    ahead, behind = RateLimit(store), RateLimit(store)
    assert accepted(ahead, 5, NOW + MINUTE, tries=3) == 3
    assert accepted(behind, 5, NOW, tries=9) == 2
    assert accepted(behind, 5, NOW + MINUTE, tries=9) == 0


def test_workspaces_do_not_share_a_rate(store: LimitStore) -> None:
    process = RateLimit(store)
    assert accepted(process, 3, tries=9) == 3
    assert accepted(process, 3, tries=9, workspace_id="other") == 3


def test_a_limit_that_changes_holds_within_the_minute(store: LimitStore) -> None:
    process = RateLimit(store)
    assert accepted(process, 5, tries=9) == 5
    assert accepted(process, 8, tries=9) == 3
    assert accepted(process, 2, tries=9) == 0
    assert accepted(RateLimit(store), 2, tries=9) == 0
    assert accepted(process, 0, NOW + MINUTE, tries=9) == 0


def test_a_refusal_says_when_to_come_again(store: LimitStore) -> None:
    process = RateLimit(store)
    accepted(process, 3, tries=3)
    with pytest.raises(RequestRefusedError) as refused:
        process.spend(workspace(3), NOW)
    assert (refused.value.status, refused.value.code) == (429, "rate_limited")
    assert refused.value.headers == {
        "retry-after": "42",
        "ratelimit-policy": '"calls";q=3;w=60',
        "ratelimit": '"calls";r=0;t=42',
    }
    for left_ms, seconds in ((41_001, "42"), (41_000, "41"), (59_999, "60"), (1, "1")):
        with pytest.raises(RequestRefusedError) as later:
            process.spend(workspace(3), (NOW // MINUTE + 1) * MINUTE - left_ms)
        assert later.value.headers["retry-after"] == seconds, "never before the next minute begins"
    assert accepted(process, 3, NOW + 42_000) == 1


def test_a_permit_given_back_can_be_spent_in_its_minute_only(store: LimitStore) -> None:
    process = RateLimit(store)
    minutes = [process.spend(workspace(2), NOW) for _ in range(2)]
    process.give_back(workspace(2), minutes[0])
    assert accepted(process, 2, tries=9) == 1
    assert accepted(process, 2, NOW + MINUTE, tries=9) == 2
    process.give_back(workspace(2), minutes[0])
    assert accepted(process, 2, NOW + MINUTE, tries=9) == 0


def test_a_table_that_does_not_answer_lets_nobody_through(store: LimitStore, client: OneAtATime) -> None:
    process = RateLimit(store)
    client.lose = 1
    with pytest.raises(StoreUnclearError):
        process.spend(workspace(20), NOW)
    # The two permits whose answer was lost stay unused.
    assert accepted(process, 20, tries=30) == 18
    client.delete_table(TableName=TABLE)
    with pytest.raises(StoreError):
        process.spend(workspace(20), NOW + MINUTE)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_clocks_no_minute_has_more_than_its_limit(
    store: LimitStore, client: OneAtATime, seed: int
) -> None:
    chance = random.Random(seed)
    limit = chance.randint(1, 30)
    processes = [RateLimit(store) for _ in range(4)]
    spent: dict[int, int] = {}
    for turn in range(250):
        client.lose = chance.random() < 0.1
        try:
            # Clocks up to two minutes apart, and forward on the whole.
            of = chance.choice(processes).spend(workspace(limit), (turn // 60 + chance.randint(0, 2)) * MINUTE)
        except (RequestRefusedError, StoreUnclearError):
            continue
        finally:
            client.lose = 0
        spent[of] = spent.get(of, 0) + 1
    assert spent
    assert all(count <= limit for count in spent.values())
