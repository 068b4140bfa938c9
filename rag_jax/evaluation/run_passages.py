"""The passages that a page shows: each once, with as much of their texts as there is room for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rag_jax.data.passages import Passage

ROOM = 8 << 20  # characters of all passages' texts on a page
_TEXT, _TITLE = 600, 200  # characters of a passage's text and title
_SHOWN = 10  # passages of an answer, and relevant ones of a question
_SMALL = 200  # characters of a text; not more are looked for than there would be room for


def list_items(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    """The passages in a field of a record; none if the field is a number, as "retrieved" may be."""
    value = row.get(name, ())
    return value if isinstance(value, list | tuple) else ()


class PassageShelf:
    """Passages by their places, in the order in which they were named.

    Attributes:
        ranks: the best rank, from 0, at which a passage was named, by id.
        texts: title and text of the passages that a record has itself, by id.
    """

    def __init__(self):
        self.ranks: dict[str, int] = {}
        self.texts: dict[str, tuple[str, str]] = {}
        self._places: dict[str, int] = {}

    def place(self, id: str, rank: int) -> int:
        """The place of a passage that is named at a rank, from 0."""
        self.ranks[id] = min(rank, self.ranks.get(id, rank))
        return self._places.setdefault(id, len(self._places))

    def list_found(self, row: Mapping[str, Any]) -> list[list[Any]]:
        """The place of each passage of a record, its score, and its rank before reranking."""
        found_first = list_items(row, "retrieved")
        before = {item["id"]: item.get("rank_before") for item in found_first}
        found = []
        for rank, item in enumerate(list_items(row, "passages")[:_SHOWN]):
            named = {"id": item} if isinstance(item, str) else item
            id, score = named["id"], named.get("score")
            if "text" in named:
                self.texts[id] = str(named.get("title", "")), str(named["text"])
            score = None if score is None else float(f"{score:.5g}")
            entry = [self.place(id, rank), score, named.get("rank_before", before.get(id))]
            while entry[-1] is None:
                entry.pop()
            found.append(entry)
        return found

    def list_adapters(self, row: Mapping[str, Any]) -> list[int]:
        """The places of the passages whose adapters a record has merged."""
        ids = list_items(row, "adapters")[:_SHOWN]
        return [self.place(id, rank) for rank, id in enumerate(ids)]

    def list_relevant(self, relevant: Mapping[str, int]) -> list[int]:
        """The places of a question's relevant passages."""
        ids = [id for id, grade in relevant.items() if grade > 0][:_SHOWN]
        return [self.place(id, _SHOWN) for id in ids]

    def fill(
        self, passages: Iterable[Passage] | None, room: int
    ) -> tuple[list[list[str | None]], list[str]]:
        """Id, title and text of every passage, and a sentence for each way in which less is shown.

        Args:
            passages: the corpus, which is read once from its start; None if there is none.
            room: number of characters of texts.
        """
        order = sorted(self.ranks, key=self.ranks.__getitem__)[: max(1, room // _SMALL)]
        wanted = set(order) - self.texts.keys()
        found = dict(self.texts)
        for passage in passages or ():
            if not wanted:
                break
            if passage.id in wanted:
                wanted.discard(passage.id)
                found[passage.id] = passage.title, passage.text
        shown: dict[str, tuple[str, str]] = {}
        shortened = 0
        for id in order:
            if id in found:
                title, text = found[id][0][:_TITLE], found[id][1]
                room -= min(len(text), _TEXT) + len(title)
                if room < 0:
                    break
                shortened += len(text) > _TEXT
                more = f"… ({len(text) - _TEXT:,} more characters)" if len(text) > _TEXT else ""
                shown[id] = title, text[:_TEXT] + more
        cuts = []
        if shortened:
            cuts.append(f"{shortened:,} passages are cut after {_TEXT} characters.")
        if missing := len(self.ranks) - len(shown):
            why = "the page has no room for more" if found else "the work folder has no corpus"
            cuts.append(f"{missing:,} of {len(self.ranks):,} passages are without text: {why}.")
        nothing = (None, None)
        return [[id, *shown.get(id, nothing)] for id in self._places], cuts
