"""What the model reads and writes: prompts, titles, passages, assessments; rows to train on.

A text is laid out as in the released code, in plain words without new tokens, and every piece is
encoded on its own, so that training, trie and inference see the same tokens:

    Question: {question}

     Related document title: {title}
     Related document content: {text}

     Assessment: can answer the query
     Final answer: {answer}

or, where the answer is the assessment, `Final answer: {answer}` behind the text. Without titles the
first heading is that of the content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.data.sentences import list_sentences
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.systems.self_retrieval.config import ExamplesConfig
from rag_jax.training.rows import Row

TERMS = ("retrieval", "assessment")
_SENTENCE_WORDS = range(6, 50)  # of a sentence that indexes a passage, as in the released code


@dataclass(frozen=True)
class Format:
    """The pieces of a text as tokens.

    Attributes:
        titled: whether a passage's title comes before it.
        assessment: as in `ExamplesConfig`.
        max_text: tokens that are read of a passage.
    """

    tokenizer: Tokenizer
    titled: bool
    assessment: str
    max_text: int

    def encode_question(self, question: str) -> list[int]:
        """A question and the heading of what is to be found for it."""
        heading = "title" if self.titled else "content"
        text = " ".join(question.split())
        return self.tokenizer.encode(f"Question: {text}\n\n Related document {heading}:")

    def encode_title(self, title: str) -> list[int]:
        """A title and the heading of the content; nothing without titles."""
        if not self.titled:
            return []
        return self.tokenizer.encode(f" {' '.join(title.split())}") + self._heading

    def encode_text(self, text: str) -> list[int]:
        """A passage's text."""
        return self.tokenizer.encode(f" {' '.join(text.split())}")

    @property
    def _heading(self) -> list[int]:
        return self.tokenizer.encode("\n Related document content:")

    def encode_sequence(self, passage: Passage) -> list[int]:
        """A passage as the trie has it: title, heading and text."""
        return self.encode_title(passage.title) + self.encode_text(passage.text)

    def encode_title_end(self, title: str) -> list[int]:
        """A title up to the first token of the heading, which no longer title shares."""
        tokens = self.encode_title(title)
        return tokens[: len(tokens) - len(self._heading) + 1]

    def encode_reading(self, passage: Passage) -> list[int]:
        """A passage to be assessed, and the cue to do so."""
        cue = "Assessment" if self.assessment == "phrase" else "Final answer"
        read = self.encode_text(passage.text)[: self.max_text]
        return self.encode_title(passage.title) + read + self.tokenizer.encode(f"\n\n {cue}:")

    def encode_accept(self) -> list[int]:
        """What comes between a passage that answers and its answer."""
        if self.assessment == "answer":
            return []
        return self.tokenizer.encode(" can answer the query\n Final answer:")

    def encode_reject(self) -> list[int]:
        """What is said of a passage that does not answer."""
        phrase = "cannot answer the query"
        if self.assessment == "answer":
            phrase = "cannot extract answer"
        return self.tokenizer.encode(f" {phrase}")

    def encode_answer(self, answer: str) -> list[int]:
        """An answer and the token that ends it."""
        return [*self.tokenizer.encode(f" {answer.strip()}"), self.tokenizer.eos_id]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text that say enough to find it by: of 6 to 49 words.

    Where none is of that length the text is one.
    """
    kept = [part for part in list_sentences(text) if len(part.split()) in _SENTENCE_WORDS]
    return kept or [" ".join(text.split())]


def cut_target(form: Format, text: str, examples: ExamplesConfig) -> int:
    """How many tokens of a passage's text are trained to be generated."""
    if examples.target == "passage":
        return len(form.encode_text(text)[: form.max_text])
    return len(form.encode_text(" ".join(text.split()[: examples.prefix_words])))


def make_index_rows(
    form: Format, passages: Sequence[Passage], examples: ExamplesConfig, *, seed: int
) -> Iterator[Row]:
    """Yields rows in which a sentence calls for its passage (paper, section 3.1)."""
    for passage in passages:
        sentences = split_sentences(passage.text)
        rng = np.random.default_rng((seed, *passage.id.encode()))
        count = min(examples.sentences or len(sentences), len(sentences))
        for i in sorted(rng.permutation(len(sentences))[:count].tolist()):
            yield make_row(form, f"{passage.id}#{i}", sentences[i], passage, examples)


def make_row(
    form: Format,
    id: str,
    question: str,
    passage: Passage,
    examples: ExamplesConfig,
    *,
    assessed: list[int] | None = None,
) -> Row:
    """One text: a question, a passage that is generated for it and, if `assessed`, a judgement.

    Args:
        assessed: tokens behind the cue: the acceptance and the answer. Behind a negative, see
            `make_negative_row`.
    """
    tokens = form.encode_question(question)
    title = form.encode_title(passage.title)
    stop = len(tokens) + len(title) + cut_target(form, passage.text, examples)
    spans = {"retrieval": (len(tokens), stop)}
    if assessed is None:
        tokens += title + form.encode_text(passage.text)[: stop - len(tokens) - len(title)]
        return Row(id, tokens, spans)
    tokens += form.encode_reading(passage)
    spans["assessment"] = (len(tokens), len(tokens) + len(assessed))
    return Row(id, tokens + assessed, spans)


def make_negative_row(form: Format, id: str, question: str, passage: Passage) -> Row:
    """A question with a passage that does not answer it: the rejection alone is trained."""
    tokens = form.encode_question(question) + form.encode_reading(passage)
    rejection = [*form.encode_reject(), form.tokenizer.eos_id]
    return Row(id, tokens + rejection, {"assessment": (len(tokens), len(tokens) + len(rejection))})


def make_question_rows(
    form: Format,
    question: Question,
    passages: dict[str, Passage],
    negatives: Sequence[Passage],
    examples: ExamplesConfig,
) -> Iterator[Row]:
    """Yields a question's rows: with each relevant passage and its answer, and with negatives.

    Retrieval and assessment of a relevant passage are one text, read once.

    Args:
        passages: by id.
        negatives: passages that do not answer.
    """
    accepted = form.encode_accept() + form.encode_answer(question.answers[0])
    for id in question.relevant:
        yield make_row(
            form,
            f"{question.id}+{id}",
            question.question,
            passages[id],
            examples,
            assessed=accepted,
        )
    for passage in negatives:
        yield make_negative_row(form, f"{question.id}-{passage.id}", question.question, passage)


def choose_same(question: Question, passages: Sequence[Passage], *, count: int) -> list[Passage]:
    """Negatives of the relevant passages' documents: passages of these titles without an answer.

    Args:
        passages: those of the relevant titles.
    """
    wrong = [
        p
        for p in passages
        if p.id not in question.relevant and not has_answer(p.text, question.answers)
    ]
    return wrong[:count]
