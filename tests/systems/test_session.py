"""What a run has open, and stage functions bound to what they need of it."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rag_jax.config import (
    DataConfig,
    EncoderConfig,
    IndexConfig,
    MeshConfig,
    ModelConfig,
    WorldConfig,
)
from rag_jax.data.passages import Passage
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import session as sessions
from rag_jax.systems.session import Session, bind
from rag_jax.systems.stages import corpus_stage

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = SimpleNamespace(
    seed=7,
    depth=20,
    label="from the config",
    mesh=MeshConfig(),
    model=ModelConfig(str(GOLDEN / "llama_tied")),
    encoder=EncoderConfig(str(GOLDEN / "bert"), max_length=24),
    data=DataConfig(),
    world=WorldConfig(cities=4, countries=3, train=5, dev=0, test=6),
)


class TinySession(Session):
    """A session with an attribute of each kind."""

    label = "from the session"

    def __init__(self, config=CONFIG):
        super().__init__(config)
        self.opened = "set by the constructor"

    @property
    def encoding(self):
        return self.config.encoder

    @property
    def questions(self):
        return self.choose_questions(self.corpus, "test")

    def check_corpus(self, corpus):
        if not corpus.passages:
            raise RagJaxError("no passages")


@pytest.fixture(scope="module")
def session():
    return TinySession()


def call(function, session, **given):
    """Binds a function and runs it in a stage that needs nothing."""
    bind(session, function, **given)(StageContext(Stage("stage", lambda context: None), Path("no")))


# Binding.


def test_an_argument_comes_from_the_session(session):
    taken = []

    def run(context, *, opened, label, mesh, encode, encoding):
        taken.append((context.name, opened, label, mesh, encode, encoding))

    call(run, session)
    assert taken == [
        # A session's attribute goes before a setting of the same name.
        (
            "stage",
            "set by the constructor",
            "from the session",
            session.mesh,
            session.encode,
            CONFIG.encoder,
        )
    ]


def test_an_argument_comes_from_the_config(session):
    taken = []
    call(lambda context, *, seed, depth, world: taken.append((seed, depth, world)), session)
    assert taken == [(7, 20, CONFIG.world)]


def test_a_given_argument_goes_before_both(session):
    taken = []

    def run(context, *, depth, label, seed, other):
        taken.append((depth, label, seed, other))

    call(run, session, depth=3, label="given", other="known to nobody")
    assert taken == [(3, "given", 7, "known to nobody")]


def test_an_optional_argument_is_given_or_left_at_its_default(session):
    taken = []

    def run(context, *, seed, depth=1, unknown=2):
        taken.append((seed, depth, unknown))

    call(run, session)
    call(run, session, depth=4, unknown=5)
    # 20 is a setting, but the default says that the function can do without.
    assert taken == [(7, 1, 2), (7, 4, 5)]


def test_an_unknown_argument_is_a_fault_when_it_is_bound(session):
    def run(context, *, seed, nothing, depth, never):
        raise AssertionError

    with pytest.raises(TypeError, match="run: the session has no nothing, never"):
        bind(session, run)
    with pytest.raises(TypeError, match="run: the session has no never"):
        bind(session, run, nothing=1)
    bind(session, run, nothing=1, never=2)


def test_attributes_are_read_when_the_stage_runs():
    """Models, which take long to load, are not loaded for stages that are kept."""

    class Lazy(TinySession):
        reads = 0

        @property
        def costly(self):
            self.reads += 1
            return self.reads

    session, taken = Lazy(), []
    run = bind(session, lambda context, *, costly: taken.append(costly))
    assert session.reads == 0
    for _ in range(2):
        run(StageContext(Stage("stage", lambda context: None), Path("no")))
    assert taken == [1, 2]


def test_the_corpus_is_open_in_stages_that_need_it(tmp_path, monkeypatch):
    loads, taken = [], []
    load = sessions.load_collection
    monkeypatch.setattr(
        sessions, "load_collection", lambda folder: loads.append(folder) or load(folder)
    )
    session = TinySession()

    def read(context, *, passages, questions):
        taken.append((context.name, len(passages), len(questions)))

    def read_later(context, *, corpus):
        assert corpus is session.corpus

    stages = [
        corpus_stage(session),
        Stage("one", bind(session, read), needs=("corpus",)),
        Stage("two", bind(session, read_later), needs=("one", "corpus")),
        Stage("three", bind(session, lambda context, *, depth: None), needs=("one",)),
    ]
    run_stages(stages, tmp_path)
    (ran,) = taken
    assert ran[0] == "one" and ran[1] > 0 and ran[2] == 6
    assert loads == [tmp_path / "stages" / "corpus"]  # read once for all stages


def test_the_corpus_of_an_undeclared_need_is_a_fault(tmp_path):
    session = TinySession()
    stages = [corpus_stage(session), Stage("one", bind(session, lambda context, *, passages: 0))]
    with pytest.raises(ValueError, match="the corpus is not open: the stage does not declare"):
        run_stages(stages, tmp_path)


def test_a_corpus_that_will_not_do_leaves_nothing(tmp_path):
    class Strict(TinySession):
        def check_corpus(self, corpus):
            raise RagJaxError("config.data: too few passages")

    with pytest.raises(RagJaxError, match="config.data: too few passages"):
        run_stages([corpus_stage(Strict())], tmp_path)
    left = {path.name for path in (tmp_path / "stages" / "corpus").iterdir()}
    assert left == {"started.json"}


def test_a_kept_corpus_is_checked_against_the_settings_of_today(tmp_path):
    class Strict(TinySession):
        def check_corpus(self, corpus):
            raise RagJaxError(f"config.depth: above {len(corpus.passages)} passages")

    run_stages([corpus_stage(TinySession())], tmp_path)
    session = Strict()
    stages = [
        corpus_stage(session),
        Stage("one", bind(session, lambda context, *, depth: None), needs=("corpus",)),
    ]
    with pytest.raises(RagJaxError, match=r"config.depth: above \d+ passages"):
        run_stages(stages, tmp_path)


# Sessions.


def test_batches_that_the_mesh_must_divide_are_checked(monkeypatch):
    checked = []
    monkeypatch.setattr(sessions, "check_batches", lambda mesh, sizes: checked.append(sizes))

    class Batches(TinySession):
        batch_sizes = ("encoder.batch_size", "depth")

    Batches()
    assert checked == [{"config.encoder.batch_size": 64, "config.depth": 20}]


def test_a_model_of_another_kind_is_named(session):
    assert session.load_language_model("model.name").config.num_layers
    encoder = session.load_encoder("encoder.name")
    assert session.encode(encoder, ["one", ("two", "three")], None).shape[0] == 2
    assert session.fingerprint("encoder.name") == encoder.fingerprint
    with pytest.raises(RagJaxError, match=f"config.encoder.name={GOLDEN}/bert: is no language m"):
        session.load_language_model("encoder.name")
    with pytest.raises(RagJaxError, match=f"config.model.name={GOLDEN}/llama_tied: is no encoder"):
        session.load_encoder("model.name")
    # A trained encoder in the place of the setting's.
    with pytest.raises(RagJaxError, match=f"config.encoder.name={GOLDEN}/llama_tied: is no enc"):
        session.load_encoder("encoder.name", GOLDEN / "llama_tied")
    other = session.load_encoder("encoder.name", GOLDEN / "dpr_context")
    assert other.config.dpr_role == "context"


def test_the_source_depends_on_the_data_and_not_on_the_seed(session):
    @dataclass(frozen=True)
    class Config:
        seed: int
        mesh: MeshConfig = CONFIG.mesh
        data: DataConfig = CONFIG.data
        world: WorldConfig = CONFIG.world

    assert TinySession(Config(7)).source == session.source
    assert TinySession(Config(8)).source == session.source
    assert TinySession(Config(7, data=DataConfig(seed=1))).source != session.source
    assert TinySession(Config(7, world=WorldConfig(cities=5))).source != session.source


def test_an_index_is_kept_as_the_config_says():
    session = TinySession(SimpleNamespace(**vars(CONFIG), index=IndexConfig("exact", "int8")))
    passages = [Passage("a", "", "One."), Passage("b", "", "Two.")]
    encoder = SimpleNamespace(fingerprint="e")
    index = session.build_index(encoder, np.eye(2, dtype=np.float32), passages, ids=True)
    assert (index.backend, index.storage, index.ids) == ("exact", "int8", ("a", "b"))
