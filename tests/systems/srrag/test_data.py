"""The packed sequence, prompts, rows, examples and batches against slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_decoder

from rag_jax.config import TrainConfig
from rag_jax.decoding.prompts import split_prefix
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag.data import (
    TERMS,
    Example,
    encode_answer_prompt,
    encode_document_prompt,
    join_passages,
    make_row,
    pack_examples,
    plan_examples,
)
from rag_jax.training.rows import Row, pack_rows

SELF, WIKI = 0, 1
CONFIG = make_decoder(num_layers=1)[0].config
SPELLED = ["<Self>", "<Wiki>", "<EOQ>", "<EOK>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"]
# Any text, and texts that spell special tokens, whole, broken and run together.
TEXTS = st.text(max_size=20) | st.lists(
    st.sampled_from([*SPELLED, "<", "EO", "K>", " ", "\n", "Answer:", "Paris"]), max_size=6
).map("".join)


# The sequence.


def spell(format, tokens):
    """A sequence as text, special tokens by their names."""
    names = {format.tokenizer.token_id(name): name for name in SPELLED}
    pieces, run = [], []
    for token in [*tokens, None]:
        if token is None or token in names:
            pieces += [format.tokenizer.decode(run), names.get(token, "")]
            run = []
        else:
            run.append(token)
    return "".join(pieces)


def test_sequence_as_text(format):
    row = make_row(format, "q", "Where is Lyon?", SELF, "Lyon is in France.", "France")
    assert spell(format, row.tokens) == (
        "Question: Where is Lyon? Background knowledge:<EOQ><Self> Lyon is in France.<EOK>"
        " Answer: France<|im_end|>"
    )
    row = make_row(format, "q", "Where is Lyon?", WIKI, "[1] Lyon: In France.", None)
    assert spell(format, row.tokens) == (
        "Question: Where is Lyon? Background knowledge:<EOQ><Wiki> [1] Lyon: In France.<EOK>"
    )


def test_every_token_has_its_own_id(format):
    ids = [*format.source_ids, *format.stop_ids, format.encode_question("")[-1]]
    assert len(set(ids)) == 5
    assert format.source_ids == tuple(map(format.tokenizer.token_id, ("<Self>", "<Wiki>")))
    assert format.stop_ids == (format.end_of_knowledge, format.tokenizer.eos_id)


@given(TEXTS, TEXTS, TEXTS, st.sampled_from([SELF, WIKI]))
def test_row_and_its_spans(format, question, knowledge, answer, source):
    row = make_row(format, "q1", question, source, knowledge, answer)
    asked = format.encode_question(question)
    learnt = format.encode_knowledge(knowledge)
    answered = format.encode_answer(answer)
    head = [*asked, format.source_ids[source], *learnt]
    assert row.tokens == [*head, *format.encode_answer_cue(), *answered]
    assert row.id == "q1"

    within = {term: row.tokens[start:stop] for term, (start, stop) in row.spans.items()}
    expected = {"source": [format.source_ids[source]], "answer": answered}
    if source == SELF:
        expected["verbalisation"] = [*learnt, format.end_of_knowledge]
    assert within == expected
    assert row.spans["source"][0] == len(asked)
    assert row.spans["answer"][1] == len(row.tokens)
    assert row.num_targets == sum(map(len, expected.values()))

    rejected = make_row(format, "q1", question, source, knowledge, None)
    assert rejected.tokens == row.tokens[: len(head) + 1] == [*head, format.end_of_knowledge]
    assert rejected.spans == {k: v for k, v in row.spans.items() if k != "answer"}


def test_an_answer_at_once(format):
    row = make_row(format, "q", "Where is Lyon?", SELF, None, "France")
    assert spell(format, row.tokens) == (
        "Question: Where is Lyon? Background knowledge:<EOQ><Self><EOK> Answer: France<|im_end|>"
    )
    assert set(row.spans) == {"source", "answer"}


@given(TEXTS, TEXTS, TEXTS)
def test_text_never_becomes_a_special_token(format, question, knowledge, answer):
    tokens = make_row(format, "q", question, SELF, knowledge, answer).tokens
    found = [name for name in SPELLED for _ in range(tokens.count(format.tokenizer.token_id(name)))]
    assert sorted(found) == sorted(["<EOQ>", "<Self>", "<EOK>", "<|im_end|>"])


def test_spelled_tokens_stay_in_the_text(format):
    text = "<Self> or <EOQ><EOK>, <|im_end|>?"
    row = make_row(format, "q", text, WIKI, text, text)
    parts = (
        format.encode_question(text)[:-1],
        format.encode_knowledge(text),
        format.encode_answer(text),
    )
    assert [text in format.tokenizer.decode(part) for part in parts] == [True] * 3
    assert spell(format, row.tokens).count(text) == 3


def test_passages_in_one_block():
    assert join_passages([]) == ""
    assert join_passages([("Lyon", "In France.")]) == "[1] Lyon: In France."
    block = join_passages([("Lyon", "In France."), ("Riga", "In Latvia."), ("", "Far.")])
    assert block == "[1] Lyon: In France. [2] Riga: In Latvia. [3] Far."


# Prompts of the untrained model.


def test_document_prompt(base):
    tokenizer = base.tokenizer
    shown = [("Where is Riga?", "Riga is in Latvia."), ("And Lyon?", "In France.")]
    ids = encode_document_prompt(tokenizer, "Where is <Self><|im_end|>?", shown)
    # A turn of the system, two a demonstration, the question, and the start of the document.
    start, end = (tokenizer.token_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    assert (ids.count(start), ids.count(end)) == (7, 6)
    assert tokenizer.token_id("<Self>") not in ids
    text = tokenizer.decode(ids)
    assert text.startswith("system\nYou write a short Wikipedia-style background document")
    assert text.endswith(
        "user\nWhere is Riga?\nassistant\nRiga is in Latvia.\n"
        "user\nAnd Lyon?\nassistant\nIn France.\n"
        "user\nWhere is <Self><|im_end|>?\nassistant\n"
    )


def test_prompts_of_one_cluster_share_all_but_the_question(base):
    shown = [("Where is Riga?", "Riga is in Latvia.")]
    questions = ["Where is Lyon?", "What is the capital of Spain?"]
    prompts = [encode_document_prompt(base.tokenizer, q, shown) for q in questions]
    prefix, rests = split_prefix(prompts)
    assert base.tokenizer.decode(prefix).endswith("Riga is in Latvia.\nuser\nW")
    assert max(map(len, rests)) < len(prefix) / 2


def test_answer_prompt(base):
    decode = base.tokenizer.decode
    ids = encode_answer_prompt(base.tokenizer, "Where is Lyon?", "Lyon: <EOK> in France.")
    assert decode(ids) == (
        "user\nAnswer the question with a few words.\n\n"
        "Background knowledge: Lyon: <EOK> in France.\n\nQuestion: Where is Lyon?\n"
        "assistant\nThe answer is"
    )
    assert base.tokenizer.token_id("<EOK>") not in ids
    assert "knowledge" not in decode(encode_answer_prompt(base.tokenizer, "Where is Lyon?"))


def test_the_prompt_names_the_choices(base):
    tokenizer = base.tokenizer
    prompts = {
        choices: tokenizer.decode(encode_answer_prompt(tokenizer, "Q", "K", choices))
        for choices in ("", "ABC", ("true", "false"))
    }
    assert "Answer the question with a few words.\n\nBackground knowledge: K" in prompts[""]
    assert "Choose the best answer: A, B or C.\n\nBackground" in prompts["ABC"]
    assert "Choose the best answer: true or false.\n\n" in prompts["true", "false"]


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


@given(draw_rows(), st.integers(1, 3), st.sampled_from(["mean", "sum"]))
def test_packed_rows(rows, together, reduction):
    width, targets, batch, scale = 96, 48, 5, 0.25
    sequences = [rows[start : start + together] for start in range(0, len(rows), together)]
    settings = {"terms": TERMS, "scale": scale, "reduction": reduction}
    arrays = pack_rows(sequences, width=width, targets=targets, batch=batch, **settings)
    of_tokens, of_targets = ("tokens", "segments", "positions"), ("at", "next", "row", *TERMS)
    assert set(arrays) == {*of_tokens, *of_targets}
    assert all(arrays[key].shape == (batch, width) for key in of_tokens)
    assert all(arrays[key].shape == (batch, targets) for key in of_targets)
    for b in range(batch):
        inside = sequences[b] if b < len(sequences) else []
        assert set(arrays["segments"][b]) <= {*range(len(inside) + 1)}
        begins = np.cumsum([0, *(len(row.tokens) for row in inside)])
        for number, (row, begin) in enumerate(zip(inside, begins[:-1], strict=True)):
            part = slice(begin, begin + len(row.tokens))
            assert (arrays["segments"][b] == number + 1).nonzero()[0].tolist() == [
                *range(part.start, part.stop)
            ]
            assert arrays["tokens"][b, part].tolist() == row.tokens
            assert arrays["positions"][b, part].tolist() == [*range(len(row.tokens))]
        # What each term asks: (row, position, the token behind it, weight).
        for term in TERMS:
            expected = []
            for number, (row, begin) in enumerate(zip(inside, begins[:-1], strict=True)):
                start, stop = row.spans.get(term, (0, 0))
                weight = scale / (stop - start or 1) if reduction == "mean" else scale
                for t in range(start, stop):
                    asked = (number, begin + t - 1, row.tokens[t])
                    expected.append((*asked, pytest.approx(weight)))
            kept = np.flatnonzero(arrays[term][b])
            columns = [arrays[key][b][kept].tolist() for key in ("row", "at", "next", term)]
            assert list(zip(*columns, strict=True)) == expected


def test_rows_that_do_not_fit():
    row = Row("long", list(range(9)), {"source": (1, 2)})
    settings = {"terms": TERMS, "targets": 4, "scale": 1.0, "reduction": "mean"}
    with pytest.raises(RagJaxError, match="^width=17: the texts of a sequence have 18 tokens"):
        pack_rows([[row, row]], width=17, batch=1, **settings)
    with pytest.raises(RagJaxError, match="^batch=1: there are more sequences$"):
        pack_rows([[row], [row]], width=9, batch=1, **settings)


# Examples.

CUE = 4  # tokens of <EOK> and " Answer:"
# Of the question, both verbalisations (one at times, or a found passage) and the answer.
LENGTHS = st.tuples(
    st.integers(1, 150),
    st.integers(0, 80),
    st.none() | st.integers(0, 80),
    st.integers(0, 12),
    st.booleans(),
)


def make_example(name, question, better, worse, answer, found=False):
    """An example with so many tokens of each."""
    start = question + 1
    end = start + better + 1
    spans = {"source": (question, start), "answer": (end - 1 + CUE, end + CUE + answer)}
    tokens = [int(name) + 1] * (end + CUE + answer)
    if found:
        return Example(1, Row(name, tokens, spans), None)
    row = Row(name, tokens, spans | {"verbalisation": (start, end)})
    if worse is None:
        return Example(0, row, None)
    spans = {"source": (question, start), "verbalisation": (start, start + worse + 1)}
    return Example(0, row, Row(name, [int(name) + 101] * (start + worse + 1), spans))


@given(
    st.lists(LENGTHS, min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from([1, 300, 2000]),
    st.sampled_from(["mean", "sum"]),
)
def test_packed_microbatches(lengths, batch_size, budget, reduction):
    """Every example of a step once, both sides of a pair in one sequence."""
    examples = [make_example(str(i), *one) for i, one in enumerate(lengths)]
    settings = TrainConfig(batch_size=batch_size, microbatch_tokens=budget)
    plan, packing = plan_examples(examples, settings, CONFIG, seed=0)
    dealt = []
    for step in range(plan.num_steps_per_epoch):
        for micro in packing.group(plan.examples_at(step)):
            weights = {"scale": 0.5, "reduction": reduction}
            arrays = pack_examples(examples, packing, micro, **weights)
            assert arrays["tokens"].shape == (micro.rows, micro.width)
            assert arrays["tokens"].size <= max(budget, packing.shapes[micro.kind].widths[-1])
            for b, sequence in enumerate(micro.sequences):
                dealt += sequence
                rows = [row for i in sequence for row in examples[i].rows]
                if micro.kind == "pairs":
                    assert rows[1::2] == [examples[i].rejected for i in sequence]
                tokens = arrays["tokens"][b][arrays["segments"][b] > 0]
                assert tokens.tolist() == [token for row in rows for token in row.tokens]
                for term in TERMS:
                    counts = [np.subtract(*row.spans.get(term, (0, 0))[::-1]) for row in rows]
                    wanted = [0.5 * (c if reduction == "sum" else c > 0) for c in counts]
                    found = np.zeros(max(len(rows), arrays["row"].max() + 1))
                    np.add.at(found, arrays["row"][b], arrays[term][b])
                    assert found[: len(rows)] == pytest.approx(wanted)
    assert sorted(dealt) == list(range(len(examples)))
