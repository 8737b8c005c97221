"""The console in a real browser: what a developer does with it, and the requests that it refuses.

Screenshots are written to `.local/screenshots/`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from shared.dynamo import to_wire
from shared.policies import Policy, Window
from tests.e2e.client import Client
from tests.e2e.launch import END_SECONDS, ROOT, eventually, launched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = ROOT / ".local" / "screenshots"
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
END_MS = END_SECONDS * 1000
HOSTILE = '<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">'
MILESTONES = [
    "POST",
    "accepted",
    "queued",
    "claimed",
    "room made",
    "agent joined",
    "fenced",
    "INVITE",
    "ringing",
    "picked up",
    "answered",
    "hung up",
    "ended",
]
WEBHOOKS = ["call.queued → 204", "call.dialing → 204", "call.answered → 204", "call.ended → 204"]
# Nothing rings under it for at least a day, wherever the callee is and however long these tests take.
CLOSED = Policy(
    "closed",
    windows=(Window(frozenset(range(7)), 8 * 60, 21 * 60),),
    holidays=frozenset(
        (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)).isoformat()
        for days in range(-1, 3)
    ),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        told = "no browser: `make test` installs Chromium (Debian, as root) and playwright"
        pytest.fail(told) if os.environ.get("RINGONCE_BROWSER") == "required" else pytest.skip(told)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A stack of its own, with short calls: its list contains only the calls of these tests."""
    with launched(tmp_path_factory.mktemp("console") / "state") as running, Client(running.info()) as client:
        faults = {"talkSeconds": 1.0, "ringSeconds": 0.8}
        client.livekit.put("/_standin/faults", json=faults).raise_for_status()
        add_policy(client, CLOSED)
        yield client


def add_policy(client: Client, policy: Policy) -> None:
    client.aws("dynamodb").update_item(
        TableName=client.info["resources"]["WorkspacesTable"],
        Key={"workspaceId": {"S": client.info["workspaceId"]}},
        UpdateExpression="SET policies.#name = :policy",
        ExpressionAttributeNames={"#name": policy.name},
        ExpressionAttributeValues=to_wire({":policy": policy.to_item()}),
    )


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    """The console's page, connected. A test fails when the page raises an error."""
    with opened(browser, client.info["consoleUrl"]) as page:
        yield page


@contextlib.contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(viewport=WIDE)
    context.set_default_timeout(END_MS)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#connection[data-state=live]")
    # Then the newest call is chosen, if there is any.
    page.wait_for_selector("#calls-state:not(:has-text('Asking'))", state="attached")
    yield page
    context.close()
    assert errors == []


@pytest.fixture(scope="module")
def killed(browser: Browser, client: Client) -> dict[str, str]:
    """The ids of a call whose worker is killed and of one whose sender is killed. They are placed early, because
    they end only after a lease."""
    with opened(browser, client.info["consoleUrl"]) as page:
        calls = {}
        for fault, to in (("after_post", "+15550000001"), ("after_fence", "+15550000000")):
            calls[fault] = place(page, to, fault)
            page.wait_for_selector(".rows [data-tone=bad] .what:text-is('killed')")
        page.wait_for_selector(".next:has-text('lease ends')")
    return calls


def choose(page: Page, call_id: str) -> None:
    page.click(f"#calls a[href='#/calls/{call_id}']")


def place(page: Page, to: str, fault: str = "", **more: str) -> str:
    """Fills in and submits the form; returns the call's id when the call is shown."""
    page.fill("#to", to)
    page.select_option("#fault", fault)
    if more:
        page.evaluate("document.getElementById('more').open = true")
    for name, text in more.items():
        page.fill(f"#{name}", text)
    before = page.url
    page.click("#place [type=submit]")
    page.wait_for_url(lambda url: url != before)
    page.wait_for_selector(".rows li")
    return str(page.url.rsplit("/", 1)[1])


def ended(page: Page, status: str) -> None:
    """Waits until the shown call has ended with this status and all its events are delivered."""
    page.wait_for_selector(f".head .badge[data-status={status}]")
    page.wait_for_selector(".promises li[data-state=kept] >> nth=2")


def steps(page: Page) -> list[str]:
    return [str(text) for text in page.locator(".rows .what").all_inner_texts()]


def promises(page: Page) -> list[str]:
    return [str(text) for text in page.locator(".promises .figure").all_inner_texts()]


def pictures(page: Page, name: str) -> None:
    """Takes screenshots in light and dark, at the width of a desktop and of a phone."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for size in (WIDE, PHONE):
        page.set_viewport_size(size)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.screenshot(path=PICTURES / f"{name}-{scheme}-{size['width']}.png", full_page=True)
    page.set_viewport_size(WIDE)


def test_a_stack_without_calls_says_what_to_do(page: Page) -> None:
    page.wait_for_selector("#calls-state:has-text('No calls yet')")
    assert page.locator("#call-title").inner_text() == "Nothing has happened yet"
    pictures(page, "empty")


def test_a_call_is_shown_from_its_request_to_its_last_webhook_and_a_reload_keeps_it(page: Page) -> None:
    place(page, "+15550000012")
    page.wait_for_selector(".rows .what:text-is('answered')")
    page.click("button:text-is('Callee hangs up')")
    ended(page, "completed")
    shown = steps(page)
    # On a busy machine a worker may have to try again before the fence, and webhooks need not come in order.
    assert [step for step in dict.fromkeys(shown) if step in MILESTONES] == MILESTONES
    assert set(WEBHOOKS) <= set(shown)
    times = [int(text.replace(",", "")) for text in page.locator(".rows .at").all_inner_texts()]
    assert times == sorted(times)
    assert times[0] == 0
    assert promises(page) == ["rang once", "ended once", "4 of 4 delivered"]
    page.reload()
    ended(page, "completed")
    assert steps(page) == shown
    page.check("#every")
    page.wait_for_selector(".rows .what:text-is('slot taken')")
    assert set(shown) < set(steps(page))


def set_slots(client: Client, slots: int) -> None:
    client.aws("dynamodb").update_item(
        TableName=client.info["resources"]["WorkspacesTable"],
        Key={"workspaceId": {"S": client.info["workspaceId"]}},
        UpdateExpression="SET maxConcurrentCalls = :slots",
        ExpressionAttributeValues={":slots": {"N": str(slots)}},
    )


def test_the_line_shows_who_waits_for_what_and_a_timeline_when_each_was_admitted(
    page: Page, client: Client
) -> None:
    set_slots(client, len(client.active_calls()) + 1)
    # It talks until it is hung up.
    page.fill("#times", "4")
    place(page, "+15550000012")
    page.wait_for_selector(".waiting tbody tr >> nth=2")
    assert page.locator("#line-count").inner_text() == "3 wait"
    first = page.locator(".waiting tbody tr").first
    assert first.locator("[data-why]").inner_text() == "slot"
    waiting = str(first.locator("a").get_attribute("href")).rpartition("/")[2]
    assert client.call(waiting)["waitingFor"] == "slot"
    first.locator("a").click()
    page.wait_for_selector(".head:has-text('waits for a slot')")
    page.wait_for_selector(".rows .what:text-is('in the line')")
    page.wait_for_selector(".next:has-text('its time in the line is over')")
    assert page.locator(".waiting [aria-current=true]").count() == 1
    pictures(page, "line")
    page.click("#tab-api")
    page.wait_for_selector('#panel:has-text(\'"waitingFor": "slot"\')')
    [talking] = eventually(
        lambda: client.read("/v1/api/call?status=in_progress")["calls"], "one of them is answered"
    )
    hang_up(client, talking["callId"])
    page.wait_for_selector(".rows .what:text-is('admitted')")
    admitted = page.locator(".rows .happened:has-text('admitted')").inner_text()
    assert "for the slot of the call to +15550000012" in admitted or "a slot is free" in admitted
    page.wait_for_selector(".rows .what:text-is('answered')")
    shown = steps(page)
    order = ["queued", "in the line", "admitted", "claimed", "INVITE"]
    assert [step for step in dict.fromkeys(shown) if step in order] == order
    page.wait_for_selector("#panel:has-text('\"waitingFor\": null')")
    page.set_viewport_size(PHONE)
    page.goto(client.info["consoleUrl"] + "#/")
    page.wait_for_selector(".waiting tbody tr")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.set_viewport_size(WIDE)
    pictures(page, "line-list")
    set_slots(client, 50)
    for call in client.read("/v1/api/call?limit=100")["calls"]:
        if call["endedAt"] is None:
            client.api.post(f"/v1/api/call/{call['callId']}/cancel").raise_for_status()
    page.wait_for_selector(".waiting tbody tr", state="detached")


def hang_up(client: Client, call_id: str) -> None:
    client.livekit.post("/_standin/hangup", json={"identity": f"call-{call_id}"}).raise_for_status()


def test_a_trunk_with_a_wrong_password_is_stopped_and_works_again_with_the_right_one(
    page: Page, client: Client
) -> None:
    page.check("#refuses")
    page.fill("#times", "3")
    refused = place(page, "+12025550123")
    ended(page, "failed")
    assert client.call(refused)["endReason"] == "trunk_error"
    page.wait_for_selector(".notice.trunk.bad")

    def one_waits() -> str | None:
        """One that comes after a stop tries the trunk and prolongs the next stop; one within it waits."""
        call_id = client.place("+12025550123")
        eventually(lambda: client.call(call_id)["waitingFor"] == "trunk" or client.call(call_id)["endedAt"], "")
        return call_id if client.call(call_id)["endedAt"] is None else None

    waits = eventually(one_waits, "a call waits for its trunk")
    page.wait_for_selector(".waiting [data-why=trunk]")
    pictures(page, "trunk")
    choose(page, str(waits))
    page.wait_for_selector(".rows .what:text-is('in the line')")
    page.uncheck("#refuses")
    # It waits behind the other, or is the one that tries the trunk.
    rings = client.place("+12025550123")
    choose(page, rings)
    ended(page, "completed")
    assert promises(page)[0] == "rang once"
    page.wait_for_selector(".notice.trunk", state="hidden")


def field_time(page: Page, hours: float) -> str:
    """The value of a field of local time, so many hours from now."""
    text = page.evaluate(
        """ms => {
            const date = new Date(Date.now() + ms);
            return new Date(date - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
        }""",
        hours * 3_600_000,
    )
    return str(text)


def gates(page: Page, box: str) -> dict[str, str]:
    """What each gate saw, by its name; `✓` before it if it passed, `✕` if not."""
    return {
        str(gate.locator(".name").evaluate("name => name.firstChild.data")): " ".join(
            (gate.locator(".mark").inner_text(), gate.locator(".saw").inner_text())
        )
        for gate in page.locator(f"{box} .gates li").all()
    }


def previewed(page: Page, name: str) -> None:
    """Pictures of the form with its preview, which a phone shows while no call is chosen."""
    page.evaluate("location.hash = '#/'")
    page.wait_for_selector(".call:not(.open)", state="attached")
    pictures(page, name)


def test_a_scheduled_call_is_previewed_placed_and_moved_and_then_rings(page: Page, client: Client) -> None:
    page.click("#rules summary")
    page.fill("#to", "+15550000001")
    scheduled = field_time(page, 1)
    page.fill("#scheduled_at", scheduled)
    before = len(client.read("/v1/api/call?limit=100")["calls"])
    page.click("#preview")
    page.wait_for_selector("#previewed .verdict:has-text('Placed now, it waits for its scheduled time.')")
    seen = gates(page, "#previewed")
    assert [name for name, saw in seen.items() if saw[0] != "✓"] == ["scheduled at"]
    assert seen["policy"] == "✓ none: it restricts nothing"
    assert len(client.read("/v1/api/call?limit=100")["calls"]) == before
    previewed(page, "preview-scheduled")

    call_id = place(page, "+15550000001")
    page.wait_for_selector(".waits:has-text('It waits for its scheduled time. It may ring in 5')")
    assert page.input_value("#scheduled_at") == ""
    assert page.locator("#previewed").is_hidden()
    page.click("#tab-gates")
    page.wait_for_selector("#panel:has-text('has not been dialled')")
    at = client.call(call_id)["scheduledAt"]
    page.click("button:text-is('Move')")
    assert page.input_value("#move-at") == scheduled
    pictures(page, "move")
    page.fill("#move-at", field_time(page, -1))
    page.click("button:text-is('Move the call')")
    page.wait_for_selector(".body > .error:has-text('scheduled_at has passed')")
    page.fill("#move-at", field_time(page, 30))
    page.click("button:text-is('Move the call')")
    page.wait_for_selector(".rows .what:text-is('moved')")
    assert page.locator("form[aria-label='Move the call']").is_hidden()
    assert client.call(call_id)["scheduledAt"] > at
    assert promises(page)[0] == "has not rung"
    page.click("button:text-is('Move')")
    page.click("button:text-is('As soon as allowed')")
    ended(page, "busy")
    assert promises(page)[0] == "rang once"
    order = ["POST", "queued", "PATCH", "moved", "claimed", "INVITE", "ended"]
    assert [step for step in dict.fromkeys(steps(page)) if step in order] == order
    # The receipt is there as soon as it rings.
    page.wait_for_selector("#panel:has-text('The ring receipt')")
    receipt = gates(page, "#panel")
    assert [name.replace(" ", "_") for name in receipt] == [
        gate["name"] for event in client.call(call_id)["events"] for gate in event.get("gates", ())
    ]
    assert {saw[0] for saw in receipt.values()} == {"✓"}
    assert re.fullmatch(r"✓ none\nread at [0-9:.]{12}", receipt["suppression"])
    pictures(page, "receipt")


@pytest.mark.parametrize(
    ("number", "opens"),
    [
        ("+16022530123", "08:00 in America/Phoenix"),
        # Of Newfoundland, or of Labrador, half an hour behind: open when it is open in both.
        ("+17097220123", "08:00 in America/Halifax; {day}, 08:30 in America/St_Johns"),
    ],
)
def test_a_preview_says_when_each_number_may_ring_in_the_callees_time(
    page: Page, client: Client, number: str, opens: str
) -> None:
    page.click("#rules summary")
    page.fill("#to", number)
    page.wait_for_selector("#purpose-help:has-text('There is closed, own-customers, us-telemarketing.')")
    page.fill("#purpose", CLOSED.name)
    page.fill("#expires_at", field_time(page, 24))
    page.click("#preview")
    page.wait_for_selector("#expires_at-error:has-text('is too early')")
    page.fill("#expires_at", field_time(page, 24 * 5))
    page.click("#preview")
    page.wait_for_selector("#previewed .verdict:has-text('it waits for its calling hours')")
    first = datetime.date.fromisoformat(max(CLOSED.holidays)) + datetime.timedelta(days=1)
    day = f"{first:%a} {first.day} {first:%b}"
    opens = f"{day}, {opens.format(day=day)}"
    assert f", from {opens}." in page.locator("#previewed .verdict").inner_text()
    assert f"opens {opens}" in gates(page, "#previewed")["calling window"]
    previewed(page, f"preview-{number[1:]}")
    call_id = place(page, number)
    page.wait_for_selector(f".waits:has-text(', from {opens}.')")
    assert client.call(call_id)["waitingFor"] == "calling_window"
    pictures(page, f"waits-{number[1:]}")
    page.click("button:text-is('Cancel')")
    ended(page, "canceled")
    page.click("#tab-gates")
    page.wait_for_selector("#panel:has-text('there is no receipt')")
    page.fill("#purpose", "")


def test_a_suppressed_number_is_refused_until_the_suppression_is_removed(page: Page, client: Client) -> None:
    number = "+14155550177"
    call_id = place(page, number)
    ended(page, "completed")
    page.click("button:text-is('Suppress number')")
    offered = page.locator("#suppress-scope option").evaluate_all("all => all.map(one => one.value)")
    assert offered == ["all", "default", "closed", "own-customers", "us-telemarketing"]
    page.fill("#suppress-reason", "asked for it " + HOSTILE)
    pictures(page, "suppress")
    page.click("button:text-is('Suppress')")
    note = page.locator(".suppressed li")
    note.wait_for()
    [stored] = client.read(f"/v1/api/suppression/{number}")["suppressions"]
    assert (stored["scope"], stored["reason"]) == ("all", "asked for it " + HOSTILE)
    assert f"Suppressed for all calls: “asked for it {HOSTILE}”" in note.inner_text()
    assert f"by the API key {stored['by']['keyId']}" in note.inner_text()
    page.fill("#to", number)
    page.click("#place [type=submit]")
    page.wait_for_selector("#to-error:has-text('is suppressed')")
    assert page.locator("#refused").inner_text() == "Refused with 403 number_suppressed"
    page.click("#preview")
    page.wait_for_selector("#to-error:has-text('is suppressed')")
    pictures(page, "suppressed")
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.set_viewport_size(WIDE)
    page.reload()
    page.click("button[aria-label='Remove the suppression for all']")
    page.wait_for_selector(".suppressed", state="hidden")
    assert client.read(f"/v1/api/suppression/{number}")["suppressions"] == []
    assert place(page, number) != call_id
    ended(page, "completed")


@pytest.mark.usefixtures("killed")
def test_a_call_that_a_client_placed_appears_by_itself(page: Page, client: Client) -> None:
    call_id = client.place("+15550000001", key="from-elsewhere")
    choose(page, call_id)
    ended(page, "busy")
    assert "busy" in page.locator(".head").inner_text()
    assert page.locator("#calls a[aria-current=true] .badge").inner_text() == "busy"


def test_a_webhook_can_be_sent_again_and_its_body_read(page: Page) -> None:
    place(page, "+15550000001", metadata='{"price": 1.0, "id": 12345678901234567890}')
    ended(page, "busy")
    page.click("#tab-webhooks")
    page.click("button[aria-label='Send again: call.ended']")
    page.wait_for_selector(".deliveries li:last-child .attempts li:nth-child(2)")
    page.wait_for_selector(".rows .what:text-is('call.ended came again')")
    page.click(".deliveries > li:last-child summary")
    body = page.locator(".deliveries > li:last-child .code").first.inner_text()
    assert '"price": 1.0' in body
    assert "12345678901234567890" in body
    assert "received 2 times" in page.locator(".deliveries > li:last-child summary").inner_text()


def test_a_calls_content_is_shown_as_text_only(page: Page, client: Client) -> None:
    carried = json.dumps({"note": HOSTILE, HOSTILE: "x" * 400})
    call_id = place(page, "+15550000001", metadata=carried, dynamic_variables=json.dumps({"firstName": HOSTILE}))
    ended(page, "busy")
    for tab in ("record", "webhooks", "logs", "api"):
        page.click(f"#tab-{tab}")
        if tab == "webhooks":
            page.click(".deliveries > li:first-child summary")
        if tab != "logs":
            page.wait_for_selector(f"#panel >> text={HOSTILE[:20]}")
        page.set_viewport_size(PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab
        page.set_viewport_size(WIDE)
    assert page.locator("body script, img").count() == 0
    assert page.evaluate("window.pwned") is None
    assert client.call(call_id)["metadata"] == json.loads(carried)


def test_a_refused_request_names_its_field(page: Page) -> None:
    page.fill("#to", "+442071838750")
    page.click("#place [type=submit]")
    page.wait_for_selector("#to-error:has-text('may not call')")
    assert page.evaluate("document.activeElement.id") == "to"
    page.fill("#to", "+15550000001")
    page.click("#more summary")
    page.fill("#metadata", '{"open": ')
    page.click("#place [type=submit]")
    page.wait_for_selector("#metadata-error:has-text('is not JSON')")
    assert page.get_attribute("#metadata", "aria-invalid") == "true"
    assert page.locator("#to-error").is_hidden()


def test_a_fault_of_the_phone_can_be_chosen_and_reset(page: Page, client: Client) -> None:
    number = "+14155550123"
    place(page, number, fault="phone_busy")
    ended(page, "busy")
    page.click(f"button[aria-label='Reset {number}']")
    page.wait_for_selector("#overrides", state="hidden")
    assert client.livekit.get("/_standin/faults").json()["numbers"] == {}


def test_an_endpoint_that_fails_at_first_gets_the_event_again(page: Page, client: Client) -> None:
    call_id = place(page, "+15550000001", fault="endpoint_503")
    ended(page, "busy")
    assert any(step.endswith("→ 503") for step in steps(page))
    assert any(step.endswith("came again") for step in steps(page))
    # Other calls' webhooks are answered as before.
    path = httpx.URL(client.call(call_id)["callbackUrl"]).path
    assert path.startswith("/hook/")
    assert {event["path"] for event in client.received(call_id)} == {path}


def test_retries_are_one_line_that_the_keyboard_unfolds(page: Page, client: Client) -> None:
    def answer(behaviour: dict[str, Any] | None) -> None:
        client.receiver.put("/_receiver/behaviour", json={"/folded": behaviour}).raise_for_status()

    answer({"status": 503})
    place(page, "+15550000001", callback_url=f"{client.info['receiverUrl']}/folded")
    page.wait_for_selector(".rows summary:has-text('attempts failed')")
    answer(None)
    ended(page, "busy")
    line = next(step for step in steps(page) if "attempts failed" in step)
    kind, attempts, *_ = line.split()
    assert f"{kind.rstrip(':')} → 503" not in steps(page)
    row = page.locator(f".rows details:has-text('{line}')")
    assert row.locator("li").first.is_hidden()
    row.locator("summary").focus()
    page.keyboard.press("Enter")
    assert row.locator("li:has-text('→ 503')").count() == int(attempts)
    assert row.locator("li").first.is_visible()
    pictures(page, "retries")
    page.click("#tab-webhooks")
    retries = page.locator(".retries").first
    assert "503" in retries.locator("summary").inner_text()
    retries.locator("summary").focus()
    page.keyboard.press("Space")
    assert retries.locator("li").count() >= 2
    assert retries.locator("li").first.is_visible()
    pictures(page, "retries-webhooks")


def test_a_call_can_be_placed_and_read_without_a_mouse(page: Page) -> None:
    page.focus("#to")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("+15550000012")
    page.keyboard.press("Enter")
    page.wait_for_selector(".rows .what:text-is('answered')")
    page.focus("#tab-record")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-webhooks"
    assert page.get_attribute("#tab-webhooks", "aria-selected") == "true"
    # From the tabs back to the call's own buttons, in the order of the page.
    for _ in range(10):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.textContent") == "Callee hangs up":
            break
    page.keyboard.press("Enter")
    ended(page, "completed")


def test_only_the_page_itself_gets_an_answer_and_the_keys(client: Client) -> None:
    url, key = client.info["consoleUrl"], client.info["apiKey"]
    call = {"request": "{}", "fault": ""}
    with httpx.Client(base_url=url, timeout=END_SECONDS) as console:
        port = httpx.URL(url).port
        rebound, elsewhere = {"host": f"evil.example:{port}"}, {"origin": "http://evil.example"}
        for headers in (rebound, elsewhere, {"origin": "null"}, {"origin": f"https://127.0.0.1:{port}"}):
            refused = console.get("/setup", headers=headers)
            assert refused.status_code == 403
            assert key not in refused.text
            assert console.post("/calls", headers=headers, json=call).status_code == 403
            assert console.put("/suppression/+14155550123", headers=headers, json={}).status_code == 403
        assert console.get("/", headers=rebound).status_code == 403
        assert console.get("/setup", headers={"sec-fetch-site": "same-site"}).status_code == 403
        assert console.post("/calls", content="{}", headers={"content-type": "text/plain"}).status_code == 415
        assert console.post("/calls", headers={"origin": url}, json=call).json()["status"] == 400
        assert console.get("/setup", headers={"host": f"localhost:{port}"}).status_code == 200
        logs = [f"/logs/{name}" for name in console.get("/setup").json()["logs"]]
        for path in ("/", "/setup", "/page/console.js", *logs):
            answer = console.get(path)
            assert answer.status_code == 200, path
            assert (key in answer.text) is (path == "/setup"), path
            assert not any(name.startswith("access-control") for name in answer.headers)
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        with console.stream("GET", "/feed", headers={"origin": url}) as feed:
            assert key not in next(feed.iter_text())
        for path in ("/logs/..%2fstack.json", "/logs/%2e%2e%2f%2e%2e%2fstack", "/page/../server.py"):
            assert console.get(path).status_code in (403, 404), path


def test_a_call_whose_worker_is_killed_after_the_fence_does_not_ring_again_and_ends_once(
    page: Page, killed: dict[str, str]
) -> None:
    choose(page, killed["after_fence"])
    ended(page, "failed")
    shown = steps(page)
    assert shown.index("fenced") < shown.index("killed") < shown.index("ended")
    assert "INVITE" not in shown
    assert promises(page) == ["has not rung", "ended once", "3 of 3 delivered"]
    assert "killed" in page.locator("#calls a[aria-current=true]").inner_text()
    pictures(page, "killed")


def test_an_event_whose_sender_is_killed_after_the_post_is_sent_again_with_the_same_id(
    page: Page, killed: dict[str, str]
) -> None:
    choose(page, killed["after_post"])
    ended(page, "busy")
    shown = steps(page)
    assert "killed" in shown
    assert "call.queued came again" in shown
    assert promises(page)[2] == "3 of 3 delivered"


def test_an_older_call_can_be_chosen(page: Page) -> None:
    newest = page.url
    page.click("#calls a:has-text('completed') >> nth=-1")
    ended(page, "completed")
    assert [step for step in dict.fromkeys(steps(page)) if step in MILESTONES] == MILESTONES
    # The README has one of these pictures: no keys in it.
    page.click("#access summary")
    pictures(page, "answered")
    page.go_back()
    page.wait_for_url(newest)
    page.goto(page.url.partition("#")[0] + "#/")
    page.wait_for_selector("#call-title:text-is('Choose a call')")


def test_the_page_opens_with_the_newest_call_and_on_a_phone_with_the_list(
    browser: Browser, page: Page, client: Client
) -> None:
    newest = page.locator("#calls a").first
    assert page.url.endswith(newest.get_attribute("href") or "?")
    assert newest.get_attribute("aria-current") == "true"
    page.wait_for_selector(".rows > li")
    context = browser.new_context(viewport=PHONE)
    phone = context.new_page()
    phone.goto(client.info["consoleUrl"])
    phone.wait_for_selector("#calls a")
    phone.screenshot(path=PICTURES / "list-light-390.png", full_page=True)
    assert phone.locator("#place").is_visible()
    assert "#" not in phone.url
    context.close()


def test_the_page_shows_what_a_client_needs_and_links_the_apis_docs(page: Page, client: Client) -> None:
    shown = page.locator("#access").inner_text()
    for name in ("apiUrl", "workspaceId", "apiKey", "webhookSecret"):
        assert client.info[name] in shown, name
    address = page.get_attribute("#docs", "href")
    assert address == f"{client.info['apiUrl']}/docs"
    assert httpx.get(address, timeout=END_SECONDS).status_code == 200
    assert "waits 20x shorter" in page.locator("#pace").inner_text()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.focus("button[aria-label='Copy API key']")
    page.keyboard.press("Enter")
    page.wait_for_selector("button[aria-label='Copy API key']:text-is('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == client.info["apiKey"]


@contextlib.contextmanager
def console_of(info: dict[str, Any], log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Runs another console for a stack with this `info`; yields its address and process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "functions"), "RINGONCE_CONSOLE": json.dumps(info)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "local.console"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        ready = eventually(lambda: re.search(r'READY {"url": "(.*)"}\n', log.read_text()), "the console is ready")
        assert ready is not None
        yield ready[1], process
    finally:
        process.terminate()
        process.wait(END_SECONDS)


def test_with_a_real_livekit_the_page_says_so_and_still_works_until_its_stack_is_gone(
    browser: Browser, client: Client, tmp_path: Path
) -> None:
    real = client.info | {"liveKitStandIn": False}
    with console_of(real, tmp_path / "log") as (url, process), opened(browser, url) as page:
        assert page.locator("#real").is_visible()
        assert page.locator("#magic button").count() == 0
        assert page.locator("#fault option[value^=phone_]").count() == 0
        place(page, "+15550000001")
        page.wait_for_selector(".head .badge[data-status=busy]")
        assert {"claimed", "room asked for", "fenced", "dial sent", "ended"} <= set(steps(page))
        process.kill()
        page.wait_for_selector("#connection[data-state=lost]")
        assert page.locator("#trouble").is_visible()
        assert page.locator(".rows li").count() > 0
