"""What the generator reads: transformers' layout, questions that are never cut, fixed shapes."""

import logging
from pathlib import Path

import numpy as np
import pytest

from rag_jax.models import load
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.rag.data import (
    encode_queries,
    make_examples,
    make_format,
    pack_examples,
    pack_inputs,
    pack_queries,
)

GOLDEN = Path(__file__).parents[2] / "golden"
BART, LLAMA, BERT = (load(GOLDEN / name) for name in ("bart", "llama_tied", "bert"))
PASSAGE = ('"Paris"', "Paris is the capital  of France.")
QUESTION = "What is the capital?"


def text_of(format, question, passage):
    tokens, cut = format.encode_input(question, passage)
    return format.tokenizer.decode(tokens), cut


def test_an_encoder_decoder_reads_what_transformers_retriever_writes():
    format = make_format(BART, max_length=24)
    tokens, cut = format.encode_input(QUESTION, ("Lyon", "It is."))
    whole = format.tokenizer.encode("Lyon / It is. // What is the capital?")
    assert tokens == [BART.config.bos_id, *whole, BART.config.eos_id] and not cut
    assert text_of(format, "Q  x", ('"Ly"', "a  b"))[0] == "Ly / a b // Q x"
    assert text_of(format, "Q", None)[0] == "Q"


def test_a_decoder_goes_on_after_text_or_in_its_template():
    plain, chat = (make_format(LLAMA, max_length=64, chat=chat) for chat in (False, True))
    wanted = "Paris: A city.\n\nQuestion: Where is it?\nAnswer:"
    assert text_of(plain, "Where is it?", ("Paris", "A city."))[0] == wanted
    assert text_of(plain, "Where is it?", None)[0] == "Question: Where is it?\nAnswer:"
    message = "Paris: A city.\n\nAnswer in a few words: Where?"
    tokens, _ = chat.encode_input("Where?", ("Paris", "A city."))
    assert tokens == LLAMA.tokenizer.encode_chat([{"role": "user", "content": message}])
    eos = LLAMA.tokenizer.eos_id
    assert plain.encode_answer(" France ") == [*LLAMA.tokenizer.encode(" France"), eos]
    assert chat.encode_answer("France") == [*LLAMA.tokenizer.encode("France"), eos]
    assert plain.stop_ids == (eos,)


@pytest.mark.parametrize(
    ("generator", "chat", "least"), [(BART, False, 15), (LLAMA, False, 30), (LLAMA, True, 40)]
)
def test_the_passage_is_cut_and_never_the_question(generator, chat, least, caplog):
    question = "Where is it?"
    roomy = make_format(generator, max_length=generator.config.max_length, chat=chat)
    bare = len(roomy.encode_input(question, None)[0])
    for limit in range(bare, min(bare + 20, generator.config.max_length + 1)):
        format = make_format(generator, max_length=limit, chat=chat)
        passage = ("Zürich", "In der Schweiz, \u6771\u4eac ist in Japan. " * 3)
        tokens, cut = format.encode_input(question, passage)
        text = format.tokenizer.decode(tokens)
        assert len(tokens) <= limit and cut and question in text and "\ufffd" not in text
    format = make_format(generator, max_length=bare - 1, chat=chat)
    with pytest.raises(RagJaxError, match=f"^max_length={bare - 1}: a question has {bare} tokens"):
        format.encode_input(question, None)
    format = make_format(generator, max_length=bare + 4, chat=chat)
    with caplog.at_level(logging.WARNING):
        make_examples(format, [question] * 2, [[("a", "b " * 90), None]] * 2)
    assert f"2 of 4 passages were cut to {bare + 4} tokens" in caplog.text


def test_what_is_refused():
    with pytest.raises(RagJaxError, match="^max_length=25: must be from 1 to the generator's 24$"):
        make_format(BART, max_length=25)
    format = make_format(BART, max_length=24)
    with pytest.raises(RagJaxError, match="^answer '  ' has no tokens"):
        format.encode_answer("  ")
    with pytest.raises(RagJaxError, match="^passages: question 1 has 1, the first 2; "):
        make_examples(format, ["a", "b"], [[None, None], [None]])
    with pytest.raises(RagJaxError, match="^passages: question 0 has 0, "):
        make_examples(format, ["a"], [[]])


def test_arrays():
    format = make_format(BART, max_length=24)
    passages = [[("a", "b"), ("c", "d e f")], [None, ("g", "h")]]
    examples = make_examples(format, ["x", "y z"], passages, ["one", "two"])
    arrays = pack_examples(examples, width=24, targets=9, batch=3, scale=0.5)
    shapes = [part.shape for part in arrays.values()]
    assert list(arrays) == ["tokens", "mask", "targets", "target_mask", "weight"]
    assert shapes == [(6, 24), (6, 24), (3, 9), (3, 9), (3,)]

    def unpad(name, mask):
        return [row[real].tolist() for row, real in zip(arrays[name], arrays[mask], strict=True)]

    rows = unpad("tokens", "mask")
    assert rows == [*examples[0].inputs, *examples[1].inputs, [], []]
    assert rows[3] == format.encode_input("y z", ("g", "h"))[0]
    assert unpad("targets", "target_mask") == [
        format.encode_answer("one"),
        format.encode_answer("two"),
        [],
    ]
    assert arrays["weight"].tolist() == [0.5, 0.5, 0]
    assert examples[0].width == max(map(len, rows[:2]))
    np.testing.assert_array_equal(pack_inputs(examples, width=24, batch=3)[0], arrays["tokens"])


def test_queries(caplog):
    with caplog.at_level(logging.WARNING):
        rows = encode_queries(BERT.tokenizer, ["paris", "what is " * 20], max_length=12)
    assert [len(row) for row in rows] == [len(rows[0]), 12] and len(rows[0]) < 12
    assert "1 of 2 questions were cut to 12 tokens" in caplog.text
    embeddings = np.ones((2, 3, 5), np.float32)
    arrays = pack_queries(rows, embeddings, width=16, batch=4)
    assert arrays["query"].shape == arrays["query_mask"].shape == (4, 16)
    assert arrays["query_mask"].sum(axis=1).tolist() == [len(rows[0]), 12, 1, 1]
    assert arrays["passages"].shape == (4, 3, 5) and arrays["passages"].sum() == 30
