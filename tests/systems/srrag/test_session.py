"""What a run of SR-RAG has open: its engine, over the run's passages and over others."""

from dataclasses import replace

import numpy as np
import pytest

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag import ask, pipeline
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.sources import count_slots, read_longest
from systems.asked import take_stock
from systems.srrag.tiny_run import open_stage

WIKI = 1


@pytest.fixture
def encoded(monkeypatch):
    """The texts that any tokenizer encoded."""
    texts = []
    for name in ("encode", "encode_with_specials", "encode_chat", "shorten"):
        method = getattr(Tokenizer, name)

        def note(self, text, *rest, method=method, **options):
            texts.append(text)
            return method(self, text, *rest, **options)

        monkeypatch.setattr(Tokenizer, name, note)
    return texts


def open_engine(session, workdir, **changes):
    context = open_stage(session, workdir, "evaluate")
    return session.open_engine(context, context.path("stage2", "params")), context


def test_an_engine_that_opens_does_not_tokenize_the_corpus(session, finished, encoded):
    engine, context = open_engine(session, finished[0])
    opened = ask.open_run(session, finished[0], None)
    assert encoded == []
    assert engine.knowledge_width == count_slots(read_longest(context), 1, 8)
    # Questions are, and a passage that is found.
    passages = {passage.text for passage in session.passages}
    next(opened("Where is Riga?"))
    assert encoded and not passages & set(encoded)
    engine.search(WIKI, ["Where is Riga?"])
    assert len(passages & set(encoded)) == 1


def test_every_passage_of_the_run_has_room(session, finished):
    engine, _ = open_engine(session, finished[0])
    format = session.format
    for passage in session.passages:
        text = join_passages([(passage.title, format.shorten(passage.text))])
        assert len(format.encode_knowledge(text)) < engine.knowledge_width


def test_a_block_of_many_passages_has_room(session):
    """Whatever the digits of their numbers."""
    passage = ("Riga", session.format.shorten("Riga is the capital of Latvia. " * 30))
    encode = session.format.encode_knowledge
    longest = len(encode(join_passages([passage])))
    for count in range(1, 40):
        slots = count_slots(longest, count, 8)
        assert len(encode(join_passages([passage] * count))) < slots


def test_an_engine_over_other_passages(session, finished):
    engine, _ = open_engine(session, finished[0])
    width = engine.knowledge_width
    passages = [
        Passage("a", "Riga", "Riga is the capital of Latvia. " * 30),
        Passage("b", "Lyon", "Lyon is a city in France."),
    ]
    embeddings = session.encode_passages(session.encoder, passages)
    measured = session.measure_corpus(passages)
    assert measured["cut"] == 1
    other = session.replace_corpus(engine, passages, embeddings, longest=measured["longest"])
    found = other.search(WIKI, ["Riga: Riga is the capital of Latvia.", "Lyon"])
    shown = {(p.title, session.format.shorten(p.text)) for p in passages}
    assert all(len(texts) == 1 and texts[0][:2] in shown for texts in found)
    longest = max(
        len(session.format.encode_knowledge(f"[1] {title}: {text}")) for title, text in shown
    )
    assert other.knowledge_width == count_slots(longest, 1, 8) > width
    # The engine over the run's passages is as it was.
    assert engine.knowledge_width == width
    (texts,) = engine.search(WIKI, ["Lyon"])
    assert len(texts) == 1 and texts[0][:2] not in shown


def test_embeddings_are_those_of_the_index(session, finished):
    context = open_stage(session, finished[0], "contexts")
    kept = np.load(context.path("index", "embeddings.npy"))
    some = session.passages[:3]
    np.testing.assert_allclose(session.encode_passages(session.encoder, some), kept[:3], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate_on": "dev"}, "config.data: there are no 'dev' questions with answers"),
        ({"route.tau": None}, "config.route.tau=None: there are no 'dev' questions with answers"),
    ],
)
def test_a_kept_corpus_is_checked_against_changed_settings(make_config, copied, changes, message):
    """Before anything of the finished run is touched."""
    before = take_stock(copied)
    with pytest.raises(RagJaxError, match=message):
        pipeline.run(make_config(**changes), copied, overwrite=True)
    after = take_stock(copied)
    assert {p for p in before | after if before.get(p) != after.get(p)} <= {
        copied / ".lock",
        copied / "layout.json",
    }


def test_a_dataset_with_too_few_documents_is_told_at_the_start(session):
    """The pool is drawn of a mixture's questions: of the smaller dataset it has too few."""
    questions = [
        Question(f"{name}/{i}", f"{name}{i}?", ("x",), {"1": 1}, dataset=name)
        for name, size in {"a": 60, "b": 4}.items()
        for i in range(size)
    ]
    corpus = Collection([Passage("1", "", "x")] * 9, {"train": questions, "test": questions})
    whole = replace(session.config.verbalise, pool=64)
    config = replace(session.config, train_questions=0, verbalise=whole)
    Session(config).check_corpus(corpus)
    few = replace(config, verbalise=session.config.verbalise)
    with pytest.raises(RagJaxError, match="config.verbalise.pool=12: has . questions of b, and ea"):
        Session(few).check_corpus(corpus)
