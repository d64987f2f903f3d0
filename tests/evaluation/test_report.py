"""The page: hostile text stays text, nothing is loaded, empty parts vanish, JSON is valid."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import pytest

from lmworks.core.errors import UserError
from lmworks.evaluation.report import (
    Curve,
    CurvePlot,
    Fact,
    GainRow,
    GainTable,
    NextStep,
    Report,
    Sample,
    SampleText,
    StageCost,
    StageLineage,
    verdict,
    write_report,
)
from lmworks.evaluation.statistics import Interval

HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</style></svg></pre><svg onload=\"document.title='owned'\">",
    "{{ 7 * 191 }}{% raw %}",
    "javascript:alert(1)",
    "<style>body{display:none}</style><link rel=stylesheet href=http://example.org/x>",
    "\x00\x1b[31m\u202e\ud800 A" + "B" * 300,
]


def full_report(text="plain"):
    """A report in which every string is `text`."""
    unknown = Interval(0.5, -math.inf, math.inf)
    rows = (
        GainRow(name=text, bits_per_byte=Interval(1.9, 1.8, 2.0), note=text),
        GainRow(
            name=text,
            bits_per_byte=Interval(1.7, 1.6, 1.8),
            versus_ngram=Interval(-0.2, -0.25, -0.15),
            versus_previous=Interval(0.0002, -0.0003, 0.0007),
            previous=text,
        ),
        GainRow(name=text, bits_per_byte=unknown, versus_ngram=unknown),
        GainRow(name=text, bits_per_byte=unknown, versus_ngram=Interval(9.0, 8.0, 10.0)),
    )
    curve = Curve(name=text, x=(0, 1, 2), y=(3.0, math.nan, 1.0))
    return Report(
        title=text,
        summary=text,
        facts=(Fact(label=text, value=text),),
        gains=(GainTable(title=text, note=text, rows=rows),),
        curves=(CurvePlot(title=text, x_label=text, y_label=text, curves=(curve,)),),
        samples=(Sample(prompt=text, texts=(SampleText(stage=text, text=text),)),),
        costs=(StageCost(name=text, seconds=61, per_second=12345.6, per_second_unit=text),),
        lineage=(
            StageLineage(stage=text, sha256=text, config={text: [text]}, inputs={text: text}),
        ),
        versions={text: text},
        next_steps=(NextStep(command=text, meaning=text),),
    )


class _Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def _page(folder, report):
    write_report(folder, report)
    return _Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_models_and_documents_stays_text(tmp_path, text):
    page = _page(tmp_path, full_report(text))
    calm = _page(tmp_path, full_report("plain"))
    assert page.tags == calm.tags  # no tag more, none less
    assert [name for name, _ in page.attributes] == [name for name, _ in calm.attributes]
    shown = text.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    shown = shown.replace("\ud800", "\ufffd\ufffd\ufffd")
    assert page.text.count(shown) >= 15


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = _page(tmp_path, full_report())
    assert not {"script", "link", "iframe", "object", "img", "base"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href"} & names and not any(name.startswith("on") for name in names)
    policy = next(v for _, v in page.attributes if v and "default-src 'none'" in v)
    assert "script-src" not in policy


def test_json_is_valid_and_carries_the_verdicts(tmp_path):
    write_report(tmp_path, full_report("\ud800 x"))
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    data = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    rows = data["gains"][0]["rows"]
    assert rows[1]["versus_ngram"] == {"estimate": -0.2, "low": -0.25, "high": -0.15}
    assert rows[1]["versus_ngram_verdict"] == "better"
    assert rows[1]["versus_previous_verdict"] == "no difference shown"
    assert rows[2]["versus_ngram"]["low"] is None
    assert rows[2]["versus_ngram_verdict"] == "no difference shown"
    assert rows[3]["versus_ngram_verdict"] == "worse"
    assert rows[0]["versus_ngram_verdict"] is None
    assert data["curves"][0]["curves"][0]["y"] == [3.0, None, 1.0]


def test_figures_on_the_page(tmp_path):
    page = _page(tmp_path, full_report())
    for words in (
        "\u22120.200",
        "\u22120.250 to \u22120.150",
        "+0.0002",
        "no difference shown",
        "too few groups for an interval",
        "+9.000 \u2192",
        "1m01s",
        "12,346 plain",
    ):
        assert words in page.text


def test_empty_parts_are_left_out(tmp_path):
    page = _page(tmp_path, Report(title="T", summary="S"))
    assert "section" not in page.tags and "table" not in page.tags and "dl" not in page.tags
    lonely = CurvePlot(title="t", x_label="x", y_label="y", curves=())
    page = _page(tmp_path, Report(title="T", summary="S", curves=(lonely,)))
    assert "section" not in page.tags


def test_same_report_same_bytes(tmp_path):
    write_report(tmp_path / "a", full_report())
    write_report(tmp_path / "b", full_report())
    for name in ("report.html", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write_report(tmp_path / "file", full_report())


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (Interval(-1, -2, -0.1), "better"),
        (Interval(1, 0.1, 2), "worse"),
        (Interval(-1, -2, 0.1), "no difference shown"),
        (Interval(-1, -math.inf, math.inf), "no difference shown"),
        (Interval(0, 0, 0), "no difference shown"),
    ],
)
def test_verdicts(interval, words):
    assert verdict(interval) == words


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path, scheme, width):
    """Nothing runs, nothing is fetched, nothing sticks out of the screen."""
    from playwright.sync_api import sync_playwright

    write_report(tmp_path, full_report(" ".join(HOSTILE)))
    requests, messages = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.title() != "owned"
        assert page.evaluate("document.documentElement.scrollWidth") == width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(int(c) for c in background[4:-1].split(",")) < 200) == (scheme == "dark")
        browser.close()
    assert len(requests) == 1 and not messages
