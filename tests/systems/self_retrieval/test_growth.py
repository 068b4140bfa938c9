"""What a corpus costs: passages read, texts tokenized, bytes kept; results are as they were."""

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.decoding import Trie
from rag_jax.models import load
from rag_jax.systems.self_retrieval import evaluate, index
from rag_jax.systems.self_retrieval.config import ExamplesConfig
from rag_jax.systems.self_retrieval.data import (
    Format,
    choose_same,
    list_question_rows,
    make_question_rows,
)


class Counted(Sequence):
    """Passages, and how many of them were read."""

    def __init__(self, passages):
        self.passages, self.reads = passages, 0

    def __len__(self):
        return len(self.passages)

    def __getitem__(self, row):
        self.reads += 1
        return self.passages[row]

    def __iter__(self):
        return (self[row] for row in range(len(self)))


def make_corpus(titles):
    """Three passages a title, and a question about the second passage of every third title."""
    passages = [
        Passage(f"{t}/{i}", f"Title {t}", f"Text {i} of {t}, which is long enough to be negative.")
        for i in range(3)
        for t in range(titles)
    ]
    questions = [
        Question(f"q{t}", f"What is {t}?", (f"nothing {t}",), {f"{t}/1": 1, "not there": 1})
        for t in range(0, titles, 3)
    ]
    return passages, questions


@pytest.fixture(scope="module")
def format(llama_folder):
    tokenizer = load(llama_folder).tokenizer
    return Format(tokenizer, titled=True, assessment="phrase", max_text=200)


@pytest.mark.parametrize("titles", [30, 60])
def test_grading_reads_the_corpus_once(titles):
    passages, questions = make_corpus(titles)
    counted = Counted(passages)
    found = evaluate.find_titles(questions, counted)
    assert counted.reads == len(passages)
    record = {"ranked": [(titles + 3, 1.0), (0, 0.5)], "prediction": "", "seconds": 0.0}
    for question in questions:
        graded = evaluate.grade(question, record, passages=counted, titles=found)
        is_found = question.id in ("q0", "q3")
        assert graded["document_recall@10"] == is_found / 2  # of two relevant documents
        assert graded["document_mrr@100"] == {"q0": 0.5, "q3": 1.0}.get(question.id, 0.0)
    assert counted.reads == len(passages) + 2 * len(questions)
    missing = Question("q", "?", ("nothing",), {"not there": 1})
    graded = evaluate.grade(missing, record, passages=passages, titles={})
    assert graded["document_recall@10"] == graded["document_mrr@100"] == 0


@pytest.mark.parametrize("titles", [30, 60])
def test_rows_to_train_on_keep_no_passage_and_read_the_corpus_twice(format, titles):
    passages, questions = make_corpus(titles)
    examples = ExamplesConfig(same=2, other=1, repeats=2)
    mined = [[0, 1]] * len(questions)
    counted = Counted(passages)
    rows = list(list_question_rows(format, questions, counted, mined, examples, seed=3))
    by_title = defaultdict(list)
    for passage in passages:
        by_title[passage.title].append(passage)
    by_id, wanted = {p.id: p for p in passages}, []
    for question in questions:
        gold = next(by_id[id] for id in question.relevant)
        negatives = choose_same(question, [by_title[gold.title]], count=2, seed=3)
        negatives += [p for p in passages[:2] if p.title != gold.title][:1]
        wanted += [*make_question_rows(format, question, by_id, negatives, examples)] * 2
    assert rows == wanted
    # Of each question its relevant passage, the three of its title, and the two that were mined.
    assert counted.reads == 2 * len(passages) + 6 * len(questions)


def test_a_heading_is_tokenized_once(format, monkeypatch):
    asked, encode = [], format.tokenizer.encode
    fresh = Format(
        SimpleNamespace(encode=lambda text: asked.append(text) or encode(text)),
        titled=True,
        assessment="phrase",
        max_text=200,
    )
    tokens = [fresh.encode_title(f"Title {i}") for i in range(9)]
    assert [fresh.cut_title(t) for t in tokens] == [
        format.cut_title(format.encode_title(f"Title {i}")) for i in range(9)
    ]
    assert len(asked) == 9 + 1


def test_the_sequences_of_a_trie_take_four_bytes_a_token(format, monkeypatch, tmp_path):
    passages, _ = make_corpus(20)
    given = []

    def build(sequences, **options):
        given.extend(sequences)
        return trie(sequences, **options)

    trie = Trie.from_sequences
    monkeypatch.setattr(index.Trie, "from_sequences", build)
    context = SimpleNamespace(folder=tmp_path)
    index.run_trie(context, titled=True, passages=passages, make_format=lambda titled: format)
    lists = [format.encode_sequence(passage) for passage in passages]
    assert [sequence.tolist() for sequence in given] == lists
    assert sum(sequence.nbytes for sequence in given) == 4 * sum(map(len, lists))
    made, wanted = Trie.load(tmp_path / "trie"), trie(lists, end_id=format.tokenizer.eos_id)
    assert np.array_equal(made.tokens, wanted.tokens) and np.array_equal(made.tails, wanted.tails)
