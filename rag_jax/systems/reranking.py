"""Reranking in a run: the run's reranker, its settings in a stage, and the ranks that it changes.

Every system's search is reranked by what is here; where the reranked passages go is the system's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rag_jax.data.batches import list_widths
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Record, mean_numbers, timed
from rag_jax.evaluation.rankings import Ranked, answer_hits, reciprocal_rank
from rag_jax.models import Reranker, load_reranker
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.io.reranker import check_reranker
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.rerank import choose_length, count_room, rerank_rows
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.search_config import RerankConfig

_FIELD = "config.retrieve.rerank"
RERANKED = "reranked"  # the row of a report with what the system itself finds, reranked
_FILE = "reranking.json"
_TOGETHER = 32  # questions of a piece on disk


@dataclass(frozen=True, eq=False)
class Reranking:
    """A reranker and how much it reads.

    Attributes:
        depth: number of passages that are read for a question.
        max_length: as for `score_pairs`.
    """

    reranker: Reranker
    depth: int
    max_length: int

    def count(self, wanted: int, size: int) -> int:
        """Number of passages to search for, of `size`, where a number of them is wanted."""
        return min(max(wanted, self.depth), size)

    def order(
        self,
        questions: Sequence[str],
        found: Sequence[Ranked],
        passages: Sequence[Passage],
    ) -> list[Ranked]:
        """What was found for each question, in the order of the reranker's scores.

        Passages beyond `depth` follow in the order in which they were found; each one's score is 1
        below the last, so that scores fall.

        Args:
            found: rows of `passages` and their scores, best first.

        Raises:
            RagJaxError: as `score_pairs`.
        """
        rows = [[row for row, _ in ranked] for ranked in found]
        read = questions, [own[: self.depth] for own in rows], passages
        options = {"max_length": self.max_length, "widths": list_widths(self.max_length)}
        ranked, scored = [], rerank_rows(self.reranker, *read, **options)
        for (scores, order), own in zip(scored, rows, strict=True):
            first = [(own[i], s) for i, s in zip(order.tolist(), scores.tolist(), strict=True)]
            rest = enumerate(own[self.depth :], 1)
            ranked.append([*first, *((row, first[-1][1] - below) for below, row in rest)])
        return ranked


def describe_reranking(settings: RerankConfig) -> dict[str, Any]:
    """What reranking depends on, for the settings of a stage; nothing without a reranker.

    Raises:
        RagJaxError: the reranker is none, reads fewer tokens than the settings say, or has no room
            for a passage among them.
    """
    if settings.name is None:
        return {}
    try:
        opened = check_reranker(settings.name, question=settings.asked)
    except RagJaxError as error:
        raise RagJaxError(f"{_FIELD}.name={settings.name}: {error}") from None
    reads, asked = opened.config.max_length, settings.asked
    if (settings.max_length or 0) > reads:
        raise RagJaxError(
            f"{_FIELD}.max_length={settings.max_length}: the reranker reads at most {reads} "
            "tokens; lower it, or leave it out"
        )
    if asked is not None:
        try:
            count_room(opened.tokenizer, asked, choose_length(reads, settings.max_length))
        except RagJaxError as error:
            raise RagJaxError(f"{_FIELD}.max_length={settings.max_length}: {error}") from None
    return {"rerank": settings, "reranker": fingerprint(resolve(settings.name))}


def open_reranking(settings: RerankConfig, mesh: Mesh) -> Reranking | None:
    """The reranker of a run's settings, its weights on the mesh; None without one.

    Raises:
        RagJaxError: as `load_reranker`.
    """
    if settings.name is None:
        return None
    options = {"question": settings.asked, "dtype": jnp.dtype(settings.dtype), "mesh": mesh}
    reranker = load_reranker(settings.name, **options)
    reads = reranker.base.config.max_length
    return Reranking(reranker, settings.depth, choose_length(reads, settings.max_length))


def rerank_found(
    context: StageContext,
    name: str,
    reranking: Reranking,
    questions: Sequence[str],
    found: Sequence[Ranked],
    passages: Sequence[Passage],
) -> list[tuple[Ranked, float]]:
    """For each question what `Reranking.order` gives, and its share of a batch's seconds.

    Args:
        name: of the ranking; `reranked_<name>.jsonl` in the stage's folder keeps what is made.
        found: rows of `passages` for each question.
    """

    def run(batch: Sequence[int]) -> list[Record]:
        asked, own = [questions[i] for i in batch], [found[i] for i in batch]
        return [{"ranked": ranked} for ranked in reranking.order(asked, own, passages)]

    options = {"batch_size": _TOGETHER, "unit": f"questions (reranking, {name})"}
    places = range(len(questions))
    records = context.map(f"reranked_{name}.jsonl", places, timed(run), **options)
    return [([(row, score) for row, score in r["ranked"]], r["seconds"]) for r in records]


def rank_anew(before: Sequence[Ranked], after: Sequence[Ranked]) -> list[Record]:
    """For each question the part of a record that says how its passages were reranked."""
    return [{"ranks": list_ranks(*own)} for own in zip(before, after, strict=True)]


def list_ranks(before: Ranked, after: Ranked) -> list[dict[str, int]]:
    """For each reranked passage its rank among those found and its rank now, both from 1."""
    places = {row: place for place, (row, _) in enumerate(before, 1)}
    return [{"rank_before": places[row], "rank_after": i} for i, (row, _) in enumerate(after, 1)]


def add_ranks(passages: Sequence[Record], record: Record) -> list[Record]:
    """The passages of a prediction, each with its ranks if the record has `ranks`."""
    if "ranks" not in record:
        return list(passages)
    return [passage | ranks for passage, ranks in zip(passages, record["ranks"], strict=False)]


def keep_scores(
    context: StageContext,
    questions: Sequence[Question],
    rankings: Mapping[str, Sequence[Ranked]],
    passages: Sequence[Passage],
    *,
    k: int,
) -> None:
    """Writes what was found and what was reranked as rows of `tabulate_reranking`.

    `answer@k` is DPR's accuracy, whether the text of one of the first `k` passages has an answer;
    `mrr` is over all passages given, of the questions with relevant ones.

    Args:
        rankings: by the name of the row.
    """
    rows = {}
    for name, found in rankings.items():
        scores = []
        for question, ranked in zip(questions, found, strict=True):
            own = [passages[row] for row, _ in ranked]
            texts = [passage.text for passage in own[:k]]
            scores.append(answer_hits(texts, question.spoken_answers, sorted({1, k})))
            if question.relevant:
                ids = [passage.id for passage in own]
                scores[-1]["mrr"] = reciprocal_rank(ids, question.relevant)
        rows[name] = mean_numbers(scores, ["answer@1", f"answer@{k}", "mrr"])
    write_json(context.folder / _FILE, rows)


def tabulate_reranking(stages: StageContext, stage: str) -> dict[str, list[list[Any]]]:
    """A table of the report: the scores that `keep_scores` wrote into a stage's folder."""
    rows = read_json(stages.path(stage, _FILE))
    names = list(next(iter(rows.values())))
    table = [["passages", *names], *([name, *own.values()] for name, own in rows.items())]
    return {"passages as found and reranked": table}
