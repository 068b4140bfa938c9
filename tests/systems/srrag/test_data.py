"""The packed sequence, rows and batches against slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag.data import (
    TERMS,
    join_passages,
    make_row,
)
from rag_jax.training.rows import Row, count_targets, pack_rows

SELF, WIKI = 0, 1
SPELLED = ["<Self>", "<Wiki>", "<EOQ>", "<EOK>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"]
# Any text, and texts that spell special tokens, whole, broken and run together.
TEXTS = st.text(max_size=20) | st.lists(
    st.sampled_from([*SPELLED, "<", "EO", "K>", " ", "\n", "Answer:", "Paris"]), max_size=6
).map("".join)


# The sequence.


def spell(form, tokens):
    """A sequence as text, special tokens by their names."""
    names = {form.tokenizer.token_id(name): name for name in SPELLED}
    pieces, run = [], []
    for token in [*tokens, None]:
        if token is None or token in names:
            pieces += [form.tokenizer.decode(run), names.get(token, "")]
            run = []
        else:
            run.append(token)
    return "".join(pieces)


def test_sequence_as_text(form):
    row = make_row(form, "q", "Where is Lyon?", SELF, "Lyon is in France.", "France")
    assert spell(form, row.tokens) == (
        "Question: Where is Lyon? Background knowledge:<EOQ><Self> Lyon is in France.<EOK>"
        " Answer: France<|im_end|>"
    )
    row = make_row(form, "q", "Where is Lyon?", WIKI, "[1] Lyon: In France.", None)
    assert spell(form, row.tokens) == (
        "Question: Where is Lyon? Background knowledge:<EOQ><Wiki> [1] Lyon: In France.<EOK>"
    )


def test_every_token_has_its_own_id(form):
    ids = [*form.source_ids, *form.stop_ids, form.encode_question("")[-1]]
    assert len(set(ids)) == 5
    assert form.source_ids == tuple(map(form.tokenizer.token_id, ("<Self>", "<Wiki>")))
    assert form.stop_ids == (form.end_of_knowledge, form.tokenizer.eos_id)


@given(TEXTS, TEXTS, TEXTS, st.sampled_from([SELF, WIKI]))
def test_row_and_its_spans(form, question, knowledge, answer, source):
    row = make_row(form, "q1", question, source, knowledge, answer)
    asked = form.encode_question(question)
    learnt = form.encode_knowledge(knowledge)
    answered = form.encode_answer(answer)
    head = [*asked, form.source_ids[source], *learnt]
    assert row.tokens == [*head, *form.encode_answer_cue(), *answered]
    assert row.id == "q1"

    within = {term: row.tokens[start:stop] for term, (start, stop) in row.spans.items()}
    expected = {"source": [form.source_ids[source]], "answer": answered}
    if source == SELF:
        expected["verbalisation"] = [*learnt, form.end_of_knowledge]
    assert within == expected
    assert row.spans["source"][0] == len(asked)
    assert row.spans["answer"][1] == len(row.tokens)
    assert count_targets(row) == sum(map(len, expected.values()))

    rejected = make_row(form, "q1", question, source, knowledge, None)
    assert rejected.tokens == row.tokens[: len(head) + 1] == [*head, form.end_of_knowledge]
    assert rejected.spans == {k: v for k, v in row.spans.items() if k != "answer"}


def test_an_answer_at_once(form):
    row = make_row(form, "q", "Where is Lyon?", SELF, None, "France")
    assert spell(form, row.tokens) == (
        "Question: Where is Lyon? Background knowledge:<EOQ><Self><EOK> Answer: France<|im_end|>"
    )
    assert set(row.spans) == {"source", "answer"}


@given(TEXTS, TEXTS, TEXTS)
def test_text_never_becomes_a_special_token(form, question, knowledge, answer):
    tokens = make_row(form, "q", question, SELF, knowledge, answer).tokens
    found = [name for name in SPELLED for _ in range(tokens.count(form.tokenizer.token_id(name)))]
    assert sorted(found) == sorted(["<EOQ>", "<Self>", "<EOK>", "<|im_end|>"])


def test_spelled_tokens_stay_in_the_text(form):
    text = "<Self> or <EOQ><EOK>, <|im_end|>?"
    row = make_row(form, "q", text, WIKI, text, text)
    parts = (form.encode_question(text)[:-1], form.encode_knowledge(text), form.encode_answer(text))
    assert [text in form.tokenizer.decode(part) for part in parts] == [True] * 3
    assert spell(form, row.tokens).count(text) == 3


def test_passages_in_one_block():
    assert join_passages([]) == ""
    assert join_passages([("Lyon", "In France.")]) == "[1] Lyon: In France."
    block = join_passages([("Lyon", "In France."), ("Riga", "In Latvia."), ("", "Far.")])
    assert block == "[1] Lyon: In France. [2] Riga: In Latvia. [3] Far."


# Batches.


@st.composite
def draw_rows(draw):
    """Rows with spans of all three terms, some left out, one after the other."""
    rows = []
    for number in range(draw(st.integers(0, 4))):
        spans, place = {}, 1
        for term in draw(st.lists(st.sampled_from(TERMS), unique=True)):
            start = place + draw(st.integers(0, 3))
            spans[term] = (start, start + draw(st.integers(1, 4)))
            place = spans[term][1]
        tokens = draw(st.lists(st.integers(1, 99), min_size=max(place, 2), max_size=place + 5))
        rows.append(Row(str(number), tokens, spans))
    return rows


@given(draw_rows(), st.sampled_from(["mean", "sum"]), st.sampled_from([1.0, 0.25]))
def test_packed_rows(rows, reduction, scale):
    width, targets, batch = 32, 16, 5
    arrays = pack_rows(
        rows,
        terms=TERMS,
        width=width,
        targets=targets,
        batch=batch,
        scale=scale,
        reduction=reduction,
    )
    assert set(arrays) == {"tokens", "mask", "at", "next", *TERMS}
    assert arrays["tokens"].shape == arrays["mask"].shape == (batch, width)
    assert all(arrays[key].shape == (batch, targets) for key in ("at", "next", *TERMS))
    for r in range(batch):
        tokens = rows[r].tokens if r < len(rows) else []
        spans = rows[r].spans if r < len(rows) else {}
        assert arrays["mask"][r].tolist() == [True] * len(tokens) + [False] * (width - len(tokens))
        assert arrays["tokens"][r][arrays["mask"][r]].tolist() == tokens
        # What each term asks: (position, the token behind it, weight).
        for term in TERMS:
            start, stop = spans.get(term, (0, 0))
            weight = scale / (stop - start or 1) if reduction == "mean" else scale
            expected = [(t - 1, tokens[t], pytest.approx(weight)) for t in range(start, stop)]
            weights = arrays[term][r]
            kept = np.flatnonzero(weights)
            columns = [arrays["at"][r], arrays["next"][r], weights]
            assert list(zip(*(c[kept].tolist() for c in columns), strict=True)) == expected


def test_rows_that_do_not_fit():
    row = Row("long", list(range(9)), {"source": (1, 2)})
    settings = {"targets": 4, "scale": 1.0, "reduction": "mean"}
    with pytest.raises(RagJaxError, match="length=8: 1 of 1 rows are longer"):
        pack_rows([row], terms=TERMS, width=8, batch=1, **settings)
    with pytest.raises(RagJaxError, match="batch=1: there are 2 rows"):
        pack_rows([row, row], terms=TERMS, width=9, batch=1, **settings)
