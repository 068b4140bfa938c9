"""New tokens for a model that is already trained."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp

from rag_jax.errors import RagJaxError
from rag_jax.models.load import Pretrained


def grow_vocabulary(pretrained: Pretrained, names: Sequence[str]) -> Pretrained:
    """Adds special tokens to a decoder with tied embeddings; their ids follow the tokenizer's last.

    A new token starts from the mean of all embeddings: near no word in particular, and its logit
    starts near the average one (Hewitt 2021, "Initializing new word embeddings").

    Raises:
        RagJaxError: a name is taken, or the model's embeddings aren't tied.
    """
    config = pretrained.config
    if not config.tie_embeddings:
        raise RagJaxError("new tokens need a model whose input and output embeddings are tied")
    first = pretrained.tokenizer.vocab_size
    tokenizer = pretrained.tokenizer.add_special_tokens(names)
    for i, name in enumerate(names):
        if tokenizer.token_id(name) != first + i:
            raise RagJaxError(f"new tokens: {name!r} is taken or named twice; choose another name")
    # Some tables are padded with rows that no token has: they would come between old and new ids.
    table = pretrained.params["embed"]["embedding"][:first]
    mean = table.mean(axis=0, keepdims=True, dtype=jnp.float32).astype(table.dtype)
    table = jnp.concatenate([table, jnp.repeat(mean, len(names), axis=0)])
    config = replace(config, vocab_size=first + len(names))
    params = {**pretrained.params, "embed": {"embedding": table}}
    model = pretrained.model.clone(config=config)
    return replace(pretrained, config=config, model=model, params=params, tokenizer=tokenizer)
