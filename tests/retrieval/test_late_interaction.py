"""Token embeddings against a slow reference, and MaxSim over them against NumPy."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import write_colbert

from rag_jax.models import load_multi_vector
from rag_jax.retrieval import BM25, LateInteraction, TokenIndex, TokenVectors, encode_tokens
from rag_jax.retrieval import token_index as module
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file

TEXTS = ["the house, the dog.", "", "a cat and a dog and a house and a tree", "[MASK] [CLS] house"]
FIXED = {"strategy": "fixed", "length": 12}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_multi_vector(write_colbert(tmp_path_factory.mktemp("e") / "c", expansion=FIXED))


def embed_slowly(encoder, row, attended):
    """The embeddings of one row of tokens, of which all attend to the first ones alone."""
    base = encoder.base
    mask = (np.arange(24) < attended)[None]
    tokens = np.asarray([[*row, *[0] * (24 - len(row))]])  # one shape for all texts
    states = base.model.apply({"params": base.params}, tokens, mask)[0, : len(row)]
    x = np.asarray(states, np.float64) @ np.asarray(base.params["dense_0"]["kernel"])
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_passages_lose_the_tokens_that_are_skipped(encoder):
    tokenizer = encoder.base.tokenizer
    found = encode_tokens(encoder, TEXTS, role="document")
    assert len(found) == 4 and found.vectors.dtype == np.float32
    for text, own in zip(TEXTS, found, strict=True):
        row = tokenizer.encode_with_specials(f"read: {text}", max_length=16)
        kept = [tokenizer.decode([i]) not in (".", ",") for i in row]
        np.testing.assert_allclose(own, embed_slowly(encoder, row, len(row))[kept], atol=1e-5)
    assert len(found[0]) < len(tokenizer.encode_with_specials(f"read: {TEXTS[0]}", max_length=16))
    title = encode_tokens(encoder, [("a cat", "and a dog")], role="document")
    whole = encode_tokens(encoder, ["a cat and a dog"], role="document")
    np.testing.assert_array_equal(title.vectors, whole.vectors)


@pytest.mark.parametrize("attends", [False, True])
@pytest.mark.parametrize("strategy", ["fixed", "min"])
def test_questions_are_filled_up(strategy, attends, tmp_path):
    expansion = {"strategy": strategy, "length": 12, "attend": attends}
    encoder = load_multi_vector(write_colbert(tmp_path / "c", expansion=expansion))
    tokenizer, found = encoder.base.tokenizer, encode_tokens(encoder, TEXTS, role="query")
    for text, own in zip(TEXTS, found, strict=True):
        most = 12 if strategy == "fixed" else 24
        row = tokenizer.encode_with_specials(f"ask: {text}", max_length=most)
        filled = [*row, *[tokenizer.token_id("[MASK]")] * (12 - len(row))]
        wanted = embed_slowly(encoder, filled, len(filled) if attends else len(row))
        np.testing.assert_allclose(own, wanted, atol=1e-5)
    assert (len(found[2]) > 12) == (strategy == "min")


def test_control_tokens_are_the_prompt_s_alone(encoder):
    tokenizer = encoder.base.tokenizer
    mask = tokenizer.token_id("[MASK]")
    given = {"max_length": 24, "prompt": "[MASK] "}
    row = tokenizer.encode_with_specials("[MASK] the house", **given)
    plain = tokenizer.encode_with_specials("[MASK] the house", max_length=24)
    assert row == [plain[0], mask, *plain[1:]] and mask not in plain
    assert tokenizer.encode_with_specials("a \ud800 b", **given)[1] == mask
    with pytest.raises(RagJaxError, match="characters, more than the limit"):
        tokenizer.encode_with_specials("a" * 1_000_001, **given)


def score_slowly(query, passage):
    if not len(passage):
        return -np.inf
    products = query.astype(np.float64) @ passage.astype(np.float64).T
    return sum(row.max() for row in products)


def make_texts(lengths, seed, width=4):
    """Token embeddings of eighths, whose products and sums float32 holds without rounding."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-16, 17, (length, width)).astype(np.float32) / 8 for length in lengths]


def check_search(found, passages, queries, k, candidates=None):
    for i, query in enumerate(queries):
        rows = range(len(passages)) if candidates is None else candidates[i]
        scores = {row: score_slowly(query, passages[row]) for row in rows if len(query)}
        best = sorted((r for r in scores if len(passages[r])), key=lambda r: (-scores[r], r))[:k]
        assert found[1][i].tolist() == best and found[1][i].dtype == np.int32
        np.testing.assert_allclose(found[0][i], [scores[row] for row in best], rtol=1e-6)


LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=12)


@settings(max_examples=25)
@given(data=st.data(), lengths=LENGTHS, asked=st.lists(st.integers(0, 5), max_size=10))
def test_search_is_max_sim(data, lengths, asked):
    passages, queries = make_texts(lengths, 0), make_texts(asked, 1)
    index = TokenIndex.build(TokenVectors.join(passages), encoder="e")
    empty = TokenVectors(np.zeros((0, 4), np.float32), np.zeros(1, np.int64))
    joined = TokenVectors.join(queries) if queries else empty
    k = data.draw(st.integers(1, len(lengths)))
    check_search(index.search(joined, k), passages, queries, k)
    rows = st.lists(st.integers(0, len(lengths) - 1), unique=True)
    candidates = [data.draw(rows) for _ in queries]
    found = index.rank(joined, candidates, k)
    check_search(found, passages, queries, k, candidates)


def test_blocks_and_padding_do_not_matter(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 32)
    passages = make_texts([3, 17, 8, 0, 9, 16, 1, 33, 8, 8, 8, 8, 8], 0)
    queries = make_texts([5] * 11, 1)
    index = TokenIndex.build(TokenVectors.join(passages), encoder="e")
    check_search(index.search(TokenVectors.join(queries), 13), passages, queries, 13)


def test_few_shapes_are_compiled():
    """As many as there are powers of two, whatever the lengths."""
    rng = np.random.default_rng(0)
    passages = make_texts(rng.integers(1, 65, 300), 0)
    index = TokenIndex.build(TokenVectors.join(passages), encoder="e")
    shapes = {shape for _, shape in index._plan(np.arange(300))}
    assert shapes == {(8192 // width, width) for width in (8, 16, 32, 64)}
    assert sorted(np.concatenate([p for p, _ in index._plan(np.arange(300))])) == [*range(300)]


def test_int8_is_near(encoder):
    tokens = encode_tokens(encoder, TEXTS, role="document")
    queries = encode_tokens(encoder, TEXTS, role="query")
    exact = TokenIndex.build(tokens, encoder="e")
    steps = TokenIndex.build(tokens, encoder="e", dtype="int8")
    assert steps.tokens.vectors.dtype == np.int8 and exact.tokens.vectors.dtype == np.float16
    error = np.abs(steps.tokens.vectors * steps.scales[:, None] - tokens.vectors)
    assert (error <= steps.scales[:, None] / 2 + 1e-7).all()
    for one, other in zip(exact.search(queries, 4)[0], steps.search(queries, 4)[0], strict=True):
        np.testing.assert_allclose(one, other, atol=12 * 6**0.5 / 254)
    small = TokenVectors.join([np.asarray([[3e-5, -1e-4, 9.9e-5]], np.float16)])
    steps = TokenIndex.build(small, encoder="e", dtype="int8")
    near = steps.tokens.vectors * steps.scales[:, None]
    np.testing.assert_allclose(near, small.vectors.astype(np.float32), atol=4e-7)
    zeros = TokenVectors.join([np.zeros((2, 3), np.float32)])
    found = TokenIndex.build(zeros, encoder="e", dtype="int8").search(zeros, 1)
    assert found[0][0].tolist() == [0]


def test_a_searcher_of_its_own_and_over_another_s(encoder):
    passages = ["the house", "a cat and a dog", "the dog", "a tree"]
    index = TokenIndex.build(
        encode_tokens(encoder, passages, role="document"), encoder=encoder.fingerprint
    )
    encode = lambda texts: encode_tokens(encoder, texts, role="query")  # noqa: E731
    whole = LateInteraction(index, encode)
    scores, rows = whole.search(["the dog", "zzz"], 4)
    assert whole.size == 4 and sorted(rows[0]) == [0, 1, 2, 3]
    over = LateInteraction(index, encode, BM25.build(passages), depth=3)
    found = over.search(["the dog", "zzz"], 2)
    place = {int(row): score for row, score in zip(rows[0], scores[0], strict=True)}
    assert {*found[1][0].tolist()} == {1, 2} and len(found[1][1]) == 0  # "the" is no term
    np.testing.assert_allclose(found[0][0], [place[row] for row in found[1][0].tolist()], rtol=1e-5)
    with pytest.raises(RagJaxError, match="first is over 2 passages, the index over 4"):
        LateInteraction(index, encode, BM25.build(passages[:2]))
    with pytest.raises(RagJaxError, match="depth is 0"):
        LateInteraction(index, encode, BM25.build(passages), depth=0)


def make_tokens(*texts):
    return TokenVectors.join([np.asarray(text, np.float32) for text in texts])


GOOD = make_tokens([[1, 0]], [[0, 1], [1, 1]])
BAD = make_tokens([[1, 0]], [[0, 1], [np.nan, 1]])
LARGE = make_tokens([[1, 0]], [[0, 1e9]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: TokenIndex.build(BAD, encoder="e"), "tokens: row 1 has a NaN or an infinity"),
        (
            lambda i: TokenIndex.build(LARGE, encoder="e"),
            "tokens in float16: row 1 has a NaN",
        ),
        (lambda i: TokenIndex.build(GOOD, encoder="e", dtype="int4"), "dtype='int4': must be one"),
        (lambda i: TokenIndex.build([GOOD[0]], encoder="e"), "tokens: a list is no TokenVectors"),
        (
            lambda i: TokenIndex.build(TokenVectors(GOOD.vectors, [0, 2, 1, 3]), encoder="e"),
            "tokens: the texts' tokens do not follow each other",
        ),
        (
            lambda i: TokenIndex.build(TokenVectors(GOOD.vectors[:0], [0]), encoder="e"),
            "the corpus is empty",
        ),
        (lambda i: i.search(BAD, 1), "queries: row 1 has a NaN"),
        (
            lambda i: i.search(make_tokens([[1, 2, 3]]), 1),
            "queries have 3 dimensions, but the",
        ),
        (lambda i: i.search(GOOD, 3), "k is 3: it must be from 1 to 2"),
        (lambda i: i.rank(GOOD, [[0]], 1), "candidates are of 1 questions, not 2"),
        (lambda i: i.rank(GOOD, [[0], [1, 2]], 1), "entry 1 has row 2 among 2 passages"),
        (lambda i: i.rank(GOOD, [[0], [-1]], 1), "entry 1 has row -1 among 2 passages"),
        (lambda i: i.rank(GOOD, [[0], [1, 1]], 1), "entry 1 has a row twice"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RagJaxError, match=message) as error:
        call(TokenIndex.build(GOOD, encoder="e"))
    assert "\n" not in str(error.value)


def test_bad_arguments(encoder):
    with pytest.raises(RagJaxError, match="role is None .NoneType., expected 'query' or 'doc"):
        encode_tokens(encoder, ["a"], role=None)
    with pytest.raises(RagJaxError, match="batch_size is 0"):
        encode_tokens(encoder, ["a"], role="query", batch_size=0)
    with pytest.raises(TypeError, match="encoder is a Pretrained, expected MultiVectorEncoder"):
        encode_tokens(encoder.base, ["a"], role="query")
    assert len(encode_tokens(encoder, [], role="query")) == 0


def make_index(dtype):
    return TokenIndex.build(GOOD, encoder="e" * 64, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_save_and_load(dtype, tmp_path):
    index = make_index(dtype)
    index.save(tmp_path / "index")
    again = TokenIndex.load(tmp_path / "index", encoder="e" * 64)
    for one, other in zip(index.search(GOOD, 2), again.search(GOOD, 2), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(RagJaxError, match=r"made by encoder e{16}, not f{16}: build the index ag"):
        TokenIndex.load(tmp_path / "index", encoder="f" * 64)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("starts", lambda a: a[::-1].copy(), "the texts' tokens do not follow each other"),
        ("starts", lambda a: a.astype(float), "the starts of the texts are of another kind"),
        ("starts", lambda a: a[1:], "its arrays are not those of its manifest"),
        ("vectors", lambda a: a[:-1], "the texts' tokens do not follow each other"),
        ("vectors", lambda a: a[:, :1], "its arrays are not those of its manifest"),
        ("vectors", lambda a: a.astype(np.int16), "its arrays are not those of its manifest"),
        ("scales", lambda a: a[:-1], "its scales are not one for each token"),
        ("scales", lambda a: a * np.nan, "row 0 has a NaN"),
    ],
)
def test_files_that_contradict_each_other(tmp_path, name, change, message):
    """Even if their author wrote a manifest for them."""
    folder = tmp_path / "index"
    make_index("int8").save(folder)
    path = folder / f"{name}.npy"
    np.save(path, change(np.load(path)))
    manifest = json.loads((folder / "index.json").read_text())
    manifest["sha256"] = {file: hash_file(folder / file) for file in manifest["sha256"]}
    (folder / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(RagJaxError, match=message) as error:
        TokenIndex.load(folder, encoder="e" * 64)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
