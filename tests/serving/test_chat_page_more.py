"""The chat page beside asking: files, prompts, memory, export, two tabs, hostile Markdown."""

from __future__ import annotations

import json

import pytest

from lmworks.inference.chat import ScriptedChat
from lmworks.inference.memory import MemorySettings
from lmworks.serving.conversations.values import ChatSettings

pytestmark = pytest.mark.browser

HOSTILE = r"""[click](javascript:alert(1)) [data](data:text/html,<script>alert(1)</script>)
[fine](https://example.org/a?b=c) ![picture](https://example.org/p.png) <https://example.org/auto>

<script>alert(1)</script><svg onload=alert(1)>

> > > > > > > > > > deep

- a
  - b
    1. c

     code?

| a | b |
|---|---|
| `x` | <b>y</b> |

~~~html
<img src=x onerror=alert(1)>
~~~

**bold *both* ** __x__ snake_case_name 2*3*4 \*not\*

# Heading #
***
1) one
2) two"""


@pytest.fixture(scope="module")
def site(live_server):
    models = {
        "echo": ScriptedChat(lambda messages: messages[-1]["content"]),
        "hostile": ScriptedChat([HOSTILE]),
        "slow": ScriptedChat([" ".join(f"word{i}" for i in range(300))], delay_s=0.03),
        "fences": ScriptedChat(["```" * 2000 + "\n" + "*_`[" * 3000 + "\n" + "> " * 3000]),
    }
    with live_server(models) as server:
        yield server


@pytest.fixture(autouse=True)
def opened(request):
    if "page" in request.fixturenames:
        open_page(request.getfixturevalue("page"), request.getfixturevalue("site"))


def open_page(page, site, place=""):
    page.goto(site.url + "/" + place)
    page.reload()
    page.wait_for_selector("body[data-ready]")


def ask(page, text, model=None):
    if model:
        page.click("#model")
        page.get_by_role("option", name=model).click()
    page.fill("#input", text)
    page.keyboard.press("Enter")


def done(page):
    page.wait_for_selector("body:not([data-busy]) .message.assistant:last-child .foot")


def answer(page):
    return page.locator(".message.assistant").last


def test_markdown_that_means_harm_stays_text(page):
    ask(page, "x", "hostile")
    done(page)
    body = answer(page).locator(".body")
    links = body.locator("a").evaluate_all(
        "nodes => nodes.map(n => [n.getAttribute('href'), n.rel])"
    )
    rel = "noopener noreferrer nofollow"
    assert links == [
        ["https://example.org/a?b=c", rel],
        ["https://example.org/p.png", rel],
        ["https://example.org/auto", rel],
    ]
    assert body.locator("script, svg:not(.icon svg), img, b").count() == 0
    text = body.inner_text()
    for piece in ("javascript:alert(1)", "<script>alert(1)</script>", "<b>y</b>", "2*3*4", "*not*"):
        assert piece in text
    assert "snake_case_name" in text
    assert body.locator("ul ul ol li").count() == 1
    assert body.locator("td code").inner_text() == "x"
    assert body.locator(".code pre").last.inner_text() == "<img src=x onerror=alert(1)>"
    assert body.locator("h3").inner_text() == "Heading"
    assert body.locator("ol[start='1'] > li").all_inner_texts()[-2:] == ["one", "two"]


def test_text_made_to_be_slow_is_drawn_in_time(page):
    ask(page, "x", "fences")
    done(page)
    assert page.evaluate("performance.now()") < 60_000
    page.fill("#input", "the page still lives")


def test_files_are_dropped_pasted_and_chosen_and_sent_as_text(page):
    page.set_input_files(
        "#files", [{"name": "facts.md", "mimeType": "", "buffer": b"# Facts\n\n42"}]
    )
    page.locator(".chip .name", has_text="facts.md").wait_for()
    drop = """name => {
      const data = new DataTransfer();
      data.items.add(new File(["dropped words"], name));
      for (const kind of ["dragenter", "drop"]) {
        dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
      }
    }"""
    page.evaluate(drop, "<b>evil<i>.txt")
    page.locator("#chips .chip", has_text="<b>evil<i>.txt").wait_for()
    paste = """() => {
      const data = new DataTransfer();
      data.setData("text/plain", "long ".repeat(2000));
      document.getElementById("input").dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(paste)
    page.locator("#chips .chip", has_text="pasted.txt").wait_for()
    page.evaluate(drop, "picture.png")
    page.locator(".chip.bad", has_text="picture.png is a picture").wait_for()
    page.get_by_role("button", name="Remove pasted.txt").click()
    ask(page, "What is in them?", "echo")
    done(page)
    text = answer(page).inner_text()
    assert "# Facts" in text or "Facts" in text
    assert "dropped words" in text and "long long" not in text
    assert page.locator(".user .chip").count() == 2
    page.locator(".user .chip", has_text="facts.md").click()
    assert page.locator("#attachment pre").inner_text() == "# Facts\n\n42"
    page.keyboard.press("Escape")
    assert page.locator("#chips .chip").count() == 0


def test_the_prompt_library(page):
    page.click("#templates")
    page.get_by_role("button", name="New prompt").click()
    page.get_by_label("Name").fill("Greeting")
    page.get_by_label("Text").fill("Say {{word|hello}} to {{who}}.")
    page.get_by_role("button", name="Save").click()
    page.locator(".prompt .use", has_text="Greeting").click()
    assert page.get_by_label("word").input_value() == "hello"
    page.get_by_role("button", name="Use", exact=True).click()
    page.wait_for_selector("text=who is missing")
    page.get_by_label("who").fill("{{word}}")
    page.get_by_role("button", name="Use", exact=True).click()
    assert page.input_value("#input") == "Say hello to {{word}}."
    page.click("#open-library")
    page.get_by_role("button", name="Change Greeting").click()
    page.get_by_label("Kind").select_option("system")
    page.get_by_label("Text").fill("Be <b>kind</b>.")
    page.get_by_role("button", name="Save").click()
    page.locator(".prompt .use", has_text="Greeting").click()
    page.click("#open-settings")
    assert page.input_value("#system") == "Be <b>kind</b>."
    page.click("#open-library")
    page.get_by_role("button", name="Delete Greeting").click()
    page.wait_for_selector(".prompt")
    page.wait_for_timeout(200)
    assert page.locator(".prompt", has_text="Greeting").count() == 0


def test_the_memory_panel_says_what_was_sent_and_left_out(page, site):
    store = site.app.state.service.conversations
    memory = MemorySettings(context_tokens=256, recall="words")
    made = store.create("Long", ChatSettings(model="echo", max_tokens=64, memory=memory))
    store.add(made.id, "user", "My cat is called Mistral.")
    store.add(made.id, "assistant", "A fine name.")
    for number in range(12):
        store.add(made.id, "user", f"Tell me about rivers, part {number}, in some detail.")
        store.add(made.id, "assistant", "Rivers flow from the hills to the sea. " * 2)
    open_page(page, site, f"#{made.id}")
    ask(page, "What is my cat called?")
    answer(page).locator(".body", has_text="What is my cat called?").wait_for()
    done(page)
    assert "My cat is called Mistral." in answer(page).inner_text()
    answer(page).locator(".memory").click()
    panel = page.locator("#memory")
    assert "of 256 tokens sent" in panel.inner_text()
    recalled = panel.locator(".part.of-recalled")
    recalled.first.locator("summary").click()
    assert "shares cat" in recalled.first.inner_text()
    assert "My cat is called Mistral." in recalled.first.inner_text()
    left = panel.locator(".part.of-left").first
    left.locator("summary").click()
    assert "recalled in part" in left.inner_text()
    assert "My cat is called Mistral." in left.inner_text()


def test_export_and_import(page, tmp_path):
    ask(page, "keep <this>", "echo")
    done(page)
    page.click("#open-more")
    with page.expect_download() as downloading:
        page.get_by_role("menuitem", name="Export as JSON").click()
    path = tmp_path / downloading.value.suggested_filename
    assert path.name == "keep-this.json"
    downloading.value.save_as(path)
    assert json.loads(path.read_text())["messages"][0]["content"] == "keep <this>"
    page.click("#new")
    page.set_input_files("#import-file", path)
    page.wait_for_selector(".bubble >> text=keep <this>")
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    page.set_input_files("#import-file", bad)
    page.wait_for_selector("#toast >> text=neither JSON nor JSON lines")


def test_two_tabs_see_each_other_and_lose_nothing(page, site):
    ask(page, "from the first", "slow")
    page.wait_for_selector(".body >> text=word5")
    place = page.url.rpartition("/")[2]
    other = page.context.new_page()
    open_page(other, site, place)
    other.locator(".message.assistant .body", has_text="word12").wait_for()
    other.keyboard.press("Escape")
    page.wait_for_selector("text=stopped")
    other.wait_for_selector("text=stopped")
    ask(other, "from the second", "echo")
    done(other)
    page.locator(".bubble", has_text="from the second").wait_for()
    other.locator(".message.user").last.hover()
    other.locator(".message.user").last.get_by_role("button", name="Edit").click()
    other.keyboard.type(" tab")
    other.keyboard.press("Enter")
    page.locator(".bubble", has_text="from the second tab").wait_for()
    assert page.locator(".user .branch").inner_text().strip() == "2/2"
    other.close()


def test_the_picker_shows_models_and_the_choice_stays_with_its_conversation(page, site):
    page.click("#model")
    names = page.locator("#models b").all_inner_texts()
    assert names == ["echo", "hostile", "slow", "fences"]
    page.keyboard.press("Escape")
    ask(page, "x", "echo")
    done(page)
    place = page.url.rpartition("/")[2]
    page.click("#new")
    page.click("#model")
    page.get_by_role("option", name="hostile").click()
    open_page(page, site, place)
    assert page.inner_text("#model-name") == "echo"


def test_thumbs_and_what_was_wrong(page, site):
    ask(page, "Is it good?", "echo")
    done(page)
    last = page.locator(".message.assistant").last
    up, down = (last.get_by_role("button", name=f"{word} answer") for word in ("Good", "Bad"))
    up.click()
    last.locator(".thumbs [aria-pressed=true][aria-label='Good answer']").wait_for()
    assert last.locator(".wrong").count() == 0
    down.click()
    last.locator(".wrong input").wait_for()
    assert up.get_attribute("aria-pressed") == "false"
    assert page.evaluate("document.activeElement.placeholder") == "What was wrong?"
    page.keyboard.type("too vague")
    page.keyboard.press("Enter")
    last.locator(".wrong").wait_for(state="detached")
    store = site.app.state.service.conversations
    where = page.url.rpartition("#")[2]
    assert [(v.thumb, v.comment) for v in store.feedback.votes(where).values()] == [
        ("down", "too vague")
    ]
    page.reload()
    last.locator("[aria-label='Bad answer'][aria-pressed=true]").wait_for()
    down.click()  # the same again takes it back
    last.locator("[aria-label='Bad answer'][aria-pressed=false]").wait_for()
    assert store.feedback.votes(where) == {}


def test_a_thumb_down_leads_to_a_correction(page, site):
    ask(page, "Say it right", "echo")
    done(page)
    last = page.locator(".message.assistant").last
    last.get_by_role("button", name="Bad answer").focus()
    page.keyboard.press("Enter")
    last.get_by_role("button", name="Write it better").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("It, right")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector(".branch >> text=2/2")
    from lmworks.serving.feedback.reading import feedback_of

    store = site.app.state.service.conversations
    where = "chat:" + page.url.rpartition("#")[2]
    told = [one for one in feedback_of(store) if one.source == where]
    assert [(one.answer, one.rating, one.correction) for one in told] == [
        ("Say it right", -1, ""),
        ("Say it right", 0, "It, right"),
    ]
