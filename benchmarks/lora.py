"""An adapter for each document of SmolLM2-135M, here and with PEFT: the same weights, one process.

    pip install -e '.[bench]' && python benchmarks/lora.py [--runs=7] [--out=FILE]

Parametric RAG's work (Su et al. 2025, with its settings): training an adapter for each document,
merging three of them for a question and answering it, and a batch whose rows all have adapters of
their own. Results are compared before anything is timed; then the sides take turns, and the table
has the medians. A ratio above one means that this library is faster. Takes fifteen minutes on two
CPU cores.

The released code pads every example to 3,000 tokens, of which nearly all are wasted; that is a row
of its own, a single step, and no part of the others.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import peft
import torch
from models import NAME, as_tensor, copy_adapter, describe_machine, load_theirs, require
from tqdm import tqdm
from turns import take_turns, time_call

from rag_jax import lora
from rag_jax.decoding import generate
from rag_jax.models import load
from rag_jax.training.bank import init_bank_state, make_bank_step

TARGETS, THEIR_TARGETS = r".*ffn/(gate|up|down)/kernel", ["gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, RATE, DECAY = 2, 32, 3e-4, 0.01
DOCUMENTS, EXAMPLES, WIDTH = 32, 2, 64  # an example is a step, and one step is like another
PADDED = 3000  # tokens of an example in the released code
TOGETHER = 8  # documents that are trained at once
QUESTIONS, MERGED, PROMPT, NEW = 16, 3, 32, 12
ROWS, SHORT = 64, 32  # of the batch with many adapters
SCALE = lora.compute_scale(ALPHA, RANK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="timed turns of each side, at least 7")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs={arguments.runs}: must be at least 7")

    ours, theirs, peak = load(NAME), load_theirs(), models.measure_peak()
    rng = np.random.default_rng(0)
    cases = {
        "training": lambda: compare_training(ours, rng),
        "a step padded to 3,000": lambda: compare_padded(ours, theirs, rng),
        "answering": lambda: compare_answers(ours, rng),
    }
    for count in (4, 16, 64):
        cases[f"{count} adapters in a batch"] = lambda count=count: compare_batch(ours, count, rng)
    results = []
    for name, prepare in tqdm(cases.items(), desc="benchmark", unit="cases"):
        sides, facts = prepare()
        results.append({"name": name, **facts, **take_turns(sides, arguments.runs)})
        tqdm.write(describe(results[-1], peak))
    report = {"environment": describe_machine(peak), "results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def settings() -> peft.LoraConfig:
    return peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=THEIR_TARGETS
    )


Compared = tuple[dict[str, Callable[[], Any]], dict[str, Any]]


def compare_training(ours: Any, rng: np.random.Generator) -> Compared:
    """32 documents, two steps of AdamW each, the loss on every token.

    PEFT's side keeps its adapter and gives it the first values again for each document, which is
    less work than Parametric RAG's released code does: that wraps the model anew.
    """
    shape = (DOCUMENTS, EXAMPLES, 1, WIDTH)
    documents = rng.integers(0, 40_000, shape).astype(np.int32)
    train_bank, start = make_training(ours)
    train_document, _ = make_their_training(load_theirs(), start, ours)

    def train_ours(documents):
        banks = [
            train_bank(documents[i : i + TOGETHER]) for i in range(0, len(documents), TOGETHER)
        ]
        return jax.block_until_ready(banks)

    def train_theirs(documents):
        return [train_document(document) for document in documents]

    compiling = time_call(lambda: train_ours(documents[:TOGETHER]))
    (bank,), trained = train_ours(documents[:TOGETHER]), train_theirs(documents[:2])
    difference = 0.0
    for i in range(2):
        kernels = list(lora.list_kernels(jax.tree.map(lambda leaf, i=i: leaf[i], bank)))
        difference = max(difference, compare_deltas(kernels, trained[i]))
    # Adam's first steps have nearly one length whatever the gradient's: where that is next to
    # nothing, rounding turns them round.
    require(difference < 0.01, f"the trained matrices differ by {difference:.2%}")
    sides = {"ours": lambda: train_ours(documents), "theirs": lambda: train_theirs(documents)}
    # A pass forward and one for the activations' gradients.
    tokens = documents.size
    return sides, {
        "compile_seconds": compiling,
        "difference": difference,
        "documents": DOCUMENTS,
        "gigaflop": 2 * ours.config.count_flops(tokens, tokens) / 1e9,
    }


def compare_padded(ours: Any, theirs: Any, rng: np.random.Generator) -> Compared:
    """One step of one document: ours at its length, theirs padded as the released code pads."""
    example = rng.integers(0, 40_000, (1, WIDTH)).astype(np.int32)
    train_bank, start = make_training(ours)
    train_document, model = make_their_training(theirs, start, ours)
    padding = PADDED - WIDTH
    labels = as_tensor(np.pad(example, ((0, 0), (0, padding)), constant_values=-100))
    padded = {
        "input_ids": as_tensor(np.pad(example, ((0, 0), (0, padding)))),
        "attention_mask": (labels != -100).long(),
        "labels": labels,
    }
    with torch.inference_mode():
        alone = float(model(as_tensor(example), labels=as_tensor(example)).loss)
        difference = abs(float(model(**padded).loss) - alone)
    require(difference < 1e-4, f"padding changes the loss by {difference}")
    sides = {
        "ours": lambda: jax.block_until_ready(train_bank(example[None, None])),
        "theirs": lambda: train_document([padded]),
    }
    compiling = time_call(sides["ours"])
    return sides, {"compile_seconds": compiling, "difference": difference, "tokens": WIDTH}


def make_training(ours: Any) -> tuple[Callable[[Any], Any], Any]:
    """A function that trains a bank on documents `[N, steps, 1, T]`, and what they start from."""
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def loss(adapter, params, tokens):
        adapted = lora.apply(params, adapter, scale=SCALE)
        return models.next_token_loss(ours.model, adapted, tokens)

    step = make_bank_step(loss, optimizer)
    key = jax.random.key(0)
    start = lora.init(key, ours.params, targets=TARGETS, rank=RANK)

    def train(documents):
        count = len(documents)
        bank = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), start)
        state = init_bank_state(bank, optimizer)
        for example in documents.swapaxes(0, 1):
            state, _ = step(state, ours.params, example)
        return state.params

    return train, start


def make_their_training(
    model: torch.nn.Module, start: Any, ours: Any
) -> tuple[Callable[[Any], dict[str, torch.Tensor]], peft.PeftModel]:
    """A function that trains PEFT's adapter on one document's examples, from the same start."""
    with tempfile.TemporaryDirectory() as folder:
        lora.save_peft(start, Path(folder) / "start", ours, alpha=ALPHA)
        wrapped = peft.PeftModel.from_pretrained(model, Path(folder) / "start", is_trainable=True)
    values = [p for p in wrapped.parameters() if p.requires_grad]
    firsts = [p.detach().clone() for p in values]

    def train(document):
        for value, first in zip(values, firsts, strict=True):
            value.data.copy_(first)
        optimizer = torch.optim.AdamW(values, lr=RATE, weight_decay=DECAY)
        for example in document:
            if not isinstance(example, dict):
                example = {"input_ids": as_tensor(example), "labels": as_tensor(example)}
            optimizer.zero_grad()
            wrapped(**example, use_cache=False).loss.backward()
            optimizer.step()
        trained = peft.get_peft_model_state_dict(wrapped)
        return {name: value.detach().clone() for name, value in trained.items()}

    return train, wrapped


def compare_deltas(kernels: Any, trained: dict[str, torch.Tensor]) -> float:
    """How far two adapters' matrices are apart, relative to the length of all of theirs."""
    apart, length = 0.0, 0.0
    for (layer, _, name, _), patch in kernels:
        module = f"base_model.model.model.layers.{layer.removeprefix('layers_')}.mlp.{name}_proj"
        a, b = (trained[f"{module}.lora_{side}.weight"].numpy() for side in "AB")
        expected = (b @ a).T
        apart += float(np.square(patch["a"] @ patch["b"] - expected).sum())
        length += float(np.square(expected).sum())
    return (apart / length) ** 0.5


def make_adapters(
    ours: Any, count: int, rng: np.random.Generator
) -> tuple[lora.Tree, peft.PeftModel]:
    """A bank that changes what the model says, and PEFT's model with the same adapters in it."""
    bank = lora.init_bank(jax.random.key(0), ours.params, targets=TARGETS, rank=RANK, size=count)
    bank = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.02, leaf.dtype), bank
    )
    model = peft.get_peft_model(load_theirs(), settings(), adapter_name="d0")
    for i in range(count):
        if i:
            model.add_adapter(f"d{i}", settings())
        adapter = jax.tree.map(lambda leaf, i=i: leaf[i], bank)
        copy_adapter(adapter, model, f"d{i}")
    return bank, model.eval()


def compare_answers(ours: Any, rng: np.random.Generator) -> Compared:
    """Merges three adapters for each of 16 questions and writes twelve tokens.

    PEFT's side does as Parametric RAG's released code, a question after the other, but finds all
    adapters in memory. The lean one merges for all questions and then answers them in one batch.
    """
    bank, model = make_adapters(ours, DOCUMENTS, rng)
    prompts = rng.integers(0, 40_000, (QUESTIONS, PROMPT))
    chosen = np.stack([rng.permutation(DOCUMENTS)[:MERGED] for _ in range(QUESTIONS)])
    merge = jax.jit(lambda bank, rows: lora.merge(lora.select(bank, rows), scale=SCALE))

    def answer_ours():
        return generate(
            ours.model,
            ours.params,
            prompts.tolist(),
            max_tokens=NEW,
            stop_ids=(),
            adapters=merge(bank, chosen),
        )

    def merge_theirs(question, name):
        names = [f"d{i}" for i in chosen[question]]
        model.add_weighted_adapter(names, [1.0] * MERGED, name, combination_type="cat")

    def write_theirs(tokens, **options):
        with torch.inference_mode():
            written = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                pad_token_id=0,
                **options,
            )
        return written[:, PROMPT:].tolist()

    def answer_theirs():
        written = []
        for question in range(QUESTIONS):
            merge_theirs(question, "merged")
            model.set_adapter("merged")
            written += write_theirs(as_tensor(prompts[question][None]))
            model.delete_adapter("merged")
        return written

    def answer_lean():
        names = [f"q{question}" for question in range(QUESTIONS)]
        for question, name in enumerate(names):
            merge_theirs(question, name)
        written = write_theirs(as_tensor(prompts), adapter_names=names)
        for name in names:
            model.delete_adapter(name)
        return written

    compiling = time_call(answer_ours)
    written = np.asarray(answer_ours())
    same = min(float(np.mean(written == answer())) for answer in (answer_theirs, answer_lean))
    # Rounding may turn a tie, after which a row goes another way; more than that is an error.
    require(same > 0.9, f"only {same:.1%} of the tokens agree")
    unadapted = generate(ours.model, ours.params, prompts.tolist(), max_tokens=NEW, stop_ids=())
    require(np.mean(written == unadapted) < 0.5, "the adapters change nothing")
    sides = {"ours": answer_ours, "theirs": answer_theirs, "theirs_lean": answer_lean}
    return sides, {"compile_seconds": compiling, "same_tokens": same, "questions": QUESTIONS}


def compare_batch(ours: Any, count: int, rng: np.random.Generator) -> Compared:
    """A forward pass over 64 rows of 32 tokens, each with one of `count` adapters."""
    bank, model = make_adapters(ours, count, rng)
    rows = rng.permutation(np.arange(ROWS) % count)
    tokens = rng.integers(0, 40_000, (ROWS, SHORT)).astype(np.int32)

    @jax.jit
    def read(params, bank, rows, tokens):
        adapted = lora.apply(params, lora.select(bank, rows), scale=SCALE)
        return ours.model.apply({"params": adapted}, tokens)

    def read_ours():
        return jax.block_until_ready(read(ours.params, bank, rows, tokens))

    their_tokens, names = as_tensor(tokens), [f"d{i}" for i in rows]

    def read_theirs():
        with torch.inference_mode():
            return model(their_tokens, adapter_names=names, use_cache=False).logits

    compiling = time_call(read_ours)
    wanted = read_theirs().numpy()
    difference = float(np.abs(np.asarray(read_ours()) - wanted).max() / np.abs(wanted).max())
    require(difference < 1e-3, f"logits differ by {difference} of the largest")
    return {"ours": read_ours, "theirs": read_theirs}, {
        "compile_seconds": compiling,
        "difference": difference,
        "adapters": count,
        "gigaflop": ours.config.count_flops(tokens.size, tokens.size) / 1e9,
    }


def describe(result: dict[str, Any], peak: float) -> str:
    wall, cpu = result["wall_seconds"], result["cpu_seconds"]
    line = f"{result['name']:24s}"
    for side, seconds in wall.items():
        line += f"  {side} {seconds:7.3f} s (CPU {cpu[side]:7.3f})"
        if side != "ours":
            line += f" ratio {seconds / wall['ours']:5.2f}"
    if "gigaflop" in result:
        rate = result["gigaflop"] / wall["ours"]
        line += f"  {rate:4.0f} GFLOP/s, {rate / peak:4.0%} of peak"
    return f"{line}  first call {result['compile_seconds']:5.1f} s"


if __name__ == "__main__":
    main()
