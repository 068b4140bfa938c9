"""Texts as encoders read them: titles, prompts and special tokens."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rag_jax.config import EncoderConfig, build
from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.models.io.sentence import Sentence
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.pooling import MEAN
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.cuts import report_cut
from rag_jax.runtime.errors import RagJaxError

Role = Literal["query", "document"]

_logger = logging.getLogger(__name__)


def list_texts(passages: Iterable[Passage]) -> list[str | tuple[str, str]]:
    """Texts of passages as encoders read them, by `make_text`."""
    return list(map(make_text, passages))


def make_text(passage: Passage) -> str | tuple[str, str]:
    """Text of a passage as encoders and BM25 read it: (title, text), or the text if untitled.

    An empty title would add a separator, which encoders did not see before untitled passages in
    training.

    Raises:
        TypeError: it is no `Passage`.
    """
    if not isinstance(passage, Passage):
        raise TypeError(
            f"{passage!r} is no Passage: read a corpus, or use Passage(id, title, text)"
        )
    return (passage.title, passage.text) if passage.title else passage.text


def configure_encoder(encoder: Pretrained, settings: EncoderConfig) -> Pretrained:
    """The encoder with the prompts and dimensions of the settings in place of its files' own.

    Its fingerprint says so.

    Raises:
        RagJaxError: a setting is wrong, an embedding has fewer features, or is DPR's, which has no
            prompts.
    """
    settings = build(type(settings), vars(settings), path="settings")
    prompts = {"query": settings.query_prompt, "document": settings.passage_prompt}
    prompts = {role: prompt for role, prompt in prompts.items() if prompt is not None}
    own = extend_fingerprint(encoder.fingerprint, settings)
    if own == encoder.fingerprint:
        return encoder
    if getattr(encoder.config, "dpr_role", None) is not None:
        raise RagJaxError("DPR's encoders have no prompts, and no dimensions to choose")
    sentence, most = encoder.sentence or Sentence(), encoder.model.embedding_size
    if (settings.dimensions or 0) > most:
        raise RagJaxError(f"dimensions is {settings.dimensions}: an embedding has {most}")
    sentence = replace(sentence, prompts={**sentence.prompts, **prompts})
    pooling = replace(encoder.model.pooling or MEAN, dimensions=settings.dimensions)
    model = encoder.model.clone(pooling=pooling)
    return replace(encoder, model=model, sentence=sentence, fingerprint=own)


def extend_fingerprint(fingerprint: str, settings: EncoderConfig) -> str:
    """The fingerprint of an encoder's files with what the settings change of its embeddings."""
    changes = settings.query_prompt, settings.passage_prompt, settings.dimensions
    if changes == (None, None, None):
        return fingerprint
    return hashlib.sha256(json.dumps([fingerprint, *changes]).encode()).hexdigest()


@dataclass(frozen=True)
class TextReading:
    """How texts become the tokens that an encoder reads.

    Attributes:
        prompt: what stands before every text.
        skipped: number of first tokens that its pooling leaves out.
        separates: whether a title is a text of its own, or stands before the text with a blank.
        lower_case: whether texts are put in lower case, as the prompt is already.
    """

    tokenizer: Tokenizer
    prompt: str = ""
    skipped: int = 0
    separates: bool = True
    lower_case: bool = False

    def encode(self, parts: tuple[str, ...], max_length: int) -> list[int]:
        """The token ids of a text, or a title and a text, cut to `max_length`."""
        if not self.separates:
            parts = (" ".join(parts),)
        first, *rest = (part.lower() for part in parts) if self.lower_case else parts
        pair = rest[0] if rest else None
        encode = self.tokenizer.encode_with_specials
        return encode(self.prompt + first, max_length=max_length, pair=pair)


def read_texts(encoder: Pretrained, role: Role | None = None) -> TextReading:
    """How an encoder reads the texts of a role.

    A title is a text of its own for an encoder that separates two texts and has no prompts, as
    DPR's encoders were trained. With prompts a text is one piece, in training too.

    Raises:
        RagJaxError: there is no such role.
    """
    tokenizer, sentence = encoder.tokenizer, encoder.sentence or Sentence()
    prompt = sentence.find_prompt(role)
    prompt = prompt.lower() if sentence.lower_case else prompt
    pooling, skipped = encoder.model.pooling, 0
    if prompt and pooling is not None and not pooling.include_prompt:
        row = tokenizer.encode_with_specials(prompt, max_length=encoder.config.max_length)
        skipped = len(row) - tokenizer.count_tokens_after()
    separates = not (isinstance(encoder.model, Decoder) or sentence.prompts)
    return TextReading(tokenizer, prompt, skipped, separates, sentence.lower_case)


def tokenize_texts(
    encoder: Pretrained,
    texts: Sequence[str | tuple[str, str]],
    max_length: int,
    *,
    role: Role | None = None,
) -> list[list[int]]:
    """Token ids of each text, or (title, text) pair, with special tokens and prompt.

    A pair is `[CLS] title [SEP] text [SEP]` with a single token type, as in the training of DPR
    (MiniLM saw single texts only), or `title text` in one piece: see `read_texts`.

    Args:
        max_length: maximum number of tokens of a text, special tokens included. Longer texts are
            cut, and their number is logged as a warning.
        role: as for `encode_texts`.

    Raises:
        RagJaxError: a text is neither a string nor a pair of strings, there is no such role, or
            `max_length` is too small for the special tokens.
    """
    return list(tokenize_with(read_texts(encoder, role), texts, max_length))


def tokenize_with(
    reading: TextReading, texts: Iterable[str | tuple[str, str]], max_length: int
) -> Iterator[list[int]]:
    """Yields the token ids of each text; see `tokenize_texts`."""
    if isinstance(texts, str):
        raise RagJaxError("texts is one string: pass a list of texts")
    num_cut, i = 0, -1
    for i, text in enumerate(texts):
        parts = (text,) if isinstance(text, str) else tuple(text) if is_pair(text) else None
        if parts is None:
            raise RagJaxError(f"text {i} is neither a string nor a (title, text) pair of strings")
        # A limit of one more token distinguishes a text that is too long from one that just fits.
        row = reading.encode(parts, max_length + 1)
        if len(row) > max_length:
            num_cut += 1
            row = reading.encode(parts, max_length)
        yield row
    report_cut(_logger, "texts", cut=num_cut, count=i + 1, max_length=max_length)


def is_pair(text: Any) -> bool:
    """Whether a value is two strings."""
    is_sequence = isinstance(text, (tuple, list)) and len(text) == 2
    return is_sequence and all(isinstance(part, str) for part in text)


def tokenize_for_training(
    encoder: Pretrained,
    texts: Sequence[str | tuple[str, str]],
    max_length: int,
    *,
    role: Role,
) -> list[list[int]]:
    """As `tokenize_texts`.

    Raises:
        RagJaxError: the encoder leaves its prompt out of an embedding, which is not trained here.
    """
    reading = read_texts(encoder, role)
    if reading.skipped:
        raise RagJaxError(
            "the encoder leaves its prompts' tokens out of an embedding (include_prompt is false), "
            "with which it cannot be trained: set query_prompt='' and passage_prompt=''"
        )
    return list(tokenize_with(reading, texts, max_length))
