"""Prompts beyond the context are told of, once."""

import dataclasses

import pytest
from tiny import CONFIG, make_decoder

from rag_jax.decoding import generate, prompts

LIMIT = CONFIG.max_length


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(prompts, "_warned", set())


def check(model, lengths, *, max_tokens, prefix=0):
    rows = [[1] * length for length in lengths]
    sizes = {"max_tokens": max_tokens, "batch_size": 1, "prefix": prefix}
    prompts.check_prompts(model, rows, **sizes)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "prefix", "told"),
    [
        ([LIMIT - 4, 3], 4, 0, False),
        ([3, LIMIT - 3], 4, 0, True),
        ([3 * LIMIT], 1, 0, True),
        ([4], 4, LIMIT - 8, False),
        ([4], 4, LIMIT - 7, True),
        ([], LIMIT, 0, False),
    ],
)
def test_a_warning_where_text_may_go_beyond(lengths, max_tokens, prefix, told, caplog):
    model, _ = make_decoder()
    check(model, lengths, max_tokens=max_tokens, prefix=prefix)
    assert (f"the model's context is {LIMIT} tokens" in caplog.text) == told
    check(model, lengths, max_tokens=max_tokens, prefix=prefix)
    assert len(caplog.records) == told


def test_another_models_context_is_told_of_too(caplog):
    model, _ = make_decoder()
    other = model.clone(config=dataclasses.replace(CONFIG, max_length=LIMIT // 2))
    for each in (model, other, model, other):
        check(each, [LIMIT], max_tokens=1)
    assert len(caplog.records) == 2


def test_generate_tells(caplog):
    model, params = make_decoder()
    prompt = [i % 31 for i in range(LIMIT - 4)]
    generate(model, params, [prompt], max_tokens=2, stop_ids=[])
    assert not caplog.records
    generate(model, params, [prompt], prefix=[1, 2, 3], max_tokens=2, stop_ids=[])
    assert f"the longest prompt has {LIMIT - 1} tokens and up to 2 follow" in caplog.text
