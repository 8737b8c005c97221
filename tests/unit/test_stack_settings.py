"""A real LiveKit is called through its own trunk from its own numbers, never from the stand-in's."""

from __future__ import annotations

import pytest

from local.errors import StackError
from local.livekit_settings import check_real_livekit, from_numbers

REAL = {
    "LIVEKIT_URL": "wss://example.livekit.cloud",
    "LIVEKIT_API_KEY": "APIkey",
    "LIVEKIT_API_SECRET": "secret",
    "SIP_TRUNK_ID": "ST_1",
    "FROM_NUMBERS": "+493012345678, +12025550123",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in REAL:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_real_livekit_no_setting_is_needed(environment: pytest.MonkeyPatch) -> None:
    check_real_livekit()
    environment.setenv("FROM_NUMBERS", "+12025550123")
    assert from_numbers() == ("+15550009999",)


def test_a_real_livekit_with_all_settings_is_accepted(environment: pytest.MonkeyPatch) -> None:
    for name, value in REAL.items():
        environment.setenv(name, value)
    check_real_livekit()
    assert from_numbers() == ("+493012345678", "+12025550123")
    environment.setenv("FROM_NUMBERS", "+49 (0)30 12345678")
    assert from_numbers() == ("+493012345678",)


@pytest.mark.parametrize("name", ["FROM_NUMBERS", "SIP_TRUNK_ID", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"])
@pytest.mark.parametrize("value", [None, "", " ", ","])
def test_a_missing_setting_of_a_real_livekit_is_named(
    environment: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    for given, text in REAL.items():
        environment.setenv(given, text)
    if value is None:
        environment.delenv(name)
    else:
        environment.setenv(name, value)
    with pytest.raises(StackError, match=f"LIVEKIT_URL is set, but {name} not"):
        check_real_livekit()


@pytest.mark.parametrize("numbers", ["12025550123", "+12025550123,x", "+1 1 202 555 0123"])
def test_invalid_from_numbers_are_named(environment: pytest.MonkeyPatch, numbers: str) -> None:
    for given, text in (REAL | {"FROM_NUMBERS": numbers}).items():
        environment.setenv(given, text)
    with pytest.raises(StackError, match="FROM_NUMBERS: each must"):
        check_real_livekit()
