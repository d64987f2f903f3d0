"""The attention page: what the server says is what the model's weights are, and what one sees."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from lmworks.evaluation.attention_report import text_tokens
from lmworks.models.attention_rollout import rollout
from lmworks.models.attention_trace import trace_attention

TEXT = "An unbelievable statement is a statement, and a statement is unbelievable."
PHONE = {"width": 390, "height": 844}
INJECTION = '<img src=x onerror="window.bad=1"><script>window.bad=1</script>&amp;\u202ereversed'


@pytest.fixture(scope="module")
def trace(tiny):
    ids, _ = text_tokens(tiny.tokenizer, TEXT)
    return trace_attention(tiny.model, ids)


def post(ask, path, **body):
    return ask("POST", f"/api/attention{path}", json={"model": "tiny"} | body)


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def pixels(answer):
    data = np.frombuffer(base64.b64decode(answer["image"]), np.uint8)
    return data.reshape(answer["cells"], answer["cells"])


def bytes_of(weights):
    return np.rint(np.sqrt(np.asarray(weights)) * 255)


def look(ask, text=TEXT):
    text_id = ask.keep(text)["id"]
    first, *layers, last = events(post(ask, "/look", text=text_id))
    return text_id, first, layers, last


def test_every_head_comes_layer_by_layer(ask, tiny, trace):
    _, first, layers, last = look(ask)
    assert "".join(first["tokens"]) == TEXT and last == {"every": 1, "kept": True}
    assert [layer["layer"] for layer in layers] == [0, 1, 2]
    for layer in layers:
        assert [head["head"] for head in layer["heads"]] == [0, 1, 2, 3]
        for head in layer["heads"]:
            weights = trace.rows(layer["layer"], head["head"])
            assert head["first"] == pytest.approx(float(weights[1:, 0].mean()), abs=1e-6)
            assert np.abs(pixels(head) - bytes_of(weights)).max() <= 1


@pytest.mark.parametrize("kept", [True, False])
def test_a_head_and_its_rows(ask, trace, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr("lmworks.models.attention_trace.MOST_BYTES", 0)
    text_id, _, _, last = look(ask)
    assert last["kept"] is kept
    monkeypatch.undo()
    where = {"text": text_id, "layer": 2, "head": 3}
    answer = events(post(ask, "/head", **where))[-1]
    assert answer["step"] == 1
    assert np.abs(pixels(answer) - bytes_of(trace.rows(2, 3))).max() <= 1
    row = post(ask, "/row", **where, query=9).json()
    wanted = trace.rows(2, 3, 9, 10)[0]
    assert row["first"] == 0 and np.abs(np.array(row["weights"]) - wanted.numpy()).max() < 1e-5
    assert row["top"][0][0] == int(wanted.argmax())


def test_rollout(ask, trace):
    text_id, *_ = look(ask)
    where = {"text": text_id, "layer": 1, "head": -1}
    answer = events(post(ask, "/head", **where))[-1]
    wanted = rollout(trace, layer=1)
    assert np.abs(pixels(answer) - bytes_of(wanted.clamp(max=1))).max() <= 1
    row = post(ask, "/row", **where, query=5).json()
    assert np.abs(np.array(row["weights"]) - wanted[5].numpy()).max() < 1e-5


def test_what_is_not_there_is_told(ask):
    text_id, *_ = look(ask)

    def message(path, **body):
        response = post(ask, path, **({"text": text_id} | body))
        told = response.json() if response.status_code >= 400 else events(response)[-1]
        return told["error"]["message"]

    assert "did you mean 'tiny'" in message("/look", model="tini")
    assert "send it again" in message("/row", text="0", layer=0, head=0, query=0)
    assert "has layers 0 to 2" in message("/head", layer=3, head=0)
    assert "has heads 0 to 3" in message("/head", layer=0, head=4)
    assert "token 99 is not in the text" in message("/row", layer=0, head=0, query=99)
    assert "give from 2 to" in message("/look", text=ask.keep("a")["id"])
    assert "is neither a file" in message_of_load(ask)


def message_of_load(ask):
    response = ask("POST", "/api/attention/models", json={"reference": "/no/such/model"})
    return events(response)[-1]["error"]["message"]


def show(page, site, text=TEXT):
    page.goto(f"{site.url}/attention")
    page.wait_for_selector("body[data-ready]")
    page.fill("#typed", text)
    page.wait_for_selector("#found[aria-busy=false] .head")
    page.wait_for_selector("#one[data-shown]")


def is_wide(page):
    return page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )


@pytest.mark.browser
def test_every_head_is_a_picture_and_one_is_large(page, site, trace):
    show(page, site)
    assert page.locator(".head").count() == 12
    page.locator('.head[data-key="2.1"]').click()
    page.wait_for_selector('#one[data-shown="2.1"]')
    assert page.inner_text("#name").startswith("Layer 2, head 1")
    count = len(trace)
    assert page.evaluate("document.getElementById('map').width") == count
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 6.5 / count)
    page.locator("#looks", has_text="Token 6 ").wait_for()
    weights = trace.rows(2, 1, 6, 7)[0]
    best = float(weights.max())
    page.locator("#looks", has_text=f"{100 * best:.1f} %").wait_for()
    page.check("#rollout")
    page.wait_for_selector('#one[data-shown="2.1 rollout"]')
    assert "Rollout up to layer 2" in page.inner_text("#name")


@pytest.mark.browser
def test_keyboard(page, site):
    show(page, site)
    page.locator('.head[data-key="0.0"]').focus()
    for name in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(name)
    assert page.evaluate("document.activeElement.dataset.key") == "2.1"
    assert "Layer 2, head 1" in page.inner_text("#pointed")
    page.keyboard.press("Enter")
    page.wait_for_selector('#one[data-shown="2.1"]')
    page.focus("#strip")
    page.keyboard.press("Home")
    page.locator("#looks", has_text="Token 0 ").wait_for()
    page.keyboard.press("ArrowRight")
    page.locator("#looks", has_text="Token 1 ").wait_for()
    assert page.locator("#strip .on").get_attribute("data-place") == "1"
    reached = set()
    page.focus("#reference")
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"load", "typed", "look", "open-file", "export", "rollout", "map", "strip"} <= reached


@pytest.mark.browser
def test_text_is_never_html(page, site):
    show(page, site, INJECTION)
    assert page.evaluate("window.bad") is None
    assert page.locator("main img, main script").count() == 0
    shown = page.inner_text("#strip").replace("\n", "")
    assert shown == INJECTION.replace("\u202e", "e280ae")  # three tokens that are no characters


@pytest.mark.browser
def test_kinds_narrow_screens_themes_and_reload(page, site):
    show(page, site)
    page.locator(".kind").first.click()
    assert 0 < page.locator(".head.dim").count() < 12
    page.set_viewport_size(PHONE)
    assert not is_wide(page)

    def corner():
        return page.evaluate(
            "[...document.querySelector('.head canvas').getContext('2d')"
            ".getImageData(5, 0, 1, 1).data]"
        )

    before = corner()
    page.click("#theme")
    assert corner() != before
    page.locator('.head[data-key="1.2"]').click()
    page.wait_for_selector('#one[data-shown="1.2"]')
    page.reload()
    page.wait_for_selector('#one[data-shown="1.2"]')
    assert page.input_value("#typed") == TEXT


@pytest.mark.browser
def test_it_is_saved_as_a_page(page, site, tmp_path):
    show(page, site)
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "attention.html")
    saved = (tmp_path / "attention.html").read_text()
    assert "<script" not in saved and saved.count("<figure><img") == 12


@pytest.mark.browser
def test_a_bad_reference_is_one_line(page, site):
    page.goto(f"{site.url}/attention")
    page.wait_for_selector("body[data-ready]")
    page.fill("#reference", "/no/such/<b>model</b>")
    page.keyboard.press("Enter")
    page.locator("#loading.failure", has_text="neither a file or folder here").wait_for()
    assert page.locator("#loading b").count() == 0
