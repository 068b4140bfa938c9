"""Index hot-swapping: the same model with the index of another revision of the facts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from jaxtyping import Float, PyTree

from rag_jax.config import WorldConfig
from rag_jax.data.gazetteer import build_world, list_changes
from rag_jax.data.gazetteer.scene import Question
from rag_jax.data.passages import Passage
from rag_jax.evaluation.answers import exact_match
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.runtime.files import write_json
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.evaluate import answer_all, choose_way
from rag_jax.systems.rag.infer import Engine
from rag_jax.systems.rag.rankings import Ranking


def run_memory(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    load_trained: Callable[[StageContext, str], PyTree],
    make_engine: Callable[[PyTree], Engine],
    open_final_index: Callable[[StageContext, PyTree], tuple[Index, Pretrained]],
    encode_questions: Callable[..., Float[np.ndarray, "N E"]],
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    build_corpus_index: Callable[..., Index],
    world: WorldConfig,
    config: RAGConfig,
) -> None:
    """Asks about facts that the world's other revision changed, with the index of either revision.

    The knowledge is in the index: a model that was trained once gives the answers of the index that
    it reads (Lewis et al. 2020, section 4.5). Countries of the training questions are left out.
    """
    worlds = [build_world(**asdict(world) | {"revision": revision}) for revision in (0, 1)]
    trained_on = {question.subject for question in worlds[0].questions["train"]}
    count = config.decode.memory_questions
    changes = choose_changes(world, trained_on, count=count, seed=config.data.seed)
    asked = [old.question for old, _ in changes]
    trained = load_trained(context, "joint")
    engine = make_engine(trained["generator"])
    queries = encode_questions(trained["query"], asked)
    index, embedder = open_final_index(context, trained)
    way = choose_way(config)
    table: list[list[str | float]] = [["index", "old facts", "new facts", "n"]]
    for name, revision in zip(("old", "new"), worlds, strict=True):
        revised, embeddings = revision.passages, index.embeddings.copy()
        changed = [i for i, p in enumerate(revised) if p != passages[i]]
        if changed:
            embeddings[changed] = encode_passages(embedder, [revised[i] for i in changed])
        swapped = build_corpus_index(embeddings, revised)
        scores, rows = swapped.search(queries, min(config.passages_read, swapped.size))
        found = Ranking(config.retriever.scale * scores, rows)
        ways, k = {way: name}, config.passages_read
        records = answer_all(context, engine, asked, revised, found, ways, k=k)
        answered = list(zip(records, changes, strict=True))
        right = [
            np.mean([exact_match(r["answers"][way], pair[facts].answers) for r, pair in answered])
            for facts in (0, 1)
        ]
        table.append([f"{name} index", *map(float, right), str(len(changes))])
    write_json(context.folder / "memory.json", table)


def choose_changes(
    world: WorldConfig, trained_on: set[str], *, count: int, seed: int
) -> list[tuple[Question, Question]]:
    """At most `count` questions that the other revision answers otherwise, with both answers.

    Args:
        trained_on: subjects to leave out.
    """
    changes = [
        pair
        for pair in list_changes(cities=world.cities, countries=world.countries, seed=world.seed)
        if pair[0].subject not in trained_on
    ]
    order = np.random.default_rng(seed).permutation(len(changes))
    return [changes[i] for i in order[:count]]
