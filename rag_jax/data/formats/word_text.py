"""What python-docx does not read of a Word file: changes, controls, formulas, boxes and notes."""

from collections.abc import Mapping
from typing import Any

_NOTES = ("footnote", "endnote")
_OFFICE = "http://schemas.openxmlformats.org"
_NAMESPACES = {
    "m": f"{_OFFICE}/officeDocument/2006/math",
    "mc": f"{_OFFICE}/markup-compatibility/2006",
    "w": f"{_OFFICE}/wordprocessingml/2006/main",
}
# Word's elements that only enclose others, and those that are not read: what is deleted or moved
# away, is never filled in, or lists the contents. A merged cell is read at its first place alone.
_ENCLOSING = (
    *("w:ins", "w:moveTo", "w:sdt", "w:sdtContent", "w:smartTag", "w:customXml"),
    *("w:fldSimple", "w:dir", "w:bdo", "m:oMathPara"),
)
_UNREAD = (
    *("w:del", "w:moveFrom", "w:tr[w:trPr/w:del]", "w:tc[w:tcPr/w:cellDel]"),
    *("w:sdtPr", "w:sdtEndPr", "w:smartTagPr", "w:customXmlPr", "m:oMathParaPr"),
    "mc:AlternateContent[mc:Choice]/mc:Fallback",  # the same once more, for old programs
    "w:sdt[w:sdtPr/w:showingPlcHdr[not(@w:val) or @w:val = '1' or @w:val = 'true']]",
    "w:sdt[w:sdtPr/w:docPartObj/w:docPartGallery/@w:val = 'Table of Contents']",
    *("w:tc[w:tcPr/w:vMerge[not(@w:val = 'restart')]]", "w:gridSpan"),
)


def read_cell(cell: Any) -> str:
    """The text of a table's cell, with that of the tables in it."""
    import docx

    texts = []
    for block in cell.iter_inner_content():
        if isinstance(block, docx.table.Table):
            texts += [read_cell(one) for row in block.rows for one in row.cells]
        else:
            texts.append(block.text)
    return "\n".join(texts)


def list_beside(element: Any, notes: Mapping[tuple[str, str], str]) -> list[str]:
    """The texts of the text boxes in a paragraph or a table, and of the notes it refers to.

    Args:
        notes: as `read_notes` returns them.
    """
    texts = [paragraph.text for paragraph in _find(element, "w:txbxContent//w:p")]
    for kind in _NOTES:
        texts += [notes.get((kind, id), "") for id in _find(element, f"w:{kind}Reference/@w:id")]
    return texts


def read_notes(part: Any) -> dict[tuple[str, str], str]:
    """The texts of a document's footnotes and endnotes, by kind and id."""
    import docx

    notes = {}
    for relation in part.rels.values():
        for kind in _NOTES:
            if relation.reltype.endswith(f"/{kind}s") and not relation.is_external:
                root = docx.oxml.parse_xml(relation.target_part.blob)
                unfold(root)
                for note in _find(root, f"w:{kind}"):
                    id = note.get(docx.oxml.ns.qn("w:id"))
                    notes[kind, id] = "\n".join(p.text for p in _find(note, "w:p"))
    return notes


def unfold(body: Any) -> None:
    """Puts what is enclosed in the place of what encloses it, where python-docx finds it.

    Of a formula, the symbols are left.
    """
    import docx

    for element in _find(body, *_UNREAD):
        element.getparent().remove(element)
    for formula in _find(body, "m:oMath"):
        run = docx.oxml.OxmlElement("w:r")
        run.text = " ".join(_find(formula, "m:t/text()"))
        formula.getparent().replace(formula, run)
    for element in _find(body, *_ENCLOSING):
        for child in reversed(element):
            element.addnext(child)
        element.getparent().remove(element)


def _find(element: Any, *paths: str) -> list[Any]:
    """What lies below an element at any of some paths."""
    import lxml.etree

    path = " | ".join(f".//{path}" for path in paths)
    return lxml.etree.XPath(path, namespaces=_NAMESPACES)(element)
