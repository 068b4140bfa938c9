"""Sparse encoders against a slow reference, and their index against the dense product."""

import json
import math

import jax
import jax.extend
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_array
from tiny_encoders import write_splade

from rag_jax.models import load_sparse
from rag_jax.models.nn import masked_head
from rag_jax.models.nn.masked_head import MaskedHead, Splade, pool_words
from rag_jax.retrieval import Sparse, SparseIndex, encode_sparse
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file

TEXTS = ["the house", "", "a cat and a dog", "the the the", "[MASK] [CLS] house"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_sparse(write_splade(tmp_path_factory.mktemp("encoder") / "splade"))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def weigh_slowly(encoder, text, pooling):
    """The head in NumPy, in float64, a token at a time."""
    base = encoder.base
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), base.params["head"])
    table = np.asarray(base.params["embed"]["word"]["embedding"], np.float64)
    row = base.tokenizer.encode_with_specials(text, max_length=16)
    mask = np.arange(16)[None] < len(row)
    tokens = np.asarray([[*row, *[0] * (16 - len(row))]])  # one shape for all texts
    hidden = base.model.apply({"params": base.params}, tokens, mask)[0]
    words = []
    for state in np.asarray(hidden, np.float64)[: len(row)]:
        x = gelu(state @ params["dense"]["kernel"] + params["dense"]["bias"])
        x = (x - x.mean()) / np.sqrt(x.var() + base.config.norm_eps)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
        x = np.log1p(np.maximum(table @ x + params["bias"], 0))
        words.append(np.log1p(x) if pooling.activation == "log1p_relu" else x)
    return np.sum(words, axis=0) if pooling.strategy == "sum" else np.max(words, axis=0)


def test_weights_are_the_reference_s(encoder):
    found = encode_sparse(encoder, TEXTS, max_length=16)
    assert found.shape == (5, 128) and found.dtype == np.float32
    assert found.has_sorted_indices and (found.data > 0).all()
    wanted = [weigh_slowly(encoder, text, encoder.pooling) for text in TEXTS]
    np.testing.assert_allclose(found.toarray(), wanted, atol=1e-5)
    asked = encode_sparse(encoder, TEXTS[:1], role="query", max_length=16)
    wanted = weigh_slowly(encoder, "ask: the house", encoder.pooling)
    np.testing.assert_allclose(asked.toarray()[0], wanted, atol=1e-5)


def test_a_text_never_becomes_a_control_token(encoder):
    tokenizer = encoder.base.tokenizer
    row = tokenizer.encode_with_specials("[MASK]", max_length=16)
    assert tokenizer.token_id("[MASK]") not in row


def test_no_texts(encoder):
    found = encode_sparse(encoder, [], max_length=16)
    assert found.shape == (0, 128) and found.nnz == 0


def make_head(rng, words):
    """A head's parameters for states of 4 features."""

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    dense, norm = {"kernel": draw(4, 4), "bias": draw(4)}, {"scale": draw(4), "bias": draw(4)}
    return {"dense": dense, "norm": norm, "bias": draw(words)}


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_chunks_do_not_matter(strategy, activation, monkeypatch):
    """Of 7 columns, 3 at a time; padding has logits that must not count."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 7, 4)).astype(np.float32)
    mask = np.asarray([[True] * 7, [True] * 3 + [False] * 4])
    table = rng.normal(size=(9, 4)).astype(np.float32)
    head = MaskedHead(1e-5)
    params = make_head(rng, 9)
    arguments = head, params, hidden, mask, table, Splade(strategy, activation)
    whole = pool_words(*arguments)
    monkeypatch.setattr(masked_head, "_CHUNK", 6)
    np.testing.assert_allclose(pool_words(*arguments), whole, rtol=1e-6)
    alone = pool_words(head, params, hidden[1:, :3], mask[1:, :3], *arguments[4:])
    np.testing.assert_allclose(whole[1:], alone, rtol=1e-6)
    logits = table @ np.asarray(head.apply({"params": params}, hidden[1, :3])).T
    x = np.log1p(np.maximum(logits + params["bias"][:, None], 0))
    x = np.log1p(x) if activation == "log1p_relu" else x
    np.testing.assert_allclose(whole[1], x.max(1) if strategy == "max" else x.sum(1), rtol=1e-5)


def test_logits_are_never_held_for_more_than_a_chunk():
    """The largest array with the vocabulary has as many tokens as a chunk, whatever the batch."""
    rows, width, words = 8, 256, 1000
    head = MaskedHead(1e-5)
    params, table = make_head(np.random.default_rng(0), words), np.zeros((words, 4), np.float32)
    mask = np.ones((rows, width), bool)
    traced = jax.make_jaxpr(lambda x: pool_words(head, params, x, mask, table, Splade()))(
        np.zeros((rows, width, 4), np.float32)
    )

    def list_sizes(jaxpr):
        for equation in jaxpr.eqns:
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from list_sizes(inner)
            yield from (v.aval.size for v in equation.outvars if v.aval.shape[-1:] == (words,))

    assert max(list_sizes(traced.jaxpr)) == masked_head._CHUNK * words


def check_search(weights, queries, k):
    index = SparseIndex.build(csr_array(weights), encoder="e")
    scores, rows = index.search(csr_array(queries), k)
    wanted = queries.astype(np.float64) @ weights.T.astype(np.float64)
    for i, product in enumerate(wanted):
        best = sorted(np.flatnonzero(product > 0), key=lambda row: (-product[row], row))[:k]
        assert rows[i].tolist() == best and rows[i].dtype == np.int32
        np.testing.assert_allclose(scores[i], product[best], rtol=1e-6)
        assert scores[i].dtype == np.float32


# Eighths, whose products and sums float32 holds without rounding: ties are ties.
WEIGHTS = st.integers(0, 40).map(lambda n: max(0, n - 20) / 8)


@settings(max_examples=40)
@given(st.data(), st.integers(1, 9), st.integers(1, 6), st.integers(0, 3))
def test_search_is_the_dense_product(data, size, words, asked):
    def draw(rows):
        row = st.lists(WEIGHTS, min_size=words, max_size=words)
        drawn = data.draw(st.lists(row, min_size=rows, max_size=rows))
        return np.asarray(drawn, np.float32).reshape(rows, words)

    check_search(draw(size), draw(asked), data.draw(st.integers(1, size)))


def test_real_weights_are_searched_as_the_dense_product(encoder):
    weights = encode_sparse(encoder, TEXTS, max_length=16)
    index = SparseIndex.build(weights, encoder=encoder.fingerprint)
    searcher = Sparse(index, lambda texts: encode_sparse(encoder, texts, max_length=16))
    scores, rows = searcher.search(["a dog", "house"], 5)
    assert searcher.size == 5
    wanted = (encode_sparse(encoder, ["a dog", "house"], max_length=16) @ weights.T).toarray()
    for own, found, product in zip(scores, rows, wanted, strict=True):
        np.testing.assert_allclose(own, product[found], rtol=1e-5)
        np.testing.assert_allclose(own, np.sort(product)[::-1], rtol=1e-5)


def test_a_query_without_weights_finds_nothing():
    index = SparseIndex.build(np.eye(3, dtype=np.float32), encoder="e")
    scores, rows = index.search(np.zeros((1, 3), np.float32), 3)
    assert [len(own) for own in (*scores, *rows)] == [0, 0]
    assert index.search(np.zeros((0, 3), np.float32), 1) == ([], [])


def test_other_forms_of_a_matrix():
    weights = np.asarray([[0, 2, 0], [1, 0, 3]], np.float32)
    twice = csr_array(([1.0, 1, 1, 3], [1, 1, 0, 2], [0, 2, 4]), shape=(2, 3))  # a word twice
    for form in (weights, csc_array(weights), twice, weights.astype(np.float64)):
        scores, rows = SparseIndex.build(form, encoder="e").search(weights, 1)
        assert [own.tolist() for own in (*scores, *rows)] == [[4], [10], [0], [1]]


BAD = np.asarray([[0, 1], [np.nan, 0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: SparseIndex.build(BAD, encoder="e"), "weights: row 1 has a NaN or an infinity"),
        (lambda i: SparseIndex.build(BAD[:0], encoder="e"), r"shape \(0, 2\): the corpus is empty"),
        (lambda i: SparseIndex.build(["a"], encoder="e"), "weights are no weights of words"),
        (lambda i: SparseIndex.build(BAD + 1j, encoder="e"), "they are complex128"),
        (lambda i: i.search(BAD, 1), "queries: row 1 has a NaN"),
        (lambda i: i.search(np.ones((1, 3)), 1), "queries have 3 words, but the index has 2"),
        (lambda i: i.search(np.ones(2), 1), "queries are no weights of words .a matrix .rows, wo"),
        (lambda i: i.search(np.ones((1, 2)), 3), "k is 3: it must be from 1 to 2"),
        (lambda i: i.search(np.ones((1, 2)), 1.0), "k is 1.0: it must be"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RagJaxError, match=message) as error:
        call(SparseIndex.build(np.eye(2, dtype=np.float32), encoder="e"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "passage"}, "role='passage': must be"),
        ({"max_length": 25}, "max_length is 25, but the encoder has positions for only 24"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_arguments(encoder, options, message):
    with pytest.raises(RagJaxError, match=message):
        encode_sparse(encoder, ["a"], **{"max_length": 16, **options})
    with pytest.raises(TypeError, match="encoder is a Pretrained, expected SparseEncoder"):
        encode_sparse(encoder.base, ["a"])


def make_index():
    return SparseIndex.build(np.asarray([[0, 2.0, 0], [1, 0, 3]]), encoder="e" * 64)


def test_save_and_load(tmp_path):
    index, asked = make_index(), np.asarray([[1.0, 1, 1]])
    index.save(tmp_path / "index")
    again = SparseIndex.load(tmp_path / "index", encoder="e" * 64)
    assert (again.size, again.width) == (2, 3)
    for one, other in zip(index.search(asked, 2), again.search(asked, 2), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    with pytest.raises(RagJaxError, match=r"made by encoder e{16}, not f{16}: build the index ag"):
        SparseIndex.load(tmp_path / "index", encoder="f" * 64)
    (tmp_path / "index" / "a.pkl").write_text("")
    with pytest.raises(RagJaxError, match="a.pkl is not part of an index"):
        SparseIndex.load(tmp_path / "index", encoder="e" * 64)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rows", lambda a: a + 1, "a row is none of the 2 passages"),
        ("rows", lambda a: a - 1, "a row is none of the 2 passages"),
        ("rows", lambda a: a[:-1], "a row is none"),
        ("starts", lambda a: a[::-1].copy(), "the words' rows do not follow each other"),
        ("starts", lambda a: np.append(a, a[-1]), "its words are not those of its manifest"),
        ("data", lambda a: a * np.inf, "a score is NaN or infinite"),
        ("data", lambda a: a.astype(np.float64), "its words are not those of its manifest"),
        ("data", lambda a: a[None], "an array is of another kind"),
        ("counts", lambda a: np.append(a, 0), "its passages are not those of its manifest"),
        ("counts", lambda a: a + 1, "its passages have other numbers of words"),
    ],
)
def test_files_that_contradict_each_other(tmp_path, name, change, message):
    """Even if their author wrote a manifest for them."""
    folder = tmp_path / "index"
    make_index().save(folder)
    path = folder / f"{name}.npy"
    np.save(path, change(np.load(path)))
    manifest = json.loads((folder / "index.json").read_text())
    manifest["sha256"] = {file: hash_file(folder / file) for file in manifest["sha256"]}
    (folder / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(RagJaxError, match=message) as error:
        SparseIndex.load(folder, encoder="e" * 64)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
