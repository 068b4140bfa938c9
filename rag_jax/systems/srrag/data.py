"""The packed sequence (Wu et al. 2025, section 3).

Every piece is encoded on its own, so that training and inference see the same tokens:

    Question: {question} Background knowledge:<EOQ><source> {knowledge}<EOK> Answer: {answer}

with one source token a source, `<Self>` and `<Wiki>` by default, and the tokenizer's end-of-text
behind the answer. The paper prints no exact spacing; this one keeps every special token between
words that carry their own leading space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rag_jax.models.tokenizer import Tokenizer
from rag_jax.systems.srrag.config import SourceConfig
from rag_jax.training.rows import Row

TERMS = ("source", "verbalisation", "answer")


@dataclass(frozen=True)
class Format:
    """The pieces of the packed sequence as tokens; `tokenizer` already has the special tokens, and
    of a passage's text `max_text` tokens are read."""

    tokenizer: Tokenizer
    sources: tuple[SourceConfig, ...]
    max_text: int

    @property
    def source_ids(self) -> tuple[int, ...]:
        return tuple(self.tokenizer.token_id(source.token) for source in self.sources)

    @property
    def internal(self) -> int:
        """The number of the source that is the model itself."""
        return [source.kind for source in self.sources].index("verbalise")

    @property
    def end_of_knowledge(self) -> int:
        return self.tokenizer.token_id("<EOK>")

    @property
    def stop_ids(self) -> tuple[int, int]:
        return (self.end_of_knowledge, self.tokenizer.eos_id)

    def encode_question(self, question: str) -> list[int]:
        text = f"Question: {question} Background knowledge:"
        return [*self.tokenizer.encode(text), self.tokenizer.token_id("<EOQ>")]

    def shorten(self, text: str) -> str:
        """A passage's text as far as it is read."""
        return self.tokenizer.shorten(text, self.max_text)

    def encode_knowledge(self, text: str) -> list[int]:
        return self.tokenizer.encode(f" {text}")

    def encode_answer_cue(self) -> list[int]:
        return [self.end_of_knowledge, *self.tokenizer.encode(" Answer:")]

    def encode_answer(self, answer: str) -> list[int]:
        return [*self.tokenizer.encode(f" {answer}"), self.tokenizer.eos_id]


def special_tokens(sources: Sequence[SourceConfig]) -> list[str]:
    """The names of the tokens that the vocabulary needs."""
    return ["<EOQ>", "<EOK>", *(source.token for source in sources)]


def render_passage(title: str, text: str) -> str:
    """A passage as text, with its title where it has one."""
    return f"{title}: {text}" if title else text


def join_passages(passages: Sequence[tuple[str, str]]) -> str:
    """A knowledge block of (title, text) passages: `[1] title: text [2] title: text`."""
    return " ".join(f"[{i}] {render_passage(*passage)}" for i, passage in enumerate(passages, 1))


def make_row(
    form: Format, id: str, question: str, source: int, knowledge: str | None, answer: str | None
) -> Row:
    """Packs one question.

    The verbalisation term covers `<EOK>` too, or the model would never learn to stop writing. It
    is there only where the source is the model itself.

    Args:
        knowledge: None leaves it out; the answer follows at once.
        answer: None packs the sequence up to `<EOK>`, for the rejected side of a preference pair.
    """
    tokens = form.encode_question(question)
    spans = {"source": (len(tokens), len(tokens) + 1)}
    tokens.append(form.source_ids[source])
    start = len(tokens)
    if knowledge is not None:
        tokens += form.encode_knowledge(knowledge)
    if form.sources[source].kind == "verbalise" and knowledge is not None:
        spans["verbalisation"] = (start, len(tokens) + 1)
    if answer is None:
        return Row(id, [*tokens, form.end_of_knowledge], spans)
    tokens += form.encode_answer_cue()
    start = len(tokens)
    tokens += form.encode_answer(answer)
    spans["answer"] = (start, len(tokens))
    return Row(id, tokens, spans)
