"""One row's greedy decoding against llama.cpp on the same GGUF file, and products by int8 weights.

    pip install -e '.[bench]' llama-cpp-python && python benchmarks/llama.py [--out=FILE]

llama.cpp is what one user on a CPU would take: it multiplies by the file's packed blocks, where
this library reads float32 weights. Both continue the same prompts by as many tokens; llama.cpp
rounds activations to int8, so that the tokens may part, and the share of equal ones is printed.

The second case is the product of one row with the output layer's weights as XLA makes it: in
float32, from int8 steps turned into float32 on the way, and by a dot of the two. Takes two minutes
on two CPU cores; llama-cpp-python compiles for ten when it is installed.
"""

import os
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
    """Runs both cases and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    ours = load(NAME)
    cases = {
        "one row": lambda: compare_decoding(ours),
        "a row by the output layer": lambda: compare_products(ours),
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


def compare_products(ours: Any) -> bench.Compared:
    """The logits of one row, from weights in float32 and in int8."""
    kernel = ours.params["embed"]["embedding"].T
    steps, scale = quantize(kernel)
    row = jax.random.normal(jax.random.key(0), (1, len(kernel)))

    def multiply(row, kernel):
        return row @ kernel

    def add_up(row, steps, scale):
        return (row.T * steps.astype(jnp.float32)).sum(axis=0)[None] * scale

    def dot(row, steps, scale):
        return row @ steps.astype(jnp.float32) * scale

    sides = {
        "ours": (jax.jit(multiply), (row, jnp.copy(kernel))),
        "int8, added up": (jax.jit(add_up), (row, steps, scale)),
        "int8, by a dot": (jax.jit(dot), (row, steps, scale)),
    }
    runs = {
        side: lambda f=f, given=given: jax.block_until_ready(f(*given))
        for side, (f, given) in sides.items()
    }
    compiling = {side: bench.time_call(run) for side, run in runs.items()}
    exact, *others = (np.asarray(run()) for run in runs.values())
    difference = max(float(np.abs(exact - other).max()) for other in others)
    bench.require(difference < 0.05 * np.abs(exact).max(), f"logits differ by {difference}")
    return runs, {"compile_seconds": compiling["ours"], "difference": difference}


if __name__ == "__main__":
    main()
