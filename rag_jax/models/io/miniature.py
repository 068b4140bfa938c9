"""Published models in miniature: their kind and vocabulary, two layers, random weights.

Nothing of the published model is downloaded. What depends on the vocabulary costs what it costs
with the published model, and everything else next to nothing.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rag_jax.models.io.architectures import Config, make_model
from rag_jax.models.io.load import Pretrained, load_tokenizer
from rag_jax.models.io.save import save
from rag_jax.models.io.sizes import describe_params, find_sizes
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.files import read_json

# The model whose tokenizer stands in for the published one's, by kind of config.
TOKENIZERS = {
    DecoderConfig: "smollm2-135m-instruct",
    BartConfig: "smollm2-135m-instruct",
    BertConfig: "all-minilm-l6-v2",
}
_WIDTH, _FFN, _HEADS, LAYERS = 32, 64, 4, 2


def save_miniature(name: str, folder: Path, *, seed: int = 0) -> None:
    """Saves a published model in miniature as a folder for `load`.

    Its tokenizer is another model's with as many ids as the published one has: texts have about as
    many tokens.

    Raises:
        RagJaxError: the sizes of the published model are not known.
    """
    published = find_sizes(name)
    tokenizer = _resize(load_tokenizer(TOKENIZERS[type(published)]), published.vocab_size)
    config = _shrink(published, tokenizer)
    params = _draw(config, np.random.default_rng(seed))
    save(Pretrained(config, make_model(config), params, tokenizer, ""), folder)


def _shrink(config: Config, tokenizer: Tokenizer) -> Config:
    """The config of a small model of the same kind."""
    if isinstance(config, BertConfig):
        sizes = {"ffn_size": _FFN, "num_layers": LAYERS, "num_heads": _HEADS}
    elif isinstance(config, DecoderConfig):
        sizes = {"ffn_size": _FFN, "num_layers": LAYERS, "head_dim": _WIDTH // _HEADS}
        sizes |= dict.fromkeys(("num_heads", "num_kv_heads"), _HEADS)
        for name in ("sliding_layers", "unrotated_layers"):
            sizes[name] = tuple(i for i in getattr(config, name) if i < LAYERS)
    else:
        sides = ("encoder", "decoder")
        sizes = {f"{side}_layers": LAYERS for side in sides}
        sizes |= {f"{side}_heads": _HEADS for side in sides}
        sizes |= {f"{side}_ffn_size": _FFN for side in sides}
        sizes |= {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "pad", "eos")}
    return replace(config, hidden_size=_WIDTH, vocab_size=tokenizer.vocab_size, **sizes)


def _draw(config: Config, rng: np.random.Generator) -> PyTree[np.ndarray]:
    """Random parameters; scales of norms are 1."""

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        return 0.3 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, describe_params(config, jnp.float32))


def _resize(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """A tokenizer with `size` ids: without the rarest pieces, or with ids that no text has."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(folder, max_length=0)
        described = read_json(folder / "tokenizer.json")
        model = described["model"]
        kept = {piece: id for piece, id in model["vocab"].items() if id < size}
        ids = range(tokenizer.vocab_size, size)
        model["vocab"] = {**kept, **{f"[unused {id}]": id for id in ids}}
        if "merges" in model:  # of pairs of pieces; a WordPiece tokenizer has none
            merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
            model["merges"] = [pair for pair in merges if "".join(pair) in kept]
        (folder / "tokenizer.json").write_text(json.dumps(described), "utf-8")
        stops = [id for id in tokenizer.stop_ids if id < size]
        return Tokenizer.from_folder(folder, stop_ids=stops)
