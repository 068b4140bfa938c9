"""The encoding of a web page, as browsers find it where no server names one."""

import codecs
import re
from pathlib import Path

from rag_jax.data.formats.lines import BadLineError

# How pages begin whose encoding that tells.
_STARTS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    b"<\0": "utf-16-le",  # without a mark
    b"\0<": "utf-16-be",
}
_HEAD = 1024  # bytes in which a page names its encoding
_NAMED = re.compile(
    rb"<(?:meta\b[^<>]*\bcharset|\?xml\b[^<>]*\bencoding)\s{0,9}=[\s\"']{0,9}([\w.:-]+)",
    re.IGNORECASE,
)
# What browsers read in the place of an encoding, in Python's names: mostly a larger one, but UTF-8
# where the page could not have named it so. Last, names that Python does not know. All are from
# the Encoding Standard, https://encoding.spec.whatwg.org/#names-and-labels.
_READ_AS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "big5": "big5hkscs",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    **dict.fromkeys(("utf-16", "utf-16-be", "utf-16-le"), "utf-8"),
    **{"iso-8859-8-i": "iso8859-8", "windows-31j": "cp932", "windows-874": "cp874"},
    **{"x-euc-jp": "euc_jp", "x-gbk": "gb18030", "x-sjis": "cp932"},
}


def decode_page(content: bytes, path: Path) -> str:
    """The text of a web page: as it begins, else as UTF-8, else by the name it gives.

    Bytes that do not fit are replaced, as in browsers.

    Raises:
        BadLineError: the page is not UTF-8, and names no encoding that is known.
    """
    for start, encoding in _STARTS.items():
        if content.startswith(start):
            return content.decode(encoding, "replace").removeprefix("\ufeff")
    if b"<\0" in content:
        raise BadLineError(f"{path}: is UTF-16 without a byte order mark: save it as UTF-8")
    try:
        return content.decode()
    except UnicodeDecodeError:
        if encoding := _find_named(content):
            return content.decode(encoding, "replace")
    raise BadLineError(
        f"{path}: is not UTF-8 and names no known encoding: save it as UTF-8, or name its encoding "
        'in it, as in <meta charset="windows-1252">'
    )


def _find_named(content: bytes) -> str:
    """The encoding that a page names, in Python's name; empty if it names none that is known."""
    if not (match := _NAMED.search(content[:_HEAD])):
        return ""
    name = match[1].decode().lower()
    try:
        known = codecs.lookup(_READ_AS.get(name, name)).name
        encoding = _READ_AS.get(known, known)
        # Python knows some in which the name itself could not have been read.
        return encoding if b"<meta".decode(encoding) == "<meta" else ""
    except (LookupError, UnicodeError):
        return ""
