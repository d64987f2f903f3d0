"""Files in and out: what is read of them, what is refused, and what a round trip keeps."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.serving.conversations.attachments import file_name, read_attachment
from lmworks.serving.conversations.files import export, export_name, import_conversations
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.feedback.reading import feedback_of


def zipped(**parts):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name.replace("__", "/") + ".xml", text)
    return data.getvalue()


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
WORD = f"""<w:document {W}><w:body>
<w:p><w:pPr><w:pStyle w:val="Heading2"/></w:pPr><w:r><w:t>Plan</w:t></w:r></w:p>
<w:p><w:r><w:t>First</w:t></w:r><w:r><w:tab/><w:t>part</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc>
<w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl></w:body></w:document>"""
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
T = (
    'xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0" '
    'xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0"'
)
SHEET = f"""<worksheet {S}><sheetData><row><c t="s"><v>0</v></c><c><v>3.5</v></c></row>
<row><c t="inlineStr"><is><t>in line</t></is></c><c t="s"><v>9</v></c></row></sheetData>
</worksheet>"""


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.txt", "Grüße\r\nzwei".encode(), "Grüße\nzwei"),
        ("a.unknown", b"still text", "still text"),
        ("a.json", b'{"a": 1}', '{"a": 1}'),
        ("a.csv", b"x,y\n1,2\n", "x,y\n1,2"),
        ("a.html", b"<title>T</title><script>evil()</script><h1>Head</h1><p>Body</p>", None),
        ("a.docx", zipped(word__document=WORD), "## Plan\n\nFirst\tpart\n\n| a | b |"),
        (
            "a.pptx",
            zipped(
                ppt__slides__slide2=f"<s {A}><a:p><a:r><a:t>two</a:t></a:r></a:p></s>",
                ppt__slides__slide10=f"<s {A}><a:p><a:r><a:t>ten</a:t></a:r></a:p></s>",
            ),
            "## Slide 1\n\ntwo\n\n## Slide 2\n\nten",
        ),
        (
            "a.xlsx",
            zipped(
                xl__workbook="<w/>",
                xl__sharedStrings=f"<sst {S}><si><t>name</t></si></sst>",
                xl__worksheets__sheet1=SHEET,
            ),
            "## Sheet 1\n\n| name | 3.5 |\n| in line | 9 |",
        ),
        (
            "a.odt",
            zipped(
                content=f"<office:d {T}><text:h text:outline-level='1'>Head</text:h>"
                "<text:p>One<text:s/><text:span>two</text:span> three</text:p></office:d>"
            ),
            "# Head\n\nOne two three",
        ),
    ],
)
def test_what_is_read(name, data, text):
    found = read_attachment(name, data)
    if text is None:
        assert "Body" in found.text and "evil" not in found.text
    else:
        assert found.text == text


def bomb():
    return zipped(word__document="<a>" + " " * (70 << 20) + "</a>")


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>'


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("p.png", b"\x89PNG\r\n\x1a\n....", "p.png is a picture: the models here read text only"),
        ("p.dat", b"\xff\xd8\xff\xe0 jpeg", "is a picture"),
        ("s.mp3", b"ID3 sound", "is sound or film"),
        ("e.txt", b"", "e.txt is empty"),
        ("e.txt", b" \n ", "holds no text"),
        ("b.bin", bytes(range(256)) * 9, "neither text nor a kind that is known"),
        ("b.pdf", b"%PDF-1.4 nothing", "b.pdf can't be read: not a whole PDF"),
        ("b.docx", b"PK\x03\x04 cut", "not a whole Office file"),
        ("b.docx", zipped(word__document=LAUGHS), "declares entities"),
        ("b.docx", zipped(word__document="<a><b></a>"), "is no XML"),
        ("b.docx", zipped(nothing="<a/>"), "holds no text"),
        ("l.txt", b"x" * (16 << 20) + b"y", "over 16 MB"),
        ("l.txt", b"x y " * 600_000, "characters, 2,000,000 are the most"),
    ],
)
def test_what_is_refused_and_why(name, data, told):
    with pytest.raises(UserError, match=told):
        read_attachment(name, data)


def test_a_zip_that_unpacks_without_end_is_refused():
    with pytest.raises(UserError, match="over 64 MB"):
        read_attachment("bomb.docx", bomb())


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\users\\me\\a b.txt", "a b.txt"),
        ("\x1b[31m\u202egnp.txt\n", "[31mgnp.txt"),
        ("", "attachment.txt"),
        ("a" * 300 + ".pdf", "a" * 116 + ".pdf"),
    ],
)
def test_names_lose_what_could_do_harm(given_, kept):
    assert file_name(given_) == kept


@pytest.fixture
def store():
    made = ConversationStore(None)
    yield made
    made.close()


def filled(store):
    made = store.create()
    attachment = store.attachments.add("notes.md", b"# Notes\n\nwith </script> in them")
    first = store.add(made.id, "user", "<b>Hi</b>\n", attachments=[attachment.id])
    answer = store.add(made.id, "assistant", "two", model="m", info={"tokens_per_s": 3.0})
    store.add(made.id, "assistant", "two again", parent=first.id, state="stopped")
    store.edit(first.id, "Hi, again")
    store.choose(answer.id)
    return made


def test_json_comes_back_as_it_was(store):
    made = filled(store)
    text = export(store, made.id, "json")
    copy = import_conversations(store, text)[0]
    assert (copy.id != made.id and copy.title == made.title) or copy.title
    assert [m.content for m in store.path(copy.id)] == [m.content for m in store.path(made.id)]

    def shape(conversation_id):
        messages = store.messages(conversation_id)
        place = {m.id: n for n, m in enumerate(messages)}
        return [
            (
                m.role,
                m.content,
                m.state,
                m.model,
                m.info,
                place.get(m.parent_id),
                place.get(m.active_child),
            )
            for m in messages
        ]

    assert shape(copy.id) == shape(made.id)
    attached = store.attachments.get(store.path(copy.id)[0].attachment_ids[0])
    assert attached.text == "# Notes\n\nwith </script> in them"


def test_markdown_and_html_for_people(store):
    made = filled(store)
    page = export(store, made.id, "html")
    assert "&lt;b&gt;Hi&lt;/b&gt;" in page and "<b>" not in page and "<script" not in page
    text = export(store, made.id, "markdown")
    assert text.startswith("# ") and "*Attached: notes.md*" in text and "## m\n\ntwo\n" in text
    assert "two again" not in text
    assert export_name(store.set(made.id, title="../A/b: c?"), "html") == "a-b-c.html"
    with pytest.raises(UserError, match="did you mean 'html'"):
        export(store, made.id, "htm")


def test_lists_of_messages_and_hosted_exports_come_in(store):
    lines = "\n".join(
        json.dumps({"messages": [{"role": "system", "content": "S"}, *turns]})
        for turns in (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            [{"role": "user", "content": "c"}],
        )
    )
    one, two = import_conversations(store, lines)
    assert one.settings.system == "S" and [m.content for m in store.path(one.id)] == ["a", "b"]
    assert two.title == "c"

    def node(role, text, parent, children):
        message = {"author": {"role": role}, "content": {"parts": [text]}} if role else None
        return {"message": message, "parent": parent, "children": children}

    hosted = {
        "title": "Theirs",
        "current_node": "a1",
        "mapping": {
            "root": node(None, "", None, ["sys"]),
            "sys": node("system", "", "root", ["q"]),
            "q": node("user", "ask", "sys", ["a1", "a2"]),
            "a1": node("assistant", "first", "q", []),
            "a2": node("assistant", "second", "q", []),
        },
    }
    made = import_conversations(store, json.dumps([hosted]))[0]
    assert made.title == "Theirs"
    assert [m.content for m in store.path(made.id)] == ["ask", "first"]
    assert len(store.messages(made.id)) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no conversation"),
        ("{", "neither JSON nor JSON lines"),
        ("[]", "holds no conversation"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "nested too deeply|neither JSON"),
        ('{"title": "x"}', "neither messages nor a mapping"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "message 1: the role must be"),
        ('{"messages": [{"role": "user", "content": 3}]}', "the content must be a text"),
        ('{"messages": [], "settings": {"temperature": "hot"}}', "conversation 1: settings"),
        ('[{"messages": [{"role": "user", "content": "x"}]}, {"y": 1}]', "conversation 2"),
    ],
)
def test_a_bad_file_adds_nothing(store, text, told):
    with pytest.raises(UserError, match=told):
        import_conversations(store, text)
    assert store.recent() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["id", "parent_id", "role", "content", "active_child", "state", "info", "attachments", "model"]
)
MESSAGE = st.dictionaries(KEYS, JSON, max_size=6) | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=5)},
    optional={
        "id": st.sampled_from("abc"),
        "parent_id": st.sampled_from("abc") | st.none(),
        "active_child": st.sampled_from("abc") | JSON,
        "attachments": JSON,
        "state": JSON,
        "info": JSON,
    },
)


@settings(max_examples=80, deadline=None)
@given(
    st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE, max_size=5)}, optional={"active_root": JSON}
    )
)
def test_whatever_comes_in_is_a_tree_or_is_refused(entry):
    store = ConversationStore(None)
    try:
        made = import_conversations(store, json.dumps(entry))[0]
    except UserError:
        assert store.recent() == []
    else:
        path = store.path(made.id)
        assert len({m.id for m in path}) == len(path)
        import_conversations(store, export(store, made.id, "json"))
    store.close()


def test_thumbs_and_corrections_go_out_and_come_in(store):
    made = store.create()
    store.add(made.id, "user", "q")
    answer = store.add(made.id, "assistant", "poor", model="m")
    store.feedback.rate(answer.id, -1, "vague")
    store.edit(answer.id, "better")
    (copy,) = import_conversations(store, export(store, made.id, "json"))
    told = [one for one in feedback_of(store) if one.source == f"chat:{copy.id}"]
    assert [(one.answer, one.rating, one.comment, one.correction) for one in told] == [
        ("poor", -1, "vague", ""),
        ("poor", 0, "", "better"),
    ]
    odd = {"role": "assistant", "content": "a", "edit_of": "gone", "feedback": {"rating": [1]}}
    (other,) = import_conversations(store, json.dumps({"messages": [odd]}))
    assert not store.feedback.votes(other.id) and "edit_of" not in store.path(other.id)[0].info
