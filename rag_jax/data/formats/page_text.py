"""A web page changed so that trafilatura reads what it leaves out: loose texts, figures, notes."""

import re
from collections.abc import Sequence
from typing import Any

from rag_jax.data.formats.outline import squeeze

_INLINE = {
    *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em"),
    *("font", "i", "img", "ins", "kbd", "label", "mark", "nobr", "q", "ruby", "s", "samp", "small"),
    *("span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"),
}
# What a run of text goes on after; a line may break in it.
_IN_RUNS = _INLINE | {"br", "math", "svg"}
# What may hold texts beside paragraphs.
_CELLS = ("td", "th")
_BOXES = (
    *("article", "body", "details", "div", "fieldset", "form", "header", "main", "section"),
    *_CELLS,
)
# What holds sentences.
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = ("p", "li", "dd", "dt", "blockquote", *_HEADINGS, *_CELLS)
_NOTES = ("doc-footnote", "doc-endnote", "doc-endnotes", "note")
# Words of the classes of notes and warnings beside a text, as documentation has them.
_ASIDES = ("footnote", "admonition", "callout", "caution", "danger", "note", "tip", "warning")
# What a page marks as its main part, as trafilatura finds it.
_MAIN = (
    ".//main | .//article"
    " | .//*[starts-with(@id, 'main') or starts-with(@class, 'main') or starts-with(@role, 'main')]"
)


def prepare_page(tree: Any) -> None:
    """Puts texts where trafilatura reads them.

    The body is the main part where a page marks none. Texts in no paragraph come into one. Figures,
    captions, centred parts, footnotes and warnings become boxes like others; dates, labels and
    buttons in a sentence become a part of it, and so do formulas and a heading's only button. Links
    without words, as to a heading itself, are left out.

    Args:
        tree: of lxml, which is changed.
    """
    for anchor in [*tree.iter("a")]:
        if anchor.get("href") is None:  # a place to which links lead, and no link
            anchor.tag = "span"
        elif not any(map(str.isalnum, anchor.text_content())) and anchor.find(".//img") is None:
            anchor.drop_tree()
    for formula in [*tree.iter("math")]:
        _show_formula(formula)
    # Its heading would be all that the item of a list has.
    for element in [*tree.xpath("//li//details | //li//summary")]:
        element.tag = "p" if element.tag == "summary" else "div"
    for element in [*tree.iter("aside", "center", "figcaption", "figure")]:
        if element.tag != "aside" or _is_note(element):
            element.tag = "div"
            if "caption" in element.get("class", ""):  # trafilatura leaves out boxes of this class
                del element.attrib["class"]
    _mark_main(tree)
    for box in [*tree.iter(*_BOXES)]:
        _enclose_runs(box)
    for element in [*tree.iter("button", "label", "time")]:
        if _is_in_sentence(element):
            element.tag = "span"
            element.attrib.pop("class", None)  # which may be one that is left out


def _mark_main(tree: Any) -> None:
    """Makes the body the main part of a page that marks none, where no headings would be read."""
    import lxml.html

    body = tree.find("body")
    if body is not None and not tree.xpath(_MAIN):
        main = lxml.html.Element("main")
        main.text, body.text = body.text, None
        main.extend([*body])
        body.append(main)


def _is_note(aside: Any) -> bool:
    """Whether what stands aside is a note to the text."""
    words = re.split(r"[\s_-]+", aside.get("class", ""))
    return not {*_ASIDES}.isdisjoint(words) or aside.get("role") in _NOTES


def _show_formula(formula: Any) -> None:
    """Has a formula read: one that is hidden behind its picture, and one without its source."""
    for element in formula.iterancestors("span"):
        if "display" in element.get("style", ""):
            del element.attrib["style"]
    if formula.find(".//annotation") is None:
        text = formula.get("alttext") or " ".join(formula.itertext())
        tail = formula.tail
        formula.clear()
        formula.tag, formula.text, formula.tail = "span", " ".join(text.split()), tail


def _is_in_sentence(element: Any) -> bool:
    """Whether a date or a control is a part of a text.

    A button is, if words go on after it, or if it is all that a heading has.
    """
    block = next(element.iterancestors(*_BLOCKS), None)
    if block is None or element.tag != "button":
        return block is not None
    is_all = block.tag in _HEADINGS and squeeze(block.text_content()) == squeeze(
        element.text_content()
    )
    return is_all or bool((element.tail or "").strip())


def _enclose_runs(box: Any) -> None:
    """Puts every run of texts that stand in a box itself into a paragraph.

    A cell of a table without other elements needs none.
    """
    runs: list[tuple[Any, list[Any]]] = [(None, [])]  # each with the element before it
    for element in box:
        if all(own.tag in _IN_RUNS for own in element.iter()):
            runs[-1][1].append(element)
        else:
            runs.append((element, []))
    if len(runs) > 1 or box.tag not in _CELLS:
        for before, run in runs:
            _enclose(box, before, run)


def _enclose(box: Any, before: Any, run: Sequence[Any]) -> None:
    """Puts a run into a paragraph, unless all its words are links, as those of a menu are.

    Args:
        before: the element before the run, None at the box's beginning.
    """
    import lxml.html

    text = (box.text if before is None else before.tail) or ""
    if not any(map(str.isalnum, text)) and not any(map(_has_words, run)):
        return
    paragraph = lxml.html.Element("p")
    paragraph.text = text
    paragraph.extend(run)
    if before is None:
        box.text = None
        box.insert(0, paragraph)
    else:
        before.tail = None
        before.addnext(paragraph)


def _has_words(element: Any) -> bool:
    """Whether an element, or the text after it, has a letter or digit that is no link's."""
    texts = [element.tail or "", *element.xpath(".//text()[not(ancestor::a)]")]
    return any(char.isalnum() for text in texts for char in text)


def part_blocks(tree: Any) -> None:
    """Puts blanks around every element of lxml's tree that does not stand within a line."""
    for element in tree.iter():
        if element.tag not in _INLINE:
            element.text = f" {element.text or ''}"
            element.tail = f" {element.tail or ''}"
