"""The list of the translator's stages, a part of the run's; see `pipeline`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.prag.adapters import augment_stage, encode_stage
from rag_jax.systems.prag.evaluate import TRANSLATED, run_evaluation
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.translate import (
    AUGMENT,
    DOCUMENTS,
    ENCODE,
    EVALUATE_TRANSLATED,
    OTHERS,
    TRAIN,
    TRANSLATE,
    choose_documents,
    run_translation,
    run_translator,
)
from rag_jax.systems.session import make_stage

TAUGHT = DOCUMENTS, AUGMENT, ENCODE, TRAIN  # what another dataset takes from the run


def list_translation(
    session: Session,
    *,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> list[Stage]:
    """The stages of the translator; none without documents to train it on.

    Args:
        model, training, evaluation: what the run's stages depend on of the language model, and the
            settings of those that train and that answer.
    """
    c, stage = session.config, partial(make_stage, session)
    if not c.translator.documents:
        return []
    chosen = {"documents": c.translator.documents, "seed": c.seed}
    documents = stage(DOCUMENTS, choose_documents, chosen, "corpus", "retrieve")
    augmented = augment_stage(session, AUGMENT, model, found=DOCUMENTS)
    variant, options = session.variants["encode"], {"room": session.estimate_taught, **OTHERS}
    encoded = encode_stage(session, ENCODE, training, variant, **options)
    trained = stage(
        TRAIN,
        run_translator,
        {**training, "translator": c.translator},
        *("corpus", DOCUMENTS, AUGMENT, ENCODE),
    )
    options = {"room": session.estimate_adapters}
    made = stage(TRANSLATE, run_translation, training, "corpus", "retrieve", TRAIN, **options)
    answered = stage(
        EVALUATE_TRANSLATED,
        run_evaluation,
        evaluation,
        *("corpus", "retrieve", "augment", "encode", TRANSLATE),
        version=2,
        methods=TRANSLATED,
        variants={},
    )
    return [documents, augmented, encoded, trained, made, answered]
