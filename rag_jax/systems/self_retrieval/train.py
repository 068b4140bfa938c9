"""Training: every task's rows in one mix, by cross-entropy on what is to be generated."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rag_jax.data.questions import Collection
from rag_jax.losses import span_cross_entropy
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_json
from rag_jax.runtime.sharding import DECODER_RULES, abstract_params
from rag_jax.systems.self_retrieval.data import (
    TERMS,
    Format,
    choose_same,
    make_index_rows,
    make_question_rows,
)
from rag_jax.training.fit import tune_rows
from rag_jax.training.rows import Row, target_logprobs
from rag_jax.training.trainable import apply_tuned, init_tuned

if TYPE_CHECKING:
    from rag_jax.systems.self_retrieval.pipeline import Session


def make_rows(
    session: "Session", context: StageContext, form: Format, *, indexing: bool
) -> list[Row]:
    """All rows of a training: the corpus's sentences, if `indexing`, and the questions'.

    Raises:
        RagJaxError: a row is longer than the model's context.
    """
    c, corpus = session.config, session.read_corpus(context)
    mined = read_jsonl(context.path("negatives", "negatives.jsonl"))
    rows = []
    if indexing:
        rows += make_index_rows(form, corpus.passages, c.examples, seed=c.seed)
    rows += _list_question_rows(session, form, corpus, [record["rows"] for record in mined])
    limit = session.base.config.max_length
    for row in rows:
        if len(row.tokens) > limit:
            raise RagJaxError(
                f"row {row.id}: {len(row.tokens)} tokens, over the model's context of {limit}; "
                "lower config.model.max_text"
            )
    return rows


def _list_question_rows(
    session: "Session", form: Format, corpus: Collection, mined: Sequence[Sequence[int]]
) -> list[Row]:
    c = session.config.examples
    by_id = {passage.id: passage for passage in corpus.passages}
    by_title = defaultdict(list)
    for passage in corpus.passages:
        by_title[passage.title].append(passage)
    rows = []
    for question, others in zip(session.list_training(corpus), mined, strict=True):
        titles = dict.fromkeys(by_id[id].title for id in question.relevant)
        alike = [passage for title in titles for passage in by_title[title]]
        found = [corpus.passages[row] for row in others]
        others = [passage for passage in found if passage.title not in titles]
        negatives = choose_same(question, alike, count=c.same) + others[: c.other]
        rows += make_question_rows(form, question, by_id, negatives, c)
    return rows


def make_loss(session: "Session") -> Callable[..., Any]:
    """The loss by the trained tree: `-log p` of each term's tokens, by the mean over a row's."""
    tuning = session.config.tuning
    model = session.base.model.clone(remat=tuning.remat)

    def loss(trained, frozen, batch):
        params = apply_tuned(tuning, trained, frozen, dtype=session.dtype)
        logprobs = target_logprobs(model, params, batch)
        terms = {term: span_cross_entropy(logprobs, batch[term]).sum() for term in TERMS}
        return sum(terms.values()), terms

    return loss


def load_tuned(session: "Session", folder: Path) -> Any:
    """The model's parameters after a training."""
    tuning, params = session.config.tuning, session.base.params
    abstract = jax.eval_shape(partial(init_tuned, tuning, seed=session.config.seed), params)
    trained = load_tree(folder, abstract_params(abstract, session.mesh, DECODER_RULES))
    return jax.jit(partial(apply_tuned, tuning, dtype=session.dtype))(trained, params)


def run_training(
    session: "Session", context: StageContext, *, indexing: bool = True, titled: bool = True
) -> None:
    """Trains to the end and saves the trained tree as `params`."""
    if (context.folder / "params").exists():
        return
    c = session.config
    rows = make_rows(session, context, session.make_format(titled=titled), indexing=indexing)
    write_json(context.folder / "rows.json", describe_rows(rows))
    tune_rows(
        context,
        rows,
        make_loss(session),
        base=session.base,
        mesh=session.mesh,
        tuning=c.tuning,
        settings=c.train,
        terms=TERMS,
        # Every batch has its share of the tasks.
        strata=[2 * ("retrieval" in row.spans) + ("assessment" in row.spans) for row in rows],
        seed=c.seed,
        profile_steps=c.profile_steps,
    )


def describe_rows(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows and tokens each task has."""
    tasks = {
        "indexing": [row for row in rows if "assessment" not in row.spans],
        "positives": [row for row in rows if len(row.spans) == 2],
        "negatives": [row for row in rows if "retrieval" not in row.spans],
    }
    counts = {name: len(some) for name, some in tasks.items()}
    tokens = {f"{name}_tokens": sum(len(r.tokens) for r in some) for name, some in tasks.items()}
    return counts | tokens | {"longest": int(np.max([len(row.tokens) for row in rows]))}
