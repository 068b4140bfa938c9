"""The passages of a folder, and which of them a question's data calls relevant."""

import functools
import hashlib
import json
from collections.abc import Sequence, Set

from rag_jax.data.formats import kilt
from rag_jax.data.formats.fields import Item
from rag_jax.data.formats.lines import BadLineError
from rag_jax.data.passages import Passage


class Corpus:
    """The passages of files of their own, which alone are the corpus, and their ids."""

    def __init__(self, passages: Sequence[Passage], ids: Set[str]):
        self.passages, self._known = passages, ids

    @functools.cached_property
    def _ids(self) -> dict[bytes, str]:
        ids: dict[bytes, str] = {}
        for passage in self.passages:
            ids.setdefault(_digest(passage), passage.id)
        return ids

    @functools.cached_property
    def _pages(self) -> dict[str, list[str]]:
        return kilt.group_pages(passage.id for passage in self.passages)

    def find_relevant(self, item: Item) -> dict[str, int]:
        """The grades, by id, of the passages that a question names or brings along.

        Raises:
            BadLineError: one is not in the corpus.
        """
        relevant = {}
        for name, grade in item.question.relevant.items():
            if name not in self._known:
                raise BadLineError(f"{item.place}: {name!r} is the id of no passage")
            relevant[name] = grade
        if item.pages:
            found = kilt.find_passages(item.pages, self._pages)
            if not found:
                raise BadLineError(f"{item.place}: {item.pages[0]!r} is in no passage")
            relevant |= dict.fromkeys(found, 1)
        for context in item.contexts:
            if context.grade:
                passage = context.passage
                id = passage.id if passage.id in self._known else None
                id = id or self._ids.get(_digest(passage))
                if id is None:
                    what = passage.id or passage.title or passage.text[:40]
                    raise BadLineError(f"{item.place}: the gold passage {what!r} is not there")
                relevant[id] = context.grade
        return relevant


class GatheredCorpus:
    """The passages that come with questions, where there are no others."""

    def __init__(self):
        self.passages: dict[str, Passage] = {}
        self._ids: dict[tuple[str, str], str] = {}
        self._numbers: dict[str, int] = {}

    def find_relevant(self, item: Item) -> dict[str, int]:
        """The grades, by id, of a question's passages, which become part of the corpus.

        A passage without an id has its title for one or, where another has that, the title with a
        number.

        Raises:
            BadLineError: the question names another passage, or one's id is that of another.
        """
        own = {context.passage.id for context in item.contexts}
        for name in (*item.question.relevant, *item.pages):
            if name not in own:
                raise BadLineError(f"{item.place}: {name!r} is the id of no passage")
        named: dict[str, Passage] = {}
        for passage in (context.passage for context in item.contexts if context.passage.id):
            known = self.passages.get(passage.id) or named.setdefault(passage.id, passage)
            if known != passage:
                raise BadLineError(f"{item.place}: another passage has the id {passage.id!r}")
        relevant = dict(item.question.relevant)
        for context in item.contexts:
            id = self._add(context.passage)
            if context.grade:
                relevant[id] = context.grade
        return relevant

    def _add(self, passage: Passage) -> str:
        key = passage.title, passage.text
        id = passage.id or self._ids.get(key) or self._make_id(passage.title or "passage")
        self._ids.setdefault(key, id)
        self.passages.setdefault(id, Passage(id, *key))
        return id

    def _make_id(self, title: str) -> str:
        while True:
            number = self._numbers[title] = self._numbers.get(title, 0) + 1
            id = title if number == 1 else f"{title} ({number})"
            if id not in self.passages:
                return id


def _digest(passage: Passage) -> bytes:
    """What stands for a passage's title and text, which are too much to be held of all."""
    text = json.dumps([passage.title, passage.text])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
