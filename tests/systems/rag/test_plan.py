"""The plan of the tiny run, compiled for a CPU that stands in for a slice."""

from pathlib import Path

import jax
import pytest

from rag_jax.config import build
from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_bytes_per_device
from rag_jax.systems.rag import plan as planned
from rag_jax.systems.rag import session as sessions
from rag_jax.systems.rag.config import RAGConfig

CHIP = chips.Chip(flops=1e12, bandwidth=1e11, memory=1e12, links=1e11)
GOLDEN = Path(__file__).parents[2] / "golden"
TRAINING = ["gradients of questions", "add gradients", "optimiser step"]
ANSWERING = [
    "read passages",
    "one token of a question's beams",
    "write with RAG-Token",
    "one token of a passage's beams",
    "propose answers",
    "score answers of one passage",
    "score answers",
]
BART = {
    "generator.name": str(GOLDEN / "bart"),
    "generator.max_length": 24,
    "retriever.name": str(GOLDEN / "dpr_question"),
    "retriever.passage_name": str(GOLDEN / "dpr_context"),
    "tuning.mode": "full",
}


@pytest.fixture
def settings(make_config, monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)
    return lambda **changes: build(RAGConfig, make_config(**changes))


def describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("changes", [{}, BART])
def test_the_planned_session_is_the_real_one(settings, changes):
    """The same trees and shapes as the run itself trains."""
    config = settings(**changes)
    real, abstract = sessions.Session(config), planned.PlannedSession(config, jax.devices()[:1])
    for name in ("generator", "encoder", "passage_encoder"):
        ours, theirs = getattr(abstract, name), getattr(real, name)
        assert ours.config == theirs.config
        assert describe(ours.params) == describe(theirs.params)
    for joint in (False, True):
        trained = real.make_trainable(joint=joint).start()
        assert describe(abstract.make_trainable(joint=joint).abstract()) == describe(trained)


def test_every_program_is_planned(settings):
    config = settings(**{"decode.max_tokens": 6, "passages": 4})
    planner = planned.plan(config, jax.devices()[:1])
    names = [program.name for program in planner.programs]
    training = [f"{stage}, {name}" for stage in ("frozen", "joint") for name in TRAINING]
    assert names == ["embed passages", "embed questions", *training, *ANSWERING]
    by_name = {program.name: program for program in planner.programs}
    session = planned.PlannedSession(config, jax.devices()[:1])
    weights = count_bytes_per_device(session.generator.params)
    for name in ("joint, gradients of questions", "read passages", "propose answers"):
        assert by_name[name].arguments > weights
        assert by_name[name].cost.flops > 0
    # Beside the model that answers: the one it came from, and the other training's.
    assert by_name["read passages"].resident > 2 * weights
    # Loops are counted with all their turns: six tokens, or five and a forced one; and the rounds
    # of the other three passages' answers.
    for one, whole, turns in (
        ("one token of a question's beams", "write with RAG-Token", 4),
        ("one token of a passage's beams", "propose answers", 4),
        ("score answers of one passage", "score answers", 2),
    ):
        assert by_name[whole].cost.flops > turns * by_name[one].cost.flops
    trained = session.make_trainable(joint=True).abstract()
    # Adam's two moments beside what is trained and its gradients.
    step = by_name["joint, optimiser step"]
    assert step.arguments >= 4 * count_bytes_per_device(trained)
    assert step.arguments > by_name["frozen, optimiser step"].arguments


def test_a_retriever_alone_is_planned(settings):
    """One training, and no second generator beside the one that answers."""
    config = settings(**{"train.generator": False})
    whole, alone = (
        planned.plan(c, jax.devices()[:1], only="passages") for c in (settings(), config)
    )
    held = [planner.programs[-1].resident for planner in (whole, alone)]
    weights = planned.PlannedSession(settings(), jax.devices()[:1]).generator.params
    assert held[0] - held[1] >= count_bytes_per_device(weights)
    training = planned.plan(config, jax.devices()[:1], only="gradients of questions")
    assert [program.name for program in training.programs] == ["joint, gradients of questions"]


def test_an_encoder_decoder_is_planned(settings):
    """Every program of one is compiled in the parity suite, for a TPU."""
    config = settings(**BART, passages=4)
    planner = planned.plan(config, jax.devices()[:1], only="passages")
    session = planned.PlannedSession(config, jax.devices()[:1])
    embed, read = planner.programs
    assert (embed.name, read.name) == ("embed passages", "read passages")
    assert embed.arguments > count_bytes_per_device(session.passage_encoder.params)
    assert read.arguments > count_bytes_per_device(session.generator.params)
    assert embed.cost.flops > 0 and read.cost.flops > 0


def test_remedies_change_one_setting_each(settings):
    def list_flags(name, **changes):
        return [flag for flag, _ in planned.list_remedies(settings(**changes), name)]

    assert list_flags("joint, gradients of questions") == [
        "--config.tuning.remat=full",
        "--config.train.microbatch_tokens=100",
        "--config.mesh.model=2",
    ]
    # An encoder-decoder keeps all its activations.
    assert list_flags("joint, gradients of questions", **BART) == [
        "--config.train.microbatch_tokens=100",
        "--config.mesh.model=2",
        "--config.tuning.mode=lora",
    ]
    assert list_flags("frozen, optimiser step", **BART)[-1] == "--config.tuning.mode=lora"
    assert list_flags("embed passages")[0] == "--config.retriever.batch_size=32"
    for name in ANSWERING:
        assert list_flags(name)[0] == "--config.decode.batch_size=4"


def test_models_of_unknown_sizes_or_of_the_wrong_kind_are_named(settings):
    for changes, message in (
        ({"generator.name": "someone/some-model"}, "sizes of 'someone/some-model' are not known"),
        ({"generator.name": "all-minilm-l6-v2"}, "generator.name=.*: is no generator but an enc"),
        ({"retriever.name": "facebook/bart-large"}, "retriever.name=.*: is no encoder"),
    ):
        with pytest.raises(RagJaxError, match=message):
            planned.plan(settings(**changes), jax.devices()[:1])
