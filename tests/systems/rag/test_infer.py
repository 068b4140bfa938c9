"""RAG's engine against full passes and sums over documents."""

from pathlib import Path

import jax
import numpy as np
import pytest

from rag_jax.decoding import BeamConfig, beam_search
from rag_jax.models import load
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.rag import steps
from rag_jax.systems.rag.data import make_format
from rag_jax.systems.rag.infer import Engine

GOLDEN = Path(__file__).parents[2] / "golden"
LLAMA, BART = load(GOLDEN / "llama_tied"), load(GOLDEN / "bart")
QUESTIONS = ["Where is Paris?", "Lyon?", "Where is Bern?"]
PASSAGES = [
    [("Paris", "It is in France."), ("Lyon", "A city."), ("a", "b")],
    [("Lyon", "In France."), ("Bern", "In Switzerland, it is"), ("c", "d e f")],
    [("Bern", "A capital."), ("Paris", "2,138,551 inhabitants."), ("g", "h")],
]
SCORES = np.asarray([[1.0, 0.2, -1.0], [0.0, 0.5, 0.4], [2.0, -3.0, 0.1]], np.float32)
MAX_TOKENS, BEAMS = 4, 3


WAYS = ("token", "fast", "thorough")


def make_engine(generator, **changes):
    format = make_format(generator, max_length=min(48, generator.config.max_length))
    settings = {"max_tokens": MAX_TOKENS, "beams": BeamConfig(BEAMS), "batch_size": 2} | changes
    return Engine(generator.model, generator.params, format, **settings)


@jax.jit
def read_whole(tokens):
    return jax.nn.log_softmax(LLAMA.model.apply({"params": LLAMA.params}, tokens), axis=-1)


def answer_logprob(question, passage, answer):
    """`log p(y|x,z)` of an answer's tokens in one full pass."""
    prompt = make_engine(LLAMA).format.encode_input(question, passage)[0]
    row = np.zeros((1, 64), np.int32)
    row[0, : len(prompt) + len(answer)] = [*prompt, *answer]
    logprobs = np.asarray(read_whole(row))[0, len(prompt) - 1 :]
    return sum(float(logprobs[t, token]) for t, token in enumerate(answer))


def marginal(b, logprobs):
    prior = SCORES[b] - np.logaddexp.reduce(SCORES[b])
    return np.logaddexp.reduce(prior + logprobs)


def test_sequence_decoding_sums_over_documents():
    engine = make_engine(LLAMA)
    format = engine.format
    found = engine.answer(QUESTIONS, PASSAGES, SCORES, ways=["fast", "thorough"])
    alone = engine.answer(QUESTIONS, PASSAGES, SCORES, ways=["fast"])
    assert alone == {"fast": found["fast"]}
    for b, question in enumerate(QUESTIONS):
        # The beams of each document by itself, with the stop token where one came.
        prompts = [format.encode_input(question, passage)[0] for passage in PASSAGES[b]]
        searched = beam_search(
            LLAMA.model, LLAMA.params, prompts, max_tokens=MAX_TOKENS, stop_ids=format.stop_ids,
            config=engine.beams,
        )  # fmt: skip
        beams = [[] for _ in prompts]
        for k, texts in enumerate(searched):
            for text, score in texts:
                ends = [(text, len(text)), ([*text, *format.stop_ids], len(text) + 1)]
                for answer, length in ends:
                    logprob = answer_logprob(question, PASSAGES[b][k], answer)
                    if abs(logprob - score * length) < 1e-3:
                        beams[k].append(tuple(answer))
        assert [len(texts) for texts in beams] == [BEAMS] * 3
        every = {answer for texts in beams for answer in texts}
        wanted = {"fast": [], "thorough": []}
        for answer in every:
            logprobs = np.asarray([answer_logprob(question, z, answer) for z in PASSAGES[b]])
            given = np.asarray([answer in texts for texts in beams])
            wanted["thorough"].append(marginal(b, logprobs))
            wanted["fast"].append(marginal(b, np.where(given, logprobs, MASKED)))
        for name, scores in wanted.items():
            ours = [own.logprob for own in found[name][b]]
            np.testing.assert_allclose(ours, sorted(scores, reverse=True), atol=1e-4)
        assert all(f <= t + 1e-6 for f, t in zip(wanted["fast"], wanted["thorough"], strict=True))
        # A likelihood is the mean over an answer's tokens, with the one that ends it.
        ordered = sorted(zip(wanted["thorough"], map(len, every), strict=True), reverse=True)
        means = [logprob / count for logprob, count in ordered]
        np.testing.assert_allclose([a.likelihood for a in found["thorough"][b]], means, atol=1e-4)
        best = max(every, key=lambda answer: wanted["thorough"][list(every).index(answer)])
        assert found["thorough"][b][0][0] == format.tokenizer.decode(best).strip()


def test_labels():
    engine, labels = make_engine(LLAMA), ["France", "Switzerland", "it"]
    found = engine.classify(QUESTIONS, PASSAGES, SCORES, labels)
    for b, question in enumerate(QUESTIONS):
        scores = []
        for label in labels:
            answer = engine.format.encode_answer(label)
            scores.append(marginal(b, [answer_logprob(question, z, answer) for z in PASSAGES[b]]))
        np.testing.assert_allclose(
            found[b], np.exp(scores - np.logaddexp.reduce(scores)), atol=1e-4
        )
    for wrong in (["a"], ["a", "b", "a "]):
        with pytest.raises(RagJaxError, match="^labels=.*: give at least two different ones"):
            engine.classify(QUESTIONS, PASSAGES, SCORES, wrong)


def check_same(ours, theirs):
    assert [(a.text, a.tokens) for a in ours] == [(a.text, a.tokens) for a in theirs]
    np.testing.assert_allclose(
        [answer.logprob for answer in ours], [answer.logprob for answer in theirs], atol=1e-4
    )


@pytest.mark.parametrize("generator", [LLAMA, BART], ids=["llama", "bart"])
def test_batches(generator, monkeypatch):
    """Questions are apart, a second call compiles nothing, and a passage is encoded just once."""
    engine = make_engine(generator)

    def ask(engine, *questions):
        picked = list(questions)
        given = [[part[i] for i in picked] for part in (QUESTIONS, PASSAGES)]
        return list(engine.answer(*given, SCORES[picked], ways=WAYS).values())

    # No other program is given the passages' tokens.
    read, whole = [], steps.read
    monkeypatch.setattr(steps, "read", lambda *rest: (read.append(len(rest[2])), whole(*rest))[1])
    together = ask(engine, 0, 1, 2)
    compiled = compile_seconds()
    again = ask(engine, 2, 1, 0)
    assert compile_seconds() == compiled
    assert read == [6] * 4  # two batches of two questions with three passages, twice
    for ours, theirs in zip(together, again, strict=True):
        for b in range(3):
            check_same(ours[b], theirs[2 - b])
    assert engine.answer([], [], SCORES[:0], ways=WAYS) == {way: [] for way in WAYS}


def test_one_document_is_plain_beam_search():
    engine = make_engine(LLAMA, beams=BeamConfig(BEAMS, length_penalty=0.0))
    passages = [row[:1] for row in PASSAGES]
    found = engine.answer(QUESTIONS, passages, SCORES[:, :1], ways=WAYS)
    for way in ("fast", "thorough"):
        for ours, theirs in zip(found[way], found["token"], strict=True):
            check_same(ours, theirs)


def test_a_document_that_is_not_there_changes_nothing():
    engine = make_engine(LLAMA)
    two = [row[:2] for row in PASSAGES]
    masked = np.where(np.arange(3)[None] < 2, SCORES, MASKED).astype(np.float32)
    one = engine.answer(QUESTIONS, PASSAGES, masked, ways=WAYS)
    other = engine.answer(QUESTIONS, two, SCORES[:, :2], ways=WAYS)
    for way in WAYS:
        for ours, theirs in zip(one[way], other[way], strict=True):
            check_same(ours, theirs)


@pytest.mark.parametrize(
    "scores",
    [SCORES[:, :1], SCORES[:1], SCORES[0], np.where(SCORES > 1.5, np.nan, SCORES)],
)
def test_scores_that_are_not_of_each_passage(scores):
    with pytest.raises(RagJaxError, match=r"doc_scores is \[.*\]: it must be \[3, 3\], a number"):
        make_engine(LLAMA).answer(QUESTIONS, PASSAGES, scores, ways=["token"])
