"""The tiny run that several tests look at: its settings, and reading what it wrote."""

import contextlib
import importlib.util

import numpy as np
import pytest

from rag_jax import lora
from rag_jax.config import EncoderConfig, IndexConfig, TrainConfig, WorldConfig
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.srrag import pipeline
from rag_jax.systems.srrag.config import (
    DatastoreConfig,
    GroundedAnswerConfig,
    GrownReaderConfig,
    LabelConfig,
    NewTokensConfig,
    RouteConfig,
    SRRAGConfig,
    Stage2Config,
    VerbaliseConfig,
)
from rag_jax.systems.srrag.session import Session

STAGES = [
    "corpus",
    "index",
    "lengths",
    "demonstrations",
    "contexts",
    "labels",
    "stage1",
    "reference",
    "stage2",
    "datastore",
    "evaluate",
    "likelihood",
]
METHODS = ["direct", "verbalise", "retrieve", "srrag", "without_knn"]
BACKEND = "scann" if importlib.util.find_spec("scann") else "exact"


def describe_run(llama_folder, bert_folder):
    """The settings of the tiny run."""
    return SRRAGConfig(
        contexts=3,
        extra_mean=2.0,
        loss_reduction="sum",
        model=GrownReaderConfig(name=str(llama_folder)),
        encoder=EncoderConfig(name=str(bert_folder), max_length=48),
        world=WorldConfig(cities=5, train=12, dev=0, test=9),
        index=IndexConfig(BACKEND),
        # 36 documents in two batches: the second cluster is in both.
        verbalise=VerbaliseConfig(demonstrations=1, pool=12, max_tokens=8, batch_size=18),
        label=LabelConfig(batch_size=48),
        tuning=NewTokensConfig(mode="lora", rank=2),
        stage1=TrainConfig(
            batch_size=4, learning_rate=0.03, microbatch_tokens=900, checkpoint_every=1
        ),
        stage2=Stage2Config(
            batch_size=4, learning_rate=0.01, microbatch_tokens=900, checkpoint_every=1
        ),
        datastore=DatastoreConfig(layer=1, k=5),
        route=RouteConfig(tau=0.2),
        answer=GroundedAnswerConfig(max_tokens=4, batch_size=4),
    )


_make_losses = Session.losses.func
_shared_losses = {}


@contextlib.contextmanager
def quick_programs():
    """All runs share their losses' programs, which takes less time for compiling."""

    def share_losses(session):
        kind = session.config.tuning, session.config.sources
        if kind not in _shared_losses:
            _shared_losses[kind] = _make_losses(session)
        return _shared_losses[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "losses", property(share_losses))
        yield


def open_stage(session, workdir, name):
    """A stage's context on a finished run, whose corpus the session has open from now on."""
    stages = {stage.name: stage for stage in pipeline.list_stages(session)}
    session.open_corpus(workdir / "stages" / "corpus")
    return StageContext(stages[name], workdir / "stages")


def without_times(methods):
    return {
        name: {key: value for key, value in numbers.items() if key != "seconds_per_question"}
        for name, numbers in methods.items()
    }


def read_predictions(workdir):
    """Every method's predictions, without their times."""
    return {
        name: [
            {key: value for key, value in record.items() if key != "seconds"}
            for record in read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        ]
        for name in METHODS
    }


def list_names(report, *, reused):
    return [stage["name"] for stage in report["stages"] if stage["reused"] == reused]


def fold_trained(session, workdir, stage):
    """The parameters after a stage, the adapter folded into the kernels."""
    base, tuning = session.base.params, session.config.tuning
    trained = session.trainable.load(workdir / "stages" / stage / "params")
    table = np.array(base["embed"]["embedding"])
    table[-4:] = trained["new_tokens"]["embed"]["embedding"]
    folded = lora.fold(base, trained["model"], scale=tuning.scale)
    return {**folded, "embed": {"embedding": table}}
