"""A pretrained model from a folder or a name: config, module, parameters and tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from rag_jax.models.io.configs import read_config, read_gguf_config
from rag_jax.models.io.gguf_file import read_gguf
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.io.tensors import find_weights, read_safetensors
from rag_jax.models.io.weights import build_params
from rag_jax.models.nn.bart import Bart, BartConfig
from rag_jax.models.nn.bert import Bert, BertConfig
from rag_jax.models.nn.decoder import Decoder, DecoderConfig
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import Rules


@dataclass(frozen=True)
class Pretrained:
    """A model with its weights.

    Attributes:
        config: its sizes.
        model: the Flax module; `model.apply({"params": params}, tokens)` gives logits `[B, T, V]`
            for a decoder, `apply({"params": params}, tokens, mask)` hidden states `[B, T, D]` for
            an encoder, and `apply({"params": params}, input_tokens, decoder_tokens)` logits
            `[B, T, V]` for an encoder-decoder.
        params: plain nested dict of arrays.
        tokenizer: the one the model was trained with.
        fingerprint: SHA-256 over the files it came from.
    """

    config: DecoderConfig | BertConfig | BartConfig
    model: Decoder | Bert | Bart
    params: dict
    tokenizer: Tokenizer
    fingerprint: str


def load(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> Pretrained:
    """Loads a model.

    Args:
        name_or_path: a folder in Hugging Face's layout (safetensors, sharded or not) or with one
            GGUF file, the name of a known model, or a name on the hub; see `hub.resolve`.
        dtype: NumPy or JAX dtype of the parameters, float32 by default.
        mesh: splits every tensor over its devices as it is read, so that no device and no host
            ever holds the whole model; None for one device.
        rules: how; by default the family's own, in `rag_jax.runtime.sharding`.

    Raises:
        RagJaxError: the model cannot be found or fetched, a file is damaged, the architecture is
            not supported, or the tensors do not fit the config (all of them listed).
    """
    folder = resolve(name_or_path)
    files = find_weights(folder)
    if files[0].suffix == ".gguf":
        stored = read_gguf(files[0])
        tensors = stored.tensors
        config = read_gguf_config(stored.metadata, tensors, path=files[0])
        tokenizer = Tokenizer.from_gguf(stored.metadata, source=str(files[0]))
    else:
        config = read_config(folder / "config.json")
        tensors = read_safetensors(files)
        tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.vocab_size:
        # JAX clamps an index that is out of range: the model would read another token's vector.
        raise RagJaxError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids, but the config's "
            f"vocab_size is {config.vocab_size}"
        )
    modules = {DecoderConfig: Decoder, BertConfig: Bert, BartConfig: Bart}
    model = modules[type(config)](config)
    params = build_params(
        config, tensors, dtype=dtype, mesh=mesh, rules=rules, source=f"the weights in {folder}"
    )
    return Pretrained(config, model, params, tokenizer, fingerprint(folder))
