"""The console in a real browser: its use by a developer, and access that it must refuse.

Pictures of it are left in `.local/screenshots/`.
"""

from __future__ import annotations

import contextlib
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
    """A stack of its own, with short calls: what the list holds is what these tests placed."""
    with launched(tmp_path_factory.mktemp("console") / "state") as running, Client(running.info()) as client:
        faults = {"talkSeconds": 1.0, "ringSeconds": 0.8}
        client.livekit.put("/_standin/faults", json=faults).raise_for_status()
        yield client


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    """The console's page, live. A test fails when the page has an error of its own."""
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
    yield page
    context.close()
    assert errors == []


@pytest.fixture(scope="module")
def killed(browser: Browser, client: Client) -> dict[str, str]:
    """A call whose worker, and one whose delivery, is killed by a planned fault: placed early, as their ends take
    as long as a lease."""
    with opened(browser, client.info["consoleUrl"]) as page:
        calls = {}
        for fate, to in (("after_post", "+15550000001"), ("after_fence", "+15550000000")):
            calls[fate] = place(page, to, fate)
            page.wait_for_selector(".rows [data-tone=bad] .what:text-is('killed')")
        page.wait_for_selector(".next:has-text('lease ends')")
    return calls


def choose(page: Page, call_id: str) -> None:
    page.click(f"#calls a[href='#/calls/{call_id}']")


def place(page: Page, to: str, fate: str = "", **more: str) -> str:
    """Fills in the form as a user does; the id of the call, as soon as it is shown."""
    page.fill("#to", to)
    page.select_option("#fate", fate)
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
    """Waits until the call has ended with this outcome and all of it is shown."""
    page.wait_for_selector(f".head .badge[data-status={status}]")
    page.wait_for_selector(".promises li[data-state=kept] >> nth=2")


def steps(page: Page) -> list[str]:
    return [str(text) for text in page.locator(".rows .what").all_inner_texts()]


def promises(page: Page) -> list[str]:
    return [str(text) for text in page.locator(".promises .figure").all_inner_texts()]


def pictures(page: Page, name: str) -> None:
    """The page in light and dark, on a desk and on a phone."""
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


def test_a_call_is_shown_from_its_request_to_its_last_webhook_and_a_reload_loses_nothing(page: Page) -> None:
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


def test_what_a_call_carries_stays_text(page: Page, client: Client) -> None:
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


def test_a_phones_fate_can_be_chosen_and_taken_back(page: Page, client: Client) -> None:
    number = "+14155550123"
    place(page, number, fate="phone_busy")
    ended(page, "busy")
    page.click(f"button[aria-label='Take back the fate of {number}']")
    page.wait_for_selector("#overrides", state="hidden")
    assert client.livekit.get("/_standin/faults").json()["numbers"] == {}


def test_an_endpoint_that_fails_at_first_gets_the_event_again(page: Page, client: Client) -> None:
    call_id = place(page, "+15550000001", fate="endpoint_503")
    ended(page, "busy")
    assert any(step.endswith("→ 503") for step in steps(page))
    assert any(step.endswith("came again") for step in steps(page))
    # Other calls' webhooks are answered as ever.
    path = httpx.URL(client.call(call_id)["callbackUrl"]).path
    assert path.startswith("/hook/")
    assert {event["path"] for event in client.received(call_id)} == {path}


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


def test_only_the_page_itself_may_ask_and_nobody_gets_the_key(client: Client) -> None:
    url, key = client.info["consoleUrl"], client.info["apiKey"]
    call = {"request": "{}", "fate": ""}
    with httpx.Client(base_url=url, timeout=END_SECONDS) as console:
        port = httpx.URL(url).port
        rebound, elsewhere = {"host": f"evil.example:{port}"}, {"origin": "http://evil.example"}
        for headers in (rebound, elsewhere, {"origin": "null"}, {"origin": f"https://127.0.0.1:{port}"}):
            assert console.get("/setup", headers=headers).status_code == 403
            assert console.post("/calls", headers=headers, json=call).status_code == 403
        assert console.get("/", headers=rebound).status_code == 403
        assert console.get("/setup", headers={"sec-fetch-site": "same-site"}).status_code == 403
        assert console.post("/calls", content="{}", headers={"content-type": "text/plain"}).status_code == 415
        assert console.post("/calls", headers={"origin": url}, json=call).json()["status"] == 400
        assert console.get("/setup", headers={"host": f"localhost:{port}"}).status_code == 200
        logs = [f"/logs/{name}" for name in console.get("/setup").json()["logs"]]
        for path in ("/", "/setup", "/page/console.js", *logs):
            answer = console.get(path)
            assert answer.status_code == 200, path
            assert key not in answer.text
            assert not any(name.startswith("access-control") for name in answer.headers)
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        with console.stream("GET", "/feed", headers={"origin": url}) as feed:
            assert key not in next(feed.iter_text())
        for path in ("/logs/..%2fstack.json", "/logs/%2e%2e%2f%2e%2e%2fstack", "/page/../server.py"):
            assert console.get(path).status_code in (403, 404), path


def test_a_worker_killed_after_the_fence_rings_nobody_twice_and_the_call_ends_once(
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


def test_a_delivery_killed_after_its_post_comes_again_under_the_same_id(
    page: Page, killed: dict[str, str]
) -> None:
    choose(page, killed["after_post"])
    ended(page, "busy")
    shown = steps(page)
    assert "killed" in shown
    assert "call.queued came again" in shown
    assert promises(page)[2] == "3 of 3 delivered"


def test_an_older_call_can_be_looked_at_again(page: Page) -> None:
    page.click("#calls a:has-text('completed') >> nth=-1")
    ended(page, "completed")
    assert [step for step in dict.fromkeys(steps(page)) if step in MILESTONES] == MILESTONES
    pictures(page, "answered")
    page.go_back()
    page.wait_for_selector("#call-title:text-is('Choose a call')")


@contextlib.contextmanager
def console_of(info: dict[str, Any], log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Another console, of a stack that describes itself as `info`."""
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
        assert page.locator("#fate option[value^=phone_]").count() == 0
        place(page, "+15550000001")
        page.wait_for_selector(".head .badge[data-status=busy]")
        assert {"claimed", "room asked for", "fenced", "dial sent", "ended"} <= set(steps(page))
        process.kill()
        page.wait_for_selector("#connection[data-state=lost]")
        assert page.locator("#trouble").is_visible()
        assert page.locator(".rows li").count() > 0
