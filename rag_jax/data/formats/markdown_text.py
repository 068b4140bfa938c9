"""Markdown texts as documents: paragraphs without marks, rows of tables, HTML and settings."""

import re
from typing import Any

from rag_jax.data.formats.outline import Document, Entry, build_document, squeeze
from rag_jax.data.formats.page_text import part_blocks

# Settings above a Markdown text, in YAML or in TOML.
_SETTINGS = re.compile(
    "|".join(
        rf"{begin}[ \t]*\r?\n(?:(?!{end}[ \t]*(?:\r?\n|\Z)).*\n){{0,200}}?{end}[ \t]*(?:\r?\n|\Z)"
        for begin, end in (("---", r"(?:---|\.\.\.)"), (r"\+\+\+", r"\+\+\+"))
    )
)


def parse_markdown(text: str, title: str = "") -> Document:
    """The paragraphs of a Markdown text without its marks; a table has one a row.

    Args:
        title: of the document; if empty, the one in the settings above the text, or a first
            heading that stands alone on its level above all others.
    """
    from markdown_it import MarkdownIt

    settings, text = _split_settings(text)
    entries: list[Entry] = []
    cells: list[str] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for token, before in zip(tokens, [None, *tokens], strict=False):
        place = token.map[0] + 1 if token.map else 0
        if token.type == "inline" and before.type == "heading_open":
            entries.append(Entry(place, _flatten(token), int(before.tag[1:])))
        elif token.type == "inline" and before.type in ("th_open", "td_open"):
            cells.append(_flatten(token))
        elif token.type == "tr_open":
            cells, row = [], place
        elif token.type == "tr_close":
            entries.append(Entry(row, " | ".join(cells)))
        elif token.type == "inline":
            entries.append(Entry(place, _flatten(token)))
        elif token.type in ("fence", "code_block"):
            entries.append(Entry(place, token.content))
        elif token.type == "html_block":
            entries.append(Entry(place, _strip_tags(token.content)))
    return build_document(entries, title or _find_title(settings))


def _split_settings(text: str) -> tuple[str, str]:
    """The settings that stand above a text, and the text with their lines left blank.

    They are between `---` and `---` or `...`, or between two `+++`.
    """
    match = _SETTINGS.match(text)
    if match is None:
        return "", text
    return match[0], "\n" * match[0].count("\n") + text[match.end() :]


def _find_title(settings: str) -> str:
    """The title that settings give; empty if they give none, or are not what they seem."""
    import tomllib

    import yaml

    lines = settings.strip().splitlines()
    load = tomllib.loads if settings.startswith("+") else yaml.safe_load
    try:
        found = load("\n".join(lines[1:-1]))
    except (tomllib.TOMLDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return ""
    title = found.get("title") if isinstance(found, dict) else None
    return title if isinstance(title, str) else ""


def _flatten(token: Any) -> str:
    """The words of a token's content, without scripts and styles."""
    parts, start = [], None
    for child in token.children:
        tag = child.type == "html_inline" and re.match(r"</?\w+", child.content.lower())
        if child.type in ("softbreak", "hardbreak") or (tag and tag[0] == "<br"):
            parts.append(" ")
        elif child.type in ("text", "code_inline", "image"):
            parts.append(child.content)
        elif tag and tag[0] in ("<script", "<style"):
            start = len(parts)
        elif tag and tag[0] in ("</script", "</style") and start is not None:
            del parts[start:]
            start = None
    return squeeze("".join(parts))


def _strip_tags(text: str) -> str:
    """The words of a piece of HTML, without scripts and styles."""
    import lxml.etree
    import lxml.html

    parser = lxml.html.HTMLParser(remove_comments=True, remove_pis=True)
    try:
        tree = lxml.html.fragment_fromstring(text, create_parent="div", parser=parser)
    except lxml.etree.ParserError:  # nothing but a comment
        return ""
    for element in tree.iter("script", "style"):
        element.text = None
    part_blocks(tree)
    return squeeze(tree.text_content())
