"""The plan of the tiny run, compiled for a CPU that stands in for a slice."""

from pathlib import Path

import jax
import pytest

from rag_jax.config import build
from rag_jax.runtime import chips
from rag_jax.runtime.device_bytes import count_bytes_per_device
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.rag import plan as planned
from rag_jax.systems.rag import session as sessions
from rag_jax.systems.rag.config import RAGConfig
from systems.planned import CHIP, RERANKING, add_reranker, draw, list_programs, plan

GOLDEN = Path(__file__).parents[2] / "golden"
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


def test_every_program_is_planned(settings, monkeypatch, tmp_path):
    """Every shape that was drawn, as often as it runs; all are compiled in the parity suite."""
    config = add_reranker(settings(), tmp_path)
    drawn = draw("rag", config)
    programs = list_programs("rag", config, monkeypatch)
    for stage in ("frozen", "joint"):
        shapes = drawn.stages[stage].runs
        runs = {
            f"{stage}, gradients of questions {s.rows} x {s.width}": n for s, n in shapes.items()
        }
        assert runs.items() <= {n: p.get(stage) for n, p in programs.items()}.items()
        steps = drawn.stages[stage].steps
        assert programs[f"{stage}, optimiser step"] == {stage: steps}
        assert programs[f"{stage}, add gradients"] == {stage: sum(runs.values()) - steps}
    assert set(ANSWERING) < programs.keys()
    assert programs["score answers"] == {"evaluate": 3}
    assert programs[RERANKING] == {"evaluate": 2}
    assert programs["one token of a passage's beams"] == {}


def test_programs_are_counted(settings):
    config = settings(**{"decode.max_tokens": 6, "passages": 4})
    drawn, by_name = draw("rag", config), {}
    for only in ("joint, optimiser step", "passage"):
        planner = plan("rag", config, drawn, only=only)
        by_name |= {program.name: program for program in planner.programs}
    session = planned.PlannedSession(config, jax.devices()[:1])
    weights = count_bytes_per_device(session.generator.params)
    assert by_name["read passages"].arguments > weights
    # Beside the model that answers: the one it came from, and the other training's.
    assert by_name["read passages"].resident > 2 * weights
    # Adam's two moments beside what is trained and its gradients.
    trained = session.make_trainable(joint=True).abstract()
    step = by_name["joint, optimiser step"]
    assert step.arguments >= 4 * count_bytes_per_device(trained)
    assert step.runs == {"joint": drawn.stages["joint"].steps}


def test_a_search_is_counted_with_all_its_turns(settings):
    """Six tokens, or five and a forced one; and the rounds of the other three passages' answers."""
    config = settings(**{"decode.max_tokens": 6, "passages": 4})
    names = {p.name: p for p in plan("rag", config, only="question's beams").programs}
    names |= {p.name: p for p in plan("rag", config, only="RAG-Token").programs}
    one, whole = names["one token of a question's beams"], names["write with RAG-Token"]
    assert one.cost.flops > 0 and whole.cost.flops > one.cost.flops


def test_a_retriever_alone_is_planned(settings, monkeypatch):
    """One training, and no second generator beside the one that answers."""
    config = settings(**{"train.generator": False})
    programs = list_programs("rag", config, monkeypatch)
    assert not any(name.startswith("frozen") for name in programs)
    held = [plan("rag", c, only="read passages").programs[-1] for c in (settings(), config)]
    weights = planned.PlannedSession(settings(), jax.devices()[:1]).generator.params
    assert held[0].resident - held[1].resident >= count_bytes_per_device(weights)


def test_an_encoder_decoder_is_planned(settings):
    """Every program of one is compiled in the parity suite, for a TPU."""
    config = settings(**BART, passages=4)
    planner = plan("rag", config, only="passages")
    session = planned.PlannedSession(config, jax.devices()[:1])
    *embed, read = planner.programs
    assert embed and all(p.name.startswith("index, embed passages") for p in embed)
    assert read.name == "read passages"
    assert embed[0].arguments > count_bytes_per_device(session.passage_encoder.params)
    assert read.arguments > count_bytes_per_device(session.generator.params)
    assert embed[0].cost.flops > 0 and read.cost.flops > 0


def test_remedies_change_one_setting_each(settings):
    def list_flags(name, **changes):
        return [flag for flag, _ in planned.list_remedies(settings(**changes), name)]

    assert list_flags("joint, gradients of questions 1 x 64") == [
        "--config.tuning.remat=full",
        "--config.train.microbatch_tokens=100",
        "--config.mesh.model=2",
    ]
    assert list_flags("joint, gradients of questions 1 x 64", **BART) == [
        "--config.tuning.remat=full",
        "--config.train.microbatch_tokens=100",
        "--config.mesh.model=2",
        "--config.tuning.mode=lora",
    ]
    assert list_flags("frozen, optimiser step", **BART)[-1] == "--config.tuning.mode=lora"
    assert list_flags("index, embed passages 8 x 64")[0] == "--config.retriever.batch_size=32"
    for name in ANSWERING:
        assert list_flags(name)[0] == "--config.decode.batch_size=4"


def test_models_of_unknown_sizes_or_of_the_wrong_kind_are_named(settings):
    for changes, message in (
        ({"generator.name": "someone/some-model"}, "sizes of 'someone/some-model' are not known"),
        ({"generator.name": "all-minilm-l6-v2"}, "generator.name=.*: is no generator but an enc"),
        ({"retriever.name": "facebook/bart-large"}, "retriever.name=.*: is no encoder"),
    ):
        with pytest.raises(RagJaxError, match=message):
            plan("rag", settings(**changes))
