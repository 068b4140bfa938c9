"""SmolLM2-135M in this library against Hugging Face's on PyTorch: the same weights, one process.

    pip install -e '.[bench]' && python benchmarks/models.py [--runs=7] [--out=FILE]

Forward pass, full training step, LoRA training step and greedy decoding. Outputs are compared
before anything is timed; then the two take turns, and the table has the medians. A ratio above one
means that this library is faster. Takes ten minutes on two CPU cores.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import torch
import transformers
from tqdm import tqdm
from turns import take_turns, time_call

from rag_jax import lora
from rag_jax.decoding import generate
from rag_jax.losses import token_logprobs
from rag_jax.models import load
from rag_jax.models.io.hub import resolve
from rag_jax.training.loop import init_state, make_step

NAME = "smollm2-135m-instruct"
ROWS, WIDTH = 8, 128  # of the forward pass and the training steps
PROMPT, NEW = 64, 64  # tokens of the decoding
RANK, ALPHA = 16, 32.0
TARGETS = r".*(attention/(query|key|value|output)|ffn/(gate|up|down))/kernel"
THEIRS = {"query": "q", "key": "k", "value": "v", "output": "o"}
RATE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="timed turns of each side, at least 7")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs={arguments.runs}: must be at least 7")

    ours, theirs = load(NAME), load_theirs()
    peak = measure_peak()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, ours.config.vocab_size, (ROWS, WIDTH)).astype(np.int32)
    cases = {
        "forward": lambda: compare_forward(ours, theirs, tokens),
        "training step, all weights": lambda: compare_training(ours, tokens),
        "training step, LoRA": lambda: compare_lora(ours, tokens),
    }
    for rows in (1, 8, 32):
        prompts = rng.integers(0, 40_000, (rows, PROMPT)).tolist()
        cases[f"greedy decoding, batch {rows}"] = lambda p=prompts: compare_decoding(
            ours, theirs, p
        )
    results = []
    for name, prepare in tqdm(cases.items(), desc="benchmark", unit="cases"):
        case = prepare()
        sides = {"ours": case.ours, "theirs": case.theirs}
        results.append({"name": name, **case.facts, **take_turns(sides, arguments.runs)})
        tqdm.write(describe(results[-1], peak))
    report = {"environment": describe_machine(peak), "results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


class Case:
    """Two functions that do the same; `facts` were measured while making sure that they do."""

    def __init__(self, ours: Callable[[], Any], theirs: Callable[[], Any], **facts: Any):
        self.ours, self.theirs, self.facts = ours, theirs, facts


def load_theirs() -> Any:
    """The same file, read by transformers."""
    torch.set_num_threads(os.cpu_count())
    folder = resolve(NAME)
    (file,) = folder.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    return model.to(find_device()).eval()


def find_device() -> str:
    return "cuda" if jax.devices()[0].platform == "gpu" and torch.cuda.is_available() else "cpu"


def as_tensor(tokens: np.ndarray) -> torch.Tensor:
    return torch.asarray(np.asarray(tokens, np.int64), device=find_device())


def synchronize() -> None:
    if find_device() == "cuda":
        torch.cuda.synchronize()


def compare_forward(ours: Any, theirs: Any, tokens: np.ndarray) -> Case:
    run = jax.jit(lambda params, tokens: ours.model.apply({"params": params}, tokens))
    compiling = time_call(lambda: jax.block_until_ready(run(ours.params, tokens)))
    theirs_in = as_tensor(tokens)

    def theirs_run():
        with torch.inference_mode():
            logits = theirs(theirs_in, use_cache=False).logits
        synchronize()
        return logits

    difference = float(
        np.abs(np.asarray(run(ours.params, tokens)) - theirs_run().cpu().numpy()).max()
    )
    require(difference < 1e-3, f"logits differ by {difference}")
    return Case(
        lambda: jax.block_until_ready(run(ours.params, tokens)),
        theirs_run,
        compile_seconds=compiling,
        difference=difference,
        gigaflop=ours.config.count_flops(tokens.size, tokens.size) / 1e9,
    )


def next_token_loss(model: Any, params: Any, tokens: jax.Array) -> tuple[jax.Array, dict]:
    logits = model.apply({"params": params}, tokens)[:, :-1]
    return -token_logprobs(logits, tokens[:, 1:]).mean(), {}


def compare_training(ours: Any, tokens: np.ndarray) -> Case:
    """AdamW over every weight, the loss at every position."""

    def loss(params, frozen, tokens):
        return next_token_loss(ours.model, params, tokens)

    start = init_state(ours.params, optax.adamw(RATE, weight_decay=0.0))
    # Training changes the weights, so it gets a model of its own.
    return _compare_steps(ours, load_theirs(), loss, start, None, tokens, passes=3)


def compare_lora(ours: Any, tokens: np.ndarray) -> Case:
    """AdamW over rank-16 adapters on every kernel, with PEFT's on the other side."""

    def loss(adapter, params, tokens):
        return next_token_loss(ours.model, lora.apply(params, adapter, scale=ALPHA / RANK), tokens)

    adapter = lora.init(jax.random.key(0), ours.params, targets=TARGETS, rank=RANK)
    names = [f"{t}_proj" for t in (*THEIRS.values(), "gate", "up", "down")]
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, lora_dropout=0.0)
    adapted = peft.get_peft_model(load_theirs(), settings)
    copy_adapter(adapter, adapted)
    start = init_state(adapter, optax.adamw(RATE, weight_decay=0.0))
    return _compare_steps(ours, adapted, loss, start, ours.params, tokens, passes=2)


def copy_adapter(adapter: Any, adapted: Any, adapter_name: str = "default") -> None:
    """Gives PEFT's adapter of that name the values of ours."""
    stored = dict(adapted.named_parameters())
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapter):
        layer, block, kernel, _, side = (key.key for key in path)
        block = "self_attn" if block == "attention" else "mlp"
        name = f"{layer.replace('layers_', 'layers.')}.{block}.{THEIRS.get(kernel, kernel)}_proj"
        target = stored[f"base_model.model.model.{name}.lora_{side.upper()}.{adapter_name}.weight"]
        target.data.copy_(torch.asarray(np.array(leaf).T))


def _compare_steps(
    ours: Any, theirs: Any, loss: Any, state: Any, frozen: Any, tokens: np.ndarray, *, passes: int
) -> Case:
    step = make_step({"loss": loss}, optax.adamw(RATE, weight_decay=0.0))
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    theirs_in = as_tensor(tokens)
    kept = [state]

    def ours_run():
        kept[0], metrics = step(kept[0], frozen, [("loss", tokens)])
        jax.block_until_ready(kept[0])
        return float(metrics["loss"])

    def theirs_run():
        optimizer.zero_grad()
        value = theirs(theirs_in, labels=theirs_in, use_cache=False).loss
        value.backward()
        optimizer.step()
        synchronize()
        return value.item()

    start = time.perf_counter()
    first = [ours_run()]
    compiling = time.perf_counter() - start
    first.append(theirs_run())
    second = [ours_run(), theirs_run()]  # after one update, so the gradients agree too
    difference = max(abs(a - b) for a, b in (first, second))
    require(difference < 1e-3, f"losses differ: {first}, then {second}")
    return Case(
        ours_run,
        theirs_run,
        compile_seconds=compiling,
        difference=difference,
        # A pass forward, one for the activations' gradients, one for the weights'.
        gigaflop=passes * ours.config.count_flops(tokens.size, tokens.size) / 1e9,
    )


def compare_decoding(ours: Any, theirs: Any, prompts: list[list[int]]) -> Case:
    def ours_run():
        return generate(
            ours.model, ours.params, prompts, max_tokens=NEW, stop_ids=(), batch_size=len(prompts)
        )

    theirs_in = as_tensor(np.asarray(prompts))

    def theirs_run():
        with torch.inference_mode():
            written = theirs.generate(
                theirs_in,
                attention_mask=torch.ones_like(theirs_in),
                do_sample=False,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                pad_token_id=0,
            )
        synchronize()
        return written[:, PROMPT:].tolist()

    compiling = time_call(ours_run)
    same = float(np.mean(np.asarray(ours_run()) == np.asarray(theirs_run())))
    # Rounding may turn a tie, after which a row goes another way; more than that is an error.
    require(same > 0.9, f"only {same:.1%} of the tokens agree")
    return Case(
        ours_run,
        theirs_run,
        compile_seconds=compiling,
        same_tokens=same,
        tokens=len(prompts) * NEW,
    )


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"error: the two sides do not agree: {message}")


def describe(result: dict[str, Any], peak: float) -> str:
    ours, theirs = result["wall_seconds"].values()
    cpu = result["cpu_seconds"]
    line = (
        f"{result['name']:28s} ours {ours:7.3f} s (CPU {cpu['ours']:7.3f})  theirs {theirs:7.3f} s "
        f"(CPU {cpu['theirs']:7.3f})  ratio {theirs / ours:5.2f}  "
        f"first call {result['compile_seconds']:5.1f} s"
    )
    if "gigaflop" in result:
        rate = result["gigaflop"] / ours
        return f"{line}  {rate:6.0f} GFLOP/s, {rate / peak:4.0%} of peak"
    return f"{line}  {result['tokens'] / ours:6.0f} tokens/s, {result['same_tokens']:.1%} the same"


def measure_peak() -> float:
    """GFLOP/s of a float32 matrix product of 4096 by 4096."""
    a = jnp.ones((4096, 4096), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    jax.block_until_ready(multiply(a))
    times = []
    for _ in range(7):
        times.append(time_call(lambda: jax.block_until_ready(multiply(a))))
    return 2 * 4096**3 / statistics.median(times) / 1e9


def describe_machine(peak: float) -> dict[str, Any]:
    packages = ("jax", "torch", "transformers", "peft")
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "peak_gflops": peak,
        **{name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
