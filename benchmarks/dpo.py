"""A step of preference optimisation here and with TRL: the same weights and pairs, one process.

    pip install -e '.[bench]' && python benchmarks/dpo.py [--only=CASE] [--runs=7] [--out=FILE]

Direct preference optimisation of all weights of SmolLM2-135M in float32 (Rafailov et al. 2023), as
SR-RAG's second stage does it: the log-probabilities under the reference are computed once and
stored. TRL's trainer is run with its cache of them (`precompute_ref_log_probs`) and without, when
every step reads the pairs with the reference too. The loss is the preference alone, the source's
and the answer's being none of TRL's, and both sides clip gradients and use AdamW. The pairs' tokens
and their padding are TRL's. Reference log-probabilities and the losses of two steps, the first of
which is the logarithm of 2 whatever the pairs, are compared before anything is timed; then the
sides take turns, and the table has the medians. A ratio above one means that this library is
faster. Takes six minutes and 11 GB of memory on two CPU cores.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import datasets
import jax
import numpy as np
import torch
import transformers
import trl
from models import NAME, describe_machine, find_device, measure_peak, require, synchronize
from tqdm import tqdm
from turns import take_turns, time_call

from rag_jax.config import TrainConfig
from rag_jax.data.batches import round_up
from rag_jax.data.gazetteer import build_world
from rag_jax.models import load, save
from rag_jax.systems.srrag.data import TERMS
from rag_jax.systems.srrag.loss import sequence_logprobs, stage2_loss
from rag_jax.training.loop import init_state, make_optimizer, make_step
from rag_jax.training.rows import Row, pack_rows

BETA, RATE = 0.3, 1e-6
# Pairs, and tokens of a verbalisation: of the small run, and of the paper.
CASES = {"24 tokens a side": (4, 24), "150 tokens a side": (2, 150)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--runs", type=int, default=7, help="timed turns of each side, at least 7")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs={arguments.runs}: must be at least 7")

    torch.set_num_threads(os.cpu_count())
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    ours, peak, results = load(NAME), measure_peak(), []
    with tempfile.TemporaryDirectory() as folder:
        save(ours, Path(folder) / "model")
        chosen = [arguments.only] if arguments.only else CASES
        for name in tqdm(chosen, desc="benchmark", unit="cases"):
            results.append({"name": name, **measure(ours, Path(folder), name, arguments.runs)})
            tqdm.write(describe(results[-1], peak))
            gc.collect()  # trainers refer to themselves, and hold three models and their moments
    report = {
        "environment": describe_machine(peak) | {"trl": importlib.metadata.version("trl")},
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def measure(ours: Any, folder: Path, name: str, runs: int) -> dict[str, Any]:
    sides, facts = compare(ours, folder, *CASES[name])
    return {**facts, **take_turns(sides, runs)}


def compare(
    ours: Any, folder: Path, count: int, length: int
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """A step on the same pairs on every side, once all have given the same losses."""
    pairs = make_pairs(ours.tokenizer, count, length)
    cached, uncached = (make_trainer(folder, pairs, cached=cached) for cached in (True, False))
    arrays = pack_pairs(list(cached.train_dataset), width=collate(cached)["input_ids"].shape[1])
    score = jax.jit(lambda params, arrays: sequence_logprobs(ours.model, params, arrays))
    arrays["reference"] = np.asarray(score(ours.params, arrays))
    stored = [cached.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
    apart = compare_numbers(arrays["reference"], np.concatenate(stored))
    require(apart < 1e-4, f"the reference's log-probabilities differ by {apart:.1e} of theirs")

    sides = {
        "ours": make_our_step(ours, arrays),
        "trl": make_their_step(cached),
        "trl_uncached": make_their_step(uncached),
    }
    losses: dict[str, list[float]] = {side: [] for side in sides}
    compiling = time_call(lambda: losses["ours"].append(sides["ours"]()))
    for side, run in sides.items():
        while len(losses[side]) < 2:
            losses[side].append(run())
    apart = max(compare_numbers(losses["ours"], losses[side]) for side in ("trl", "trl_uncached"))
    require(apart < 1e-4, f"losses differ: {losses}")
    require(losses["ours"][1] < losses["ours"][0] - 1e-3, f"a step changes nothing: {losses}")
    tokens, targets = arrays["tokens"].size, int((arrays["verbalisation"] > 0).sum())
    return sides, {
        "compile_seconds": compiling,
        "difference": apart,
        "losses": losses,
        "pairs": count,
        "tokens": tokens,
        # A pass forward, one for the activations' gradients, one for the weights'.
        "gigaflop": 3 * ours.config.count_flops(tokens, targets) / 1e9,
    }


def make_pairs(tokenizer: Any, count: int, length: int) -> list[dict[str, str]]:
    """Questions of the built-in encyclopedia with some of its text, cut to `length` tokens."""
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
    """TRL's trainer with a model of its own, and a second one as the reference if not `cached`."""
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
    """The same tokens as stage 2 has them: the preferred sides, then the others."""

    def pack(side: str) -> dict[str, np.ndarray]:
        rows = []
        for pair in pairs:
            tokens = pair["prompt_ids"] + pair[side]
            spans = {"verbalisation": (len(pair["prompt_ids"]), len(tokens))}
            rows.append(Row(side, tokens, spans))
        return pack_rows(
            rows,
            terms=TERMS,
            width=width,
            targets=round_up(
                max(len(p[s]) for p in pairs for s in ("chosen_ids", "rejected_ids")), 16
            ),
            batch=len(rows),
            scale=1 / len(rows),
            reduction="sum",
        )

    halves = pack("chosen_ids"), pack("rejected_ids")
    arrays = {key: np.concatenate([half[key] for half in halves]) for key in halves[0]}
    return arrays | {"pair": np.full(len(pairs), 1 / len(pairs), np.float32)}


def make_our_step(ours: Any, arrays: dict[str, np.ndarray]) -> Callable[[], float]:
    """Stage 2's step; every call takes one and gives the loss before it."""

    def loss(params, frozen, arrays):
        return stage2_loss(ours.model, params, arrays, beta=BETA)

    # As good as constant: the schedule ends in a million steps.
    optimizer = make_optimizer(TrainConfig(learning_rate=RATE, warmup_fraction=0.0), 10**6)
    step = make_step({"pairs": loss}, optimizer)
    kept = [init_state(ours.params, optimizer)]

    def run() -> float:
        kept[0], metrics = step(kept[0], None, [("pairs", arrays)])
        jax.block_until_ready(kept[0])
        return float(metrics["loss"])

    return run


def make_their_step(trainer: trl.DPOTrainer) -> Callable[[], float]:
    """The trainer's loss, and what its loop does with it."""
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


def compare_numbers(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to theirs."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    return float((np.abs(ours - theirs) / np.abs(theirs)).max())


def describe(result: dict[str, Any], peak: float) -> str:
    wall, cpu = result["wall_seconds"], result["cpu_seconds"]
    line = f"{result['name']:18s}"
    for side, seconds in wall.items():
        line += f"  {side} {seconds:6.3f} s (CPU {cpu[side]:6.3f})"
        if side != "ours":
            line += f" ratio {seconds / wall['ours']:5.2f}"
    rate = result["gigaflop"] / wall["ours"]
    return (
        f"{line}  {result['tokens'] / wall['ours']:4.0f} tokens/s, {rate:4.0f} GFLOP/s, "
        f"{rate / peak:4.0%} of peak  first call {result['compile_seconds']:5.1f} s"
    )


if __name__ == "__main__":
    main()
