"""An adapter for each document of SmolLM2-135M, here and with PEFT: the same weights, one process.

    pip install -e '.[bench]' && python benchmarks/lora.py [--runs=7] [--out=FILE]

The work of Parametric RAG (Su et al. 2025, with its settings): training an adapter for each
document; merging three adapters for a question and answering it; and a batch in which every row has
its own adapter. Results are compared before anything is timed. The sides then take turns, and the
table has the medians. A ratio above one means that this library is faster. Takes fifteen minutes on
two CPU cores.

The released code pads every example to 3,000 tokens, nearly all of them wasted. That is measured as
a single step in a case of its own, and is no part of the other cases.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import torch
from models import (
    NAME,
    PACKAGES,
    as_tensor,
    copy_adapter,
    generate_theirs,
    load_theirs,
    measure_peak,
    next_token_loss,
)

from rag_jax import lora
from rag_jax.decoding import generate
from rag_jax.models import load
from rag_jax.training.bank import init_bank_state, make_bank_step

TARGETS, THEIR_TARGETS = r".*ffn/(gate|up|down)/kernel", ["gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, RATE, DECAY = 2, 32, 3e-4, 0.01
DOCUMENTS, EXAMPLES, WIDTH = 32, 2, 64  # each example is a step; all steps cost the same
PADDED = 3000  # tokens of an example in the released code
TOGETHER = 8  # documents that are trained together
QUESTIONS, MERGED, PROMPT, NEW = 16, 3, 32, 12
ROWS, SHORT = 64, 32  # rows and tokens of the batch with many adapters
SCALE = lora.compute_scale(ALPHA, RANK)


def main() -> None:
    """Runs every case and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    ours, theirs, peak = load(NAME), load_theirs(), measure_peak()
    rng = np.random.default_rng(0)
    cases = {
        "training": partial(compare_training, ours, rng),
        "a step padded to 3,000": partial(compare_padded, ours, theirs, rng),
        "answering": partial(compare_answers, ours, rng),
    }
    for count in (4, 16, 64):
        cases[f"{count} adapters in a batch"] = partial(compare_batch, ours, count, rng)
    bench.run_cases(arguments, cases, PACKAGES, peak=peak)


# Training.


def compare_training(ours: Any, rng: np.random.Generator) -> bench.Compared:
    """32 documents, two steps of AdamW each, with the loss on every token.

    PEFT's side keeps its adapter and resets its values for each document, which is less work than
    in Parametric RAG's released code: that code wraps the model anew.
    """
    shape = (DOCUMENTS, EXAMPLES, 1, WIDTH)
    documents = rng.integers(0, 40_000, shape).astype(np.int32)
    train_bank, start = make_training(ours)
    train_document, _ = make_their_training(load_theirs(), start, ours)

    def train_ours(documents):
        groups = np.split(documents, len(documents) // TOGETHER)
        return jax.block_until_ready([train_bank(group) for group in groups])

    def train_theirs(documents):
        return [train_document(document) for document in documents]

    compiling = bench.time_call(lambda: train_ours(documents[:TOGETHER]))
    (bank,), trained = train_ours(documents[:TOGETHER]), train_theirs(documents[:2])
    difference = 0.0
    for i in range(2):
        kernels = list(lora.list_kernels(jax.tree.map(lambda leaf, i=i: leaf[i], bank)))
        difference = max(difference, compare_deltas(kernels, trained[i]))
    # Adam's first steps have nearly the same length whatever the gradient's length is: where the
    # gradient is almost 0, rounding reverses the step.
    bench.require(difference < 0.01, f"the trained matrices differ by {difference:.2%}")
    tokens = documents.size
    return {"ours": lambda: train_ours(documents), "theirs": lambda: train_theirs(documents)}, {
        "compile_seconds": compiling,
        "difference": difference,
        "documents": DOCUMENTS,
        # One pass forward and one for the gradients of activations.
        "gigaflop": 2 * ours.config.count_flops(tokens, tokens) / 1e9,
    }


def compare_padded(ours: Any, theirs: Any, rng: np.random.Generator) -> bench.Compared:
    """A step of one document: ours at its length, theirs padded as in the released code."""
    example = rng.integers(0, 40_000, (1, WIDTH)).astype(np.int32)
    train_bank, start = make_training(ours)
    train_document, model = make_their_training(theirs, start, ours)
    padding = ((0, 0), (0, PADDED - WIDTH))
    labels = as_tensor(np.pad(example, padding, constant_values=-100))
    padded = {
        "input_ids": as_tensor(np.pad(example, padding)),
        "attention_mask": (labels != -100).long(),
        "labels": labels,
    }
    with torch.inference_mode():
        unpadded_loss = float(model(as_tensor(example), labels=as_tensor(example)).loss)
        difference = abs(float(model(**padded).loss) - unpadded_loss)
    bench.require(difference < 1e-4, f"padding changes the loss by {difference}")

    def train_ours():
        return jax.block_until_ready(train_bank(example[None, None]))

    compiling = bench.time_call(train_ours)
    facts = {"compile_seconds": compiling, "difference": difference, "tokens": WIDTH}
    return {"ours": train_ours, "theirs": lambda: train_document([padded])}, facts


def make_training(ours: Any) -> tuple[Callable[[Any], Any], Any]:
    """A function from documents `[N, steps, 1, T]` to their trained bank, and the first adapter."""
    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def loss(adapter, params, tokens):
        return next_token_loss(ours.model, lora.apply(params, adapter, scale=SCALE), tokens)

    step = make_bank_step(loss, optimizer)
    start = lora.init(jax.random.key(0), ours.params, targets=TARGETS, rank=RANK)

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
    """A function that trains PEFT's adapter on a document's examples, and PEFT's model.

    Args:
        start: our adapter, from which every document starts.
    """
    with tempfile.TemporaryDirectory() as folder:
        lora.save_peft(start, Path(folder) / "start", ours, alpha=ALPHA)
        wrapped = peft.PeftModel.from_pretrained(model, Path(folder) / "start", is_trainable=True)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    first_values = [p.detach().clone() for p in parameters]

    def train(document):
        for parameter, value in zip(parameters, first_values, strict=True):
            parameter.data.copy_(value)
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
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
    """The distance between two adapters' matrices `A B`, relative to the norm of theirs."""
    distance, norm = 0.0, 0.0
    for (layer, _, name, _), factors in kernels:
        module = f"base_model.model.model.layers.{layer.removeprefix('layers_')}.mlp.{name}_proj"
        a, b = (trained[f"{module}.lora_{side}.weight"].numpy() for side in "AB")
        expected = (b @ a).T
        distance += float(np.square(factors["a"] @ factors["b"] - expected).sum())
        norm += float(np.square(expected).sum())
    return (distance / norm) ** 0.5


# Many adapters.


def make_adapters(ours: Any, count: int, rng: np.random.Generator) -> tuple[Any, peft.PeftModel]:
    """A bank that changes what the model writes, and PEFT's model with the same adapters."""
    bank = lora.init_bank(jax.random.key(0), ours.params, targets=TARGETS, rank=RANK, size=count)
    bank = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.02, leaf.dtype), bank
    )
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=THEIR_TARGETS
    )
    model = peft.get_peft_model(load_theirs(), settings, adapter_name="d0")
    for i in range(count):
        if i:
            model.add_adapter(f"d{i}", settings)
        copy_adapter(jax.tree.map(lambda leaf, i=i: leaf[i], bank), model, f"d{i}")
    return bank, model.eval()


def compare_answers(ours: Any, rng: np.random.Generator) -> bench.Compared:
    """Merges three adapters for each of 16 questions and writes twelve tokens.

    PEFT's side answers one question after the other, as Parametric RAG's released code does, but
    with all adapters in memory. The lean side merges for all questions and then answers them in
    one batch.
    """
    bank, model = make_adapters(ours, DOCUMENTS, rng)
    prompts = rng.integers(0, 40_000, (QUESTIONS, PROMPT))
    chosen = np.stack([rng.permutation(DOCUMENTS)[:MERGED] for _ in range(QUESTIONS)])
    merge = jax.jit(lambda bank, rows: lora.merge(lora.select(bank, rows), scale=SCALE))

    def write_ours(adapters):
        return generate(
            ours.model,
            ours.params,
            prompts.tolist(),
            max_tokens=NEW,
            stop_ids=(),
            adapters=adapters,
        )

    def answer_ours():
        return write_ours(merge(bank, chosen))

    def merge_theirs(question, name):
        names = [f"d{i}" for i in chosen[question]]
        model.add_weighted_adapter(names, [1.0] * MERGED, name, combination_type="cat")

    def answer_theirs():
        written = []
        for question in range(QUESTIONS):
            merge_theirs(question, "merged")
            model.set_adapter("merged")
            written += generate_theirs(model, as_tensor(prompts[question][None]), NEW)
            model.delete_adapter("merged")
        return written

    def answer_lean():
        names = [f"q{question}" for question in range(QUESTIONS)]
        for question, name in enumerate(names):
            merge_theirs(question, name)
        written = generate_theirs(model, as_tensor(prompts), NEW, adapter_names=names)
        for name in names:
            model.delete_adapter(name)
        return written

    compiling = bench.time_call(answer_ours)
    written = np.asarray(answer_ours())
    same = min(float(np.mean(written == answer())) for answer in (answer_theirs, answer_lean))
    # Rounding may turn a tie, after which a row goes another way; more than that is an error.
    bench.require(same > 0.9, f"only {same:.1%} of the tokens agree")
    bench.require(np.mean(written == write_ours(None)) < 0.5, "the adapters change nothing")
    sides = {"ours": answer_ours, "theirs": answer_theirs, "theirs_lean": answer_lean}
    return sides, {"compile_seconds": compiling, "same_tokens": same, "questions": QUESTIONS}


def compare_batch(ours: Any, count: int, rng: np.random.Generator) -> bench.Compared:
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

    compiling = bench.time_call(read_ours)
    expected = read_theirs().numpy()
    difference = float(np.abs(np.asarray(read_ours()) - expected).max() / np.abs(expected).max())
    bench.require(difference < 1e-3, f"logits differ by {difference} of the largest")
    return {"ours": read_ours, "theirs": read_theirs}, {
        "compile_seconds": compiling,
        "difference": difference,
        "adapters": count,
        "gigaflop": ours.config.count_flops(tokens.size, tokens.size) / 1e9,
    }


if __name__ == "__main__":
    main()
