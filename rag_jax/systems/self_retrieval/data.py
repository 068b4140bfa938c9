"""Prompts, titles, passages and assessments as tokens, and the rows to train on.

A text is laid out as in the released code, in plain words without new tokens. Every piece is
encoded separately, so that training, trie and inference have the same tokens:

    Question: {question}

     Related document title: {title}
     Related document content: {text}

     Assessment: can answer the query
     Final answer: {answer}

or, where the answer is the assessment, `Final answer: {answer}` after the text. Without titles the
first heading is that of the content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.data.sentences import list_sentences
from rag_jax.data.words import count_words, take_words
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.systems.self_retrieval.config import ExamplesConfig
from rag_jax.training.rows import Row

TERMS = ("retrieval", "assessment")
_SENTENCE_WORDS = range(6, 50)  # of a sentence that indexes a passage, as in the released code
_NEGATIVE_CHARACTERS = 50  # a negative of the same document has more, as in the released code


@dataclass(frozen=True)
class Format:
    """The pieces of a text as tokens.

    Attributes:
        assessment: as in `ExamplesConfig`.
        max_text: number of tokens that are read of a passage.
    """

    tokenizer: Tokenizer
    titled: bool
    assessment: str
    max_text: int

    def encode_question(self, question: str) -> list[int]:
        """A question and the heading after it: that of the title, or of the content."""
        heading = "title" if self.titled else "content"
        text = " ".join(question.split())
        return self.tokenizer.encode_prompt(f"Question: {text}\n\n Related document {heading}:")

    def encode_title(self, title: str) -> list[int]:
        """A title and the heading of the content; nothing without titles."""
        if not self.titled:
            return []
        return self.tokenizer.encode(f" {' '.join(title.split())}") + self._heading

    def encode_text(self, text: str) -> list[int]:
        """A passage's text."""
        return self.tokenizer.encode(f" {' '.join(text.split())}")

    @cached_property
    def _heading(self) -> list[int]:
        return self.tokenizer.encode("\n Related document content:")

    def encode_sequence(self, passage: Passage) -> list[int]:
        """A passage as a sequence of the trie: title, heading and text."""
        return self.encode_title(passage.title) + self.encode_text(passage.text)

    def cut_title(self, tokens: list[int]) -> list[int]:
        """What `encode_title` gives up to the first token of the heading; no title goes on so."""
        return tokens[: len(tokens) - len(self._heading) + 1]

    def encode_reading(self, passage: Passage) -> list[int]:
        """A passage to be assessed, and the cue for the assessment."""
        cue = "Assessment" if self.assessment == "phrase" else "Final answer"
        read = self.encode_text(passage.text)[: self.max_text]
        return self.encode_title(passage.title) + read + self.tokenizer.encode(f"\n\n {cue}:")

    def encode_accept(self) -> list[int]:
        """The acceptance between a passage that answers a question and the answer."""
        if self.assessment == "answer":
            return []
        return self.tokenizer.encode(" can answer the query\n Final answer:")

    def encode_reject(self) -> list[int]:
        """The rejection of a passage that does not answer a question."""
        verb = "answer the query" if self.assessment == "phrase" else "extract answer"
        return self.tokenizer.encode(f" cannot {verb}")

    def encode_answer(self, answer: str) -> list[int]:
        """An answer and the token that ends it."""
        return [*self.tokenizer.encode(f" {answer.strip()}"), self.tokenizer.eos_id]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text that are long enough to find it by: of 6 to 49 words.

    A text without such a sentence counts as one sentence.
    """
    kept = [part for part in list_sentences(text) if count_words(part) in _SENTENCE_WORDS]
    return kept or [" ".join(text.split())]


def cut_target(format: Format, text: str, examples: ExamplesConfig) -> int:
    """Number of tokens of a passage's text that the model is trained to generate."""
    if examples.target == "passage":
        return len(format.encode_text(text)[: format.max_text])
    prefix = format.encode_text(take_words(text, examples.prefix_words))
    return min(len(prefix), format.max_text)


def make_index_rows(
    format: Format, passages: Sequence[Passage], examples: ExamplesConfig, *, seed: int
) -> Iterator[Row]:
    """Yields indexing rows: the model generates a sentence's passage (paper, section 3.1)."""
    for passage in passages:
        sentences = split_sentences(passage.text)
        rng = np.random.default_rng((seed, *passage.id.encode()))
        count = min(examples.sentences or len(sentences), len(sentences))
        for i in sorted(rng.permutation(len(sentences))[:count].tolist()):
            yield make_row(format, f"{passage.id}#{i}", sentences[i], passage, examples)


def make_row(
    format: Format,
    id: str,
    question: str,
    passage: Passage,
    examples: ExamplesConfig,
    *,
    assessed: list[int] | None = None,
) -> Row:
    """One training text: a question, a passage that is generated and, optionally, an assessment.

    Args:
        assessed: tokens after the cue: the acceptance and the answer. For a passage that does not
            answer, see `make_negative_row`.
    """
    tokens = format.encode_question(question)
    title = format.encode_title(passage.title)
    stop = len(tokens) + len(title) + cut_target(format, passage.text, examples)
    spans = {"retrieval": (len(tokens), stop)}
    if assessed is None:
        tokens += title + format.encode_text(passage.text)[: stop - len(tokens) - len(title)]
        return Row(id, tokens, spans)
    tokens += format.encode_reading(passage)
    spans["assessment"] = (len(tokens), len(tokens) + len(assessed))
    return Row(id, tokens + assessed, spans)


def make_negative_row(format: Format, id: str, question: str, passage: Passage) -> Row:
    """A question with a passage that does not answer it; only the rejection is trained."""
    tokens = format.encode_question(question) + format.encode_reading(passage)
    rejection = [*format.encode_reject(), format.tokenizer.eos_id]
    return Row(id, tokens + rejection, {"assessment": (len(tokens), len(tokens) + len(rejection))})


def make_question_rows(
    format: Format,
    question: Question,
    passages: dict[str, Passage],
    negatives: Sequence[Passage],
    examples: ExamplesConfig,
) -> Iterator[Row]:
    """Yields a question's rows: of each relevant passage, `examples.positives` times, and negative.

    Retrieval and assessment of a relevant passage are one text, read once.

    Args:
        passages: by id.
    """
    accepted = format.encode_accept() + format.encode_answer(question.answers[0])
    for id in filter(passages.__contains__, question.relevant):
        texts = f"{question.id}+{id}", question.question, passages[id]
        yield from [make_row(format, *texts, examples, assessed=accepted)] * examples.positives
    for passage in negatives:
        yield make_negative_row(format, f"{question.id}-{passage.id}", question.question, passage)


def choose_same(
    question: Question, documents: Sequence[Sequence[Passage]], *, count: int, seed: int
) -> list[Passage]:
    """Negatives drawn at random from the relevant passages' documents, as in the released code.

    Drawn are a document's passages of more than 50 characters that are not relevant and hold no
    answer (`add_neg_data.py`); all of them where there are fewer than `count`. The draw depends on
    the seed, the question and the documents, and on no other question.

    Args:
        documents: the passages of each document that has a relevant passage.
        count: number of negatives from each document.
    """
    rng, chosen = np.random.default_rng((seed, *question.id.encode())), []
    for document in documents:
        others = [p for p in document if p.id not in question.relevant]
        others = [p for p in others if len(p.text) > _NEGATIVE_CHARACTERS]
        others = [p for p in others if not has_answer(p.text, question.spoken_answers)]
        chosen += [others[i] for i in rng.permutation(len(others))[:count].tolist()]
    return chosen


def list_question_rows(
    format: Format,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    mined: Sequence[Sequence[int]],
    examples: ExamplesConfig,
    *,
    seed: int,
) -> Iterator[Row]:
    """Yields all questions' rows, with negatives of the same documents and of other documents.

    Args:
        mined: for each question rows of `passages` that BM25 ranks high and that do not answer it.
        seed: of the draw of negatives of the same documents.
    """
    row_of, by_title = _find_documents(questions, passages)
    for question, rows in zip(questions, mined, strict=True):
        by_id = {id: passages[row_of[id]] for id in question.relevant if id in row_of}
        titles = dict.fromkeys(passage.title for passage in by_id.values())
        documents = [[passages[row] for row in by_title[title]] for title in titles]
        others = [p for p in (passages[row] for row in rows) if p.title not in titles]
        negatives = choose_same(question, documents, count=examples.same, seed=seed)
        negatives += others[: examples.other]
        made = make_question_rows(format, question, by_id, negatives, examples)
        yield from [*made] * examples.repeats


def _find_documents(
    questions: Sequence[Question], passages: Sequence[Passage]
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Rows of the relevant passages by id, and of all passages by title, of the relevant titles.

    Of the corpus itself nothing is kept: it may be far larger than what questions are about.
    """
    wanted = {id for question in questions for id in question.relevant}
    row_of, by_title = {}, {}
    for row, passage in enumerate(passages):
        if passage.id in wanted:
            row_of[passage.id] = row
            by_title[passage.title] = []
    for row, passage in enumerate(passages):
        if passage.title in by_title:
            by_title[passage.title].append(row)
    return row_of, by_title


def describe_rows(rows: Sequence[Row]) -> dict[str, int]:
    """The number of rows and tokens of each task, and the longest row."""
    tasks = {
        "indexing": [row for row in rows if "assessment" not in row.spans],
        "positives": [row for row in rows if len(row.spans) == 2],
        "negatives": [row for row in rows if "retrieval" not in row.spans],
    }
    counts = {name: len(members) for name, members in tasks.items()}
    tokens = {f"{name}_tokens": sum(len(r.tokens) for r in m) for name, m in tasks.items()}
    return counts | tokens | {"longest": max(len(row.tokens) for row in rows)}
