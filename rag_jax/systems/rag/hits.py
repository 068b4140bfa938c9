"""How often each retriever finds an answer, on more questions than are answered."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Record, mean_numbers
from rag_jax.evaluation.pairs import compare_rows, tabulate_pairs
from rag_jax.evaluation.rankings import answer_hits
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.runtime.files import write_json
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.evaluate import rank_all
from rag_jax.systems.rag.rankings import Ranking

DEPTHS = (1, 5, 20)
_NAMES = [f"answer@{k}" for k in DEPTHS]


def run_hits(
    context: StageContext,
    *,
    ranked_questions: Sequence[Question],
    passages: Sequence[Passage],
    load_trained: Callable[[StageContext, str], PyTree],
    load_index: Callable[[Path], Index],
    open_final_index: Callable[[StageContext, PyTree], tuple[Index, Pretrained]],
    encode_questions: Callable[..., Float[np.ndarray, "N E"]],
    config: RAGConfig,
) -> None:
    """Ranks passages by BM25, the retriever as it was and the trained one.

    Writes `hits.json`: `tables` by title, of the shares of questions with an answer among the first
    passages and of the differences from the trained retriever, question by question, and these
    differences as `compare_rows` gives them, `paired`.
    """
    trained = {name: load_trained(context, name) for name in ("frozen", "joint")}
    rankings = rank_all(
        context,
        [question.question for question in ranked_questions],
        passages,
        trained,
        load_index=load_index,
        open_final_index=partial(open_final_index, context, trained["joint"]),
        encode_questions=encode_questions,
        config=config,
        depth=min(max(DEPTHS), len(passages)),
    )
    hits = {
        name: _find_hits(ranked_questions, passages, ranking) for name, ranking in rankings.items()
    }
    write_json(context.folder / "hits.json", _summarise(hits))


def _find_hits(
    questions: Sequence[Question], passages: Sequence[Passage], ranking: Ranking
) -> list[Record]:
    texts = [[passages[row].text for row in rows if row >= 0] for rows in ranking.rows.tolist()]
    return [
        {"id": question.id, **answer_hits(own, question.spoken_answers, DEPTHS)}
        for question, own in zip(questions, texts, strict=True)
    ]


def _summarise(hits: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    rows = [[name, *mean_numbers(own, _NAMES).values()] for name, own in hits.items()]
    paired = compare_rows(hits, "joint", dict(zip(_NAMES, _NAMES, strict=True)))
    title = f"retrievers alone, {len(hits['joint'])} questions"
    tables = {
        title: [["retriever", *_NAMES], *rows],
        f"{title}, question by question": tabulate_pairs(paired),
    }
    return {"tables": tables, "paired": paired}
