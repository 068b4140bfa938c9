"""SmolLM2-135M in this library against Hugging Face's on PyTorch: the same weights, one process.

    pip install -e '.[bench]' && python benchmarks/models.py [--runs=7] [--out=FILE]

Forward pass, training step of all weights, training step of a LoRA adapter, and greedy decoding.
Outputs are compared before anything is timed. The two sides then take turns, and the table has the
medians. A ratio above one means that this library is faster. Takes ten minutes on two CPU cores.
"""

import os
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import torch
import transformers

from rag_jax import lora
from rag_jax.data.gazetteer import build_world
from rag_jax.decoding import generate
from rag_jax.losses import token_logprobs
from rag_jax.models import load
from rag_jax.models.io.hub import resolve
from rag_jax.training.loop import init_state, make_step

NAME = "smollm2-135m-instruct"
PACKAGES = ("jax", "torch", "transformers", "peft")
ROWS, WIDTH = 8, 128  # rows and tokens of the forward pass and the training steps
PROMPT, NEW = 64, 64  # tokens read and written in decoding
ASKED, LIMIT = 80, 24  # questions asked together, and tokens of an answer
DRAFTED = 15  # tokens that both sides look up, where they do
REPEATED = (  # a little longer than what is written
    "The lighthouse on the western cape was built of grey granite in 1871. Its lamp burns forty "
    "metres above the sea and can be seen from a distance of twenty-two nautical miles. The last "
    "keeper left in 1988, when a motor and a clock took over his work. Since then a family of "
    "falcons has lived under the roof of the engine house, and the path along the cliffs is closed "
    "to visitors from March to July."
)
RANK, ALPHA = 16, 32.0
TARGETS = r".*(attention/(query|key|value|output)|ffn/(gate|up|down))/kernel"
THEIRS = {"query": "q", "key": "k", "value": "v", "output": "o"}
RATE = 1e-5


def main() -> None:
    """Runs every case and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    ours, theirs, peak = load(NAME), load_theirs(), measure_peak()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, ours.config.vocab_size, (ROWS, WIDTH)).astype(np.int32)
    cases = {
        "forward": partial(compare_forward, ours, theirs, tokens),
        "training step, all weights": partial(compare_training, ours, tokens),
        "training step, LoRA": partial(compare_lora, ours, tokens),
    }
    for rows in (1, 8, 32):
        prompts = rng.integers(0, 40_000, (rows, PROMPT)).tolist()
        cases[f"greedy decoding, batch {rows}"] = partial(compare_decoding, ours, theirs, prompts)
    cases["repeating a passage, by lookup"] = partial(compare_lookup, ours, theirs)
    cases[f"answers to {ASKED} questions together"] = partial(compare_answers, ours, theirs)
    bench.run_cases(arguments, cases, PACKAGES, peak=peak)


def load_theirs() -> Any:
    """The model of the same file, read by transformers."""
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
    """The device of PyTorch's side: "cuda" if JAX runs on a GPU too, else "cpu"."""
    return "cuda" if jax.devices()[0].platform == "gpu" and torch.cuda.is_available() else "cpu"


def as_tensor(tokens: Any) -> torch.Tensor:
    """Token ids on PyTorch's device."""
    return torch.asarray(np.asarray(tokens, np.int64), device=find_device())


def synchronize() -> None:
    """Waits for PyTorch's device."""
    if find_device() == "cuda":
        torch.cuda.synchronize()


def compare_forward(ours: Any, theirs: Any, tokens: np.ndarray) -> bench.Compared:
    """The logits of every position."""
    forward = jax.jit(lambda params, tokens: ours.model.apply({"params": params}, tokens))
    their_tokens = as_tensor(tokens)

    def run_ours():
        return jax.block_until_ready(forward(ours.params, tokens))

    def run_theirs():
        with torch.inference_mode():
            logits = theirs(their_tokens, use_cache=False).logits
        synchronize()
        return logits

    compiling = bench.time_call(run_ours)
    difference = float(np.abs(np.asarray(run_ours()) - run_theirs().cpu().numpy()).max())
    bench.require(difference < 1e-3, f"logits differ by {difference}")
    return {"ours": run_ours, "theirs": run_theirs}, {
        "compile_seconds": compiling,
        "difference": difference,
        "gigaflop": ours.config.count_flops(tokens.size, tokens.size) / 1e9,
    }


def next_token_loss(model: Any, params: Any, tokens: jax.Array) -> tuple[jax.Array, dict]:
    """The mean loss of every position's next token in nats, and no further metrics."""
    logits = model.apply({"params": params}, tokens)[:, :-1]
    return -token_logprobs(logits, tokens[:, 1:]).mean(), {}


def compare_training(ours: Any, tokens: np.ndarray) -> bench.Compared:
    """A step of AdamW over all weights, with the loss at every position."""

    def loss(params, frozen, tokens):
        return next_token_loss(ours.model, params, tokens)

    # Training changes PyTorch's weights, so the step gets another copy of the model.
    return _compare_steps(ours, load_theirs(), loss, ours.params, None, tokens, passes=3)


def compare_lora(ours: Any, tokens: np.ndarray) -> bench.Compared:
    """A step of AdamW over rank-16 adapters on every kernel, theirs by PEFT."""

    def loss(adapter, params, tokens):
        return next_token_loss(ours.model, lora.apply(params, adapter, scale=ALPHA / RANK), tokens)

    adapter = lora.init(jax.random.key(0), ours.params, targets=TARGETS, rank=RANK)
    names = [f"{t}_proj" for t in (*THEIRS.values(), "gate", "up", "down")]
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, lora_dropout=0.0)
    adapted = peft.get_peft_model(load_theirs(), settings)
    copy_adapter(adapter, adapted)
    return _compare_steps(ours, adapted, loss, adapter, ours.params, tokens, passes=2)


def copy_adapter(adapter: Any, adapted: Any, adapter_name: str = "default") -> None:
    """Copies the values of our adapter into PEFT's adapter of that name."""
    parameters = dict(adapted.named_parameters())
    for path, leaf in jax.tree_util.tree_leaves_with_path(adapter):
        layer, block, kernel, _, side = (key.key for key in path)
        block = "self_attn" if block == "attention" else "mlp"
        name = f"{layer.replace('layers_', 'layers.')}.{block}.{THEIRS.get(kernel, kernel)}_proj"
        name = f"base_model.model.model.{name}.lora_{side.upper()}.{adapter_name}.weight"
        parameters[name].data.copy_(torch.asarray(np.array(leaf).T))


def _compare_steps(
    ours: Any, theirs: Any, loss: Any, trained: Any, frozen: Any, tokens: np.ndarray, *, passes: int
) -> bench.Compared:
    """A training step on both sides.

    Args:
        trained: our tree to optimise.
        passes: number of passes through the model that a step takes: one forward, one for the
            gradients of activations, and one for those of weights if all are trained.
    """
    optimizer = optax.adamw(RATE, weight_decay=0.0)
    step, state = make_step({"loss": loss}, optimizer), init_state(trained, optimizer)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    their_optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    their_tokens, losses = as_tensor(tokens), []

    def run_ours():
        nonlocal state
        state, metrics = step(state, frozen, [("loss", tokens)])
        jax.block_until_ready(state)
        return float(metrics["loss"])

    def run_theirs():
        their_optimizer.zero_grad()
        value = theirs(their_tokens, labels=their_tokens, use_cache=False).loss
        value.backward()
        their_optimizer.step()
        synchronize()
        return value.item()

    compiling = bench.time_call(lambda: losses.append(run_ours()))
    # The second losses are those after an update: equal only if the gradients are.
    losses += [run_theirs(), run_ours(), run_theirs()]
    difference = max(abs(losses[0] - losses[1]), abs(losses[2] - losses[3]))
    bench.require(difference < 1e-3, f"losses differ: {losses[:2]}, then {losses[2:]}")
    return {"ours": run_ours, "theirs": run_theirs}, {
        "compile_seconds": compiling,
        "difference": difference,
        "gigaflop": passes * ours.config.count_flops(tokens.size, tokens.size) / 1e9,
    }


def compare_lookup(ours: Any, theirs: Any) -> bench.Compared:
    """Greedy decoding of a text that repeats its prompt, both sides drafting from it."""
    message = {"role": "user", "content": f"Repeat this text word for word: {REPEATED}"}
    prompts = [ours.tokenizer.encode_chat([message])]
    sides, facts = compare_decoding(
        *(ours, theirs, prompts), {"drafted": DRAFTED}, {"prompt_lookup_num_tokens": DRAFTED}
    )
    plain, _ = compare_decoding(ours, theirs, prompts)
    bench.require(sides["ours"]() == plain["ours"](), "drafts change what is written")
    return sides | {"ours, one token a pass": plain["ours"]}, facts


def compare_answers(ours: Any, theirs: Any) -> bench.Compared:
    """Answers that end after a few tokens, some later than most, to questions of equal length.

    Ended rows leave our batch once a quarter is left; in transformers, and on a third side, which
    is ours, all rows go on to the end of the longest answer.
    """
    questions = [q.question for q in build_world(cities=400).questions["test"]]
    prompts = [ours.tokenizer.encode(f"Question: {text}\nAnswer:") for text in questions]
    width = statistics.mode(map(len, prompts))
    prompts = [prompt for prompt in prompts if len(prompt) == width][:ASKED]
    (stop,) = ours.tokenizer.encode("\n")

    def run_ours():
        sizes = {"max_tokens": LIMIT, "batch_size": ASKED}
        return generate(ours.model, ours.params, prompts, stop_ids=(stop,), **sizes)

    def run_to_the_end():
        with patch("rag_jax.decoding.generate.count_compacted", lambda rows: 0):
            return run_ours()

    def run_theirs():
        ended = {"min_new_tokens": 0, "eos_token_id": stop}
        written = generate_theirs(theirs, as_tensor(prompts), LIMIT, **ended)
        synchronize()
        return [row[: [*row, stop].index(stop)] for row in written]

    compiling = bench.time_call(run_ours)
    answers, whole, expected = run_ours(), run_to_the_end(), run_theirs()
    same = np.mean([ours == other for ours, other in zip(answers, expected, strict=True)])
    bench.require(same > 0.9, f"only {same:.1%} of the answers agree")
    bench.require(answers == whole, "compacting changes an answer")
    sides = {"ours": run_ours, "theirs": run_theirs, "ours, to the longest": run_to_the_end}
    return sides, {
        "compile_seconds": compiling,
        "same_tokens": float(same),
        "tokens": sum(map(len, answers)),
    }


def compare_decoding(
    ours: Any,
    theirs: Any,
    prompts: list[list[int]],
    our_options: Mapping[str, Any] = {},
    their_options: Mapping[str, Any] = {},
) -> bench.Compared:
    """Greedy decoding of `NEW` tokens after every prompt.

    Args:
        our_options, their_options: further arguments of both sides' `generate`.
    """
    their_prompts = as_tensor(prompts)

    def run_ours():
        sizes = {"max_tokens": NEW, "batch_size": len(prompts)}
        return generate(ours.model, ours.params, prompts, stop_ids=(), **sizes, **our_options)

    def run_theirs():
        written = generate_theirs(theirs, their_prompts, **their_options)
        synchronize()
        return written

    compiling = bench.time_call(run_ours)
    same = float(np.mean(np.asarray(run_ours()) == np.asarray(run_theirs())))
    # Rounding may turn a tie, after which a row goes another way; more than that is an error.
    bench.require(same > 0.9, f"only {same:.1%} of the tokens agree")
    return {"ours": run_ours, "theirs": run_theirs}, {
        "compile_seconds": compiling,
        "same_tokens": same,
        "tokens": len(prompts) * NEW,
    }


def generate_theirs(
    model: Any, prompts: torch.Tensor, max_tokens: int = NEW, **options: Any
) -> list[list[int]]:
    """Greedy continuations on PyTorch, of exactly `max_tokens` tokens unless the options say else.

    Args:
        prompts: `[B, T]`, without padding.
        options: further arguments of `generate`.
    """
    options = {"min_new_tokens": max_tokens} | options
    with torch.inference_mode():
        written = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=0,
            **options,
        )
    return written[:, prompts.shape[1] :].tolist()


def measure_peak() -> float:
    """GFLOP/s of a float32 matrix product of 4096 by 4096."""
    a = jnp.ones((4096, 4096), jnp.float32)
    multiply = jax.jit(lambda a: a @ a)
    jax.block_until_ready(multiply(a))
    times = [bench.time_call(lambda: jax.block_until_ready(multiply(a))) for _ in range(7)]
    return 2 * 4096**3 / statistics.median(times) / 1e9


if __name__ == "__main__":
    main()
