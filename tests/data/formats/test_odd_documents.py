"""Documents that readers open and libraries do not read right, or only in part."""

import gzip
import io
import json
import zipfile

import docx
import pypdf
import pytest
from docx.oxml.ns import nsdecls
from pypdf.generic import (
    ArrayObject,
    DecodedStreamObject,
    DictionaryObject,
    NameObject,
    NumberObject,
    TextStringObject,
)

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import describe_source, read_passages
from rag_jax.data.formats.document_files import parse_markdown, read_document
from rag_jax.data.formats.lines import BadLineError
from rag_jax.runtime.errors import RagJaxError

SENTENCE = "The pump number {} was delivered to the harbour in spring, and stands there today."
SENTENCES = [SENTENCE.format(i) for i in range(5)]
STRICT = b"http://purl.oclc.org/ooxml/officeDocument/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def read_words(path):
    return " ".join(paragraph.text for paragraph in read_document(path).paragraphs)


# PDF.


def name(**entries):
    return DictionaryObject({NameObject(f"/{key}"): value for key, value in entries.items()})


def write_page(path, drawn, encoding=None, encrypt="", form=(), title=""):
    """A PDF file of one page: bytes of a text in hexadecimal, a font's encoding, and fields."""
    writer = pypdf.PdfWriter()
    writer.add_metadata({"/Title": title})
    page = writer.add_blank_page(300, 300)
    font = name(Type=NameObject("/Font"), Subtype=NameObject("/Type1"), BaseFont=NameObject("/X+Y"))
    if encoding is not None:
        font[NameObject("/Encoding")] = encoding
    page[NameObject("/Resources")] = name(Font=name(F1=font))
    stream = DecodedStreamObject()
    stream.set_data(b"BT /F1 12 Tf 20 200 Td <%s> Tj ET" % drawn.hex().encode())
    page[NameObject("/Contents")] = writer._add_object(stream)
    place = ArrayObject(map(NumberObject, (150, 195, 290, 215)))
    fields = [writer._add_object(field) for field in form]
    for field in fields:
        field.get_object()[NameObject("/Rect")] = place
    page[NameObject("/Annots")] = writer._add_object(ArrayObject(fields))
    if encrypt:
        writer.encrypt("", "owner", algorithm=encrypt)
    writer.write(path)


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_pdf_that_anyone_can_open(tmp_path, algorithm):
    write_page(tmp_path / "a.pdf", b"The pump has a valve.", encrypt=algorithm)
    assert read_words(tmp_path / "a.pdf") == "The pump has a valve."


@pytest.mark.parametrize("names", [False, True])
def test_fonts_that_do_not_tell_their_characters(tmp_path, names):
    """A font with a part of the letters numbers them, and may name them by their numbers."""
    text = "The pump has a valve of steel and a handle of brass."
    letters = sorted({*text})
    codes = bytes(letters.index(letter) + 1 for letter in text)
    glyphs = [NumberObject(1), *[NameObject(f"/g{i}") for i in range(1, 60)]]
    encoding = name(Type=NameObject("/Encoding"), Differences=ArrayObject(glyphs))
    write_page(tmp_path / "a.pdf", codes, encoding if names else None)
    with pytest.raises(BadLineError, match="has no text: if it is scanned, or its fonts do not te"):
        read_document(tmp_path / "a.pdf")


def test_what_is_filled_into_a_form(tmp_path):
    widget = {"Type": NameObject("/Annot"), "Subtype": NameObject("/Widget")}
    parent = name(FT=NameObject("/Tx"), V=TextStringObject("Riga"))
    chosen = ArrayObject([TextStringObject("oil"), TextStringObject("water")])
    form = [
        name(**widget, FT=NameObject("/Tx"), V=TextStringObject("Titan 500")),
        name(**widget, FT=NameObject("/Btn"), V=NameObject("/Yes")),
        name(**widget, FT=NameObject("/Tx")),
        name(**widget, Parent=parent),
        name(**widget, FT=NameObject("/Ch"), V=chosen),
        name(Subtype=NameObject("/Link"), V=TextStringObject("unseen")),
    ]
    write_page(tmp_path / "a.pdf", b"Name of the pump:", form=form)
    assert read_words(tmp_path / "a.pdf") == "Name of the pump: Titan 500 Riga oil water"


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Care of pumps", "Care of pumps"),
        ("untitled", "pump"),
        ("Untitled-1", "pump"),
        ("Microsoft Word - draft_v3_final.doc", "pump"),
        ("Microsoft Word - Draft", "pump"),
        ("i-xx_Phobias-fm.indd", "pump"),
        ("MAIN.TEX ", "pump"),
        ("file:///C|/tmp/x.html", "pump"),
        ("The untitled file", "The untitled file"),
        ("About documents", "About documents"),
    ],
)
def test_titles_of_a_pdf_that_are_the_name_of_a_file(tmp_path, title, shown):
    write_page(tmp_path / "pump.pdf", b"The pump has a valve.", title=title)
    assert [passage.title for passage in read_passages([tmp_path])] == [shown]


# Word.


def write_word(path, body="", relations="", change=None):
    """A Word file with a paragraph, runs as XML in it, and further relationships."""
    document, stored = docx.Document(), io.BytesIO()
    paragraph = document.add_paragraph("Start ")._p
    for run in docx.oxml.parse_xml(f"<w:p {nsdecls('w')}>{body}</w:p>"):
        paragraph.append(run)
    document.save(stored)
    with zipfile.ZipFile(stored) as archive, zipfile.ZipFile(path, "w") as out:
        for entry in archive.namelist():
            content = archive.read(entry)
            if entry == "word/_rels/document.xml.rels":
                end = b"</Relationships>"
                content = content.replace(end, relations.encode() + end)
            out.writestr(entry, change(content) if change else content)


def test_characters_of_symbol_fonts(tmp_path):
    symbol = '<w:r><w:t>{}</w:t><w:sym w:font="{}" w:char="{}"/></w:r>'.format
    body = symbol("dose ", "Symbol", "F0B3") + symbol(" 5 ", "Symbol", "F06D")
    body += symbol("g, ", "Symbol", "61") + symbol(", ", "Wingdings", "F0FC")
    write_word(tmp_path / "a.docx", body)
    assert read_words(tmp_path / "a.docx") == "Start dose ≥ 5 μg, \u03b1, \ufffd"


def test_characters_with_their_reading(tmp_path):
    body = (
        "<w:r><w:ruby><w:rubyPr/><w:rt><w:r><w:t>とうきょう</w:t></w:r></w:rt>"
        "<w:rubyBase><w:r><w:t>東京</w:t></w:r></w:rubyBase></w:ruby></w:r>"
    )
    write_word(tmp_path / "a.docx", body)
    assert read_words(tmp_path / "a.docx") == "Start 東京"


@pytest.mark.parametrize(
    ("kind", "target"), [("hyperlink", "#_top"), ("image", "../NULL"), ("image", "media/gone.png")]
)
def test_relationships_to_parts_that_are_not_there(tmp_path, kind, target):
    relation = f'<Relationship Id="rIdZ" Type="{OFFICE}/{kind}" Target="{target}"/>'
    write_word(tmp_path / "a.docx", relations=relation)
    assert read_words(tmp_path / "a.docx") == "Start"


def test_word_files_of_other_forms_are_named(tmp_path):
    def write_strict(path):
        write_word(path, change=lambda part: part.replace(OFFICE.encode(), STRICT))

    cases = {
        "is Strict Open XML: save it as Word Document": write_strict,
        "holds another file: open it with Word": lambda path: write_word(path, "<w:altChunk/>"),
        "is encrypted, or an old .doc": lambda path: path.write_bytes(
            bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600)
        ),
    }
    for message, write in cases.items():
        write(tmp_path / "a.docx")
        with pytest.raises(BadLineError, match=message) as caught:
            read_document(tmp_path / "a.docx")
        assert "a.docx" in str(caught.value)


def test_what_is_hidden_or_struck_out(tmp_path):
    """A struck word joins none beside it, though Word may keep a word as several runs."""
    run = "<w:r><w:rPr>{}</w:rPr><w:t>{}</w:t></w:r>".format
    body = run("<w:vanish/>", "hidden ") + run('<w:vanish w:val="0"/>', "seen: ")
    body += run("<w:strike/>", "1") + '<w:proofErr w:type="x"/>' + run("<w:dstrike/>", "0")
    body += run("", "12") + run('<w:strike w:val="false"/>', "3") + run("<w:strike/>", "4")
    write_word(tmp_path / "a.docx", body)
    assert read_words(tmp_path / "a.docx") == "Start seen: 10 123 4"


@pytest.mark.parametrize(
    ("parts", "title", "read"),
    [
        (["Title:Annual", "Title: ", "Title:Report", ":Up."], "Annual Report", [((), "Up.")]),
        (["Title:", ":Up.", "Title:Annual"], "Annual", [((), "Up.")]),
        (
            ["Title:Fee", ":Ten.", "Title:Hours", "Heading 1:Days", ":All.", "Title:End", ":Bye."],
            "Fee",
            [((), "Ten."), (("Hours", "Days"), "All."), (("End",), "Bye.")],
        ),
    ],
)
def test_titles_of_a_word_file(tmp_path, parts, title, read):
    document = docx.Document()
    document.core_properties.title = "unused"
    for style, text in (part.split(":") for part in parts):
        document.add_paragraph(text, style or None)
    document.save(str(tmp_path / "a.docx"))
    found = read_document(tmp_path / "a.docx")
    assert found.title == title
    assert [(paragraph.headings, paragraph.text) for paragraph in found.paragraphs] == read


# Web pages and texts.


@pytest.mark.parametrize(
    "body",
    [
        "<br>".join(SENTENCES),
        "<h1>Pumps</h1>" + "<br><br>".join(SENTENCES),
        SENTENCES[0] + "<p>" + "</p><p>".join(SENTENCES[1:]) + "</p>",
        "<hr>".join(SENTENCES),
        "<p>" + "</p>".join(SENTENCES),
        f"{SENTENCES[0]} <b>{SENTENCES[1]}</b> {SENTENCES[2]}<ul><li>{SENTENCES[3]}</ul>"
        f"{SENTENCES[4]}",
        f"<p>{SENTENCES[0]} {SENTENCES[1]}</p><figure><img src=x><figcaption>{SENTENCES[2]}"
        f"</figcaption></figure><p>{SENTENCES[3]} {SENTENCES[4]}</p>",
    ],
)
def test_texts_of_a_page_that_stand_in_no_paragraph(tmp_path, body):
    (tmp_path / "a.html").write_text(f"<html><title>Pumps</title><body>{body}</body></html>")
    words = read_words(tmp_path / "a.html").replace("**", "")
    places = [words.find(sentence) for sentence in SENTENCES]
    assert min(places) >= 0
    assert places == sorted(places)


def write_long(path, body, box="div"):
    """A page with a text and so many other paragraphs that the text alone is not the page."""
    others = "".join(f"<p>{SENTENCE.format(i)}</p>" for i in range(12))
    page = f"<html><head><title>Pumps</title></head><body><{box}>{body}{others}</{box}></body>"
    path.write_text(f"{page}</html>")


KEY = "The blue key opens the valve at the back."


@pytest.mark.parametrize("box", ["div", "main"])
@pytest.mark.parametrize(
    "body",
    [
        f"<div>{KEY}</div>",
        f"<div>{KEY}<p>There are two.</p></div>",
        f"<p>Keys:<ul><li>red</li></ul>{KEY}",
        f"<div><table><tr><td>a</td></tr></table>{KEY}</div>",
        f"<p>Type:<pre>x = 1</pre>{KEY}",
        "<h2>Keys</h2>The <b>blue</b> key opens<!-- --> <a href=x>the valve</a> at the back.",
        "<div>The blue key <svg><path/></svg> opens<br>the valve at the back.</div>",
        f"<section>{KEY}</section>",
        f"<center>{KEY}</center>",
        f"<header>{KEY}<h2>Keys</h2></header>",
        f"<details><summary>Keys</summary>{KEY}</details>",
        f"<figure><p>{KEY}</p></figure>",
        f"<figure><table><tr><td>{KEY}</td></tr></table><figcaption>Keys.</figcaption></figure>",
        f"<figure class=wp-caption><img><figcaption class=caption>{KEY}</figcaption></figure>",
        f"<aside class='footnote brackets'><span>1</span><p>{KEY}</p></aside>",
        f"<aside role=doc-footnote>{KEY}</aside>",
        f"<div><h3><a name=key></h3>{KEY}</a></div>",
        f"<table><tr><td>Keys:<div>red</div>{KEY}</td></tr></table>",
        "<p>The <label>blue</label> key opens the <time class=timestamp>valve</time> at the back.",
        "<ul><li>The <button class=button>blue</button> key opens the valve at the back.</ul>",
    ],
)
def test_texts_of_inner_boxes_of_a_page(tmp_path, body, box):
    write_long(tmp_path / "a.html", body, box)
    words = read_words(tmp_path / "a.html")
    assert KEY in words.replace("|", "")
    assert words.count("blue") == 1


@pytest.mark.parametrize(
    "body",
    [
        "<div><a href=x>Menu</a> | <a href=y>Sitemap</a></div>",
        "<div><a href=x><div>Menu</div></a></div>",
        "<h2>Pumps <button>Menu</button></h2>",
        "<aside><p>Menu</p></aside>",
        "<div><button>Menu</button></div>",
    ],
)
def test_menus_of_a_page_are_not_read(tmp_path, body):
    write_long(tmp_path / "a.html", body)
    assert "Menu" not in str(read_document(tmp_path / "a.html"))


@pytest.mark.parametrize("count", [1, 40])
def test_headings_of_a_page_that_marks_no_main_part(tmp_path, count):
    texts = [SENTENCE.format(i) for i in range(count)]
    body = "<h1>Pumps</h1><h2>Rules</h2>" + "".join(f"<p>{text}</p>" for text in texts)
    body += "<h2>Keys</h2><div>The red one.</div><h2>Lids</h2><p>The grey one.</p>"
    (tmp_path / "a.html").write_text(f"<html><title>Pumps</title><body>{body}</body></html>")
    found = [(p.headings, p.text) for p in read_document(tmp_path / "a.html").paragraphs]
    assert found == [
        *((("Pumps", "Rules"), text) for text in texts),
        (("Pumps", "Keys"), "The red one."),
        (("Pumps", "Lids"), "The grey one."),
    ]


def test_the_main_part_of_a_page(tmp_path):
    write_long(tmp_path / "a.html", "", "div id=main")
    page = (tmp_path / "a.html").read_text()
    (tmp_path / "a.html").write_text(page.replace("<body>", "<body><div>Search the site</div>"))
    assert "Search" not in read_words(tmp_path / "a.html")


def test_words_of_a_page_are_not_joined(tmp_path):
    body = (
        "<div>Open the <b>valve</b> first.<ul><li>one<div>two</div>three</ul><h2>A</h2>Oil.</div>"
    )
    (tmp_path / "a.html").write_text(f"<html><title>Pumps</title><body>{body}</body></html>")
    words = f"{read_words(tmp_path / 'a.html')} "
    assert all(f"{word} " in words for word in ("valve", "first.", "one", "two", "three", "Oil."))


def write_html(head, text="Où est “Nîmes”? À 5 €."):
    return f"{head}<html><head><title>Page</title></head><body><p>{text}</p></body></html>"


XML = '<?xml version="1.0" encoding="{}"?>\n<!DOCTYPE html>\n'.format
META = "<meta http-equiv='Content-Type' content='text/html; charset={}'>".format


@pytest.mark.parametrize(
    ("head", "encoding", "text"),
    [
        (META("iso-8859-1"), "cp1252", "Où est “Nîmes”? À 5 €."),
        (META("iso-8859-1"), "cp1252", "A “naïve” résumé of 5 €."),
        (META("ISO-8859-9"), "cp1254", "İstanbul'da “ağaç”."),
        ("<META CHARSET = 'GB2312'>", "gbk", "水泵在房子的大廳裡，每天早上加油。"),  # noqa: RUF001
        ("<meta charset=x-sjis>", "cp932", "ポンプは①階にあります。"),
        ("<meta charset=euc-kr>", "cp949", "펌프는 똠방각하의 홀에 있습니다."),
        (XML("windows-1251"), "cp1251", "Рига и море."),
        (XML("ISO-8859-1"), "utf-8", "Où est “Nîmes”? À 5 €."),
        (META("iso-8859-1"), "utf-8-sig", "Où est “Nîmes”? À 5 €."),
        (META("utf-8"), "utf-16", "Où est “Nîmes”? À 5 €."),
        (META("utf-16"), "utf-16-le", "Рига и море."),
        ("", "utf-16-be", "Рига и море."),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_names(tmp_path, head, encoding, text):
    (tmp_path / "a.html").write_bytes(write_html(head, text).encode(encoding))
    assert read_words(tmp_path / "a.html") == text


@pytest.mark.parametrize("name", ["utf-8", "utf-16", "us-ascii"])
def test_bytes_that_do_not_fit_the_encoding_of_a_page_are_replaced(tmp_path, name):
    content = write_html(META(name), "A pump stands here: ~.").encode()
    (tmp_path / "a.html").write_bytes(content.replace(b"~", b"\x9d"))
    assert read_words(tmp_path / "a.html") == "A pump stands here: \ufffd."


@pytest.mark.parametrize(
    ("head", "encoding", "problem"),
    [
        ("", "cp1252", "is not UTF-8 and names no known encoding: save it as UTF-8, or name its"),
        ("<meta charset=no-such>", "cp1252", "is not UTF-8 and names no known encoding"),
        ("<meta charset=zlib>", "cp1252", "is not UTF-8 and names no known encoding"),
        ("<meta charset=punycode>", "cp1252", "is not UTF-8 and names no known encoding"),
        (" " * 1024 + META("cp1252"), "cp1252", "is not UTF-8 and names no known encoding"),
        ("\n", "utf-16-le", "is UTF-16 without a byte order mark: save it as UTF-8"),
        ("\n", "utf-16-be", "is UTF-16 without a byte order mark: save it as UTF-8"),
    ],
)
def test_pages_of_which_the_encoding_is_not_known(tmp_path, head, encoding, problem):
    (tmp_path / "a.html").write_bytes(write_html(head).encode(encoding))
    with pytest.raises(BadLineError, match=f"a.html: {problem}") as caught:
        read_document(tmp_path / "a.html")
    assert "\n" not in str(caught.value)


def test_a_compressed_page(tmp_path):
    content = write_html(META("iso-8859-1")).encode("cp1252")
    (tmp_path / "a.html").write_bytes(gzip.compress(content))
    assert read_words(tmp_path / "a.html") == "Où est “Nîmes”? À 5 €."


def test_settings_in_toml_are_cut():
    (paragraph,) = parse_markdown("+++\ntitle = 'x'\n+++\n\nWords.\n").paragraphs
    assert (paragraph.text, paragraph.place) == ("Words.", 5)
    kept = [p.text for p in parse_markdown("+++\n\nWords.\n").paragraphs]
    assert "Words." in " ".join(kept)


def test_utf_16_without_its_mark_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("Рига и море.".encode("utf-16-le"))
    with pytest.raises(BadLineError, match="a.txt: holds zero bytes, as UTF-16 does: save it as"):
        read_document(tmp_path / "a.txt")


# Folders.


def test_the_work_folder_of_a_run_is_no_document(tmp_path):
    (tmp_path / "a.md").write_text("# Pump\nClose it.\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "?", "answers": ["x"]}))
    before = describe_source(DataConfig(str(tmp_path)), WorldConfig())
    run = tmp_path / "runs" / "prag"
    run.mkdir(parents=True)
    (run / "report.html").write_text(f"<html><body><p>{' '.join(SENTENCES)}</p></body></html>")
    (run / "report.json").write_text("{}")
    assert describe_source(DataConfig(str(tmp_path)), WorldConfig()) == before
    (run / "report.json").unlink()
    assert describe_source(DataConfig(str(tmp_path)), WorldConfig()) != before


def test_what_is_about_data_is_no_corpus(tmp_path):
    (tmp_path / "passages.jsonl").write_text(json.dumps({"id": "1", "text": "Riga."}))
    (tmp_path / "README.md").write_text("# Data\nPassages.\n")
    with pytest.raises(RagJaxError, match="is a folder of data: give the file of its passages"):
        read_passages([tmp_path])
    (tmp_path / "a.md").write_text("# Pump\nClose it.\n")
    assert {passage.id for passage in read_passages([tmp_path])} == {"README.md#2", "a.md#2"}
