"""Documents as passages: every kind of file, where passages are cut, and files that are refused."""

import gzip
import logging
import zipfile

import docx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import describe_source, read_collection, read_passages
from rag_jax.data.formats import document_files as kinds
from rag_jax.data.formats.document_files import Document, Paragraph, parse_markdown, read_document
from rag_jax.data.formats.documents import Place, cut_document, find_place
from rag_jax.data.formats.lines import BadLineError
from rag_jax.data.formats.pdf_text import join_words
from rag_jax.data.words import count_words
from rag_jax.runtime.errors import RagJaxError

QUESTION = '{"question": "Where is it?", "answers": ["there"]}\n'
MARKDOWN = """---
layout: page
---
# Rivers

They *flow*.
A [link](http://x) and `code`.

## Long ones

| name | length |
|------|--------|
| Nile | 6,650  |

<div><!-- unseen --><b>Bold</b> words</div>

```python
# no heading
```
"""


def write_pdf(path, *pages, encrypt=""):
    """A PDF file with a line of text on each page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for n, text in enumerate(pages):
        font = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 600 800]"
        page = f"<< /Type /Page /Parent 2 0 R {font} /Contents {5 + 2 * n} 0 R >>"
        drawn = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET".encode()
        stream = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn)
        objects += [page.encode(), stream]
    content, places = b"%PDF-1.4\n", []
    for number, own in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, own)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    end += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, len(content))
    path.write_bytes(content + end)
    if encrypt:
        import pypdf

        writer = pypdf.PdfWriter(clone_from=path)
        writer.encrypt(encrypt, algorithm="RC4-128")
        writer.write(path)


def write_word(path):
    document = docx.Document()
    document.add_heading("Atlas", level=0)
    document.add_heading("Lakes", level=1)
    document.add_paragraph("Deep and cold.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Baikal", "1,642 m"
    document.save(str(path))


def write_word_of(path, body):
    """A Word file whose body is given as XML."""
    document = docx.Document()
    space = docx.oxml.ns.nsdecls("w")
    for element in docx.oxml.parse_xml(f"<w:body {space}>{body}</w:body>"):
        document.element.body[-1].addprevious(element)
    document.save(str(path))


def list_paragraphs(document):
    return [(p.place, p.headings, p.text) for p in document.paragraphs]


def test_markdown():
    document = parse_markdown(MARKDOWN)
    assert document.title == "Rivers"
    assert list_paragraphs(document) == [
        (6, ("Rivers",), "They flow. A link and code."),
        (11, ("Rivers", "Long ones"), "name | length"),
        (13, ("Rivers", "Long ones"), "Nile | 6,650"),
        (15, ("Rivers", "Long ones"), "Bold words"),
        (17, ("Rivers", "Long ones"), "# no heading"),
    ]
    assert parse_markdown("# One\na\n# Two\nb").title == ""


def test_headings_with_nothing_below_them_are_paragraphs():
    """Under those above them, unless they are the title."""
    text = "# Rules\n\n## Hall\n### No *smoking*\n### No dogs\n## Yard\n\nBikes.\n\n##\n## Open\n"
    document = parse_markdown(text)
    assert document.title == "Rules"
    assert list_paragraphs(document) == [
        (4, ("Rules", "Hall"), "No smoking"),
        (5, ("Rules", "Hall"), "No dogs"),
        (8, ("Rules", "Yard"), "Bikes."),
        (11, ("Rules",), "Open"),
    ]
    below = parse_markdown("Oil it.\n\nThe code is 4711.\n---\n# Pump\n# Lid")
    texts = [(1, "Oil it."), (3, "The code is 4711."), (5, "Pump"), (6, "Lid")]
    assert list_paragraphs(below) == [(place, (), text) for place, text in texts]
    assert list_paragraphs(parse_markdown("Oil it.\n# Pump")) == [(1, (), "Oil it.")]


def test_headings_of_pages_and_word_files_with_nothing_below_them(tmp_path):
    headings = "<h1>Shop</h1><h2>Closed on Mondays</h2><h2>Open from nine</h2>"
    page = f"<html><head><title>Shop</title></head><body>{headings}<p>Bread.</p></body></html>"
    (tmp_path / "a.html").write_text(page)
    assert list_paragraphs(read_document(tmp_path / "a.html")) == [
        (1, ("Shop",), "Closed on Mondays"),
        (2, ("Shop", "Open from nine"), "Bread."),
    ]
    document = docx.Document()
    for level, text in ((0, "Lease"), (1, "Clauses"), (2, "No dogs."), (2, ""), (2, "900 euros.")):
        document.add_heading(text, level)
    document.save(str(tmp_path / "a.docx"))
    word = read_document(tmp_path / "a.docx")
    assert word.title == "Lease"
    assert list_paragraphs(word) == [(3, ("Clauses",), "No dogs."), (5, ("Clauses",), "900 euros.")]


@pytest.mark.parametrize(
    "text",
    [
        "---\r\ntitle: x\r\n---\r\n\r\nWords.\r\n",
        "--- \ntitle: x\n---\t\n\nWords.\n",
        "---\ntitle: x\n...\n\nWords.\n",
        "---\ntitle: x\nnote: ---\n--- \r\n\nWords.\n",
    ],
)
def test_settings_above_a_markdown_text_are_cut(text):
    place = text.splitlines().index("Words.") + 1
    assert list_paragraphs(parse_markdown(text)) == [(place, (), "Words.")]
    assert parse_markdown("---\ntitle: x\n---").paragraphs == ()


def test_rules_in_a_markdown_text_are_not_cut():
    for text in ("---\n\nWords.\n", "----\n\nWords.\n\n----\n", "Words.\n\n---\n..."):
        assert "Words." in [p.text for p in parse_markdown(text).paragraphs]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one<br>two<BR />three", "one two three"),
        ("| a |\n|---|\n| one<br/>two |", "a / one two"),
        ("before <script>x(1 < 2)</script>after", "before after"),
        ("before <STYLE>p {}</STYLE> after `<script>` a </script>", "before after <script> a"),
        ("the tag <script> is old", "the tag is old"),
        ("<p>H<sub>2</sub>O, the <b>N</b>ew<br>Ark<p>s</div>", "H2O, the New Ark s"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a b"),
        ("<div>one<script>x()</script>two<style>p {}</style> three</div>", "one two three"),
        ("<script>\nx()\n\ny()\n</script>\n\nWords.", "Words."),
    ],
)
def test_html_in_markdown(text, words):
    assert " / ".join(p.text for p in parse_markdown(text).paragraphs) == words


def write_run(text, tag="w:t"):
    return f'<w:r><{tag} xml:space="preserve">{text}</{tag}></w:r>'


def write_paragraph(*parts, settings=""):
    return f"<w:p>{settings}{''.join(parts)}</w:p>"


def wrap(content, settings=""):
    return f"<w:sdt><w:sdtPr>{settings}</w:sdtPr><w:sdtContent>{content}</w:sdtContent></w:sdt>"


def test_tracked_changes_and_content_controls_of_a_word_file(tmp_path):
    """What is inserted, moved or filled in is read; what is deleted or moved away is not."""
    by = 'w:id="1" w:author="a"'
    gone = f"<w:del {by}>{write_run('deleted', 'w:delText')}</w:del>"
    place = '<w:smartTagPr><w:attr w:name="n" w:val="v"/></w:smartTagPr>'
    contents = '<w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj>'
    heading = '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>'
    parts = [
        write_paragraph(write_run("Lakes"), settings=heading),
        write_paragraph(
            write_run("The fee is "),
            f"<w:ins {by}>{write_run('ten')}{gone}<w:smartTag>{place}{write_run(' euros')}"
            "</w:smartTag></w:ins>",
            gone,
            f"<w:moveTo {by}>{write_run(' a')}</w:moveTo>",
            f"<w:moveFrom {by}>{write_run('moved away')}</w:moveFrom>",
            wrap(wrap(write_run(" day"))),
            wrap(write_run("Click to enter text."), "<w:showingPlcHdr/>"),
        ),
        wrap(wrap(write_paragraph(write_run("Deep."))) + write_paragraph(write_run("Cold."))),
        wrap(write_paragraph(write_run("Lakes 3")), contents),
    ]
    write_word_of(tmp_path / "a.docx", "".join(parts))
    assert list_paragraphs(read_document(tmp_path / "a.docx")) == [
        (2, ("Lakes",), "The fee is ten euros a day"),
        (3, ("Lakes",), "Deep."),
        (4, ("Lakes",), "Cold."),
    ]


def test_fields_right_to_left_text_and_tables_in_cells_of_a_word_file(tmp_path):
    grid = "<w:tblPr/><w:tblGrid><w:gridCol/></w:tblGrid>"
    inner = f"<w:tbl>{grid}{write_row(write_cell('inner'), write_cell('table'))}</w:tbl>"
    cell = f"<w:tc><w:tcPr/>{write_paragraph(write_run('outer'))}{inner}<w:p/></w:tc>"
    parts = [
        write_paragraph(
            write_run("See "),
            f'<w:fldSimple w:instr="REF x">{write_run("Section 3")}</w:fldSimple>',
            f'<w:bdo w:val="rtl"><w:dir w:val="rtl">{write_run(" there")}</w:dir></w:bdo>',
        ),
        f"<w:tbl>{grid}{write_row(cell)}</w:tbl>",
    ]
    write_word_of(tmp_path / "a.docx", "".join(parts))
    texts = [p.text for p in read_document(tmp_path / "a.docx").paragraphs]
    assert texts == ["See Section 3 there", "outer inner table"]


def write_box(*paragraphs):
    """A text box as Word writes it, once for new programs and once for old ones."""
    content = f"<w:txbxContent>{''.join(paragraphs)}</w:txbxContent>"
    office = "http://schemas.openxmlformats.org"
    spaces = (
        f'xmlns:mc="{office}/markup-compatibility/2006" xmlns:v="urn:schemas-microsoft-com:vml"'
    )
    return (
        f'<w:r><mc:AlternateContent {spaces}><mc:Choice Requires="wps"><w:drawing>{content}'
        f"</w:drawing></mc:Choice><mc:Fallback><w:pict><v:textbox>{content}</v:textbox></w:pict>"
        "</mc:Fallback></mc:AlternateContent></w:r>"
    )


def test_text_boxes_and_formulas_of_a_word_file(tmp_path):
    """A box follows its paragraph, and is no part of a heading."""
    heading = '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>'
    box = write_box(write_paragraph(write_run("Mind")), write_paragraph(write_run("the gap.")))
    space = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
    terms = "".join(f"<m:r><m:t>{text}</m:t></m:r>" for text in ("E=", "mc2"))
    formula = f"<m:oMath {space}>{terms}</m:oMath>"
    parts = [
        write_paragraph(write_run("Trains"), box, settings=heading),
        write_paragraph(write_run("With "), formula, write_run(".")),
        write_paragraph(f"<m:oMathPara {space}><m:oMathParaPr/>{formula}</m:oMathPara>"),
        f"<w:tbl><w:tblPr/><w:tblGrid><w:gridCol/></w:tblGrid>"
        f"{write_row('<w:tc><w:tcPr/>' + write_paragraph(write_run('cell'), box) + '</w:tc>')}"
        "</w:tbl>",
    ]
    write_word_of(tmp_path / "a.docx", "".join(parts))
    texts = [(1, "Mind"), (1, "the gap."), (2, "With E= mc2."), (3, "E= mc2"), (4, "cell")]
    texts += [(4, "Mind"), (4, "the gap.")]
    assert list_paragraphs(read_document(tmp_path / "a.docx")) == [
        (place, ("Trains",), text) for place, text in texts
    ]


def test_notes_of_a_word_file(tmp_path):
    """They follow the paragraph that refers to them, without what is deleted in them."""
    refers = "".join(
        f'<w:r><w:{kind}Reference w:id="2"/></w:r>' for kind in ("footnote", "endnote")
    )
    write_word_of(tmp_path / "a.docx", write_paragraph(write_run("A text."), refers))
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml"
    types = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    gone = f'<w:del w:id="1" w:author="a">{write_run("deleted", "w:delText")}</w:del>'
    declared, related, parts = "", "", {}
    for kind in ("footnote", "endnote"):
        note = write_paragraph(write_run(f"The {kind}."), gone)
        unasked = write_paragraph(write_run("Nobody refers to it."))
        parts[f"word/{kind}s.xml"] = (
            f'<w:{kind}s {docx.oxml.ns.nsdecls("w")}><w:{kind} w:id="0">{unasked}</w:{kind}>'
            f'<w:{kind} w:id="2">{note}</w:{kind}></w:{kind}s>'
        )
        declared += f'<Override PartName="/word/{kind}s.xml" ContentType="{main}.{kind}s+xml"/>'
        related += f'<Relationship Id="x{kind}" Type="{types}/{kind}s" Target="{kind}s.xml"/>'
    with (
        zipfile.ZipFile(tmp_path / "a.docx") as plain,
        zipfile.ZipFile(tmp_path / "b.docx", "w") as noted,
    ):
        for name in plain.namelist():
            text = plain.read(name)
            text = text.replace(b"</Types>", f"{declared}</Types>".encode())
            if name == "word/_rels/document.xml.rels":
                end = "</Relationships>"
                text = text.replace(end.encode(), f"{related}{end}".encode())
            noted.writestr(name, text)
        for name, text in parts.items():
            noted.writestr(name, text)
    wanted = [(1, (), "A text."), (1, (), "The footnote."), (1, (), "The endnote.")]
    assert list_paragraphs(read_document(tmp_path / "b.docx")) == wanted
    assert list_paragraphs(read_document(tmp_path / "a.docx")) == wanted[:1]


def test_lines_of_a_text_are_those_of_an_editor(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\n\n\x0c\u2028\r\n\r\ntwo\n".encode())
    assert [p.place for p in read_document(tmp_path / "a.txt").paragraphs] == [1, 5]


def test_what_stands_beside_documents(tmp_path):
    """Word's lock files are none; a name that is no text is one line."""
    (tmp_path / "a.md").write_text("A text.\n")
    (tmp_path / "~$b.docx").write_bytes(b"owner")
    assert [p.id for p in read_passages([tmp_path])] == ["a.md#1"]
    (tmp_path / "caf\udce9.md").write_text("Another.\n")
    with pytest.raises(RagJaxError, match=r"caf.*: the name is not UTF-8: rename it$"):
        read_passages([tmp_path])


def write_row(*cells, settings=""):
    return f"<w:tr>{settings}{''.join(cells)}</w:tr>"


def write_cell(text, settings=""):
    return f"<w:tc><w:tcPr>{settings}</w:tcPr>{write_paragraph(write_run(text))}</w:tc>"


def test_merged_cells_of_a_word_file_are_read_once(tmp_path):
    rows = [
        write_row(write_cell("merged", '<w:gridSpan w:val="2"/>'), write_cell("c")),
        write_row(write_cell("tall", '<w:vMerge w:val="restart"/>'), wrap(write_cell("1"))),
        write_row(write_cell("", "<w:vMerge/>"), write_cell("2"), write_cell("equal")),
        wrap(write_row(write_cell("", '<w:vMerge w:val="continue"/>'), write_cell("equal"))),
        write_row(write_cell("deleted"), settings='<w:trPr><w:del w:id="1"/></w:trPr>'),
    ]
    grid = "<w:tblPr/><w:tblGrid><w:gridCol/><w:gridCol/><w:gridCol/></w:tblGrid>"
    write_word_of(tmp_path / "a.docx", f"<w:tbl>{grid}{''.join(rows)}</w:tbl>")
    texts = [p.text for p in read_document(tmp_path / "a.docx").paragraphs]
    assert texts == ["merged | c", "tall | 1", "2 | equal", "equal"]

    document = docx.Document()
    table = document.add_table(rows=2, cols=3)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = str(number)
    table.cell(0, 0).merge(table.cell(1, 1))
    document.save(str(tmp_path / "b.docx"))
    texts = [p.text for p in read_document(tmp_path / "b.docx").paragraphs]
    assert texts == ["0 1 3 4 | 2", "5"]


def test_text_pages_pdf_and_word(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffOne line\nand another.\n\n\nNext.\n", "utf-8")
    read = lambda name: read_document(tmp_path / name)  # noqa: E731
    assert list_paragraphs(read("a.txt")) == [(1, (), "One line and another."), (5, (), "Next.")]

    words = "The harbour was built by the town in 1912 and has had three piers since. "
    body = f"<h1>Harbour</h1><p>{words * 4}</p><h2>Ships</h2><p>{words * 4}</p>"
    menu = "<nav><a href='/'>Home</a></nav><script>steal()</script>"
    html = f"<html><head><title>Ports</title></head><body>{menu}<main>{body}</main></body></html>"
    (tmp_path / "b.html").write_text(html)
    page = read("b.html")
    assert page.title == "Harbour"
    assert page.paragraphs[0].headings == ("Harbour",)
    assert page.paragraphs[-1].headings == ("Harbour", "Ships")
    assert "steal" not in str(page) and "Home" not in str(page)

    write_pdf(tmp_path / "c.pdf", "First page", "Second page")
    assert list_paragraphs(read("c.pdf")) == [(1, (), "First page"), (2, (), "Second page")]
    write_word(tmp_path / "d.docx")
    word = read("d.docx")
    assert word.title == "Atlas"
    assert [(p.headings, p.text) for p in word.paragraphs] == [
        (("Lakes",), "Deep and cold."),
        (("Lakes",), "Baikal | 1,642 m"),
    ]


def test_words_that_are_divided_at_the_ends_of_lines(tmp_path):
    lines = ["It is in Stras-", "bourg, a well-", "known town, on short-", "and long-term"]
    lines += ["loans of Jean-", "Paul, in 1990-", "1995, a well-known \\256nance man."]
    write_pdf(tmp_path / "a.pdf", ") Tj 0 -14 Td (".join(lines))
    (page,) = read_document(tmp_path / "a.pdf").paragraphs
    assert page.text == (
        "It is in Strasbourg, a well-known town, on short- and long-term loans of Jean-Paul, in "
        "1990- 1995, a well-known finance man."
    )
    assert join_words(["com\u2010\npany, inter-\nnatio-\nnal; -\n-\nx-\n"]) == [
        "company, international; -\n-\nx-\n"
    ]
    (tmp_path / "b.txt").write_text("A trans\u00adformer, and re\u00ad\nplaced.\n", "utf-8")
    (paragraph,) = read_document(tmp_path / "b.txt").paragraphs
    assert paragraph.text == "A transformer, and replaced."


def write_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"0" * 3000)


@pytest.mark.parametrize(
    "name, write, problem",
    [
        ("a.pdf", lambda p: write_pdf(p, "Secret", encrypt="word"), "is encrypted"),
        ("a.pdf", lambda p: write_pdf(p, "", ""), "has no text: if it is scanned"),
        ("a.pdf", lambda p: p.write_bytes(b"%PDF-1.4 cut short"), "is damaged"),
        ("a.docx", lambda p: p.write_bytes(b"no archive"), "is damaged"),
        ("a.docx", write_bomb, "unpacks to more than"),
        ("a.txt", lambda p: p.write_bytes(gzip.compress(b"words" * 1000)), "unpacks to more than"),
        ("a.html", lambda p: p.write_text("<html><body></body></html>"), "has no text"),
        ("a.md", lambda p: p.write_text("# Only a heading\n"), "has no text"),
        ("a.txt", lambda p: p.write_bytes(b"\xff\xfe\x00a"), "UTF-16"),
        ("a.txt", lambda p: p.write_bytes(b"caf\xe9 au lait"), "is not UTF-8 .at byte 3.: save it"),
        ("a.txt", lambda p: p.write_text("words " * 500), "divide it"),
        ("a.txt", lambda p: p.write_text(" \n \n"), "has no text"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, monkeypatch, name, write, problem):
    if problem in ("unpacks to more than", "divide it"):
        monkeypatch.setattr(kinds, "LARGEST", 300)
    path = tmp_path / name
    write(path)
    with pytest.raises(RagJaxError, match=problem) as caught:
        read_document(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


texts = st.text(st.sampled_from("ab .!?\n北京。ก"), max_size=120)
headings = st.sampled_from([(), ("H",), ("H", "I"), ("H", "I J"), ("K",)])


@given(st.lists(st.tuples(headings, texts), max_size=8), st.integers(1, 9))
def test_passages_keep_all_words_and_stay_short(paragraphs, words):
    document = Document("t", tuple(Paragraph(n, *own) for n, own in enumerate(paragraphs)))
    passages = list(cut_document(document, "f.txt", words))

    def squeeze(texts):
        return "".join(c for text in texts for c in text if not c.isspace() and c not in "HIJK:")

    assert squeeze(p.text for p in passages) == squeeze(text for _, text in paragraphs)
    shown = " ".join(f"{p.title} {p.text}" for p in passages)
    assert all({*"".join(own)} <= {*shown} for own, text in paragraphs if text.strip())
    assert all(count_words(p.text) <= words for p in passages)
    assert len({p.id for p in passages}) == len(passages)


def cut(words, *paragraphs, name="docs/a.md", title="Guide"):
    document = Document(title, tuple(Paragraph(*own) for own in paragraphs))
    return [(p.id, p.title, p.text) for p in cut_document(document, name, words)]


def test_ids_and_titles_say_where():
    own, other = ("Guide", "Setup"), ("Guide", "Use")
    assert cut(6, (3, own, "One two. Three four. Five six. Seven."), (9, other, "Eight nine.")) == [
        ("docs/a.md#3", "Guide: Setup", "One two. Three four."),
        ("docs/a.md#3.2", "Guide: Setup", "Five six. Seven."),
        ("docs/a.md#9", "Guide: Use", "Eight nine."),
    ]
    assert cut(4, (1, (), "Words."), name="b/notes.txt", title="")[0][1] == "notes"


def test_an_id_is_read_as_the_place_that_it_names():
    document = Document("Guide", tuple(Paragraph(7, (), f"{word}.") for word in "abc"))
    units = {".pdf": "page", ".docx": "paragraph", ".HTML": "paragraph", ".md": "line"}
    for suffix, unit in units.items():
        name = f"a folder/x#1\n{suffix}"
        found = [find_place(passage.id) for passage in cut_document(document, name, 1)]
        assert found == [Place(name, f"{unit} 7")] * 3
    assert {*kinds.PLACES} == {*kinds.READERS}
    for other in (
        "",
        "wiki/Kenya#3",
        "a.pdf",
        "a.pdf#",
        "a.pdf#x",
        "a.pdf#1.2.3",
        "#1",
        "a.json#1",
    ):
        assert find_place(other) is None


def test_short_sections_share_a_passage_and_keep_their_headings():
    sections = [
        (3, ("Chad", "People", "Age"), "Median 17 years."),
        (5, ("Chad", "People", "Urban"), "A quarter."),
        (7, ("Chad", "Land"), "Deserts in the north and savanna in the south of it."),
        (9, ("Chad", "Trade"), "Oil."),
    ]
    assert cut(16, *sections, title="Chad") == [
        ("docs/a.md#3", "Chad: People", "Age: Median 17 years. Urban: A quarter."),
        ("docs/a.md#7", "Chad: Land", sections[2][2]),
        ("docs/a.md#9", "Chad: Trade", "Oil."),
    ]


def test_headings_that_fill_half_a_passage_are_in_the_text_once():
    long = "a b c d"
    sections = [
        (1, ("Chad", long), "One."),
        (2, ("Chad", long), "Two."),
        (3, ("Chad", long, "e f"), "Three."),
        (4, ("Chad", long, "e f"), ""),
        (5, ("Chad", "g"), "Four."),
    ]
    assert cut(6, *sections, title="Chad") == [
        ("docs/a.md#1", "Chad", f"{long}: One."),
        ("docs/a.md#2", "Chad", "Two. e f: Three."),
        ("docs/a.md#5", "Chad: g", "Four."),
    ]
    # A title stands above all passages.
    assert cut(6, (1, (long,), "One."), title=long) == [("docs/a.md#1", long, "One.")]


def test_a_folder_of_documents_is_a_corpus(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.md").write_text("# A\nFirst things. Second things.\n")
    (tmp_path / "sub" / "b.txt").write_text("Below.\n")
    (tmp_path / "sub" / "c.txt").write_text("Below.\n")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF")
    (tmp_path / ".hidden.md").write_text("unseen\n")
    (tmp_path / "test_questions.jsonl").write_text(
        '{"question": "Which?", "answers": ["First"], "passage_id": "a.md#2"}\n'
    )
    settings = DataConfig(path=str(tmp_path), bad_lines=1)
    with caplog.at_level(logging.INFO):
        collection = read_collection(settings, WorldConfig())
    assert [p.id for p in collection.passages] == ["a.md#2", "sub/b.txt#1"]
    assert collection.questions["test"][0].relevant == {"a.md#2": 1}
    before = describe_source(settings, WorldConfig())
    assert {*before["files"]} == {
        *("a.md", "bad.pdf", "sub/b.txt", "sub/c.txt", "test_questions.jsonl")
    }
    (tmp_path / "sub" / "b.txt").write_text("Other.\n")
    assert describe_source(settings, WorldConfig()) != before
    with pytest.raises(RagJaxError, match=r"bad\.pdf is damaged.*bad_lines=0"):
        read_collection(DataConfig(path=str(tmp_path)), WorldConfig())
    (tmp_path / "bad.pdf").unlink()
    assert [p.id for p in read_passages([tmp_path])] == ["a.md#2", "sub/b.txt#1", "sub/c.txt#1"]
    assert "test_questions.jsonl: is not read: is no document" in caplog.text
    (passage,) = read_passages([tmp_path / "a.md"])
    assert passage.text == "First things. Second things."


def test_documents_beside_passages_are_left_out(tmp_path, caplog):
    (tmp_path / "README.md").write_text("About this.\n")
    (tmp_path / "passages.jsonl").write_text('{"id": "1", "text": "Words."}\n')
    (tmp_path / "test_questions.jsonl").write_text(QUESTION)
    collection = read_collection(DataConfig(path=str(tmp_path)), WorldConfig())
    assert [p.id for p in collection.passages] == ["1"]
    assert "README.md: is not read" in caplog.text
    assert (
        "README.md" not in describe_source(DataConfig(path=str(tmp_path)), WorldConfig())["files"]
    )


def test_what_is_about_a_dataset_is_no_document_of_it(tmp_path, caplog):
    """Beside questions; in a folder of one's own documents a README is a document."""
    about = ["README.md", "readme_de.txt", "LICENSE.txt", "Changelog.md", "CONTRIBUTING.md"]
    about += ["requirements.txt", "requirements-dev.txt"]
    for name in (*about, "licensed pilots.md", "requirements for a visa.txt", "sub/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"The words of {name}.\n")
    (tmp_path / "test_questions.jsonl").write_text(QUESTION)
    settings = DataConfig(path=str(tmp_path))
    read = ["licensed pilots.md#1", "requirements for a visa.txt#1", "sub/README.md#1"]
    assert [p.id for p in read_collection(settings, WorldConfig()).passages] == read
    assert not {*about} & {*describe_source(settings, WorldConfig())["files"]}
    assert all(f"{name}: is not read" in caplog.text for name in about)
    assert len(read_passages([tmp_path])) == len(about) + len(read)
    for name in ("licensed pilots.md", "requirements for a visa.txt", "sub/README.md"):
        (tmp_path / name).unlink()
    with pytest.raises(RagJaxError, match="holds no passages"):
        read_collection(settings, WorldConfig())


def test_pages_without_text_are_counted(tmp_path, capsys):
    write_pdf(tmp_path / "a.pdf", "One.", "", "Three.", "")
    assert [p.text for p in read_passages([tmp_path])] == ["One. Three."]
    wanted = "a.pdf: document: 1 read, 2 left out (pages without text)"
    assert wanted in capsys.readouterr().err


def test_damage_is_a_bad_line(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadLineError):
        read_document(tmp_path / "a.docx")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_pdf(folder / "a.pdf", "First page", "Second page")
    write_word(folder / "a.docx")
    return folder


@pytest.mark.parametrize("name", ["a.pdf", "a.docx"])
@given(data=st.data())
def test_whatever_is_in_a_file_is_one_line(whole, name, data):
    content = bytearray((whole / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=8))
    path = whole / f"mutated-{name}"
    path.write_bytes(content)
    try:
        read_document(path)
    except RagJaxError as error:
        assert str(path) in str(error) and "\n" not in str(error)
