"""New tokens for a model that is already trained, and room in its tables for a mesh."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from rag_jax.models.io.load import Pretrained
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.runtime.errors import RagJaxError


def grow_vocabulary(
    pretrained: Pretrained, names: Sequence[str], *, multiple: int = 1
) -> Pretrained:
    """Adds special tokens to a decoder; their ids follow the tokenizer's last.

    A new token starts from the mean of all embeddings: near no word in particular, and its logit
    starts near the average one (Hewitt 2021, "Initializing new word embeddings"). A head of its
    own grows in the same way. Rows that no token had are dropped, for they would come between old
    and new ids.

    Args:
        names: of the new tokens; none to pad only.
        multiple: rows of padding are added up to a multiple of this, so that a mesh divides the
            table. They are the mean as well, and `DecoderConfig.vocab_padding` keeps them from
            ever being generated.

    Raises:
        RagJaxError: a name is taken, or the model is no decoder.
    """
    config = pretrained.config
    if not isinstance(config, DecoderConfig):
        raise RagJaxError("only a decoder gets new tokens")
    first = pretrained.tokenizer.vocab_size
    tokenizer = pretrained.tokenizer.add_special_tokens(names)
    for i, name in enumerate(names):
        if tokenizer.token_id(name) != first + i:
            raise RagJaxError(f"new tokens: {name!r} is taken or named twice; choose another name")
    tokens = first + len(names)
    padding = -tokens % multiple
    config = replace(config, vocab_size=tokens + padding, vocab_padding=padding)

    def grow(rows: Float[Array, "V D"]) -> Float[Array, "W D"]:
        rows = rows[:first]
        mean = rows.mean(axis=0, keepdims=True, dtype=jnp.float32).astype(rows.dtype)
        return jnp.concatenate([rows, jnp.repeat(mean, config.vocab_size - first, axis=0)])

    params = {**pretrained.params}
    params["embed"] = {"embedding": grow(params["embed"]["embedding"])}
    if not config.tie_embeddings:
        params["head"] = {"kernel": grow(params["head"]["kernel"].T).T}
    model = pretrained.model.clone(config=config)
    return replace(pretrained, config=config, model=model, params=params, tokenizer=tokenizer)


def take_tokens(params: dict, ids: Sequence[int]) -> dict:
    """What belongs to some tokens alone: their embeddings `[n, D]`, and columns `[D, n]` of a head.

    Returns:
        A tree with the paths of `params`, for `put_tokens`.
    """
    ids = jnp.asarray(ids)
    taken = {"embed": {"embedding": params["embed"]["embedding"][ids]}}
    if "head" in params:
        taken["head"] = {"kernel": params["head"]["kernel"][:, ids]}
    return taken


def put_tokens(params: dict, taken: dict, ids: Sequence[int]) -> dict:
    """The parameters with what `take_tokens` took, or what became of it, in place."""
    ids = jnp.asarray(ids)
    table = params["embed"]["embedding"].at[ids].set(taken["embed"]["embedding"])
    params = {**params, "embed": {"embedding": table}}
    if "head" in params:
        kernel = params["head"]["kernel"].at[:, ids].set(taken["head"]["kernel"])
        params["head"] = {**params["head"], "kernel": kernel}
    return params
