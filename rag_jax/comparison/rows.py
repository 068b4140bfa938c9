"""What each row of a comparison is: where an answer's knowledge comes from, and what that costs."""

from collections.abc import Callable, Mapping
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
        growing: stages that go through documents one by one, of which a further document takes its
            share. What is built anew from all documents in memory is not counted.
        remade: stages that a further document has made again as a whole.
        unmade: stages that are made again as a whole when a document is removed.
    """

    knowledge: str
    reader: str = "trained"
    made_by: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    searches: bool | None = True
    growing: tuple[str, ...] = ()
    remade: tuple[str, ...] = ()
    unmade: tuple[str, ...] = ()


_TEXT = "corpus/passages.jsonl"
_ROUTED = ("index", "lengths", "demonstrations", "contexts", "labels")
_STAGE2 = (*_ROUTED, "stage1", "reference", "stage2")
_POLICY = (*_STAGE2, "datastore", "thresholds")
_WIKI = (_TEXT, "index/*/*")  # the embeddings beside it were for building it
_GENERATED = ("negatives", "trie", "indexing", "train")
_PARAMS = (_TEXT, "trie/trie", "train/params")
_ADAPTERS = "encode/adapters"
_ENCODED = ("retrieve", "augment", "warm_up", "encode")

ROWS: dict[str, dict[str, Row]] = {
    "srrag": {
        "direct": Row("none", "as loaded", searches=False),
        "verbalise": Row("a text that the model writes itself", made_by=_STAGE2, searches=False),
        "retrieve": Row("dense passages", made_by=_STAGE2, keeps=_WIKI, growing=("index",)),
        "srrag": Row(
            "written or dense, as the model chooses",
            made_by=_POLICY,
            keeps=_WIKI,
            searches=None,
            growing=("index",),
        ),
        "without_knn": Row(
            "written or dense, without the datastore",
            made_by=_STAGE2,
            keeps=_WIKI,
            searches=None,
            growing=("index",),
        ),
    },
    "rag": {
        "shared_closed_book": Row("none", made_by=("index", "joint"), searches=False),
        "shared_bm25": Row("BM25's passages", made_by=("index", "joint"), keeps=(_TEXT,)),
        "frozen": Row(
            "dense passages",
            made_by=("index", "frozen"),
            keeps=(_TEXT, "index/index"),
            growing=("index",),
        ),
    }
    | {
        name: Row(
            f"dense passages, trained encoder, {way}",
            made_by=("index", "joint"),
            keeps=(_TEXT, "index/index"),
            growing=("index",),
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
    }
    | {
        name: Row(knowledge, made_by=_GENERATED, keeps=_PARAMS, remade=_GENERATED, unmade=("trie",))
        for name, knowledge in {
            "self_retrieval": "a passage that the model writes",
            "without_assessment": "a written passage, not judged",
        }.items()
    },
    "prag": {
        "direct": Row("none", "as loaded", searches=False),
        "in_context": Row("found passages", "as loaded", ("retrieve",), (_TEXT,)),
        "read_bm25": Row("BM25's passages", "as loaded", keeps=(_TEXT,)),
        "read_corpus": Row("the whole corpus", "as loaded", keeps=(_TEXT,), searches=False),
        "in_context_augmented": Row(
            "found passages, with rewrites and questions",
            "as loaded",
            ("retrieve", "augment"),
            (_TEXT, "augment/augmented.jsonl"),
            growing=("augment",),
        ),
    }
    | {
        f"read_{name}": Row(knowledge, "as loaded", ("search",), (_TEXT,))
        for name, knowledge in {
            "dense": "dense passages",
            "fused": "BM25's and dense passages",
            "reranked": "both's passages, reranked",
        }.items()
    }
    | {
        name: Row(
            knowledge, "with adapters", _ENCODED, (*texts, _ADAPTERS), growing=("augment", "encode")
        )
        for name, (knowledge, *texts) in {
            "parametric": ["found passages' adapters"],
            "both": ["found passages and their adapters", _TEXT],
            "random": ["random passages' adapters"],
        }.items()
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
        total += size / _count_documents(stage, stages, passages)
    return total


def weigh_changes(
    row: Row, seconds: Mapping[str, float], stages: Path, passages: int
) -> dict[str, float]:
    """Seconds that a further document costs, and one document less; none of what holds none.

    Args:
        seconds: of each stage of the run.
        stages: as for `weigh_documents`, as is `passages`.
    """
    if not row.keeps:
        return {}
    share = sum(
        seconds.get(stage, 0.0) / _count_documents(stage, stages, passages) for stage in row.growing
    )
    whole, less = (sum(seconds.get(s, 0.0) for s in part) for part in (row.remade, row.unmade))
    return {"add_seconds": share + whole, "remove_seconds": less}


def _count_documents(stage: str, stages: Path, passages: int) -> int:
    return max(1, _COUNTS[stage](stages) if stage in _COUNTS else passages)


def _measure(path: Path) -> int:
    return measure_folder(path) if path.is_dir() else path.stat().st_size
