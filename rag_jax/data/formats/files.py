"""Data files: their names, how they are opened, and files that are not the data they seem to be.

A file may be plain or compressed with gzip, bzip2, xz or Zstandard, which its content tells.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import POINTER, is_there, require_file

LONGEST = 1 << 26  # maximum length of a line in bytes, or of a JSON value in characters
CHUNK = 1 << 16  # bytes or characters read at a time
SUFFIXES = (".jsonl", ".ndjson", ".json", ".tsv", ".csv")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_UNREAD = (".parquet", ".arrow", ".feather", ".array_record", ".tfrecord", ".xml", ".xlsx")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_PART = re.compile(r"(.+)[-_]\d+[-_]of[-_](\d+)(?:-[0-9a-f]{16})?")  # a digest, of `datasets`
_HEAD = 4096  # bytes that tell what a file is
_UNPACK = "unpack the archive"
_CONVERT = "convert the file to JSON lines"
_AGAIN = "download the file again"
# How files begin that are not the data they seem to be, what they are, and what to do.
_IMPOSTORS = (
    (re.escape(POINTER), "a pointer of Git LFS", "run `git lfs pull`"),
    (rb"(/|\.\./)*(\.git/)?annex/objects/", "a pointer of git-annex", "run `git annex get`"),
    (rb"\s*<(?i:!doctype|html|\?xml)", "a web page or XML", _AGAIN),
    (rb"PK\x03\x04", "a zip archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!\x1a", "a rar archive", _UNPACK),
    (rb"(?s:.{257})ustar", "a tar archive", _UNPACK),
    (rb"PAR1", "Parquet", _CONVERT),
    (rb"ARROW1|\xff\xff\xff\xff", "Arrow", _CONVERT),
    (rb"\xff\xfe|\xfe\xff", "UTF-16", "save it as UTF-8"),
)


def plain_name(path: Path) -> str:
    """Returns the name of a file without the suffix of a compression."""
    is_compressed = path.suffix.lower() in _COMPRESSED
    return path.name[: -len(path.suffix)] if is_compressed else path.name


def find_stem(path: Path) -> str:
    """Returns the name of a file without the suffixes of its type and of a compression."""
    return Path(plain_name(path)).stem


def find_suffix(path: Path) -> str:
    """Returns the suffix of a file's type in lower case, such as `.jsonl` for `a.JSONL.gz`."""
    return Path(plain_name(path)).suffix.lower()


def check_parts(paths: Iterable[Path]) -> None:
    """Raises a RagJaxError if files named like `test-00000-of-00002.jsonl` are not all there."""
    parts: dict[tuple[str, int], list[Path]] = {}
    for path in paths:
        if match := _PART.fullmatch(find_stem(path)):
            parts.setdefault((match[1], int(match[2])), []).append(path)
    for (_, count), found in parts.items():
        if len(found) < count:
            raise RagJaxError(
                f"{found[0]}: is one of {count} files, of which {len(found)} are here: fetch the "
                "others, or rename what is here"
            )


def list_others(folder: Path, files: Iterable[Path]) -> Iterator[Path]:
    """Yields what a folder holds beside some of its files, down to folders that hold none of them.

    Hidden files and folders are left out.
    """
    known = {*files}
    above = {parent for path in known for parent in path.parents}
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path in above:
                pending.append(path)
            elif path not in known and not path.name.startswith("."):
                yield path


def looks_like_data(path: Path) -> bool:
    """Returns whether the name or the first bytes of a file are those of data or of an archive.

    Raises:
        RagJaxError: if the file cannot be read.
    """
    data = {*SUFFIXES, *_COMPRESSED, *_UNREAD, *_ARCHIVES}
    if data & {suffix.lower() for suffix in path.suffixes}:
        return True
    if path.suffix.lower() in (".ipynb", ".pdf", ".html", ".htm") or not path.is_file():
        return False
    with _named_errors(path), open(path, "rb") as file:
        head = file.read(_HEAD)
    is_packed = any(re.match(pattern, head) for pattern, _ in _DECOMPRESSORS)
    is_impostor = any(re.match(pattern, head) for pattern, *_ in _IMPOSTORS)
    is_json = bool(re.match(rb'(\xef\xbb\xbf)?\s*[\[{]\s*["{\[]', head))
    tabs = [line.count(b"\t") for line in head.splitlines() if line.strip()][:2]
    is_table = len(tabs) == 2 and tabs[0] == tabs[1] > 0
    return is_packed or is_impostor or is_json or is_table


@contextlib.contextmanager
def open_data(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a file for reading bytes, decompressed.

    Raises:
        RagJaxError: in the block too, if the file cannot be read, is damaged, or is another file
            than it seems to be, such as a pointer of Git LFS, a web page or UTF-16.
    """
    if is_there(path):
        require_file(path)
    with _named_errors(path), open(path, "rb") as file, contextlib.ExitStack() as stack:
        head = file.peek(_HEAD)
        decompress = next((d for pattern, d in _DECOMPRESSORS if re.match(pattern, head)), None)
        reader = file
        if decompress is not None:
            reader = stack.enter_context(io.BufferedReader(decompress(file), CHUNK))
        _refuse_impostors(path, reader.peek(_HEAD)[:_HEAD])
        yield reader


def peek_text(path: Path) -> str:
    """Returns the first characters of a file, without leading white space and invalid UTF-8.

    Raises:
        RagJaxError: if the file cannot be read.
    """
    with open_data(path) as file:
        head = file.peek(CHUNK)[:_HEAD].removeprefix(codecs.BOM_UTF8).lstrip()
    return head.decode(errors="ignore")


def _refuse_impostors(path: Path, head: bytes) -> None:
    for pattern, what, remedy in _IMPOSTORS:
        if re.match(pattern, head):
            raise RagJaxError(f"{path}: is {what}: {remedy}")
    if len(head) > 3 and 3 * head.count(0) > len(head):
        raise RagJaxError(f"{path}: is UTF-16 or damaged (a third is NUL bytes): save it as UTF-8")


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turns the errors of reading a file into a RagJaxError with the path."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise RagJaxError(f"{path}: is not UTF-8 ({error.reason})") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # The modules for gzip and bzip2 raise an OSError without a number for damaged data.
        if isinstance(error, OSError) and error.errno is not None:
            raise RagJaxError(f"{path}: cannot be read ({error.strerror})") from None
        raise RagJaxError(f"{path}: is damaged or cut short ({error}): {_AGAIN}") from None


class _ZstdReader(io.RawIOBase):
    """Stream of the decompressed frames of a file; an EOFError if the last frame is cut short.

    The library's own reader ends a frame that is cut short without an error.
    """

    def __init__(self, file: IO[bytes]):
        try:
            import zstandard  # few corpora are compressed so
        except ImportError:
            raise RagJaxError(
                f"{file.name}: is compressed with Zstandard: install the package zstandard"
            ) from None
        self._library = zstandard
        self._file, self._compressed, self._ready = file, b"", b""
        self._frame: Any = None  # the decompressor within a frame

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._file.read(CHUNK)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            frame = self._frame or self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = frame.decompress(self._compressed)
            except self._library.ZstdError as error:
                raise EOFError(str(error)) from None
            self._compressed = frame.unused_data if frame.eof else b""
            self._frame = None if frame.eof else frame
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


# How compressed files begin, and what decompresses them.
_DECOMPRESSORS: tuple[tuple[bytes, Callable[[IO[bytes]], Any]], ...] = (
    (rb"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", bz2.BZ2File),
    (rb"\xfd7zXZ\x00", lzma.LZMAFile),
    (rb"\x28\xb5\x2f\xfd", _ZstdReader),
)
