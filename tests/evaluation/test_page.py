"""The page as a file: what it holds, whatever the texts are, and that it asks for nothing."""

import base64
import hashlib
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pages import parse_page

from rag_jax.evaluation.page import MARK, escape_json, format_page

WILD = st.text(
    st.one_of(
        st.characters(),  # control characters too
        st.characters(categories=["Cs"]),
        st.sampled_from("</script><!--\u2028\u2029\ufeff\x00&;\"'\\`{}"),
    )
)
ENDS = ("</script>", "<!--<script>", "]]>", "\ud800", "\u2028", "&lt;", "{{data}}", "<body>\n")


def make_run(text, **changes):
    questions = {"id": [text], "question": [text], "answers": [[text]], "relevant": [[]]}
    run = {"name": text, "questions": questions, "methods": {text: {"prediction": [text]}}}
    return run | changes


@given(text=WILD)
@example(text="".join(ENDS))
def test_any_text_comes_out_as_it_went_in(text):
    page = format_page(text, [make_run(text)], {text: [[text]]})
    page.encode()  # a file can hold it
    scripts = parse_page(page).scripts
    data = json.loads(scripts["data"])
    assert data["questions"]["question"] == [text] and data["tables"] == {text: [[text]]}
    assert data["runs"][0]["methods"] == {text: {"prediction": [text]}}
    assert not re.search(r"[<>&\u2028\u2029\x00-\x09\x0b-\x1f\x7f-\x9f]", scripts["data"])
    plain = format_page("", [make_run("")], {})
    tags = [tag for tag, _ in parse_page(page).tags]
    assert tags == [tag for tag, _ in parse_page(plain).tags]
    assert scripts["code"] == parse_page(plain).scripts["code"]


@given(value=st.recursive(st.none() | st.floats(allow_nan=False) | WILD, st.lists, max_leaves=8))
def test_escaped_json_is_the_value(value):
    if "Infinity" not in json.dumps(value):
        assert json.loads(escape_json(value)) == value


def test_what_json_lacks_is_refused():
    with pytest.raises(ValueError):
        escape_json({"x": float("nan")})


def test_the_page_asks_for_nothing():
    text = format_page("t", [make_run("q")], {})
    page = parse_page(text)
    assert MARK in text and text.count("<body>\n") == 1
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))

    def hash_of(text):
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    assert parts == {
        "default-src": "'none'",
        "script-src": hash_of(page.scripts["code"]),
        "style-src": hash_of("".join(page.styles)),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    places = [value for _, found in page.tags for name, value in found.items() if name == "href"]
    assert all(place.startswith("#") for place in places)
    assert not {"src", "srcset", "style", "action"} & {n for _, found in page.tags for n in found}
    # No text of the data is ever read as markup, or as code, and no address is asked.
    code = page.scripts["code"]
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function"
    assert not re.search(rf"{forbidden}|fetch\(|XMLHttpRequest|import\(|WebSocket", code)
    assert re.findall(r"https?://[\w.]+", code) == ["http://www.w3.org"]  # the name of SVG
    assert not re.search(r"url\(|@import", "".join(page.styles))
