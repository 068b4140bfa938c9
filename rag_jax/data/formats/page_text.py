"""What trafilatura does not read of a web page: texts in no element, and captions of figures."""

from typing import Any

_INLINE = {
    *("a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em"),
    *("font", "i", "img", "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span"),
    *("strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"),
}


def enclose_texts(tree: Any) -> None:
    """Puts the texts that stand in the body itself, and captions of figures, into paragraphs.

    Args:
        tree: of lxml, which is changed.
    """
    import lxml.html

    def begin() -> Any:
        return lxml.html.Element("p")

    def close(paragraph: Any, put: Any) -> Any:
        """Puts a paragraph, unless it is empty, and begins another."""
        if len(paragraph) or (paragraph.text or "").strip():
            put(paragraph)
            return begin()
        return paragraph

    body = tree.find("body")
    if body is None:
        return
    paragraph = begin()
    paragraph.text, body.text = body.text, None
    for element in list(body):
        tail, element.tail = element.tail, None
        if element.tag in _INLINE:
            element.tail = tail
            paragraph.append(element)
            continue
        paragraph = close(paragraph, element.addprevious)
        if element.tag == "br":
            body.remove(element)
        paragraph.text = (paragraph.text or "") + (tail or "")
    close(paragraph, body.append)
    for caption in list(body.iter("figcaption")):
        caption.tag = "p"
        if (figure := caption.getparent()).tag == "figure":  # which is left out whole
            figure.addnext(caption)


def part_blocks(tree: Any) -> None:
    """Puts blanks around every element of lxml's tree that does not stand within a line."""
    for element in tree.iter():
        if element.tag not in _INLINE:
            element.text = f" {element.text or ''}"
            element.tail = f" {element.tail or ''}"
