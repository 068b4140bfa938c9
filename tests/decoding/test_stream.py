"""Texts that come a few tokens at a time are those that come at once."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIG, continue_row, make_decoder, make_rows

from rag_jax.decoding import append, init_cache, stream
from rag_jax.decoding.stream import _continue, spell
from rag_jax.models.tokenizer import Tokenizer

MODEL, PARAMS = make_decoder(num_layers=1)
PROMPTS, MAX_TOKENS = make_rows([5, 5], seed=3), 7


def read_prompts(rows):
    cache = init_cache(MODEL, len(rows))
    tokens = jnp.asarray(rows)
    return append(MODEL, PARAMS, cache, tokens[:, :3], jnp.ones((len(rows), 3), bool))[1], tokens[
        :, 3:
    ]


@pytest.mark.parametrize("every", [1, 3, 7, 100])
@pytest.mark.parametrize("stops", [(), "seen"])
def test_a_stream_ends_as_the_slow_loop(every, stops):
    endless = [
        continue_row(MODEL, PARAMS, row, max_tokens=MAX_TOKENS, stop_ids=()) for row in PROMPTS
    ]
    stop_ids = (endless[0][0][4],) if stops else (CONFIG.vocab_size,)
    expected = [
        continue_row(MODEL, PARAMS, row, max_tokens=MAX_TOKENS, stop_ids=stop_ids)
        for row in PROMPTS
    ]
    cache, tokens = read_prompts(PROMPTS)
    parts = list(
        stream(
            MODEL, PARAMS, cache, tokens, jnp.ones(tokens.shape, bool),
            max_tokens=MAX_TOKENS, stop_ids=stop_ids, every=every,
        )
    )  # fmt: skip
    for row, (written, ended) in enumerate(expected):
        for number, part in enumerate(parts):
            length = int(part.lengths[row])
            assert part.tokens[row, :length].tolist() == written[: every * (number + 1)]
        assert bool(parts[-1].finished[row]) == ended
        assert int(parts[-1].cache.position[row]) == len(PROMPTS[row]) + len(written)
    longest = max(len(written) for written, _ in expected)
    assert len(parts) == -(-max(longest, 1) // every) or not all(e for _, e in expected)


def test_rows_that_take_no_part_and_programs():
    cache, tokens = read_prompts(PROMPTS)
    before = _continue._cache_size()
    for every in (2, 3, 5):
        *_, last = stream(
            MODEL, PARAMS, cache, tokens, jnp.tile(jnp.asarray([[True], [False]]), 2),
            max_tokens=6, stop_ids=(CONFIG.vocab_size,), every=every,
        )  # fmt: skip
        assert last.lengths.tolist() == [6, 0]
        assert not np.asarray(last.tokens[1]).any()
    assert _continue._cache_size() == before + 1
    nobody = list(
        stream(
            MODEL, PARAMS, cache, tokens, jnp.zeros((2, 2), bool), max_tokens=6, stop_ids=(-1,)
        )
    )  # fmt: skip
    assert len(nobody) == 1 and not jax.device_get(nobody[0].lengths).any()


def test_padding_changes_nothing():
    cache, tokens = read_prompts(PROMPTS)
    options = {"max_tokens": MAX_TOKENS, "stop_ids": (CONFIG.vocab_size,)}
    *_, plain = stream(MODEL, PARAMS, cache, tokens, jnp.ones(tokens.shape, bool), **options)
    padded, mask = jnp.pad(tokens, ((0, 0), (0, 3))), jnp.arange(5) < 2
    *_, last = stream(MODEL, PARAMS, cache, padded, jnp.tile(mask, (2, 1)), **options)
    assert last.tokens.tolist() == plain.tokens.tolist()
    assert last.cache.position.tolist() == plain.cache.position.tolist()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(Path(__file__).parents[1] / "golden" / "llama_tied")


@given(text=st.text(max_size=20), every=st.integers(1, 4))
def test_pieces_are_the_text(tokenizer, text, every):
    ids = tokenizer.encode(f" {text}")
    pieces = list(spell(tokenizer, (ids[:end] for end in range(every, len(ids) + every, every))))
    assert "".join(pieces) == tokenizer.decode(ids).strip()
    assert all(pieces)


def test_half_a_character_waits(tokenizer):
    ids = tokenizer.encode("Où est 東京 ?")
    pieces = list(spell(tokenizer, (ids[:end] for end in range(1, len(ids) + 1))))
    assert "".join(pieces) == "Où est 東京 ?"
    assert pieces[-3:] == [" 東", "京", " ?"]
    # A text that ends within a character ends so.
    assert "".join(spell(tokenizer, [ids[:-3], ids[:-3]])).endswith("\ufffd")


def test_a_text_that_is_a_control_token_by_its_letters(tokenizer):
    ids = tokenizer.encode("a <|end|> b")
    assert "".join(spell(tokenizer, [ids[:2], ids])) == "a <|end|> b"
    control = tokenizer.token_id("<|end|>")
    assert "".join(spell(tokenizer, [[*ids, control]])) == "a <|end|> b"
