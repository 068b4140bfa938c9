"""Answers from the searched sources, whose likelihoods the threshold of asking is chosen from."""

from collections.abc import Sequence

import numpy as np

from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.hosts import fetch
from rag_jax.systems.likelihood import Reader
from rag_jax.systems.srrag.passes import list_kinds
from rag_jax.systems.srrag.session import Session


def open_reader(context: StageContext, session: Session) -> Reader:
    """Reads for every question the searched source that the model finds likeliest.

    What the model writes from its own knowledge is in no document, so that it gets no verdict.

    Args:
        context: of a stage that needs the stages "index", "lengths" and "stage2".
    """
    engine = session.open_engine(context, context.path("stage2", "params"))
    searched = np.flatnonzero([kind == "search" for kind in list_kinds(session.config)])

    def read(questions: Sequence[str]) -> list[tuple[str, float | None]]:
        routed = engine.route(questions)
        probabilities = fetch(routed.probabilities)[: len(questions), searched]
        sources, answers = searched[probabilities.argmax(axis=1)], []
        for start in range(0, len(questions), engine.batch_size):
            rows = range(start, min(start + engine.batch_size, len(questions)))
            knowledge = engine.gather_knowledge(routed, rows, sources[rows], questions)
            written = engine.write_answers(knowledge)
            for text, value, found in zip(
                written.texts, written.likelihoods, knowledge.found, strict=True
            ):
                answers.append((text, value if found else None))
        return answers

    return read
