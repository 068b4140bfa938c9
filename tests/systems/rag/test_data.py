"""What the generator reads: transformers' layout, questions that are never cut, fixed shapes."""

import logging
from pathlib import Path

import numpy as np
import pytest

from rag_jax.data.batches import BatchPlan
from rag_jax.models import load
from rag_jax.retrieval.texts import tokenize_texts
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.rag.data import (
    Example,
    list_slots,
    make_examples,
    make_format,
    pack_examples,
    pack_inputs,
    pack_queries,
    pack_scores,
)
from rag_jax.systems.rag.train import ExampleReader

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
    start = BART.config.start_ids
    options = {"answer": 9, "batch": 2, "items": 2, "scale": 0.5}
    arrays = pack_examples([examples], start_ids=start, width=99, written=40, **options)
    assert {name: part.shape for name, part in arrays.items()} == {
        **dict.fromkeys(("tokens", "segments", "positions"), (2, 99)),
        **dict.fromkeys(("written", "written_segments", "written_positions"), (2, 40)),
        "at": (2, 2 * 2 * 9),
        **dict.fromkeys(("targets", "target_mask"), (4, 9)),
        "weight": (4,),
    }

    def list_texts(tokens, segments, positions):
        numbers = range(1, segments[0].max() + 1)
        places = [positions[0][segments[0] == n].tolist() for n in numbers]
        assert places == [list(range(len(place))) for place in places]
        assert not segments[1].any()
        return [tokens[0][segments[0] == n].tolist() for n in numbers]

    inputs = [*examples[0].inputs, *examples[1].inputs]
    assert inputs[3] == format.encode_input("y z", ("g", "h"))[0]
    answers = [format.encode_answer(answer) for answer in ("one", "two")]
    read, written, at, targets, target_mask, weight = (
        [*arrays.values()][:3], [*arrays.values()][3:6], *[*arrays.values()][6:]
    )  # fmt: skip
    assert list_texts(*read) == inputs
    begun = [[*start, *answer[:-1]] for answer in answers for _ in range(2)]
    assert list_texts(*written) == begun
    assert [row[real].tolist() for row, real in zip(targets, target_mask, strict=True)] == [
        *answers, [], []
    ]  # fmt: skip
    assert weight.tolist() == [0.5, 0.5, 0, 0]
    for q, answer in enumerate(answers):  # what is read before each target
        for k in range(2):
            places = at[0].reshape(2, 2, 9)[q, k, : len(answer)]
            assert arrays["written"][0, places].tolist() == [start[-1], *answer[:-1]]
    assert examples[0].measure(start) == (sum(map(len, inputs[:2])), sum(map(len, begun[:2])))
    assert examples[0].width == max(map(len, inputs[:2]))
    rows = pack_inputs(examples, width=24, batch=3)
    assert [t[m].tolist() for t, m in zip(*rows, strict=True)] == [*inputs, [], []]

    # A decoder's row is an input and the answer after it.
    arrays = pack_examples([examples], start_ids=(), width=150, written=0, **options)
    rows = [[*tokens, *answers[i // 2][:-1]] for i, tokens in enumerate(inputs)]
    assert list_texts(*[*arrays.values()][:3]) == rows
    assert examples[0].measure(()) == (sum(map(len, rows[:2])), 0)
    before = arrays["tokens"][0, arrays["at"][0].reshape(2, 2, 9)[1, 0, : len(answers[1])]]
    assert before.tolist() == [inputs[2][-1], *answers[1][:-1]]
    with pytest.raises(RagJaxError, match="^width=20: the texts of a sequence have"):
        pack_examples([examples], start_ids=(), width=20, written=0, **options)


def test_slots():
    slots = list_slots([[2, 0], [1]], batch=3, items=2)
    assert slots == [2, 0, 1, -1, -1, -1]
    scores = pack_scores(np.arange(6, dtype=np.float32).reshape(3, 2), slots)["doc_scores"]
    assert scores.tolist() == [[4, 5], [0, 1], [2, 3], [0, 0], [0, 0], [0, 0]]


def test_queries():
    rows = tokenize_texts(BERT, ["paris", "what is " * 20], 12)
    assert [len(row) for row in rows] == [len(rows[0]), 12] and len(rows[0]) < 12
    embeddings = np.ones((2, 3, 5), np.float32)
    arrays = pack_queries(rows, embeddings, [0, 1, -1, -1], width=16)
    assert arrays["query"].shape == arrays["query_mask"].shape == (4, 16)
    assert arrays["query_mask"].sum(axis=1).tolist() == [len(rows[0]), 12, 1, 1]
    assert arrays["passages"].shape == (4, 3, 5) and arrays["passages"].sum() == 30


def test_the_examples_of_the_first_steps_are_read_once():
    plan, read = BatchPlan([0] * 70, batch_size=2, seed=0), []

    def make(chosen, rows):
        read.append((tuple(chosen), rows.tolist()))
        return [Example([[i, row]], []) for i, (row,) in zip(chosen, rows.tolist(), strict=True)]

    reader = ExampleReader(make, lambda step: np.full((2, 1), step), plan)
    first = len(reader.list_read())
    assert first == len(read) == 32
    found = [reader.read(step, np.full((2, 1), step)) for step in range(35)]
    assert len(read) == 35  # those after the first ones
    assert [example.inputs[0][1] for examples in found for example in examples] == [
        step for step in range(35) for _ in range(2)
    ]
    # A step that found other passages than expected reads these.
    reader = ExampleReader(make, lambda step: np.full((2, 1), step), plan)
    (a, b) = reader.read(1, np.asarray([[7], [1]]))
    assert (a.inputs[0][1], b.inputs[0][1]) == (7, 1)
