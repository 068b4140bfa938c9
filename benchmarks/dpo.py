"""A step of preference optimisation here and with TRL: the same weights and pairs, one process.

    pip install -e '.[bench]' && python benchmarks/dpo.py [--only=CASE] [--runs=7] [--out=FILE]

Direct preference optimisation of all weights of SmolLM2-135M in float32 (Rafailov et al. 2023), as
in SR-RAG's second stage: the log-probabilities under the reference are computed once and stored.
TRL's trainer is run with its cache of them (`precompute_ref_log_probs`), and without, so that every
step reads the pairs with the reference too. The loss is the preference alone, because TRL has no
loss on the source and the answer. Both sides clip gradients, use AdamW, and have TRL's tokens and
padding.

The reference's log-probabilities and the losses of two steps are compared before anything is timed;
the first loss is log 2 whatever the pairs are. The sides then take turns, and the table has the
medians. A ratio above one means that this library is faster. Takes six minutes and 11 GB of memory
on two CPU cores.
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
import datasets
import jax
import numpy as np
import torch
import transformers
import trl
from models import NAME, PACKAGES, find_device, measure_peak, synchronize

from rag_jax.config import TrainConfig
from rag_jax.data.batches import round_up
from rag_jax.data.gazetteer import build_world
from rag_jax.models import load, save
from rag_jax.systems.srrag.data import TERMS
from rag_jax.systems.srrag.loss import sequence_logprobs, stage2_loss
from rag_jax.training.loop import init_state, make_optimizer, make_step
from rag_jax.training.rows import Row, pack_rows

BETA, RATE = 0.3, 1e-6
# The number of pairs and the tokens of a verbalisation: as in the small run, and as in the paper.
CASES = {"24 tokens a side": (4, 24), "150 tokens a side": (2, 150)}


def main() -> None:
    """Runs every case and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    torch.set_num_threads(os.cpu_count())
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    ours, peak = load(NAME), measure_peak()
    with tempfile.TemporaryDirectory() as folder:
        save(ours, Path(folder) / "model")
        run = partial(compare, ours, Path(folder))
        cases = {name: partial(run, *sizes) for name, sizes in CASES.items()}
        bench.run_cases(arguments, cases, (*PACKAGES, "trl"), peak=peak)


def compare(ours: Any, folder: Path, count: int, length: int) -> bench.Compared:
    """A step on the same pairs on every side.

    Args:
        folder: has our model as transformers reads it, in `model`.
        count: number of pairs.
        length: number of tokens of a verbalisation.
    """
    pairs = make_pairs(ours.tokenizer, count, length)
    cached, uncached = (make_trainer(folder, pairs, cached=cached) for cached in (True, False))
    arrays = pack_pairs(list(cached.train_dataset), width=collate(cached)["input_ids"].shape[1])
    score = jax.jit(lambda params, arrays: sequence_logprobs(ours.model, params, arrays, rows=2))
    arrays["reference"] = np.asarray(score(ours.params, arrays))
    stored = [cached.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
    difference = measure_difference(arrays["reference"], np.stack(stored, axis=1))
    bench.require(difference < 1e-4, f"reference log-probabilities differ by {difference:.1e}")

    sides: bench.Sides = {
        "ours": make_our_step(ours, arrays),
        "trl": make_their_step(cached),
        "trl_uncached": make_their_step(uncached),
    }
    losses: dict[str, list[float]] = {side: [] for side in sides}
    compiling = bench.time_call(lambda: losses["ours"].append(sides["ours"]()))
    for side, run in sides.items():
        while len(losses[side]) < 2:
            losses[side].append(run())
    difference = max(
        measure_difference(losses["ours"], losses[side]) for side in ("trl", "trl_uncached")
    )
    bench.require(difference < 1e-4, f"losses differ: {losses}")
    bench.require(losses["ours"][1] < losses["ours"][0] - 1e-3, f"a step changes nothing: {losses}")
    tokens, targets = arrays["tokens"].size, int((arrays["verbalisation"] > 0).sum())
    return sides, {
        "compile_seconds": compiling,
        "difference": difference,
        "losses": losses,
        "pairs": count,
        "tokens": tokens,
        # One pass forward, one for the gradients of activations, one for those of weights.
        "gigaflop": 3 * ours.config.count_flops(tokens, targets) / 1e9,
    }


def make_pairs(tokenizer: Any, count: int, length: int) -> list[dict[str, str]]:
    """Questions of the built-in encyclopedia, each with two texts from it of `length` tokens."""
    world = build_world(cities=200)
    texts = [passage.text for passage in world.passages]

    def cut(start: int) -> str:
        return tokenizer.decode(tokenizer.encode(" " + " ".join(texts[start : start + 8]))[:length])

    return [
        {
            "prompt": f"Question: {question.question} Background knowledge:",
            "chosen": cut(16 * i),
            "rejected": cut(16 * i + 8),
        }
        for i, question in enumerate(world.questions["test"][:count])
    ]


def make_trainer(folder: Path, pairs: list[dict[str, str]], *, cached: bool) -> trl.DPOTrainer:
    """TRL's trainer with its own copy of the model, and another as the reference if not `cached`.

    Args:
        cached: whether the reference's log-probabilities are computed once.
    """
    settings = trl.DPOConfig(
        output_dir=str(folder / "trl"),
        beta=BETA,
        learning_rate=RATE,
        per_device_train_batch_size=len(pairs),
        max_length=None,
        pad_to_multiple_of=8,
        precompute_ref_log_probs=cached,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=find_device() == "cpu",
        report_to="none",
    )

    def read_model() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32
        )

    return trl.DPOTrainer(
        read_model(),
        ref_model=None if cached else read_model(),
        args=settings,
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder / "model"),
    )


def collate(trainer: trl.DPOTrainer) -> dict[str, torch.Tensor]:
    """All pairs as the trainer's arrays."""
    return trainer.data_collator(list(trainer.train_dataset))


def pack_pairs(pairs: list[dict[str, list[int]]], *, width: int) -> dict[str, np.ndarray]:
    """The same tokens as stage 2 has them: both sides of a pair in one sequence."""
    sides = [pair[side] for pair in pairs for side in ("chosen_ids", "rejected_ids")]

    def make_row(pair: dict[str, list[int]], side: str) -> Row:
        tokens = pair["prompt_ids"] + pair[side]
        return Row(side, tokens, {"verbalisation": (len(pair["prompt_ids"]), len(tokens))})

    both = [[make_row(pair, side) for side in ("chosen_ids", "rejected_ids")] for pair in pairs]
    sizes = {"targets": round_up(2 * max(map(len, sides)), 16), "batch": len(pairs)}
    weights = {"terms": TERMS, "scale": 1 / len(pairs), "reduction": "sum"}
    arrays = pack_rows(both, width=2 * width, **sizes, **weights)
    return arrays | {"pair": np.full((len(pairs), 1), 1 / len(pairs), np.float32)}


def make_our_step(ours: Any, arrays: dict[str, np.ndarray]) -> Callable[[], float]:
    """Stage 2's step; every call takes one step and gives the loss before it."""

    def loss(params, frozen, arrays):
        return stage2_loss(ours.model, params, arrays, beta=BETA)

    # The rate is as good as constant: the schedule ends after a million steps.
    optimizer = make_optimizer(TrainConfig(learning_rate=RATE, warmup_fraction=0.0), 10**6)
    step, state = make_step({"pairs": loss}, optimizer), init_state(ours.params, optimizer)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, None, [("pairs", arrays)])
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return run


def make_their_step(trainer: trl.DPOTrainer) -> Callable[[], float]:
    """The trainer's loss, and its update as in the trainer's own loop."""
    model, optimizer = trainer.model.train(), trainer.create_optimizer()
    batch = {key: value.to(find_device()) for key, value in collate(trainer).items()}

    def run() -> float:
        loss = trainer.compute_loss(model, batch)
        trainer.accelerator.backward(loss)
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        model.zero_grad()
        synchronize()
        return loss.item()

    return run


def measure_difference(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to theirs."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    return float((np.abs(ours - theirs) / np.abs(theirs)).max())


if __name__ == "__main__":
    main()
