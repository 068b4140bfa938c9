"""The stages that give documents adapters of their own, those that are asked and a translator's."""

from collections.abc import Callable, Mapping
from typing import Any

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.prag.augment import run_augmentation
from rag_jax.systems.prag.data import Variant
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.train import run_encoding
from rag_jax.systems.session import bind, make_stage


def augment_stage(session: Session, name: str, model: Mapping[str, Any], *, found: str) -> Stage:
    """The rewrites and questions of documents.

    Args:
        model: what of the language model the stage depends on.
        found: the stage that names the documents.
    """
    c = session.config
    settings = {**model, "augment": c.augment, "full": c.prompt.reasoning}
    draws = c.augment.by == "model"  # and rules do not
    if draws:
        settings["seed"] = c.seed
    if c.augment.model is not None:
        settings["writer"] = session.fingerprint("augment.model")
    return make_stage(
        session,
        name,
        run_augmentation,
        settings,
        *("corpus", found),
        divisible=("augmented.jsonl",),
        version=4 if draws else 2,
        found=found,
    )


def encode_stage(
    session: Session,
    name: str,
    training: Mapping[str, Any],
    variant: Variant,
    *,
    room: Callable[[], tuple[int, int]],
    found: str,
    made: str,
) -> Stage:
    """The training of an adapter for every document.

    Args:
        training: the settings of all trainings.
        found: the stage that names the documents.
        made: the stage that augments them.
    """
    c = session.config
    given = {"variant": variant, "settings": c.encode, "found": found, "made": made}
    return Stage(
        name,
        bind(session, run_encoding, **given),
        needs=("corpus", found, made, *["warm_up"] * (variant.start == "warm")),
        settings={**training, "variant": variant, "encode": c.encode, "augment": c.augment},
        version=2,
        divisible=("encoded.jsonl",),
        repairs=True,
        room=room,
    )
