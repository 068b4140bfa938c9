"""Ledger of a folder: what was read of each file, and what was not, and why."""

import contextlib
import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rag_jax.data.formats.dpr import is_list
from rag_jax.data.formats.fields import Item, shorten
from rag_jax.data.formats.lines import BadLines, Place
from rag_jax.data.matching import is_void
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log

_logger = logging.getLogger(__name__)

# CuratedTREC's answers, in DPR's and FlashRAG's files, are patterns: `Feb(ruary)?\\s*1972`.
_PATTERN = re.compile(r"\\[sdwb](?![A-Za-z])|\.\*|\w\(\w+\)\?|\(\?[:i]")


@dataclass
class Account:
    """What was read of a file.

    Attributes:
        format: of the file; empty if the file was not read.
        splits: of the questions; none for passages.
        read: number of passages or questions.
        skipped: number of bad lines.
        why: the last bad line's error.
        left_out: number of good records that are no question or passage of the collection, or 0
            for the whole file, by reason.
        unread: names of fields of plain questions that are not read.
    """

    path: Path
    format: str = ""
    splits: set[str] = field(default_factory=set)
    read: int = 0
    skipped: int = 0
    why: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    unread: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        splits = f", {' and '.join(sorted(self.splits))}" if self.splits else ""
        parts = [f"{self.format}{splits}: {self.read} read"] if self.format else []
        if self.skipped:
            parts.append(f"{self.skipped} skipped (the last: {self.why})")
        parts += [f"{n or 'all'} left out ({why})" for why, n in self.left_out.items()]
        if self.unread:
            parts.append(f"fields that are not read: {shorten(', '.join(sorted(self.unread)))}")
        return f"{self.path}: {', '.join(parts)}"


class Ledger:
    """Accounts of the files of a folder, in the order of reading, and of records read twice."""

    def __init__(self):
        self.accounts: dict[Path, Account] = {}
        self._places: dict[bytes, tuple[str, Place]] = {}
        self._repeated: dict[tuple[str, str, Path, Path], list[Place]] = {}
        self._odd: dict[str, list[tuple[Place, str]]] = defaultdict(list)

    def open(self, path: Path, format: str) -> Account:
        """Returns the account of a file, a new one if there is none."""
        return self.accounts.setdefault(path, Account(path, format))

    @contextlib.contextmanager
    def counted(self, account: Account, bad: BadLines) -> Iterator[None]:
        """Counts the bad lines within the block as lines of an account."""
        before = bad.count
        yield
        if bad.count > before:
            account.skipped += bad.count - before
            account.why = str(bad.last).removeprefix(f"{account.path}:")

    @contextlib.contextmanager
    def read(self, path: Path, format: str, bad: BadLines) -> Iterator[Account]:
        """Opens the account of a file, and counts the bad lines within the block.

        Raises:
            RagJaxError: at the end of the block, if the file holds no records at all.
        """
        account = self.open(path, format)
        with self.counted(account, bad):
            yield account
        if not (account.read or account.skipped or account.left_out):
            kind = "passages" if format == "passages" else "questions"
            raise RagJaxError(f"{path}: holds no {kind}: download the file again, or move it away")

    def leave_out(self, path: Path, reason: str) -> None:
        """Accounts for a file that is not read; a warning names the file and the reason."""
        self.accounts[path] = Account(path, left_out=Counter({reason: 0}))
        _logger.warning("%s: is not read: %s", path, reason)

    def add_question(self, split: str, item: Item, *, missing: int) -> None:
        """Counts a question of a split, and remembers the question to tell when it comes again.

        Args:
            missing: number of the question's negatives that are not in the corpus.
        """
        question, place = item.question, item.place
        account = self.accounts[place.path]
        account.read += 1
        account.splits.add(split)
        if missing:
            account.left_out["negatives that are not in the corpus"] += missing
        record = [question.question, sorted(question.answers)]
        digest = hashlib.blake2b(json.dumps(record).encode(), digest_size=16).digest()
        other, first = self._places.setdefault(digest, (split, place))
        if other != split or first.path != place.path:
            key = other, split, first.path, place.path
            self._repeated.setdefault(key, []).append(place)
        if not question.choices:
            for answer in question.answers:
                if kind := _find_oddity(answer):
                    self._odd[kind].append((place, answer))

    def close(self) -> None:
        """Logs a line per file, and warns of repeated questions and of odd answers."""
        for (first_split, split, first, path), places in self._repeated.items():
            message = "%s (%s): %d questions and their answers are in %s (%s) too, as at line %d"
            names = path, split, len(places), first, first_split, places[0].line
            _logger.warning(message, *names)
        for kind, found in self._odd.items():
            place, answer = found[0]
            message = "%s: the answer %.80r %s (such answers: %d)"
            _logger.warning(message, place, answer, kind, len(found))
        for account in self.accounts.values():
            log(str(account))


def _find_oddity(answer: str) -> str | None:
    """What makes an answer of no use as it stands, for a warning; None for nothing."""
    if is_void(answer):
        return "has no words to match"
    if is_list(answer):
        return "looks like a list that was printed as text, and is read as one answer"
    if re.match(r"\s*\{\s*['\"]", answer):
        return "looks like an object that was printed as text, and is read as one answer"
    if _PATTERN.search(answer):
        return "looks like a regular expression, and is compared as text"
    return None
