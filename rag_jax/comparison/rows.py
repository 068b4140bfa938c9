"""What each row of a comparison is: where an answer's knowledge comes from, and what that costs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rag_jax.pipeline.room import measure_folder
from rag_jax.runtime.files import read_json, stream_jsonl


@dataclass(frozen=True)
class Row:
    """A method of a system.

    Attributes:
        knowledge: where the knowledge in an answer comes from, for the reader.
        reader: which model answers.
        made_by: the stages before any question that the method needs.
        keeps: what it needs of the documents at test time: patterns of files and folders among the
            stages.
        searches: whether passages are searched for a question; None if the predictions say so.
    """

    knowledge: str
    reader: str = "trained"
    made_by: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    searches: bool | None = True


_TEXT = "corpus/passages.jsonl"
_ROUTED = ("index", "lengths", "demonstrations", "contexts", "labels")
_STAGE2 = (*_ROUTED, "stage1", "reference", "stage2")
_POLICY = (*_STAGE2, "datastore", "thresholds")
_WIKI = (_TEXT, "index/*/*")  # the embeddings beside it were for building it
_GENERATED = ("negatives", "trie", "indexing", "train")
_PARAMS = (_TEXT, "trie/trie", "train/params")
_ENCODED = ("retrieve", "augment", "warm_up", "encode")

ROWS: dict[str, dict[str, Row]] = {
    "srrag": {
        "direct": Row("none", "as loaded", searches=False),
        "verbalise": Row("a text that the model writes itself", made_by=_STAGE2, searches=False),
        "retrieve": Row("dense passages", made_by=_STAGE2, keeps=_WIKI),
        "srrag": Row("written or dense, as the model chooses", "trained", _POLICY, _WIKI, None),
        "without_knn": Row(
            "written or dense, without the datastore", "trained", _STAGE2, _WIKI, None
        ),
    },
    "rag": {
        "shared_closed_book": Row("none", made_by=("index", "joint"), searches=False),
        "shared_bm25": Row("BM25's passages", made_by=("index", "joint"), keeps=(_TEXT,)),
        "frozen": Row("dense passages", made_by=("index", "frozen"), keeps=(_TEXT, "index/index")),
    }
    | {
        name: Row(
            f"dense passages, trained encoder, {way}",
            made_by=("index", "joint"),
            keeps=(_TEXT, "index/index"),
        )
        for name, way in {
            "token": "RAG-Token",
            "fast": "RAG-Sequence Fast",
            "thorough": "RAG-Sequence Thorough",
            "joint": "labels",
        }.items()
    },
    "self_retrieval": {
        "bm25": Row("BM25's passage", made_by=_GENERATED, keeps=_PARAMS),
        "dense": Row("a dense passage", made_by=_GENERATED, keeps=_PARAMS),
        "dense_tuned": Row(
            "a dense passage, trained encoder",
            made_by=(*_GENERATED, "dense_tuned"),
            keeps=_PARAMS,
        ),
        "self_retrieval": Row("a passage that the model writes", made_by=_GENERATED, keeps=_PARAMS),
        "without_assessment": Row(
            "a written passage, not judged", made_by=_GENERATED, keeps=_PARAMS
        ),
    },
    "prag": {
        "direct": Row("none", "as loaded", searches=False),
        "in_context": Row("found passages", "as loaded", ("retrieve",), (_TEXT,)),
        "in_context_augmented": Row(
            "found passages, with rewrites and questions",
            "as loaded",
            ("retrieve", "augment"),
            (_TEXT, "augment/augmented.jsonl"),
        ),
        "parametric": Row(
            "found passages' adapters", "with adapters", _ENCODED, ("encode/adapters",)
        ),
        "both": Row(
            "found passages and their adapters",
            "with adapters",
            _ENCODED,
            (_TEXT, "encode/adapters"),
        ),
        "random": Row("random passages' adapters", "with adapters", _ENCODED, ("encode/adapters",)),
    },
}
# Documents that a folder has, where these are not all passages.
_COUNTS: dict[str, Callable[[Path], int]] = {
    "augment": lambda stages: sum(1 for _ in stream_jsonl(stages / "augment" / "augmented.jsonl")),
    "encode": lambda stages: read_json(stages / "evaluate" / "adapters.json")["documents"],
}


def find_row(system: str, method: str) -> Row:
    """A method's row; of one that is not known, such as an ablation, nothing is said."""
    return ROWS[system].get(method, Row("-", "-", searches=None))


def weigh_documents(row: Row, stages: Path, passages: int) -> float | None:
    """The bytes on the disk that a method needs at test time for a document; None if not known.

    Args:
        stages: the folder of the system's stages.
        passages: number of passages of the corpus.
    """
    if row.knowledge == "-":
        return None
    total = 0.0
    for kept in row.keeps:
        size, stage = sum(map(_measure, stages.glob(kept))), kept.partition("/")[0]
        total += size / max(1, _COUNTS[stage](stages) if stage in _COUNTS else passages)
    return total


def _measure(path: Path) -> int:
    return measure_folder(path) if path.is_dir() else path.stat().st_size
