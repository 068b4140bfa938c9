"""Corpora that resolve the relevant passages of a question to passage ids."""

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

from rag_jax.data.formats import kilt
from rag_jax.data.formats.fields import Item
from rag_jax.data.formats.lines import BadLineError
from rag_jax.data.passages import Passage


class Corpus:
    """Corpus from passage files, with their ids. Passages with questions are only looked up."""

    def __init__(self, passages: Sequence[Passage], ids: Set[str]):
        self.passages, self._ids = passages, ids

    @functools.cached_property
    def _ids_by_digest(self) -> dict[bytes, str]:
        ids: dict[bytes, str] = {}
        for passage in self.passages:
            ids.setdefault(digest_passage(passage), passage.id)
        return ids

    @functools.cached_property
    def _ids_by_title(self) -> dict[str, list[str]]:
        ids = defaultdict(list)
        for passage in self.passages:
            ids[passage.title].append(passage.id)
        return dict(ids)

    @functools.cached_property
    def _pages(self) -> dict[str, list[str]]:
        return kilt.group_pages(passage.id for passage in self.passages)

    def find_relevant(self, item: Item) -> dict[str, int]:
        """Returns the grades of the relevant passages of a question, by passage id.

        A gold passage that comes with the question is found by id, or else by title and text; an
        article, of which the corpus may have another edition, by its title at last. A title stands
        for all passages of the article.

        Raises:
            BadLineError: if a relevant passage is not in the corpus.
        """
        relevant = {}
        for name, grade in item.question.relevant.items():
            if name not in self._ids:
                raise BadLineError(f"{item.place}: no passage has the id {name!r}")
            relevant[name] = grade
        if item.pages:
            corpus = self._pages, self._ids
            ids = kilt.find_passages(item.pages, *corpus)
            missing = [name for name in item.pages if not kilt.has_page(name, *corpus)]
            if missing or not ids:
                name = (missing or item.pages)[0]
                raise BadLineError(
                    f"{item.place}: no passage is part of page or paragraph {name!r}"
                )
            relevant |= dict.fromkeys(ids, 1)
        for context in (context for context in item.contexts if context.grade):
            passage = context.passage
            id = self.find_id(passage)
            if id is not None:
                relevant[id] = context.grade
            elif context.is_article and passage.title in self._ids_by_title:
                ids = self._ids_by_title[passage.title]
                relevant |= dict.fromkeys(ids, context.grade)
            else:
                label = passage.id or passage.title or passage.text[:40]
                raise BadLineError(f"{item.place}: the gold passage {label!r} is not in the corpus")
        for title in item.titles:
            if title not in self._ids_by_title:
                raise BadLineError(f"{item.place}: no passage has the gold title {title!r}")
            relevant |= dict.fromkeys(self._ids_by_title[title], 1)
        return relevant | dict.fromkeys(self._find_evidence(item), 1)

    def find_id(self, passage: Passage) -> str | None:
        """Returns the id of a passage that comes with a question; None if the corpus has none."""
        return (
            passage.id
            if passage.id in self._ids
            else self._ids_by_digest.get(digest_passage(passage))
        )

    def _find_evidence(self, item: Item) -> list[str]:
        ids = []
        for name in item.evidence:
            ids += [name] if name in self._ids else self._ids_by_title.get(name, [])
        return ids


class GatheredCorpus:
    """Corpus gathered from the passages that come with questions, for folders without others."""

    def __init__(self):
        self.passages: dict[str, Passage] = {}
        self._ids: dict[tuple[str, str], str] = {}
        self._numbers: dict[str, int] = {}

    def find_relevant(self, item: Item) -> dict[str, int]:
        """Adds the passages of a question; returns the grades of the relevant ones by id.

        A passage without an id gets the title as id, with a number if the title is taken. A gold
        title that is not among the question's passages stays relevant under that id, so that a
        ranking without it counts as one that misses it.

        Raises:
            BadLineError: if a passage that is named by id is missing, or two passages have one id.
        """
        context_ids = {context.passage.id for context in item.contexts}
        for name in (*item.question.relevant, *item.pages):
            if name not in context_ids:
                raise BadLineError(f"{item.place}: no passage has the id {name!r}")
        new_passages: dict[str, Passage] = {}
        for passage in (context.passage for context in item.contexts if context.passage.id):
            first = self.passages.get(passage.id) or new_passages.setdefault(passage.id, passage)
            if first != passage:
                raise BadLineError(f"{item.place}: another passage has the id {passage.id!r}")
        relevant = dict(item.question.relevant)
        for context in item.contexts:
            id = self._add(context.passage)
            if context.grade:
                relevant[id] = context.grade
        return relevant | dict.fromkeys(item.titles, 1)

    def find_id(self, passage: Passage) -> str | None:
        """Returns the id of a passage that came with an earlier question."""
        return passage.id or self._ids.get((passage.title, passage.text))

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


def find_negatives(
    item: Item, relevant: Mapping[str, int], corpus: Corpus | GatheredCorpus
) -> tuple[tuple[str, ...], int]:
    """Returns the ids of a question's negatives, and the number of those not in the corpus."""
    ids = [corpus.find_id(context.passage) for context in item.contexts if context.is_negative]
    found = dict.fromkeys(id for id in ids if id is not None and id not in relevant)
    return tuple(found), ids.count(None)


def digest_passage(passage: Passage) -> bytes:
    """Returns a digest of a passage's title and text, small enough to keep for a whole corpus."""
    text = json.dumps([passage.title, passage.text])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
