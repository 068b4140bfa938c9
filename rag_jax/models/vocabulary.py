"""New tokens for a model that is already trained."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp

from rag_jax.errors import RagJaxError
from rag_jax.models.decoder import Decoder
from rag_jax.models.load import Pretrained


def grow_vocabulary(pretrained: Pretrained, names: Sequence[str]) -> Pretrained:
    """Adds special tokens to a decoder with tied embeddings; their ids follow the last one.

    A new token starts from the mean of all embeddings: near no word in particular, and its logit
    starts near the average one (Hewitt 2021, "Initializing new word embeddings").

    Raises:
        RagJaxError: a name is taken, or the model's embeddings aren't tied.
    """
    config = pretrained.config
    if not config.tie_embeddings:
        raise RagJaxError("new tokens need a model whose input and output embeddings are tied")
    tokenizer = pretrained.tokenizer.add_special_tokens(names)
    table = pretrained.params["embed"]["embedding"]
    mean = table.mean(axis=0, keepdims=True, dtype=jnp.float32).astype(table.dtype)
    table = jnp.concatenate([table, jnp.repeat(mean, len(names), axis=0)])
    config = replace(config, vocab_size=config.vocab_size + len(names))
    params = {**pretrained.params, "embed": {"embedding": table}}
    return replace(
        pretrained, config=config, model=Decoder(config), params=params, tokenizer=tokenizer
    )
