"""Vocabulary growth of a trained decoder: new special tokens, and padding rows for a mesh."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rag_jax.models.io.load import Pretrained
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.runtime.arguments import check_token_row, checked
from rag_jax.runtime.errors import RagJaxError


@checked
def grow_vocabulary(
    pretrained: Pretrained, names: Sequence[str], *, multiple: int = 1
) -> Pretrained:
    """A copy of a decoder with more special tokens, with ids after the tokenizer's last id.

    A new token's embedding is the mean of all embeddings, so that its first logits are near the
    average logit (Hewitt 2021, "Initializing new word embeddings"). An untied output layer grows
    in the same way. Existing rows that belong to no token are dropped, because they would lie
    between the old and the new ids.

    Args:
        names: names of the new tokens; empty to add padding rows only.
        multiple: the table is padded with mean rows to a multiple of this number, so that a mesh
            divides it. `DecoderConfig.vocab_padding` keeps padding rows from being generated.

    Raises:
        RagJaxError: a name is taken or given twice, the names are one string, `multiple` is below
            1, or the model is not a decoder.
    """
    config = pretrained.config
    if isinstance(names, str):
        raise RagJaxError(f"names={names!r}: one string; give a list of names")
    if multiple < 1:
        raise RagJaxError(f"multiple={multiple}: must be at least 1")
    if not isinstance(config, DecoderConfig):
        raise RagJaxError("new tokens: the model must be a decoder; choose another base model")
    first = pretrained.tokenizer.vocab_size
    tokenizer = pretrained.tokenizer.add_special_tokens(names)
    for i, name in enumerate(names):
        if tokenizer.token_id(name) != first + i:
            raise RagJaxError(f"new tokens: {name!r} is taken or named twice; choose another name")
    num_tokens = first + len(names)
    padding = -num_tokens % multiple
    config = replace(config, vocab_size=num_tokens + padding, vocab_padding=padding)

    grow, params = partial(_grow, first=first, size=config.vocab_size), {**pretrained.params}
    params["embed"] = {"embedding": grow(params["embed"]["embedding"])}
    if not config.tie_embeddings:
        params["head"] = {"kernel": grow(params["head"]["kernel"].T).T}  # [D, V] -> [D, W]
    model = pretrained.model.clone(config=config)
    grown = {"config": config, "model": model, "params": params, "tokenizer": tokenizer}
    return replace(pretrained, **grown, reads_images=False)  # `save` writes the text model alone


# One program: each operation by itself would be compiled, and would copy the table.
@partial(jax.jit, static_argnames=("first", "size"))
def _grow(table: Float[Array, "V D"], *, first: int, size: int) -> Float[Array, "W D"]:
    """The first rows of a table, followed by their mean up to a number of rows.

    A tokenizer may have more tokens than the table rows, such as Gemma 3's for an image.
    """
    table = table[:first]
    mean = table.mean(axis=0, keepdims=True, dtype=jnp.float32).astype(table.dtype)
    return jnp.concatenate([table, jnp.repeat(mean, size - len(table), axis=0)])


@checked
def take_tokens(params: dict, ids: Sequence[int]) -> dict:
    """Parameters of `n` tokens of a decoder, for instance to train or to store them separately.

    Returns:
        A tree along the paths of `params`: embeddings `[n, D]` and, for an untied output layer,
        its columns `[D, n]`. `put_tokens` writes such a tree back.

    Raises:
        RagJaxError: `ids` is not a list of the decoder's token ids.
    """
    _check_ids(ids, params)
    ids = jnp.asarray(ids)
    taken = {"embed": {"embedding": params["embed"]["embedding"][ids]}}
    if "head" in params:
        taken["head"] = {"kernel": params["head"]["kernel"][:, ids]}
    return taken


@checked
def put_tokens(params: dict, taken: dict, ids: Sequence[int]) -> dict:
    """A copy of a decoder's parameters with the result `taken` of `take_tokens` put back.

    Raises:
        RagJaxError: `ids` is not a list of the decoder's token ids.
    """
    _check_ids(ids, params)
    ids = jnp.asarray(ids)
    table = params["embed"]["embedding"].at[ids].set(taken["embed"]["embedding"])
    params = {**params, "embed": {"embedding": table}}
    if "head" in params:
        kernel = params["head"]["kernel"].at[:, ids].set(taken["head"]["kernel"])
        params["head"] = {**params["head"], "kernel": kernel}
    return params


@checked
def overlay_tokens(params: dict, taken: dict, ids: Sequence[int]) -> dict:
    """As `put_tokens`, with the tokens' vectors beside the tables, which are shared, not copied.

    Gradients reach the vectors and leave the tables out. For `Decoder` alone, as nothing else reads
    what lies beside a table; `put_tokens` is for all else, such as saving.

    Raises:
        RagJaxError: `ids` is not a list of the decoder's token ids.
    """
    _check_ids(ids, params)
    ids = jnp.asarray(ids, jnp.int32)
    rows = taken["embed"]["embedding"]
    params = {**params, "embed": {**params["embed"], "rows": rows, "ids": ids}}
    if "head" in params:
        columns = taken["head"]["kernel"]
        params["head"] = {**params["head"], "columns": columns, "ids": ids}
    return params


def _check_ids(ids: Sequence[int], params: dict) -> None:
    if not isinstance(ids, jax.core.Tracer):
        check_token_row("ids", ids, len(params["embed"]["embedding"]))
