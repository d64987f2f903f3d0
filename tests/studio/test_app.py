"""What the pages ask of the server, and what nobody should."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from lmworks.evaluation.tokenizer_comparison import Passage, changed_words, compare, passages_of
from lmworks.studio.pages import PAGES

TEXTS = {"en": "A statement is unbelievable.\n" * 90, "xx": "größer und schöner\n" * 60}


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def error(response):
    found = response.json()["error"]
    assert "\n" not in found["message"] and "Traceback" not in found["message"]
    return found["message"]


def test_every_page_runs_only_its_own_script(ask):
    for path in ("/", *(f"/{name}" for name in PAGES)):
        response = ask("GET", path)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "'unsafe" not in policy
        assert "innerHTML" not in response.text and "http" not in policy
        assert not re.search(r'src="|href="(?!data:|/)', response.text)
        assert "<%" not in response.text
    assert all(f'href="/{name}"' in ask("GET", "/").text for name in PAGES)


def test_a_text_is_kept_and_called_by_its_id(ask):
    kept = ask.keep("zwei Wörter\n")
    assert (kept["bytes"], kept["characters"], kept["words"]) == (13, 12, 2)
    assert ask("GET", f"/api/texts/{kept['id']}").json() == kept
    assert ask.keep("zwei Wörter\n") == kept
    gone = ask("GET", "/api/texts/0")
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "text_gone"
    assert "no UTF-8 text: byte 1 is 0xff" in error(ask("POST", "/api/texts", content=b"a\xff"))


def test_a_text_over_the_limit_is_refused_in_words(studio_app, live_app):
    with live_app(studio_app(max_body_bytes=1 << 20)) as live:
        response = httpx.post(live.url + "/api/texts", content=b"x" * ((1 << 20) + 1))
        assert response.status_code == 413 and "over the limit of 1 MB" in error(response)


def test_texts_are_dropped_when_there_are_too_many():
    from lmworks.serving.errors import ApiError
    from lmworks.studio.texts import Texts

    texts = Texts(held_bytes=100)
    first, second = texts.add(b"a" * 60), texts.add(b"b" * 60)
    assert texts.get(second.id).data == b"b" * 60
    with pytest.raises(ApiError, match="send it again"):
        texts.get(first.id)
    assert texts.get(texts.add(b"c" * 500).id).words == 1  # one alone may be larger


@pytest.mark.parametrize("host", ["evil.example", "", "localhost.evil.example"])
def test_another_host_is_refused(ask, host):
    assert ask("GET", "/api/tokenizers", headers={"Host": host}).status_code == 403
    assert ask("GET", "/", headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/view", {}, "is missing"),
        ("/view", {"text": "0", "tokenizer": "small", "columns": 0, "first": 0, "count": 1}, "gre"),
        ("/view", {"text": "0", "tokenizer": "small", "columns": 9, "first": 0, "count": 1}, "her"),
        ("/view", {"text": "0", "tokenizer": "smal", "columns": 9, "first": 0, "count": 1}, "her"),
        ("/changes", {"texts": [], "before": "smal", "after": "large"}, "did you mean 'small'"),
        ("/count", {"texts": [], "tokenizers": ["a"] * 13}, "at most 12"),
        ("/export", {"texts": [], "tokenizers": [], "more": 1}, "more"),
        ("", {"reference": ""}, "reference"),
    ],
)
def test_bad_requests_are_told_in_one_line(ask, path, body, message):
    response = ask.post(path, body)
    assert response.status_code in (400, 404) and message in error(response)
    assert ask("POST", f"/api/tokenizers{path}", content=b"[" * 9999).status_code == 400


def test_loading(ask, saved, tokenizers):
    assert [t["name"] for t in ask("GET", "/api/tokenizers").json()["tokenizers"]] == [*tokenizers]
    *progress, last = events(ask.post("", {"reference": str(saved)}))
    assert last["tokenizer"]["name"] == "another" and last["tokenizer"]["vocab_size"] == 400
    assert progress and all(set(event) == {"progress"} for event in progress)
    named = events(ask.post("", {"reference": f"mine={saved}"}))[-1]["tokenizer"]
    assert (named["name"], named["reference"]) == ("mine", str(saved))
    again = events(ask.post("", {"reference": str(saved)}))[-1]["tokenizer"]
    assert again["name"] == "another"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("/no/such/folder", "neither a file or folder here nor a known alias"),
        ("/etc/passwd", "holds no tokenizer"),
        ("https://evil.example/v1", "a remote endpoint gives no tokenizer"),
        ("pypi:a b", "write it as pypi:name"),
        ("weird:thing", "unknown kind of reference"),
        ("\0", ""),
    ],
)
def test_a_bad_reference_is_one_line(ask, reference, message):
    (found,) = events(ask.post("", {"reference": reference}))
    assert message in found["error"]["message"] and "\n" not in found["error"]["message"]


def test_figures_are_those_of_the_command(ask, tokenizers):
    kept = {name: ask.keep(text) for name, text in TEXTS.items()}
    texts = [{"id": about["id"], "name": name} for name, about in kept.items()]
    body = {"texts": texts, "tokenizers": [*tokenizers]}
    counted = events(ask.post("/count", body))
    assert [(c["tokenizer"], c["tokens"]) for c in counted] == [
        (name, len(tokenizer.encode(text)))
        for name, tokenizer in tokenizers.items()
        for text in TEXTS.values()
    ]
    passages = [
        Passage(text=part, source=kept[name]["id"], language=name)
        for name, text in TEXTS.items()
        for part in passages_of(text)
    ]
    found = compare(tokenizers, passages, context=1000, price=2.0)
    first, *rows = events(ask.post("/compare", body | {"context": 1000, "price": 2.0}))
    assert first == {"passages": len(passages)}
    for event, row in zip(rows, found.rows, strict=True):
        assert (event["row"]["tokens"], event["row"]["price"]) == (row.tokens, row.price)
        assert event["row"]["failures"] == row.failures
        assert (event["row"]["saved"] or {}).get("estimate") == (
            row.saved.estimate if row.saved else None
        )
    assert [x for event in rows for x in event["languages"]] == [vars(x) for x in found.languages]
    changes = ask.post("/changes", {"texts": texts, "before": "small", "after": "large"}).json()
    words = changed_words(tokenizers["small"], tokenizers["large"], TEXTS.values())
    assert changes["saved"] == sum(word.saved for word in words)
    assert [word["saved"] for word in changes["words"]] == [word.saved for word in words[:60]]


def test_texts_with_equally_many_lines_are_parallel(ask, tokenizers):
    lines = {"en": "a statement\n" * 7, "xx": "größer und schöner\n\n" * 7}
    texts = [{"id": ask.keep(text)["id"], "name": name} for name, text in lines.items()]
    body = {"texts": texts, "tokenizers": ["small"]}
    fair = events(ask.post("/compare", body))[-1]["fairness"]
    assert [(row["language"], row["parity"] is None) for row in fair] == [
        ("en", True),
        ("xx", False),
    ]
    count = {
        name: len(tokenizers["small"].encode(text.split("\n")[0])) for name, text in lines.items()
    }
    assert fair[1]["parity"]["estimate"] == pytest.approx(count["xx"] / count["en"])
    body["texts"].append({"id": ask.keep("one line")["id"], "name": "other"})
    assert "fairness" not in events(ask.post("/compare", body))[-1]


def test_few_passages_have_no_interval(ask):
    text = {"id": ask.keep("a b c")["id"], "name": "t"}
    body = {"texts": [text], "tokenizers": ["small", "large"]}
    *_, row = events(ask.post("/compare", body))
    assert row["row"]["saved"]["low"] is None and row["row"]["bytes_per_token"]["high"] is None
    blank = {"id": ask.keep(" \n ")["id"], "name": "t"}
    assert events(ask.post("/compare", body | {"texts": [blank]})) == [{"passages": 0}]


@pytest.mark.parametrize("name", ["small", "large", "lower"])
def test_the_view_shows_every_character_under_the_ids_of_the_whole(ask, tokenizers, prose, name):
    text = prose[:9000] + "größer 🙂 日本語\n\t<b>x</b>\x1b\u202e\n" + prose[9000:15_000]
    body = {"text": ask.keep(text)["id"], "tokenizer": name, "columns": 33, "first": 0, "count": 50}
    ids, shown, first, seen = [], [], 0, set()
    while True:
        view = ask.post("/view", body | {"first": first}).json()
        for row in view["rows"]:
            shown.append("".join(piece for piece, _ in row))
        for unit in view["units"]:
            if unit[1] not in seen or not unit[4]:
                seen.add(unit[1])
                ids += unit[4]
                start, end = unit[1], unit[2]
                assert len(text[:start].encode()) == unit[3] and end > start
            assert all(str(i) in view["tokens"] for i in unit[4])
        first += 50
        if first >= view["total"]:
            break
    assert ids == tokenizers[name].encode(text)
    drawn = text.replace("\n", "⏎").replace("\t", "⇥ ").replace("\x1b", "␛").replace("\u202e", "▯")
    assert "".join(shown) == drawn


def test_tokens_are_described(ask, tokenizers):
    text = ask.keep("<|endoftext|> zzz é")
    special = next(iter(tokenizers["small"].special_tokens))
    text = ask.keep(f"{special} é")
    body = {"text": text["id"], "tokenizer": "small", "columns": 80, "first": 0, "count": 1}
    plain = ask.post("/view", body).json()
    assert not any(token[2] for token in plain["tokens"].values())
    view = ask.post("/view", body | {"allow_special": True}).json()
    token_id = tokenizers["small"].special_tokens[special]
    assert view["tokens"][str(token_id)] == [special, special.encode().hex(" "), "special"]
    unknown = ask.post("/view", body | {"tokenizer": "lower"}).json()
    assert "unknown" in {token[2] for token in unknown["tokens"].values()}


def test_a_word_comes_together(ask, tokenizers):
    (piece,) = ask.post("/merges", {"tokenizer": "large", "word": "statement"}).json()
    assert piece[0]["symbols"] == list("statement") and piece[0]["rank"] is None
    assert piece[-1]["symbols"] == ["statement"] and piece[-1]["place"] == 0
    assert ask.post("/merges", {"tokenizer": "small", "word": "é"}).json()[0][0]["symbols"] == [
        "c3",
        "a9",
    ]
    assert "no merges" in error(ask.post("/merges", {"tokenizer": "lower", "word": "a"}))


def test_the_saved_page_is_that_of_the_command(ask):
    text = {"id": ask.keep("<script>alert(1)</script> " * 30)["id"], "name": "t"}
    response = ask.post("/export", {"texts": [text], "tokenizers": ["small", "large"]})
    assert response.status_code == 200 and "<script>" not in response.text
    assert "Tokenizers compared" in response.text and "What changed" in response.text
    empty = ask.post("/export", {"texts": [], "tokenizers": ["small"]})
    assert empty.status_code == 400 and "text" in error(empty)
