"""The chat page in a real browser, driven by the keyboard where a person could."""

from __future__ import annotations

import re
import threading

import httpx
import pytest

from lmworks.inference.chat import ScriptedChat

pytestmark = pytest.mark.browser

ANSWER = """A **model** reads `tokens`:

- one
- two

```python
x = '<b>1</b>'
```

<img src=x onerror=alert(1)>"""
LONG = " ".join(f"word{i}" for i in range(400))
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(live_server):
    models = {
        "quick": ScriptedChat([ANSWER]),
        "slow": ScriptedChat([LONG], delay_s=0.05),
        "wide": ScriptedChat(["W" * 300 + "\n\n```\n" + "w " * 300 + "\n```"]),
        "failing": ScriptedChat(lambda messages: 1 / 0),
    }
    with live_server(models) as server:
        yield server


@pytest.fixture(autouse=True)
def opened(request):
    """Each test that takes `page` finds the chat in it."""
    if "page" in request.fixturenames:
        open_page(request.getfixturevalue("page"), request.getfixturevalue("site"))


def open_page(page, site):
    page.goto(site.url + "/")
    page.wait_for_selector("#model option", state="attached")


def ask(page, text, model=None):
    if model:
        page.select_option("#model", model)
    page.fill("#input", text)
    page.keyboard.press("Enter")


def shows(page, text):
    answer(page).locator(".body", has_text=text).wait_for()


def answer(page):
    return page.locator(".message.assistant").last


def test_an_answer_is_rendered_as_nodes_and_never_as_html(page):
    ask(page, "What <i>is</i> it?", "quick")
    page.wait_for_selector(".foot")
    assert page.input_value("#input") == ""
    assert page.locator(".message.user").inner_text() == "What <i>is</i> it?"
    assert answer(page).locator("strong").inner_text() == "model"
    assert answer(page).locator("li").all_inner_texts() == ["one", "two"]
    assert answer(page).locator("pre code").inner_text() == "x = '<b>1</b>'"
    assert answer(page).locator("img, pre b").count() == 0
    assert "<img src=x onerror=alert(1)>" in answer(page).inner_text()
    assert re.search(r"\d+ tokens · [\d.]+ tokens/s", answer(page).inner_text())


def test_tokens_arrive_one_by_one_and_stop_keeps_what_came(page, site):
    ask(page, "Tell me", "slow")
    shows(page, "word3")
    early = answer(page).inner_text()
    assert "word399" not in early
    shows(page, "word8")
    assert page.get_attribute("#log", "aria-busy") == "true"
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("text=stopped")
    stopped = answer(page).inner_text()
    assert stopped.startswith(early.strip()[:20]) and "word200" not in stopped
    page.wait_for_timeout(300)
    assert answer(page).inner_text() == stopped
    assert site.app.state.service.metrics.by_model["slow"].in_flight == 0
    assert page.evaluate("document.activeElement.id") == "input"


def test_a_reload_keeps_the_conversation_and_a_new_chat_forgets_it(page, site):
    ask(page, "Remember this", "quick")
    page.wait_for_selector(".foot")
    before = page.locator("#log").inner_text()
    open_page(page, site)
    assert page.locator("#log").inner_text() == before
    assert page.input_value("#model") == "quick"
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0
    open_page(page, site)
    assert page.locator(".message").count() == 0


def test_a_reload_in_mid_stream_keeps_what_came(page, site):
    ask(page, "Tell me", "slow")
    shows(page, "word30")
    open_page(page, site)
    assert "word30" in answer(page).inner_text()
    assert page.locator("#act").get_attribute("aria-label") == "Send"


def test_keyboard_only(page):
    assert page.evaluate("document.activeElement.id") == "input"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#input") == "one\ntwo"
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    assert page.locator(".message").count() == 0  # nothing to send
    seen = []
    for _ in range(8):
        page.keyboard.press("Shift+Tab")
        seen.append(page.evaluate("document.activeElement.id"))
        if seen[-1] == "model":
            break
    assert {"theme", "open-settings", "new", "model"} <= set(seen)
    page.keyboard.type("slow")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "temperature"
    page.keyboard.press("Home")
    assert page.inner_text("#temperature-shown") == "0.0"
    page.keyboard.press("Escape")
    assert page.is_hidden("#settings")
    assert page.evaluate("document.activeElement.id") == "open-settings"
    page.focus("#input")
    page.keyboard.type("go")
    page.keyboard.press("Enter")
    shows(page, "word3")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=stopped")


def test_settings_reach_the_server_and_stay(page, site):
    page.click("#open-settings")
    page.fill("#max-tokens", "3")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    with page.expect_request("**/chat/completions") as request:
        ask(page, "Tell me", "quick")
    sent = request.value.post_data_json
    assert (sent["max_tokens"], sent["model"]) == (3, "quick")
    page.wait_for_selector("text=cut at the longest answer")
    open_page(page, site)
    assert page.input_value("#max-tokens") == "3"


def test_errors_are_shown_as_text(page):
    ask(page, "x", "failing")
    page.wait_for_selector(".failure")
    assert "ZeroDivisionError" in page.inner_text(".failure")
    ask(page, "y", "quick")
    page.wait_for_selector(".foot")


def test_a_server_that_is_gone(browser, live_server):
    context = browser.new_context()
    page = context.new_page()
    with live_server({"quick": ScriptedChat(["x"])}) as server:
        open_page(page, server)
    ask(page, "still there?")
    page.wait_for_selector("text=The server can't be reached")
    context.close()


def test_nonsense_in_the_storage_is_no_obstacle(page, site):
    for nonsense in ("{", "[]", "null", '{"messages": [1, {"role": "x"}], "maxTokens": "y"}'):
        page.evaluate("text => localStorage.setItem('lmworks.chat', text)", nonsense)
        open_page(page, site)
        assert page.locator(".message").count() == 0
        assert page.input_value("#max-tokens") == "512"


def test_a_phone_has_no_sideways_scroll(page):
    page.set_viewport_size(PHONE)
    ask(page, "U" * 200, "wide")
    page.wait_for_selector(".foot")
    for selector in ("html", "main"):
        wider = "e => e.scrollWidth > e.clientWidth"
        assert not page.locator(selector).evaluate(wider), selector
    page.click("#open-settings")
    box = page.locator("#settings").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


def test_light_and_dark_follow_the_system_and_the_toggle(page, site):
    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="light")
    light = background()
    page.emulate_media(color_scheme="dark")
    dark = background()
    assert light != dark
    page.click("#theme")
    assert background() == light
    open_page(page, site)
    assert background() == light


def test_copy(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "x", "quick")
    page.get_by_role("button", name="Copy the answer").click()
    page.locator("#status", has_text="Copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == ANSWER


def test_two_tabs_do_not_wait_for_each_other(site):
    def stream():
        body = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "max_tokens": 10}
        httpx.post(site.url + "/v1/chat/completions", json=body | {"stream": True}, timeout=20)

    threads = [threading.Thread(target=stream) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert httpx.get(site.url + "/health", timeout=2).status_code == 200
    for thread in threads:
        thread.join()
