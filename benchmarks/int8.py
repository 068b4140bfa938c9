"""Perplexity of a model on this project's pages, with its own weights and with layers in int8.

    python benchmarks/int8.py MODEL [--rows=8] [--width=512]

MODEL is a published name or a folder. README and docs are tokenized one page after the other and
cut to rows of `--width` tokens, of which `--rows` at equal distances are read; a row's first token
is not predicted. Weights and activations are float32. The result is kept by the model's name in
`benchmarks/results/int8_cpu.json`.
"""

import argparse
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.losses import hidden_logprobs
from rag_jax.models import Pretrained, load
from rag_jax.models.int8 import quantize_layers
from rag_jax.models.nn.decoder import Decoder

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "int8_cpu.json"


def main() -> None:
    """Prints and keeps both perplexities."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    lm = load(arguments.model, dtype=jnp.float32)
    rows = cut_pages(lm, arguments.rows, arguments.width)
    read = jax.jit(partial(score, lm.model))
    own = [np.asarray(read(lm.params, row)) for row in rows]
    # The float32 kernels are given up before the other reading.
    lm = replace(lm, params=quantize_layers(lm.params))
    int8 = [np.asarray(read(lm.params, row)) for row in rows]
    differences = np.concatenate(own) - np.concatenate(int8)
    error = 1.96 * differences.std(ddof=1) / math.sqrt(len(differences))
    record = {
        "tokens": len(differences),
        "float32": float(np.exp(-np.concatenate(own).mean())),
        "int8": float(np.exp(-np.concatenate(int8).mean())),
        "nats_lost": [float(differences.mean()), float(error)],
    }
    print(record)
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    found[Path(arguments.model).name] = record
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def cut_pages(lm: Pretrained, count: int, width: int) -> Int[Array, "R 1 T"]:
    """Rows of the pages' tokens, at equal distances."""
    pages = ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))
    tokens = [token for page in pages for token in lm.tokenizer.encode(page.read_text("utf-8"))]
    whole = len(tokens) // width
    chosen = np.linspace(0, whole - 1, count).astype(int)
    return jnp.asarray([[tokens[i * width : (i + 1) * width]] for i in chosen])


def score(model: Decoder, params: PyTree, tokens: Int[Array, "1 T"]) -> Float[Array, "T-1"]:
    """Log-probabilities in nats of every token after the first."""
    hidden = model.apply({"params": params}, tokens, method="hidden").hidden
    to_logits = partial(model.apply, {"params": params}, method="logits")
    options = {"vocab_size": model.config.vocab_size}
    return hidden_logprobs(to_logits, hidden[:, :-1], tokens[:, 1:], **options)[0]


if __name__ == "__main__":
    main()
