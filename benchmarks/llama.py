"""One row's greedy decoding against llama.cpp on the same GGUF file, and products by int8 weights.

    pip install -e '.[bench]' llama-cpp-python && python benchmarks/llama.py [--out=FILE]

llama.cpp is what one user on a CPU would take: it multiplies by the file's packed blocks, where
this library reads float32 weights. Both continue the same prompts by as many tokens; llama.cpp
rounds activations to int8, so that the tokens may part, and the share of equal ones is printed.

Further cases are products of one row with weights in float32, and in int8 as XLA makes them: of the
feed-forward kernels of all layers, and of the output layer. Takes a minute on two CPU cores;
llama-cpp-python compiles for ten when it is installed.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import bench
import jax
import jax.numpy as jnp
import llama_cpp
import numpy as np

from rag_jax.decoding import generate
from rag_jax.models import load
from rag_jax.models.int8 import quantize
from rag_jax.models.io.hub import resolve

NAME = "smollm2-135m-instruct"
NEW = 64  # tokens written
TEXT = "The harbour of the old town was built by merchants, and its lighthouse"


def main() -> None:
    """Runs every case and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    ours = load(NAME)
    cases = {
        "one row": lambda: compare_decoding(ours),
        "a row, feed-forward kernels": lambda: compare_layers(ours),
        "a row, output layer": lambda: compare_head(ours),
    }
    bench.run_cases(arguments, cases, ("jax", "llama_cpp_python"))


def compare_decoding(ours: Any) -> bench.Compared:
    """Greedy decoding of `NEW` tokens after one prompt."""
    (file,) = resolve(NAME).glob("*.gguf")
    threads = os.cpu_count()
    theirs = llama_cpp.Llama(
        str(file), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    prompt = ours.tokenizer.encode(TEXT)

    def run_ours():
        return generate(ours.model, ours.params, [prompt], max_tokens=NEW, stop_ids=())[0]

    def run_theirs():
        theirs.reset()
        written = theirs.generate(prompt, top_k=1, temp=0.0, repeat_penalty=1.0)
        return [token for _, token in zip(range(NEW), written, strict=False)]

    compiling = bench.time_call(run_ours)
    same = np.asarray(run_ours()) == np.asarray(run_theirs())
    bench.require(bool(same[0]), "the first tokens differ")
    return {"ours": run_ours, "theirs": run_theirs}, {
        "compile_seconds": compiling,
        "same_tokens": float(same.mean()),
        "equal_at_first": int(np.cumprod(same).sum()),
        "tokens": NEW,
    }


def compare_layers(ours: Any) -> bench.Compared:
    """A row through the feed-forward kernels of all layers, in float32 and in int8."""
    layers = [tree["ffn"] for name, tree in ours.params.items() if name.startswith("layers_")]
    kernels = [[ffn[name]["kernel"] for name in ("gate", "up", "down")] for ffn in layers]
    quantized = [[quantize(kernel) for kernel in layer] for layer in kernels]

    def multiply(row, weight):
        return row @ weight

    def multiply_steps(row, weight):
        steps, scale = weight
        return row @ steps.astype(jnp.float32) * scale

    def run_layers(product, row, weights):
        # Of the same row, because differences grow from layer to layer.
        return sum(
            product(jax.nn.silu(product(row, gate)) * product(row, up), down)
            for gate, up, down in weights
        )

    row = jax.random.normal(jax.random.key(0), (1, len(kernels[0][0])))
    sides = {"ours": (multiply, kernels), "int8": (multiply_steps, quantized)}
    return _compare_products(
        {name: (jax.jit(partial(run_layers, f)), (row, w)) for name, (f, w) in sides.items()}
    )


def compare_head(ours: Any) -> bench.Compared:
    """The logits of one row, from an output layer in float32 and in int8."""
    table = ours.params["embed"]["embedding"]  # [V, D]
    steps, scale = quantize(table.T)
    steps = jnp.asarray(np.asarray(steps).T)
    row = jax.random.normal(jax.random.key(0), (1, table.shape[1]))
    multiply = jax.jit(lambda row, table: row @ table.T)
    multiply_steps = jax.jit(lambda row, steps, scale: row @ steps.astype(jnp.float32).T * scale)
    return _compare_products(
        {"ours": (multiply, (row, table)), "int8": (multiply_steps, (row, steps, scale))}
    )


def _compare_products(sides: Mapping[str, tuple[Callable, tuple]]) -> bench.Compared:
    runs = {
        side: lambda f=f, given=given: jax.block_until_ready(f(*given))
        for side, (f, given) in sides.items()
    }
    first = bench.time_call(runs["ours"])
    exact, other = (np.asarray(run()) for run in runs.values())
    difference = float(np.abs(exact - other).max() / np.abs(exact).max())
    bench.require(difference < 0.05, f"the products differ by {difference:.1%}")
    return runs, {"compile_seconds": first, "difference": difference}


if __name__ == "__main__":
    main()
