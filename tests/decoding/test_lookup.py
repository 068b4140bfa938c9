"""Lookup decoding against the plain loop, and drafts against a slow search."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_decoder

from rag_jax.decoding import append, decode, init_cache
from rag_jax.decoding.lookup import NGRAM, decode_by_lookup, find_drafts
from rag_jax.decoding.prompts import last_hidden

MODEL, PARAMS = make_decoder(num_layers=1)
APPEND = jax.jit(partial(append, MODEL))
MAX_TOKENS, DRAFTED = 12, 3


def draft_slowly(text, drafted):
    """The longest match of the text's end, of several the last, and what follows it."""
    for length in range(NGRAM, 0, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if len(text) >= length and text[end - length : end] == text[-length:]:
                return text[end : end + drafted]
    return []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=3, max_size=3))
def test_drafts_follow_the_longest_match(texts):
    padded = np.full((3, 10), 9)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    ends = jnp.asarray([len(text) for text in texts])
    drafts, counts = jax.jit(partial(find_drafts, drafted=3))(jnp.asarray(padded), ends)
    for draft, count, text in zip(drafts.tolist(), counts, texts, strict=True):
        assert draft[:count] == draft_slowly(text, 3)


@partial(jax.jit, static_argnames="drafted")
def write(params, tokens, mask, active, stop_ids, texts, ends, drafted):
    output, cache = append(MODEL, params, init_cache(MODEL, len(tokens)), tokens, mask)
    read = MODEL, params, cache, last_hidden(output.hidden, mask)
    options = {"max_tokens": MAX_TOKENS, "stop_ids": stop_ids, "active": active}
    if not drafted:
        return decode(*read, **options)
    return decode_by_lookup(*read, texts, ends, drafted=drafted, **options)


def check_written(seed, lengths, active, stop_ids, known):
    """The tokens of the plain loop, and a cache that reads on as its; returns the cache.

    Args:
        known: of the rows' answers the tokens that stand in the texts that drafts come from.
    """
    rng, count = np.random.default_rng(seed), len(lengths)
    tokens = rng.integers(0, 31, (count, max(lengths))).astype(np.int32)
    mask = np.arange(max(lengths))[None] < np.asarray(lengths)[:, None]
    inputs = tokens, mask, np.asarray(active), jnp.asarray(stop_ids, jnp.int32)
    wanted = write(PARAMS, *inputs, None, None, drafted=0)
    endless = write(PARAMS, *inputs[:3], jnp.asarray([-1, -1]), None, None, drafted=0)
    texts, ends = np.zeros((count, MAX_TOKENS + max(lengths)), np.int32), []
    for row, length in enumerate(lengths):
        text = [*np.asarray(endless.tokens[row, : known[row]]), *tokens[row, :length]]
        texts[row, : len(text)] = text
        ends.append(len(text))
    found = write(PARAMS, *inputs, texts, np.asarray(ends, np.int32), drafted=DRAFTED)
    for name in ("tokens", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_array_equal(found.cache.position, wanted.cache.position)
    np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-4)
    np.testing.assert_array_equal(
        found.cache.token_mask.sum(axis=1), wanted.cache.token_mask.sum(axis=1)
    )
    chunk, real = rng.integers(0, 31, (count, 2)), np.ones((count, 2), bool)
    after = [APPEND(PARAMS, d.cache, chunk, real)[0].hidden for d in (found, wanted)]
    np.testing.assert_allclose(*after, atol=2e-5, rtol=1e-5)
    return found


def test_drafts_that_are_right_are_kept():
    """A row that knows its answer leaves gaps in the slots of one that does not."""
    alone = check_written(0, [5], [True], [-1, -1], known=[MAX_TOKENS])
    assert alone.lengths.tolist() == [MAX_TOKENS]
    both = check_written(0, [5, 4], [True, True], [-1, -1], known=[MAX_TOKENS, 0])
    written = np.asarray(both.cache.token_mask)[:, 5:]
    assert written[0, :MAX_TOKENS].all() and not written[0, MAX_TOKENS:].any()
    assert not written[1, :MAX_TOKENS].all()


@settings(max_examples=25, derandomize=True)
@given(
    st.integers(0, 999),
    st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, MAX_TOKENS)), max_size=3),
    st.lists(st.integers(0, 30), min_size=2, max_size=2),
)
def test_lookup_writes_what_the_plain_loop_writes(seed, rows, stop_ids):
    rows = [(6, True, MAX_TOKENS), *rows, *[(3, False, 0)] * 3][:4]  # always four: one program
    lengths, active, known = zip(*rows, strict=True)
    check_written(seed, lengths, active, stop_ids, known)
