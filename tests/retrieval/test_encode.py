"""Sentence embeddings against a slow reference, whatever the batches look like."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.data.passages import Passage
from rag_jax.models.io.sentence import Sentence
from rag_jax.models.nn.pooling import MEAN, pool_states
from rag_jax.retrieval import encode, encode_texts, list_texts
from rag_jax.runtime.errors import RagJaxError

CLS, SEP, VOCABULARY = 1, 2, 50


@dataclasses.dataclass(frozen=True)
class Config:
    max_length: int = 64
    dpr_role: str | None = None


class Model:
    """States that depend on a token and its place, and on nothing else; counts its traces."""

    config, pooling, embedding_size = Config(), None, 8

    def __init__(self):
        self.traces = []

    def apply(self, variables, tokens, mask):
        self.traces.append(tokens.shape)
        params = variables["params"]
        hidden = params["word"][tokens] + params["place"][None, : tokens.shape[1]]
        return jnp.where(mask[..., None], jnp.tanh(hidden), 1e3)  # padding must not count


class Tokenizer:
    """One token a character, its code point modulo the vocabulary."""

    def encode_with_specials(self, text, *, max_length, pair=None):
        row = [CLS, *(3 + ord(c) % (VOCABULARY - 3) for c in text), SEP]
        if pair is not None:
            row += [*(3 + ord(c) % (VOCABULARY - 3) for c in pair), SEP]
        return row if len(row) <= max_length else [*row[: max_length - 1], SEP]


@dataclasses.dataclass(frozen=True)
class Encoder:
    params: Any
    config: Config = Config()
    model: Model = dataclasses.field(default_factory=Model)
    tokenizer: Tokenizer = dataclasses.field(default_factory=Tokenizer)
    fingerprint: str = "stub"
    sentence: None = None  # no files of sentence-transformers beside it


@pytest.fixture(scope="module")
def encoder():
    word, place = jax.random.split(jax.random.key(0))
    config = Config()
    return Encoder(
        {
            "word": jax.random.normal(word, (VOCABULARY, Model.embedding_size)),
            "place": jax.random.normal(place, (config.max_length, Model.embedding_size)),
        }
    )


def encode_slowly(encoder, text, max_length=128):
    title, pair = (text, None) if isinstance(text, str) else text
    row = encoder.tokenizer.encode_with_specials(title, max_length=max_length, pair=pair)
    word, place = (np.asarray(encoder.params[name], np.float64) for name in ("word", "place"))
    mean = np.mean([np.tanh(word[token] + place[i]) for i, token in enumerate(row)], axis=0)
    return mean / np.sqrt(np.sum(mean**2))


def encode_all_slowly(encoder, texts):
    return np.stack([encode_slowly(encoder, text) for text in texts])


def test_matches_slow_reference_in_order(encoder):
    texts = ["b" * 40, "", "   ", "hello", ("Paris", "capital of France"), "a" * 62, "é漢字"]
    embeddings = encode_texts(encoder, texts, max_length=64)
    assert embeddings.shape == (7, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, encode_all_slowly(encoder, texts), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(0, 62), max_size=40))
def test_order_and_batches_do_not_matter(encoder, data, lengths):
    texts = [chr(97 + i % 26) * length for i, length in enumerate(lengths)]
    batch_size = data.draw(st.sampled_from([1, 3, 64]))
    embeddings = encode_texts(encoder, texts, max_length=64, batch_size=batch_size)
    order = data.draw(st.permutations(range(len(texts))))
    shuffled = encode_texts(encoder, [texts[i] for i in order], max_length=64)
    assert embeddings.shape == (len(texts), 8)
    np.testing.assert_allclose(shuffled, embeddings[order], atol=1e-6)
    if texts:
        np.testing.assert_allclose(embeddings, encode_all_slowly(encoder, texts), atol=1e-6)


def test_texts_beyond_what_the_encoders_authors_say_are_told_once(encoder, caplog):
    own = dataclasses.replace(encoder, sentence=Sentence(max_length=7))
    with caplog.at_level(logging.WARNING):
        encode_texts(own, ["a"], max_length=7)
        assert not caplog.records
        found = [encode_texts(own, ["a" * 30], max_length=64) for _ in range(2)]
    (warned,) = caplog.messages
    assert "max_length is 64, but the encoder's own settings cut a text at 7 tokens" in warned
    for embedding in found:
        np.testing.assert_array_equal(embedding, encode_texts(encoder, ["a" * 30], max_length=64))


def test_no_texts(encoder):
    embeddings = encode_texts(encoder, [], max_length=64)
    assert embeddings.shape == (0, 8)
    assert embeddings.dtype == np.float32


def test_texts_are_read_once_and_only_their_tokens_are_kept(encoder, monkeypatch):
    texts = ["x" * (i % 40) for i in range(200)]
    alive, most = 0, 0

    class Text(str):
        def __new__(cls, text):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, text)

        def __del__(self):
            nonlocal alive
            alive -= 1

    found, wanted = (encode_texts(encoder, t, max_length=64) for t in (map(Text, texts), texts))
    assert np.array_equal(found, wanted)
    assert alive == 0 and most <= 2


def test_second_call_compiles_nothing(encoder):
    fresh = dataclasses.replace(encoder, model=Model())
    texts = ["x" * (i % 60) for i in range(300)]
    encode_texts(fresh, texts, max_length=64)
    shapes = list(fresh.model.traces)
    assert 0 < len(shapes) == len(set(shapes)) <= 8
    encode_texts(fresh, texts[::-1], max_length=64)
    other = dataclasses.replace(fresh, params=jax.tree.map(lambda x: 2 * x, fresh.params))
    encode_texts(other, ["y" * (i % 60) for i in range(300)], max_length=64)
    assert fresh.model.traces == shapes


def test_single_text_is_not_padded_to_a_batch(encoder):
    fresh = dataclasses.replace(encoder, model=Model())
    encode_texts(fresh, ["who?"], max_length=64)
    encode_texts(fresh, ["when"], max_length=64)
    assert fresh.model.traces == [(1, 8)]


def test_batches_hold_about_as_many_tokens_each(encoder):
    lengths = [*range(2, 65)] * 40
    batches = list(encode.plan_batches(lengths, 64, [16, 40, 64]))
    assert sorted(i for picked, _ in batches for i in picked) == list(range(len(lengths)))
    assert {width for _, (_, width) in batches} == {16, 40, 64}
    assert all(len(picked) == count for picked, (count, _) in batches[:-1])
    assert all(64 * 16 - width < count * width <= 64 * 16 for _, (count, width) in batches)


def test_all_pieces_of_a_corpus_have_the_widths_of_its_sample(encoder):
    fresh = dataclasses.replace(encoder, model=Model())
    rng = np.random.default_rng(0)
    passages = [Passage(str(i), "", "x" * n) for i, n in enumerate(rng.integers(1, 50, 9000))]
    widths = encode.plan_widths(fresh, passages, 64, program_tokens=30_000)
    assert 2 <= len(widths) <= 6 and widths[-1] == 64
    # However dear a program is, a good fifth of a large corpus' tokens at most is padding.
    wide = np.asarray(encode.plan_widths(fresh, passages, 64, program_tokens=10**7))
    lengths = [len(passage.text) + 2 for passage in passages]
    assert sum(lengths) > 0.78 * wide[np.searchsorted(wide, lengths)].sum()
    assert encode.plan_widths(fresh, passages[:1000], 64, program_tokens=10**7) == [56, 64]
    assert encode.plan_widths(fresh, [], 64) == [64]
    texts = list_texts([*passages[:500], Passage("long", "", "y" * 62)])
    given = encode_texts(fresh, texts, max_length=64, widths=widths)
    assert {width for _, width in fresh.model.traces} <= {*widths}
    np.testing.assert_allclose(given, encode_texts(encoder, texts, max_length=64), atol=1e-6)


def test_cut_texts_are_counted(encoder, caplog):
    texts = ["a" * 30, "a" * 14, "a" * 15, "short"]  # 16 tokens are 14 characters
    with caplog.at_level(logging.WARNING):
        embeddings = encode_texts(encoder, texts, max_length=16)
    assert caplog.messages == ["2 of 4 texts were cut to 16 tokens"]
    expected = [encode_slowly(encoder, text, max_length=16) for text in texts]
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


def test_nothing_is_said_when_everything_fits(encoder, caplog):
    encode_texts(encoder, ["a" * 14], max_length=16)
    assert not caplog.messages


def test_progress_counts_up_to_the_total(encoder):
    calls = []
    encode_texts(
        encoder,
        ["abc"] * 20,
        max_length=64,
        batch_size=4,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(8, 20), (16, 20), (20, 20)]


def test_the_mean_against_numpy():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((5, 7, 3)).astype(np.float32)
    lengths = [7, 1, 3, 0, 5]
    mask = np.arange(7) < np.array(lengths)[:, None]
    pooled = np.asarray(pool_states(hidden, mask, MEAN, {}))
    for row, states, length in zip(pooled, hidden, lengths, strict=True):
        mean = states[:length].mean(0) if length else np.zeros(3)
        norm = np.linalg.norm(mean)
        np.testing.assert_allclose(row, mean / norm if length else mean, atol=1e-6)


def test_the_mean_has_finite_gradients_for_empty_rows():
    hidden, mask = jnp.ones((2, 3, 4)), jnp.array([[True, True, False], [False] * 3])
    gradient = jax.grad(lambda h: jnp.sum(pool_states(h, mask, MEAN, {})[:, 0]))(hidden)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
    assert not gradient[0, 2].any()


def test_the_mean_is_float32_for_bfloat16():
    hidden = jnp.ones((1, 300, 2), jnp.bfloat16)
    pooled = pool_states(hidden, jnp.ones((1, 300), bool), MEAN, {})
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, np.full((1, 2), 2**-0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("one text", {}, "texts is one string: pass a list"),
        (["fine", 3], {}, "text 1 is neither a string nor"),
        ([("a", "b", "c")], {}, "text 0 is neither"),
        ([("a", None)], {}, "text 0 is neither"),
        (["a"], {"batch_size": 0}, "batch_size is 0"),
        (["a"], {"max_length": 65}, "max_length is 65, but the encoder has positions for only 64"),
    ],
)
def test_bad_input(encoder, texts, options, message):
    with pytest.raises(RagJaxError, match=message) as error:
        encode_texts(encoder, texts, **{"max_length": 64, **options})
    assert "\n" not in str(error.value)


def test_real_module_gives_the_same_alone_and_in_a_batch():
    from rag_jax.models.nn.bert import Bert, BertConfig

    config = BertConfig(VOCABULARY, 16, 32, 2, 2, 2, 1e-12, 64)
    model = Bert(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), int), jnp.ones((1, 4), bool))["params"]
    encoder = Encoder(params, config, model)
    texts = ["who wrote it", "", "a much longer text than the two others", ("t", "x")]
    together = encode_texts(encoder, texts, max_length=64)
    alone = np.concatenate([encode_texts(encoder, [text], max_length=64) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-3
