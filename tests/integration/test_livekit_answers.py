"""Every answer LiveKit can give to a dial, over the real wire: what the unmodified client makes of it, what the
worker concludes, and how the call ends.

The expectations are written out here, from LiveKit's sources (livekit/protocol livekit/sip.go, livekit/sip
pkg/sip/errors.go) and RFC 3261, so that neither the stand-in nor the code is held against itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from shared.errors import LiveKitError, LiveKitUnclearError, LiveKitUnreachableError
from shared.limits import LimitStore
from shared.livekit.client import LiveKit, connect
from shared.livekit.outcomes import is_configuration_fault, uncoded_outcome, verdict
from shared.livekit.secret import LiveKitSecret
from tests.interleaving import change_durations
from tests.system import DEADLINE_SECONDS, LIVEKIT_KEY, LIVEKIT_SECRET, System

# ── SIP codes ───────────────────────────────────────────────────────────────────────────────────────

# What the SIP service answers by itself, with the trunk's credentials. Without any it fails, and tells no code.
CREDENTIALS = {401, 407}
TWIRP = {
    ("resource_exhausted", 429): {440, 480, 486, 600},
    ("permission_denied", 403): {402, 403, 433, 470, 603, 607, 608},
    ("unauthenticated", 401): {428, 436, 437, 438, 494},
    ("not_found", 404): {301, 302, 404, 410, 481, 604},
    ("deadline_exceeded", 408): {408, 504},
    ("aborted", 409): {487, 491},
    ("out_of_range", 400): {416},
    ("failed_precondition", 412): CREDENTIALS | {409, 412, 482, 483} | set(range(500, 600)) - {504, 505, 513},
}
ENDS = {
    ("busy", "busy"): {486, 600},
    ("no_answer", "no_answer"): {408, 480, 487},
    ("rejected", "rejected"): {433, 470, 603, 607, 608},
    ("failed", "invalid_number"): {301, 302, 404, 410, 416, 484, 485, 604},
    ("failed", "trunk_error"): {401, 402, 403, 407, 494},
}


async def dial(livekit: LiveKit, number: str, room: str) -> LiveKitError | None:
    try:
        await livekit.dial(
            room=room,
            identity="call-x",
            trunk_id="ST_1",
            to=number,
            from_number=None,
            ring_seconds=60,
            longest_seconds=120,
            timeout=DEADLINE_SECONDS,
        )
    except LiveKitError as exc:
        return exc
    return None


def dial_all(system: System, numbers: list[str], **secret: str) -> list[LiveKitError | None]:
    """Side by side, as the worker does it; each number in a room of its own."""
    given = {"url": system.servers.livekit_url, "api_key": LIVEKIT_KEY, "api_secret": LIVEKIT_SECRET} | secret

    async def all_of_them() -> list[LiveKitError | None]:
        async with connect(lambda: LiveKitSecret(**given), DEADLINE_SECONDS) as livekit:
            return await asyncio.gather(*(dial(livekit, number, f"room-{number}") for number in numbers))

    return asyncio.run(all_of_them())


def test_every_sip_code_is_told_by_livekit_and_understood(system: System) -> None:
    codes = range(300, 700)
    system.faults(ringSeconds=0.01)
    errors = dial_all(system, [f"+1555000{code:04}" for code in codes])
    for code, error in zip(codes, errors, strict=True):
        assert error is not None, code
        told = next((answer for answer, listed in TWIRP.items() if code in listed), ("invalid_argument", 400))
        assert (error.code, error.http_status) == told
        assert error.sip_status_code == (None if code in CREDENTIALS else code)
        judged = verdict(error)
        if code in CREDENTIALS:
            assert judged.kind == "over"
            assert is_configuration_fault(uncoded_outcome(error.code, {"reason": "USER_REJECTED"}))
            continue
        end = next((end for end, listed in ENDS.items() if code in listed), ("failed", "carrier_error"))
        assert judged.kind == "end"
        assert judged.outcome is not None
        seen = (judged.outcome.status, judged.outcome.reason, judged.outcome.sip_status_code)
        assert seen == (*end, code)
        assert is_configuration_fault(judged.outcome) == (code in ENDS["failed", "trunk_error"])
        if 500 <= code < 600:
            assert judged.outcome.retryable
    assert len(system.calls_placed()) == len(codes)


# ── the table of what can happen, as whole calls ────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """fate: what the stand-in does with the number. rings: INVITEs sent."""

    what: str
    fate: str
    status: str
    reason: str
    sip: int | None = None
    rings: int = 1
    configuration: bool = False
    retryable: bool = False


ROWS = [
    Row("busy", "busy", "busy", "busy", 486, retryable=True),
    Row("busy everywhere", "sip_600", "busy", "busy", 600, retryable=True),
    Row("declined, or blocked as fraud by the carrier", "rejected", "rejected", "rejected", 603),
    Row("temporarily unavailable", "temporarily_unavailable", "no_answer", "no_answer", 480, retryable=True),
    Row("number not found", "invalid_number", "failed", "invalid_number", 404),
    Row("number gone", "sip_410", "failed", "invalid_number", 410),
    Row("number exists nowhere", "sip_604", "failed", "invalid_number", 604),
    Row("incomplete number", "sip_484", "failed", "invalid_number", 484),
    Row("no answer within the ringing time", "no_answer", "no_answer", "no_answer", retryable=True),
    Row("the carrier's 408", "sip_408", "no_answer", "no_answer", 408, retryable=True),
    Row("the carrier's 504", "sip_504", "failed", "carrier_error", 504, retryable=True),
    Row("trunk silent", "trunk_silent", "failed", "trunk_error", retryable=True),
    Row("trunk's DNS name wrong", "trunk_dns", "failed", "trunk_error", configuration=True),
    Row("trunk refuses the connection", "trunk_refused", "failed", "trunk_error", configuration=True),
    Row("trunk wants other credentials", "trunk_auth", "failed", "trunk_error", configuration=True),
    Row("trunk answers 403", "sip_403", "failed", "trunk_error", 403, configuration=True),
    Row("carrier's 500", "sip_500", "failed", "carrier_error", 500, retryable=True),
    Row("carrier's 502", "sip_502", "failed", "carrier_error", 502, retryable=True),
    Row("carrier's 503", "carrier_error", "failed", "carrier_error", 503, retryable=True),
    Row("trunk's limit of calls a second", "cps_limit", "failed", "carrier_error", 503, retryable=True),
    Row("no codec in common", "codec_mismatch", "failed", "trunk_error", configuration=True),
    Row("trunk unknown", "unknown_trunk", "failed", "trunk_error", rings=0, configuration=True),
    Row("the phone cannot join the room", "join_failed", "failed", "livekit_error", rings=0, retryable=True),
    Row("no agent came", "agent_never_joins", "failed", "agent_unavailable", rings=0, retryable=True),
    Row("answered, hung up by the callee", "answer", "completed", "hangup"),
]


def number_of(row: Row) -> str:
    return f"+1555030{ROWS.index(row):04}"


def test_every_row_of_livekits_table_ends_its_call_truthfully(
    system: System,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    system.faults(numbers={number_of(row): {"outcome": row.fate} for row in ROWS})
    ids: dict[str, str] = {}

    def run(rows: list[Row], ring: int, **changes: float) -> None:
        ids.update({row.what: system.place(number_of(row), ring_timeout_seconds=ring) for row in rows})
        with pytest.MonkeyPatch.context() as patch:
            change_durations(patch, system, "dial_worker", **changes)
            # The rows share a trunk, which some of their faults in a row would stop.
            patch.setattr(LimitStore, "note_trunk_fault", lambda *counted: None)
            system.run_until(lambda: all(map(system.ended, ids.values())))

    # Who ends because a time is over has little of it; all others ring for longer than the slowest machine takes.
    run([row for row in ROWS if row.fate == "no_answer"], 10)
    run([row for row in ROWS if row.fate == "agent_never_joins"], 10, agent_wait=0.1)
    run([row for row in ROWS if row.what not in ids], 60, scale=1)
    for row in ROWS:
        item = system.item(ids[row.what])
        end = item["events"][-1]
        seen = (item["status"], end["reason"], end.get("sipStatusCode"), end["retryable"])
        assert seen == (row.status, row.reason, row.sip, row.retryable), row.what
        assert len(system.calls_placed(number_of(row))) == row.rings, row.what
        assert [entry["type"] for entry in item["events"]].count("call.ended") == 1
    faults = [vars(line)["call_id"] for line in caplog.records if line.message == "configuration fault"]
    assert sorted(faults) == sorted(ids[row.what] for row in ROWS if row.configuration)
    assert capsys.readouterr().out.count('"ConfigurationFaults":') == len(faults)


# ── what is not the callee's doing ──────────────────────────────────────────────────────────────────


def test_wrong_keys_are_a_configuration_fault_and_ring_nothing(system: System) -> None:
    for secret in ({"api_secret": "another-secret-of-at-least-thirty-two-characters"}, {"api_key": "other"}):
        [error] = dial_all(system, ["+15550000000"], **secret)
        assert error is not None
        assert (error.code, error.http_status) == ("unauthenticated", 401)
        assert is_configuration_fault(uncoded_outcome(error.code, None))
    assert system.calls_placed() == []


def test_wrong_keys_before_the_dial_raise_the_metric_and_the_call_is_tried_again(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    system.faults(createRoom={"fail": "text401", "times": 1})
    call_id = system.place()
    system.dial()
    assert "ConfigurationFaults" in capsys.readouterr().out
    system.run_until(lambda: system.ended(call_id))
    assert system.item(call_id)["status"] == "completed"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://livekit.invalid"])
def test_a_livekit_that_cannot_be_reached_is_told_from_one_that_did_not_answer(system: System, url: str) -> None:
    [error] = dial_all(system, ["+15550000000"], url=url)
    assert isinstance(error, LiveKitUnreachableError)
    assert verdict(error).kind == "unsent"


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        ("cut", "look"),
        ("hang", "look"),
        ("html502", "look"),
        ("text503", "look"),
        ("json503", "look"),
        ("list503", "look"),
        ("deadline_exceeded", "look"),
        ("unknown", "look"),
        ("data_loss", "look"),
        ("aborted", "look"),
        ("resource_exhausted", "look"),
        ("unavailable", "unsent"),
        ("canceled", "over"),
        ("failed_precondition", "over"),
    ],
)
def test_an_answer_that_is_not_livekits_own_word_is_an_unknown_outcome(
    system: System, fail: str, kind: str
) -> None:
    system.faults(createSIPParticipant={"fail": fail})

    async def one() -> Any:
        secret = LiveKitSecret(url=system.servers.livekit_url, api_key=LIVEKIT_KEY, api_secret=LIVEKIT_SECRET)
        async with connect(lambda: secret, 10) as livekit:
            try:
                await livekit.dial(
                    room="r",
                    identity="call-x",
                    trunk_id="ST_1",
                    to="+15550000000",
                    from_number=None,
                    ring_seconds=0.1,
                    longest_seconds=60,
                    timeout=0.2 if fail == "hang" else DEADLINE_SECONDS,
                )
            except LiveKitError as exc:
                return exc
            return None

    error = asyncio.run(one())
    assert verdict(error).kind == kind
    if fail in ("cut", "hang", "html502", "text503", "json503", "list503"):
        assert isinstance(error, LiveKitUnclearError)
