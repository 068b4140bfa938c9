"""Token embeddings of texts, by a late-interaction encoder."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.data.token_rows import TokenRows
from rag_jax.models import MultiVectorEncoder
from rag_jax.models.io.architectures import Encoder
from rag_jax.models.nn.pooling import Dense, run_steps
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.retrieval.encode import check_sizes, choose_text_widths, pad_texts, run_batches
from rag_jax.retrieval.texts import Role, TextReading, tokenize_with
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.sharding import shard_batch


@dataclass(frozen=True, eq=False)
class TokenVectors(Sequence[Float[np.ndarray, "T E"]]):
    """Token embeddings of texts: one array, of which a text's are a slice.

    Attributes:
        vectors: embeddings of all tokens, one text after the other.
        starts: where each text's begin, and the end of the last one's.
    """

    vectors: Float[np.ndarray, "P E"]
    starts: Int[np.ndarray, "N+1"]

    @classmethod
    def join(cls, texts: Sequence[Float[np.ndarray, "T E"]]) -> "TokenVectors":
        """The embeddings of some texts, at least one, each `[T, E]`."""
        return cls(np.concatenate(texts), np.cumsum([0, *map(len, texts)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, text: int) -> Float[np.ndarray, "T E"]:
        if not 0 <= text < len(self):
            raise IndexError(f"no text {text} among {len(self)}")
        return self.vectors[self.starts[text] : self.starts[text + 1]]


@checked
def encode_tokens(
    encoder: MultiVectorEncoder,
    texts: Iterable[str | tuple[str, str]],
    *,
    role: Role,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> TokenVectors:
    """Embeddings of the tokens of questions ("query") or passages ("document"), in float32.

    Texts have the role's prompt, length and, for questions, expansion of the encoder's settings. A
    title stands before its text with a blank.

    Args:
        texts: as for `encode_texts`, as are `batch_size` and `progress`.

    Raises:
        RagJaxError: as `encode_texts`.
    """
    rows, read, kept = _tokenize(encoder, texts, role)
    check_sizes(encoder.base, batch_size, 0)
    starts = np.cumsum([0, *(int(own.sum()) for own in kept)])
    vectors = np.empty((starts[-1], encoder.width), np.float32)

    def run(indices: list[int], shape: tuple[int, int]) -> Array:
        tokens, attended = pad_texts([rows[i] for i in indices], *shape)
        attended[: len(indices)] = read[indices]
        static = encoder.base.model, encoder.settings.steps
        return embed_token_batch(*static, encoder.base.params, *shard_batch((tokens, attended)))

    lengths = rows.lengths
    batches = run_batches(lengths, run, batch_size, choose_text_widths(lengths), progress)
    for indices, values in batches:
        for i, value in zip(indices, values, strict=True):
            vectors[starts[i] : starts[i + 1]] = value[: lengths[i]][kept[i]]
    return TokenVectors(vectors, starts)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def embed_token_batch(
    model: Encoder,
    steps: tuple[Dense | Literal["normalize"], ...],
    params: PyTree,
    tokens: Int[Array, "B T"],
    attended: Int[Array, "B"],
) -> Float[Array, "B T E"]:
    """Token embeddings of rows, whose first `attended` tokens all tokens attend to, at least 1."""
    mask = jnp.arange(tokens.shape[1])[None] < attended[:, None]
    hidden = model.apply({"params": params}, tokens, mask).astype(jnp.float32)
    x = run_steps(hidden.reshape(-1, hidden.shape[-1]), steps, params)  # [B * T, E]
    return x.reshape(*tokens.shape, -1)


def _tokenize(
    encoder: MultiVectorEncoder, texts: Iterable[Any], role: Role
) -> tuple[TokenRows, Int[np.ndarray, "N"], list[Bool[np.ndarray, "T"]]]:
    """The tokens of texts, how many of each are attended to, and which have an embedding."""
    sentence = encoder.base.sentence
    tokenizer = _Prompting(encoder.base.tokenizer, sentence.find_prompt(role))
    reading = TextReading(tokenizer, separates=False, lower_case=sentence.lower_case)
    rows = TokenRows(tokenize_with(reading, texts, encoder.lengths[role]))
    read = np.asarray(rows.lengths, np.int32)
    expansion = encoder.settings.expansion
    if role == "query" and expansion is not None:
        filling = [encoder.expansion_id] * expansion.length
        rows = TokenRows([*row, *filling[len(row) :]] for row in rows)
        read = np.asarray(rows.lengths, np.int32) if expansion.attends else read
    return rows, read, [~np.isin(row, encoder.skipped_ids[role]) for row in rows]


@dataclass(frozen=True)
class _Prompting:
    """A tokenizer that puts a prompt of the encoder's files before each text."""

    tokenizer: Tokenizer
    prompt: str

    def encode_with_specials(
        self, text: str, *, max_length: int, pair: str | None = None
    ) -> list[int]:
        options = {"max_length": max_length, "pair": pair, "prompt": self.prompt}
        return self.tokenizer.encode_with_specials(text, **options)
