"""The chat page in a real browser, driven by the keyboard where a person could: asking, stopping,
editing, versions, reloads."""

from __future__ import annotations

import re

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
        "echo": ScriptedChat(lambda messages: f"{len(messages)}: {messages[-1]['content']}"),
        "turns": ScriptedChat([f"answer number {n}" for n in range(1, 50)]),
        "failing": ScriptedChat(lambda messages: 1 / 0),
    }
    with live_server(models) as server:
        yield server


@pytest.fixture(autouse=True)
def opened(request):
    """Each test that takes `page` finds the chat in it."""
    if "page" in request.fixturenames:
        open_page(request.getfixturevalue("page"), request.getfixturevalue("site"))


def open_page(page, site, place=""):
    page.goto(site.url + "/" + place)
    page.reload()  # a change of the part after # alone loads nothing
    page.wait_for_selector("body[data-ready]")


def choose_model(page, name):
    page.click("#model")
    page.get_by_role("option", name=name).click()


def ask(page, text, model=None):
    if model:
        choose_model(page, model)
    page.fill("#input", text)
    page.keyboard.press("Enter")


def done(page):
    page.wait_for_selector("body:not([data-busy]) .message.assistant:last-child .foot")


def shows(page, text):
    answer(page).locator(".body", has_text=text).wait_for()


def answer(page):
    return page.locator(".message.assistant").last


def questions(page):
    return page.locator(".message.user .bubble").all_inner_texts()


def test_an_answer_is_rendered_as_nodes_and_never_as_html(page):
    ask(page, "What <i>is</i> it?", "quick")
    done(page)
    assert page.input_value("#input") == ""
    assert questions(page) == ["What <i>is</i> it?"]
    assert answer(page).locator("strong").inner_text() == "model"
    assert answer(page).locator("li").all_inner_texts() == ["one", "two"]
    assert answer(page).locator("pre code").inner_text() == "x = '<b>1</b>'"
    assert answer(page).locator("img, pre b").count() == 0
    assert "<img src=x onerror=alert(1)>" in answer(page).inner_text()
    assert re.search(r"\d+ tokens · [\d.,]+ tokens/s", answer(page).inner_text())
    assert page.locator(".entry.current .name").inner_text() == "What <i>is</i> it?"
    assert page.title() == "What <i>is</i> it? · lmworks"


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
    assert site.app.state.service.metrics.of("slow").in_flight == 0
    assert page.evaluate("document.activeElement.id") == "input"


def test_a_reload_keeps_the_conversation_and_a_new_chat_begins_empty(page, site):
    ask(page, "Remember this", "quick")
    done(page)
    before = page.locator("#log").inner_text()
    open_page(page, site, page.url.rpartition("/")[2])
    assert page.locator("#log").inner_text() == before
    assert page.inner_text("#model-name") == "quick"
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0
    open_page(page, site)
    assert page.locator(".message").count() == 0
    page.locator(".entry", has_text="Remember this").first.click()
    page.wait_for_selector(".message.assistant .foot")
    assert page.locator("#log").inner_text() == before


def test_a_reload_in_mid_stream_goes_on_with_the_running_answer(page, site):
    ask(page, "Tell me", "slow")
    shows(page, "word20")
    open_page(page, site, page.url.rpartition("/")[2])
    shows(page, "word40")
    assert answer(page).locator(".body").inner_text().startswith("word0 word1 word2 ")
    assert page.locator("#act").get_attribute("aria-label") == "Stop"
    page.keyboard.press("Escape")
    page.wait_for_selector("text=stopped")


def test_editing_a_question_makes_a_version_that_can_be_gone_back_to(page, site):
    ask(page, "first", "echo")
    done(page)
    page.keyboard.press("ArrowUp")  # in an empty message
    assert page.evaluate("document.activeElement.value") == "first"
    page.keyboard.press("End")
    page.keyboard.type(" edited")
    page.keyboard.press("Enter")
    shows(page, "1: first edited")
    done(page)
    assert questions(page) == ["first edited"]
    page.locator(".message.user").hover()
    page.locator(".message.user").get_by_role("button", name="Version before").click()
    page.wait_for_selector(".message.user .branch >> text=1/2")
    assert questions(page) == ["first"]
    assert page.locator(".message.user .branch").inner_text().strip() == "1/2"
    ask(page, "second")
    shows(page, "3: second")
    done(page)
    open_page(page, site, page.url.rpartition("/")[2])
    assert questions(page) == ["first", "second"]
    page.keyboard.press("Alt+ArrowRight")
    shows(page, "1: first edited")
    assert questions(page) == ["first edited"]


def test_answering_again_and_correcting_an_answer(page):
    ask(page, "a question", "turns")
    done(page)
    first = answer(page).locator(".body").inner_text()
    page.keyboard.press("Alt+r")
    page.wait_for_selector(".branch >> text=2/2")
    done(page)
    assert answer(page).locator(".body").inner_text() != first
    answer(page).get_by_role("button", name="Version before").click()
    shows(page, first)
    answer(page).hover()
    answer(page).get_by_role("button", name="Edit").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("as it should be")
    page.get_by_role("button", name="Save").click()
    shows(page, "as it should be")
    assert "edited by you" in answer(page).inner_text()
    assert answer(page).locator(".branch").inner_text().strip() == "3/3"
    answer(page).get_by_role("button", name="Edit").click()
    page.keyboard.type("x")
    page.keyboard.press("Escape")
    shows(page, "as it should be")


def test_several_conversations_search_rename_delete_and_undo(page, site):
    ask(page, "About zebras in the wild", "quick")
    done(page)
    page.keyboard.press("Control+Shift+O")
    ask(page, "About walruses at sea", "quick")
    done(page)
    names = page.locator(".entry .name").all_inner_texts()
    assert names[:2] == ["About walruses at sea", "About zebras in the wild"]
    page.keyboard.press("Control+k")
    page.keyboard.type("zebr")
    page.wait_for_selector(".entry:only-of-type .name >> text=zebras")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.wait_for_selector(".bubble >> text=About zebras in the wild")
    page.fill("#query", "reads tokens")
    page.locator(".entry .excerpt").first.wait_for()
    assert "reads" in page.locator(".entry mark").all_inner_texts()
    page.fill("#query", "")
    page.locator(".entry", has_text="walruses").wait_for()
    page.click("#open-more")
    page.get_by_role("menuitem", name="Rename").click()
    page.keyboard.type("Stripes <b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#title >> text=Stripes <b>")
    page.locator(".entry", has_text="Stripes <b>").wait_for()
    page.click("#open-more")
    page.get_by_role("menuitem", name="Delete").click()
    page.locator("#toast", has_text="Deleted").wait_for()
    assert page.locator(".entry", has_text="Stripes").count() == 0
    assert page.locator(".message").count() == 0
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(".bubble >> text=About zebras in the wild")
    page.locator(".entry.current", has_text="Stripes <b>").wait_for()
    page.go_back()
    page.wait_for_selector("#empty:not([hidden])")


def test_an_answer_goes_on_while_another_conversation_is_open(page):
    ask(page, "Long one", "slow")
    shows(page, "word5")
    page.click("#new")
    ask(page, "Short one", "quick")
    done(page)
    page.locator(".entry:has(.busy) .name", has_text="Long one").first.click()
    shows(page, "word30")
    assert answer(page).locator(".body").inner_text().startswith("word0 word1 word2 ")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=stopped")


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
    for _ in range(14):
        page.keyboard.press("Shift+Tab")
        seen.append(page.evaluate("document.activeElement.id"))
        if seen[-1] == "model":
            break
    assert {"attach", "open-memory", "open-settings", "open-more", "model"} <= set(seen)
    page.keyboard.press("Enter")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model-name >> text=slow")
    assert page.evaluate("document.activeElement.id") == "model"
    page.keyboard.press("Control+,")
    page.focus("#temperature")
    page.keyboard.press("Home")
    assert page.inner_text("#temperature-shown") == "0.0"
    page.keyboard.press("Escape")
    assert page.is_hidden("#panel")
    assert page.evaluate("document.activeElement.id") == "open-settings"
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    page.keyboard.press("Escape")
    assert page.locator("#keys[open]").count() == 0
    page.focus("#input")
    page.keyboard.type("go")
    page.keyboard.press("Enter")
    shows(page, "word3")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=stopped")
    page.keyboard.press("Control+b")
    assert page.is_hidden("#side")


def test_settings_reach_the_model_and_stay(page, site):
    page.click("#open-settings")
    page.fill("#max-tokens", "3")
    page.keyboard.press("Enter")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    ask(page, "Tell me more", "echo")
    page.wait_for_selector("text=cut at the longest answer")
    assert answer(page).locator(".body").inner_text() == "2: Tell me"
    open_page(page, site, page.url.rpartition("/")[2])
    page.click("#open-settings")
    assert page.input_value("#max-tokens") == "3"
    assert page.input_value("#system") == "Be brief."
    page.click("#new")
    assert page.input_value("#max-tokens") == "3"


def test_errors_are_shown_as_text(page):
    ask(page, "x", "failing")
    page.wait_for_selector(".message .failure")
    assert "ZeroDivisionError" in page.inner_text(".message .failure")
    ask(page, "y", "quick")
    done(page)


def test_a_server_that_is_gone(browser, live_server):
    context = browser.new_context()
    page = context.new_page()
    with live_server({"quick": ScriptedChat(["x"])}) as server:
        open_page(page, server)
    ask(page, "still there?")
    page.wait_for_selector("text=The server can't be reached")
    assert page.input_value("#input") == "still there?"  # nothing typed is lost
    context.close()


def test_nonsense_in_the_storage_is_no_obstacle(page, site):
    for nonsense in ("{", "[]", "null", '{"model": 3, "max_tokens": "y", "memory": 7}', '"x"'):
        page.evaluate("text => localStorage.setItem('lmworks.chat.settings', text)", nonsense)
        open_page(page, site, "#nope")
        assert page.locator(".message").count() == 0
        assert page.input_value("#max-tokens") == "512"


def test_a_phone_has_no_sideways_scroll(page, site):
    page.set_viewport_size(PHONE)
    open_page(page, site)
    assert page.is_hidden("#side")
    ask(page, "U" * 200, "wide")
    done(page)
    for selector in ("html", "main"):
        wider = "e => e.scrollWidth > e.clientWidth"
        assert not page.locator(selector).evaluate(wider), selector
    for button, opened_ in (("#open-settings", "#panel"), ("#show-side", "#side")):
        page.click(button)
        box = page.locator(opened_).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
        page.keyboard.press("Escape")
        assert page.is_hidden(opened_)


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
    done(page)
    page.get_by_role("button", name="Copy the answer").click()
    page.locator("#status", has_text="Copied").wait_for(state="attached")
    assert page.evaluate("navigator.clipboard.readText()") == ANSWER
    page.get_by_role("button", name="Copy the code").click()
    page.wait_for_timeout(100)
    assert page.evaluate("navigator.clipboard.readText()") == "x = '<b>1</b>'"
