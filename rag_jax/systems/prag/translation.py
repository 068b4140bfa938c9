"""The list of the translator's stages, a part of the run's; see `pipeline`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.prag.augment import run_augmentation
from rag_jax.systems.prag.evaluate import TRANSLATED, run_evaluation
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.train import run_encoding
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
from rag_jax.systems.session import bind, make_stage

TAUGHT = DOCUMENTS, AUGMENT, ENCODE, TRAIN  # what another dataset takes from the run


def list_translation(
    session: Session, training: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> list[Stage]:
    """The stages of the translator; none without documents to train it on.

    Args:
        training, evaluation: the settings of the run's stages that train and that answer.
    """
    c, stage = session.config, partial(make_stage, session)
    if not c.translator.documents:
        return []
    chosen = {"documents": c.translator.documents, "seed": c.seed}
    augmentation = {**training, "augment": c.augment, "full": c.prompt.reasoning}
    if c.augment.model is not None:
        augmentation["writer"] = session.fingerprint("augment.model")
    documents = stage(DOCUMENTS, choose_documents, chosen, "corpus", "retrieve")
    augmented = stage(
        AUGMENT,
        run_augmentation,
        augmentation,
        *("corpus", DOCUMENTS),
        divisible=("augmented.jsonl",),
        found=DOCUMENTS,
    )
    variant = session.variants["encode"]
    encoded = Stage(
        ENCODE,
        bind(session, run_encoding, variant=variant, settings=c.encode, stages=OTHERS),
        needs=("corpus", DOCUMENTS, AUGMENT, *["warm_up"] * (variant.start == "warm")),
        settings={**training, "variant": variant, "encode": c.encode, "augment": c.augment},
        divisible=("encoded.jsonl",),
        repairs=True,
        room=session.estimate_taught,
    )
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
        methods=TRANSLATED,
        variants={},
    )
    return [documents, augmented, encoded, trained, made, answered]
