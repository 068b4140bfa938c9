"""Citations: the passages that an answer rests on, named by title, file and place."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rag_jax.data.formats.documents import find_place
from rag_jax.data.passages import Passage


class Citation(NamedTuple):
    """A passage that an answer rests on.

    Attributes:
        score: by which the passage was ranked; None where its source gives none.
    """

    passage: Passage
    score: float | None


def describe_citations(citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """Citations as JSON objects, best first.

    Returns:
        For each `rank`, from 1, the passage's `id` and `title`; of a passage of a document its
        `file` and its `place`, such as "page 3", otherwise None; and the `score`.
    """
    described = []
    for rank, (passage, score) in enumerate(citations, 1):
        file, place = find_place(passage.id) or (None, None)
        named = {"rank": rank, "id": passage.id, "title": passage.title}
        described.append({**named, "file": file, "place": place, "score": score})
    return described


def tabulate_citations(citations: Sequence[Citation]) -> list[tuple[str, ...]]:
    """A line a citation: rank, title, and file and place, or the id of what is no document."""
    rows = []
    for cited in describe_citations(citations):
        where = f"{cited['file']}, {cited['place']}" if cited["file"] else cited["id"]
        rows.append((f"[{cited['rank']}]", cited["title"], where))
    return rows
