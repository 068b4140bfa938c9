"""Headings, notes and formulas of documentation, as the programs that write it have them."""

import docx
import pytest
from docx.enum.style import WD_STYLE_TYPE

from rag_jax.data.formats.document_files import Paragraph, parse_markdown, read_document

FILLER = "The pump stands at the harbour and is oiled on the first day of every month. " * 3
SVG = "<svg class='octicon'><path d='M1'/></svg>"
TEX = r"{\displaystyle x=3}"
SOURCE = f"<annotation encoding='application/x-tex'>{TEX}</annotation>"


def read_page(path, body):
    """What is read between two long paragraphs of a page, with headings below the page's own."""
    parts = f"<h1>Guide</h1><p>{FILLER}</p>{body}<p>{FILLER}</p>"
    path.write_text(f"<html><title>T</title><body><main>{parts}</main></body></html>", "utf-8")
    paragraphs = read_document(path).paragraphs
    assert [p.text for p in (paragraphs[0], paragraphs[-1])] == [FILLER.strip()] * 2
    return [(p.headings[1:], p.text.replace("**", "")) for p in paragraphs[1:-1]]


@pytest.mark.parametrize(
    "heading",
    [
        "<h2><button aria-expanded='false'>Oil it</button></h2>",
        "<h2>Oil it<button>Copy link</button></h2>",
        "<h2>Oil it<a class='headerlink' href='#oil' title='x'>\N{PILCROW SIGN}</a></h2>",
        "<h2><a href='#oil'>#</a> Oil it</h2>",
        f"<h2><a class='anchor' href='#oil'>{SVG}</a>Oil it</h2>",
        f"<div class='markdown-heading'><h2>Oil it</h2><a href='#oil'>{SVG}</a></div>",
        "<h2><a href='/oil'>Oil it</a></h2>",
    ],
)
def test_headings_with_controls_and_links(tmp_path, heading):
    found = read_page(tmp_path / "a.html", f"{heading}<p>Use the can.</p>")
    assert found == [(("Oil it",), "Use the can.")]


@pytest.mark.parametrize(
    ("formula", "read"),
    [
        ("<math><mi>x</mi><mo>=</mo><mn>3</mn></math>", "x = 3"),
        ("<math alttext='x=3'><mi>x</mi><mo>=</mo><mn>3</mn></math>", "x=3"),
        (f"<math><semantics><mi>x</mi>{SOURCE}</semantics></math>", f"${TEX}$"),
        (
            "<span class='mwe'><span style='display: none;'><math><semantics><mi>x</mi>"
            f"{SOURCE}</semantics></math></span><img src='x.svg' alt='{TEX}'></span>",
            f"${TEX}$",
        ),
    ],
)
def test_formulas_of_a_page(tmp_path, formula, read):
    found = read_page(tmp_path / "a.html", f"<p>Let {formula} be given. It holds.</p>")
    assert found == [((), f"Let {read} be given. It holds.")]


@pytest.mark.parametrize(
    "aside",
    ["class='starlight-aside starlight-aside--caution'", "class='admonition'", "role='note'"],
)
def test_warnings_beside_a_text(tmp_path, aside):
    body = f"<aside {aside}><p>Never oil it while it runs.</p></aside>"
    assert read_page(tmp_path / "a.html", body) == [((), "Never oil it while it runs.")]
    advert = "<aside class='sidebar'><p>Buy our other pumps.</p></aside>"
    assert read_page(tmp_path / "b.html", advert) == []


def test_details_in_the_item_of_a_list_are_no_heading(tmp_path):
    details = "<details open=''><summary>Oil</summary><p>Use the can.</p></details>"
    found = read_page(tmp_path / "a.html", f"<ul class='toggle'><li>{details}</li></ul>")
    assert found == [((), "Oil Use the can.")]


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ("---\ntitle: Pump care\n---\n", "Pump care"),
        ("---\r\nlayout: page\r\ntitle: 'Pump: care'  # x\r\n---\r\n", "Pump: care"),
        ("---\ntitle: >\n  Pump\n  care\n---\n", "Pump care"),
        ('+++\ntitle = "Pump care"\n+++\n', "Pump care"),
        ("---\nsubtitle: Pump care\n---\n", "Care"),
        ("---\ntitle:\n---\n", "Care"),
        ("---\ntitle: 2024\n---\n", "Care"),
        ("---\ntitle: a: [\n---\n", "Care"),
        ("+++\ntitle = x\n+++\n", "Care"),
        ("---\n- title: x\n---\n", "Care"),
        ("", "Care"),
    ],
)
def test_the_title_in_the_settings_above_a_text(settings, title):
    document = parse_markdown(f"{settings}Oil it.\n\n## Care\n\nDaily.\n")
    assert document.title == title
    first = settings.count("\n") + 1
    assert document.paragraphs == (
        Paragraph(first, (), "Oil it."),
        Paragraph(first + 4, ("Care",), "Daily."),
    )
    assert parse_markdown(f"{settings}Oil it.\n", "Own").title == "Own"


def set_outline(element, level):
    outline = docx.oxml.OxmlElement("w:outlineLvl")
    outline.set(docx.oxml.ns.qn("w:val"), str(level))
    element.get_or_add_pPr().append(outline)


def test_headings_of_a_word_file_in_styles_of_its_own(tmp_path):
    document = docx.Document()

    def add_style(name, base, level=None):
        style = document.styles.add_style(name, WD_STYLE_TYPE.PARAGRAPH)
        style.base_style = base and document.styles[base]
        if level is not None:
            set_outline(style.element, level)

    add_style("Kapitel", "Heading 1")
    add_style("Avsnitt", None, 1)
    add_style("List of contents", "Heading 1", 9)
    for text, style in (("Pumps", "Kapitel"), ("Care", "Avsnitt"), ("Oil it.", None)):
        document.add_paragraph(text, style)
    set_outline(document.add_paragraph("Valves")._element, 0)
    document.add_paragraph("Contents", "List of contents")
    set_outline(document.add_paragraph("Close them.", "Kapitel")._element, 9)
    document.save(tmp_path / "a.docx")
    found = [(p.headings, p.text) for p in read_document(tmp_path / "a.docx").paragraphs]
    assert found == [
        (("Pumps", "Care"), "Oil it."),
        (("Valves",), "Contents"),
        (("Valves",), "Close them."),
    ]


def test_styles_that_are_based_on_each_other(tmp_path):
    document = docx.Document()
    first, second = (document.styles.add_style(n, WD_STYLE_TYPE.PARAGRAPH) for n in ("A", "B"))
    first.base_style, second.base_style = second, first
    document.add_paragraph("Oil it.", "A")
    document.save(tmp_path / "a.docx")
    (paragraph,) = read_document(tmp_path / "a.docx").paragraphs
    assert (paragraph.headings, paragraph.text) == ((), "Oil it.")
