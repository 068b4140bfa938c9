"""A web page changed so that trafilatura reads what it leaves out: loose texts, figures, notes."""

from collections.abc import Sequence
from typing import Any

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
_BLOCKS = ("p", "li", "dd", "dt", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", *_CELLS)
_NOTES = ("doc-footnote", "doc-endnote", "doc-endnotes")
# What a page marks as its main part, as trafilatura finds it.
_MAIN = (
    ".//main | .//article"
    " | .//*[starts-with(@id, 'main') or starts-with(@class, 'main') or starts-with(@role, 'main')]"
)


def prepare_page(tree: Any) -> None:
    """Puts texts where trafilatura reads them.

    The body is the main part where a page marks none. Texts in no paragraph come into one. Figures,
    captions, centred parts and footnotes become boxes like others; dates, labels and buttons in a
    sentence become a part of it.

    Args:
        tree: of lxml, which is changed.
    """
    for anchor in [*tree.iter("a")]:
        if anchor.get("href") is None:  # a place to which links lead, and no link
            anchor.tag = "span"
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
    return "footnote" in aside.get("class", "") or aside.get("role") in _NOTES


def _is_in_sentence(element: Any) -> bool:
    """Whether a date or a control is a part of a text; a button is, if words go on after it."""
    goes_on = element.tag != "button" or (element.tail or "").strip()
    return bool(goes_on) and next(element.iterancestors(*_BLOCKS), None) is not None


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
