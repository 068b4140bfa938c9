"""The training of both encoders."""

from collections.abc import Sequence
from functools import partial

from jax.sharding import Mesh

from rag_jax.config import ContrastiveConfig, EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.systems.dpr.data import make_pairs
from rag_jax.systems.stages import train_encoders


def run_training(
    context: StageContext,
    *,
    untrained: Encoders,
    train_questions: Sequence[Question],
    passages: Sequence[Passage],
    train: ContrastiveConfig,
    encoding: EncoderConfig,
    mesh: Mesh,
    seed: int,
) -> None:
    """Trains the encoders and saves them as models, `question` and `passage`."""
    mined = context.path("negatives", "negatives.jsonl")
    options = {"max_length": encoding.max_length, "mesh": mesh, "seed": seed}
    options["sides"] = {"question": "question", "passage": "passage"}
    data = partial(make_pairs, train_questions, passages, mined), train_questions, passages
    train_encoders(context, untrained, *data, train, **options)
