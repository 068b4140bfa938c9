"""The staged pass against a full pass a token in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import continue_row, read_row, softmax

from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag.config import SourceConfig
from rag_jax.systems.srrag.data import join_passages, make_row
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.policy import Datastore, scale_keys, vote
from systems.srrag.reference import answer_logprob

SELF, WIKI = 0, 1
QUESTIONS = [
    "Where is Riga?",
    "What is the capital of France?",
    "Currency of Spain?",
    "What is 東京?",
    "In which country is the city of Lyon?",
    "Is <Self> a <EOQ>?",
]
PASSAGES = {
    question: [(f"Title {i}", "A text about it. " * (i % 3)), ("Lyon", "In France.")]
    for i, question in enumerate(QUESTIONS)
}


def search(source, questions):
    assert source == WIKI
    return [PASSAGES[question] for question in questions]


@pytest.fixture(scope="module")
def make_engine(base, format):
    def make(**changes):
        engine = Engine(
            model=base.model,
            params=base.params,
            format=format,
            search=search,
            layer=1,
            batch_size=4,
            max_knowledge=9,
            knowledge_width=64,
            max_answer=5,
        )
        return replace(engine, **changes)

    return make


# One pass, slowly.


def route_slowly(base, format, question, *, layer):
    """Source probabilities and key at `<EOQ>`, and the question's tokens."""
    tokens = format.encode_question(question)
    streams, _, logits = read_row(base.model, base.params, tokens)
    return tokens, softmax(logits[-1, list(format.source_ids)]), streams[layer][-1]


def gather_slowly(base, format, tokens, source, question):
    """The sequence with knowledge in it, before `<EOK>`, the knowledge as text, and whether it
    ended by itself."""
    tokens = [*tokens, format.source_ids[source]]
    if source == WIKI:
        text = join_passages(PASSAGES[question])
        return [*tokens, *format.encode_knowledge(text)], text, True
    written, ended = continue_row(
        base.model, base.params, tokens, max_tokens=9, stop_ids=format.stop_ids
    )
    return [*tokens, *written], format.tokenizer.decode(written).strip(), ended


def answer_slowly(base, format, question, source):
    """What `Engine.answer_questions` should say of one question, and the whole sequence."""
    asked, probabilities, _ = route_slowly(base, format, question, layer=1)
    tokens, knowledge, ended = gather_slowly(base, format, asked, source, question)
    known = len(tokens) - len(asked) - 1
    tokens += format.encode_answer_cue()
    given = len(tokens) - (known if source == SELF else 0)
    written, answered = continue_row(
        base.model, base.params, tokens, max_tokens=5, stop_ids=format.stop_ids
    )
    record = {
        "source": format.sources[source].name,
        "probabilities": pytest.approx(probabilities.tolist(), rel=1e-4),
        "knowledge": knowledge,
        "prediction": format.tokenizer.decode(written).strip(),
        "prompt_tokens": given,
        "generated_tokens": len(tokens) + len(written) - given,
        "cut_off": not ended,
        "answer_cut_off": not answered,
        "fell_back": False,
    }
    return record, tokens + written


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_routing(base, format, make_engine, layer):
    routed = make_engine(layer=layer).route(QUESTIONS)
    slowly = [route_slowly(base, format, q, layer=layer)[1:] for q in QUESTIONS]
    probabilities, keys = zip(*slowly, strict=True)
    np.testing.assert_allclose(routed.probabilities[:6], probabilities, rtol=1e-4)
    np.testing.assert_allclose(routed.key[:6], keys, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(routed.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert np.ptp(routed.probabilities[:6, SELF]) > 0.1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_staged_pass_is_the_full_pass(base, format, make_engine, batch_size):
    engine = make_engine(batch_size=batch_size)
    routed = engine.route(QUESTIONS)
    rows = {SELF: [5, 0, 3, 1, 4, 2], WIKI: [2, 4, 5]}
    found = {s: engine.answer_questions(routed, rows[s], s, QUESTIONS) for s in rows}
    for source, numbers in rows.items():
        assert sorted(found[source]) == sorted(numbers)
        for r in numbers:
            assert found[source][r] == answer_slowly(base, format, QUESTIONS[r], source)[0]


def test_rows_of_all_sources_go_on_together(base, format, make_engine):
    """Batches of one source and of both; each source is asked once a batch, for its rows alone."""
    asked = []

    def note(source, questions):
        asked.append(list(questions))
        return search(source, questions)

    engine = make_engine(search=note)
    routed, rows, sources = engine.route(QUESTIONS), [4, 0, 5, 1, 3, 2], [1, 0, 1, 0, 0, 1]
    found = engine.answer_questions(routed, rows, sources, QUESTIONS)
    assert asked == [[QUESTIONS[4]], [QUESTIONS[5], QUESTIONS[2]]]
    for row, source in zip(rows, sources, strict=True):
        assert found[row] == answer_slowly(base, format, QUESTIONS[row], source)[0]


def test_the_example_has_what_it_should(base, format):
    """Verbalisations that end and others that are cut off, answers of several lengths."""
    lengths, texts = set(), set()
    for question in QUESTIONS:
        tokens, _, _ = route_slowly(base, format, question, layer=1)
        before = len(tokens) + 1
        lengths.add(len(gather_slowly(base, format, tokens, SELF, question)[0]) - before)
        texts |= {answer_slowly(base, format, question, s)[0]["prediction"] for s in (SELF, WIKI)}
    assert max(lengths) == 9 and min(lengths) < 9
    assert len(texts) > 6


def test_tokens_are_those_of_training(base, format, make_engine):
    engine = make_engine()
    routed = engine.route(QUESTIONS[:4])
    found = engine.gather_knowledge(routed, range(4), WIKI, QUESTIONS)
    # The cache has read just what training packs before " Answer:".
    for r in range(4):
        row = make_row(format, "q", QUESTIONS[r], WIKI, found.texts[r], None)
        assert int(found.cache.position[r]) == len(row.tokens) - 1
        assert int(found.cache.token_mask[r].sum()) == len(row.tokens) - 1
    # Of one width with every source's, so one program answers after all of them.
    written = engine.gather_knowledge(routed, range(4), SELF, QUESTIONS)
    assert written.cache.token_mask.shape == found.cache.token_mask.shape


@pytest.mark.parametrize("source", [SELF, WIKI])
def test_answer_scores_are_those_of_a_full_pass(base, format, make_engine, source):
    engine = make_engine()
    answers = ["Latvia", "Paris, the capital", "<EOK> euro"]
    routed = engine.route(QUESTIONS[:4])
    knowledge = engine.gather_knowledge(routed, [0, 1, 2], source, QUESTIONS)
    scores = engine.score_answers(knowledge, answers)
    assert scores.shape == (3,)
    for r, text in enumerate(answers):
        tokens, _, _ = route_slowly(base, format, QUESTIONS[r], layer=1)
        tokens = gather_slowly(base, format, tokens, source, QUESTIONS[r])[0]
        tokens += [*format.encode_answer_cue(), *format.encode_answer(text)]
        if source == WIKI:
            row = make_row(format, "q", QUESTIONS[r], source, knowledge.texts[r], text)
            assert tokens == row.tokens
        answer = format.encode_answer(text)
        expected = answer_logprob(base.model, base.params, tokens[: -len(answer)], answer)
        np.testing.assert_allclose(scores[r], expected, rtol=2e-5)


def test_a_question_longer_than_the_context(make_engine):
    with pytest.raises(
        RagJaxError, match="longer than the 9.. that the model's context of 1024 has for it"
    ):
        make_engine().route(["Where? " * 1100])


def test_a_second_batch_compiles_nothing(make_engine):
    """Of shorter questions that take other routes."""
    engine = make_engine()
    keys = scale_keys(jnp.asarray(np.random.default_rng(0).normal(size=(20, 32))), "cosine")
    datastore = Datastore(keys, jnp.arange(20) % 2)

    def run(questions, routes):
        routed = engine.route(questions)
        np.asarray(vote(datastore, routed.key, jnp.full(8, -1), k=3, num_sources=2))
        for source, rows in routes.items():
            engine.answer_questions(routed, rows, source, questions)
            knowledge = engine.gather_knowledge(routed, rows[-2:], source, questions)
            engine.score_answers(knowledge, ["Riga", "Lyon"])

    run(QUESTIONS, {SELF: [1, 4, 5], WIKI: [0, 2, 3]})
    compiled = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 1)(1.0)
        assert len(compiled) == 1
        run(QUESTIONS[:5] + QUESTIONS[:1], {SELF: [0, 5, 2, 4, 3], WIKI: [1]})
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# Sources that have nothing to say, and others.


def test_a_source_without_passages_falls_back_on_the_model(base, format, make_engine):
    """Those questions alone, as if they had been routed there."""

    def search_some(source, questions):
        return [PASSAGES[q] if "?" in q and "R" not in q else [] for q in questions]

    engine = make_engine(search=search_some)
    routed, rows = engine.route(QUESTIONS), [3, 0, 1, 5, 2]
    knowledge = engine.gather_knowledge(routed, rows[:4], WIKI, QUESTIONS)
    assert knowledge.found == [True, False, True, True]
    found = engine.answer_questions(routed, rows, WIKI, QUESTIONS)
    for r in rows:
        source = SELF if r == 0 else WIKI
        expected = answer_slowly(base, format, QUESTIONS[r], source)[0]
        assert found[r] == expected | {"fell_back": r == 0}


def test_an_answer_at_once(base, format, make_engine):
    """Where nothing is verbalised, it follows the source token as in training."""
    engine = make_engine(writes=False)
    found = engine.answer_questions(engine.route(QUESTIONS), [2, 0], SELF, QUESTIONS)
    for r in (2, 0):
        tokens = make_row(format, "q", QUESTIONS[r], SELF, None, None).tokens[:-1]
        tokens += format.encode_answer_cue()
        written, _ = continue_row(
            base.model, base.params, tokens, max_tokens=5, stop_ids=format.stop_ids
        )
        assert found[r]["prediction"] == format.tokenizer.decode(written).strip()
        assert found[r]["knowledge"] == ""
        counts = found[r]["prompt_tokens"], found[r]["generated_tokens"]
        assert counts == (len(tokens), len(written))


def test_a_source_that_fails_falls_back_on_the_model(base, format, make_engine, capsys):
    def fail(source, questions):
        raise ConnectionError("no route to host")

    engine = make_engine(search=fail)
    found = engine.answer_questions(engine.route(QUESTIONS), [4, 1], WIKI, QUESTIONS)
    for r in (4, 1):
        assert found[r] == answer_slowly(base, format, QUESTIONS[r], SELF)[0] | {"fell_back": True}
    assert capsys.readouterr().err == (
        "source Wiki: no route to host; 2 questions go on without it\n"
    )


def test_three_sources(base, format, make_engine):
    """Nothing assumes two sources: another index, with a token of its own."""
    sources = (*format.sources, SourceConfig("Other", "<EOQ>", "search"))
    routed = make_engine(format=replace(format, sources=sources)).route(QUESTIONS[:4])
    logits = read_row(base.model, base.params, format.encode_question(QUESTIONS[0]))[2][-1]
    ids = [*format.source_ids, format.tokenizer.token_id("<EOQ>")]
    np.testing.assert_allclose(routed.probabilities[0], softmax(logits[ids]), rtol=1e-4)
