"""Beams along a trie against Hugging Face's `prefix_allowed_tokens_fn`: same model, one process.

    pip install -e '.[bench]' && python benchmarks/trie.py [--runs=7] [--out=FILE]

SmolLM2-135M searches the built-in encyclopedia's passages (title, then text), five beams behind
each of four questions. Both of theirs keep a nested dict: `dicts` walks it from the prompt's header
on at every step, as the code that Tang et al. (2024) released does; `pointers` remembers the node
after each path. Their beams end at a leaf, as ours do, by a stopping criterion that walks the same
way. What is found is compared before anything is timed; then the three take turns, and the tables
have the medians. A ratio above one means that this library is faster. Then a step alone,
without the model. From log-probabilities that are there already: theirs is the mask; ours has no
mask, but gathers the children's and chooses the best. From logits: theirs is the log-softmax, the
mask and the top-k. Then a whole query of Self-Retrieval (see `query.py`); and our trie and the
choice alone at up to a million made-up passages. Takes twenty minutes on two CPU cores.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from guides import Pointers, Walker, grow_dicts, pad_left
from models import as_tensor, describe_machine, load_theirs, measure_peak, require, synchronize
from query import compare_query
from turns import take_turns, time_call

from rag_jax.data.gazetteer import build_world
from rag_jax.decoding import BeamConfig, Trie, trie_search
from rag_jax.decoding.trie import TrieArrays
from rag_jax.decoding.trie_beams import expand
from rag_jax.models import load

NAME, CITIES, BEAMS, QUESTIONS, LIMIT = "smollm2-135m-instruct", 1200, 5, 4, 64
HEADER = " Related document title:"
ROWS, DEPTH = (20, 60, 600), 6  # of the choice alone: beams, and how far from the root
SIZES, STEP_ROWS = (1000, 100_000, 1_000_000), 60  # made-up passages, and beams that choose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="timed turns of each side, at least 7")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs={arguments.runs}: must be at least 7")

    ours, theirs = load(NAME), load_theirs()
    world = build_world(cities=CITIES)
    encode, end = ours.tokenizer.encode, ours.tokenizer.eos_id
    corpus = [encode(f" {p.title}\n {p.text}") for p in world.passages]
    prompts = [
        encode(f"Question: {q.question}\n\n{HEADER}") for q in world.questions["test"][:QUESTIONS]
    ]
    trie, dicts, building = compare_building(corpus, end)
    print(describe_building(building))
    guides = {
        "dicts": Walker(dicts, end, encode(HEADER)),
        "pointers": Pointers(dicts, end, max(map(len, prompts))),
    }
    results = [building, compare_searching(ours, theirs, trie, guides, prompts, arguments.runs)]
    print(describe(results[-1]))
    longest = max(prompts, key=len)  # where the pointers start
    for rows in ROWS:
        step = make_step(ours, trie, guides, longest, rows)
        for compare in (compare_masking, compare_choosing):
            results.append(compare(step, arguments.runs))
            print(describe(results[-1]))
    results.append(compare_query(ours, theirs, cities=CITIES, runs=arguments.runs))
    print(describe(results[-1]))
    results.append(measure_sizes(ours.config.vocab_size, arguments.runs))
    print(describe_sizes(results[-1]))
    report = {"environment": describe_machine(measure_peak()), "results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


# The comparisons.


def compare_building(corpus: list[list[int]], end: int) -> tuple[Trie, dict, dict[str, Any]]:
    """Both tries, and what they took."""
    texts = sorted({(*text, end) for text in corpus})
    times = {side: time.process_time() for side in ("ours", "dicts")}
    trie = Trie.from_sequences(corpus, end_id=end)
    times["dicts"] = time.process_time()
    times["ours"] = times["dicts"] - times["ours"]
    dicts = grow_dicts(texts)
    times["dicts"] = time.process_time() - times["dicts"]
    children = np.diff(trie.first_child)
    facts = {
        "name": "building",
        "sequences": len(corpus),
        "tokens": sum(map(len, corpus)),
        "nodes": trie.size,
        "depth": trie.depth,
        "most_children": int(children.max()),
        "forced": float((children == 1).sum() / (children > 0).sum()),  # of the nodes that go on
        "bytes": {
            "on the device": trie.first_child.nbytes + trie.tokens.nbytes,
            "all": trie.nbytes,
            "dicts as JSON, without passages": len(json.dumps(dicts)),
        },
        "cpu_seconds": times,
    }
    return trie, dicts, facts


def compare_searching(
    ours: Any, theirs: Any, trie: Trie, guides: dict, prompts: list[list[int]], runs: int
) -> dict[str, Any]:
    search = BeamConfig(BEAMS)
    arrays = pad_left(prompts)
    start = arrays["input_ids"].shape[1]

    def ours_run():
        return trie_search(ours.model, ours.params, prompts, trie, config=search)

    def theirs_run(guide):
        with torch.inference_mode():
            found = theirs.generate(
                **arrays,
                do_sample=False,
                num_beams=BEAMS,
                num_return_sequences=BEAMS,
                max_new_tokens=LIMIT,
                prefix_allowed_tokens_fn=guide.allow,
                stopping_criteria=transformers.StoppingCriteriaList([guide.is_done]),
                eos_token_id=ours.tokenizer.eos_id,
                pad_token_id=ours.tokenizer.eos_id,
                return_dict_in_generate=True,
                output_scores=True,
            )
        synchronize()
        return found

    require(trie.depth <= LIMIT, f"the trie is {trie.depth} tokens deep")
    compiling = time_call(ours_run)
    found = [path for paths in ours_run() for path in paths]
    difference = 0.0
    for name, guide in guides.items():
        wanted = theirs_run(guide)
        rows = wanted.sequences[:, start:].tolist()
        same = [p.tokens[: p.length] == row[: p.length] for p, row in zip(found, rows, strict=True)]
        require(all(same), f"{same.count(False)} of {len(same)} sequences differ from {name}'")
        scores = wanted.sequences_scores.cpu().numpy()
        difference = max(difference, float(np.abs(scores - [p.score for p in found]).max()))
    require(difference < 1e-3, f"scores differ by {difference}")
    sides = {"ours": ours_run, **{n: lambda g=g: theirs_run(g) for n, g in guides.items()}}
    return {
        "name": f"search, {len(prompts)} questions, {BEAMS} beams",
        "steps": wanted.sequences.shape[1] - start,
        "compile_seconds": compiling,
        "difference": difference,
        **take_turns(sides, runs),
    }


class Step(NamedTuple):
    """A step of `rows` beams, `BEAMS` a question, that stand at one depth."""

    rows: int
    arrays: TrieArrays
    ends: jax.Array
    nodes: jax.Array
    logits: np.ndarray
    ids: torch.Tensor
    guides: dict


def make_step(ours: Any, trie: Trie, guides: dict, prompt: list[int], rows: int) -> Step:
    rng, arrays = np.random.default_rng(rows), trie.place()
    nodes = rng.choice(find_level(trie, DEPTH), rows)
    logits = rng.normal(size=(rows, ours.config.vocab_size)).astype(np.float32)
    paths = [tuple(trie.path(int(node))) for node in nodes]
    for n in range(DEPTH + 1):  # the steps before
        for path in paths if n else paths[:1]:
            guides["pointers"].find(path[:n])
    ids = as_tensor([[*prompt, *path] for path in paths])
    nodes = jax.device_put(nodes.reshape(-1, BEAMS))
    return Step(rows, arrays, find_ends(arrays), nodes, logits, ids, guides)


def find_ends(arrays: TrieArrays) -> jax.Array:
    return arrays.first_child[1:] == arrays.first_child[:-1]


def compare_masking(step: Step, runs: int) -> dict[str, Any]:
    """Log-probabilities to those that the trie allows: our choice of the best is part of ours."""
    logprobs = np.asarray(jax.nn.log_softmax(step.logits, axis=-1))
    zeros = jax.device_put(np.zeros(step.nodes.shape, np.float32))
    given = jax.device_put(logprobs.reshape(*step.nodes.shape, -1))
    choose = jax.jit(partial(expand, beams=BEAMS, part=True))
    on_their_device = torch.asarray(logprobs, device=step.ids.device)

    def ours_run():
        return jax.block_until_ready(
            choose(step.arrays, step.ends, step.nodes, zeros, given, zeros)
        )

    def theirs_run(guide):
        process = transformers.PrefixConstrainedLogitsProcessor(guide.allow, BEAMS)
        masked = process(step.ids, on_their_device)
        synchronize()
        return masked

    return _compare_steps(f"mask alone, {step.rows} beams", step, ours_run, theirs_run, runs)


def compare_choosing(step: Step, runs: int) -> dict[str, Any]:
    """Logits to the best of what the trie allows."""
    zeros = jax.device_put(np.zeros(step.nodes.shape, np.float32))
    given = jax.device_put(step.logits.reshape(*step.nodes.shape, -1))
    choose = jax.jit(normalize_and_choose)
    on_their_device = torch.asarray(step.logits, device=step.ids.device)

    def ours_run():
        return jax.block_until_ready(choose(step.arrays, step.ends, step.nodes, zeros, given))

    def theirs_run(guide):
        process = transformers.PrefixConstrainedLogitsProcessor(guide.allow, BEAMS)
        scores = process(step.ids, torch.log_softmax(on_their_device, -1))
        best = torch.topk(scores.reshape(len(step.nodes), -1), 2 * BEAMS)[0]
        synchronize()
        return best

    return _compare_steps(f"choice alone, {step.rows} beams", step, ours_run, theirs_run, runs)


def normalize_and_choose(arrays, ends, nodes, logprobs, logits):
    norms = jax.nn.logsumexp(logits, axis=-1)
    return expand(arrays, ends, nodes, logprobs, logits, norms, beams=BEAMS, part=True)


def _compare_steps(
    name: str, step: Step, ours_run: Any, theirs_run: Any, runs: int
) -> dict[str, Any]:
    compiling = time_call(ours_run)
    (best, _), difference = ours_run(), 0.0
    for guide in step.guides.values():
        scores = theirs_run(guide).reshape(len(step.nodes), -1)
        wanted = torch.topk(scores, BEAMS)[0].cpu().numpy()
        difference = max(difference, float(np.abs(wanted - best.logprobs).max()))
    require(difference < 1e-4, f"the chosen tokens' scores differ by {difference}")
    sides = {"ours": ours_run, **{n: lambda g=g: theirs_run(g) for n, g in step.guides.items()}}
    return {
        "name": name,
        "compile_seconds": compiling,
        "difference": difference,
        **take_turns(sides, runs),
    }


def measure_sizes(vocab_size: int, runs: int) -> dict[str, Any]:
    """Our trie of ever more passages: what it takes to build and to keep, and a step's choice."""
    sizes, sides = {}, {}
    for count in SIZES:
        corpus = make_up_corpus(count, vocab_size)
        start = time.process_time()
        trie = Trie.from_sequences(corpus, end_id=0)
        sizes[str(count)] = {
            "cpu_seconds": time.process_time() - start,
            "nodes_per_passage": trie.size / count,
            "device_bytes_per_passage": (trie.first_child.nbytes + trie.tokens.nbytes) / count,
            "bytes_per_passage_without_tails": (trie.nbytes - trie.tails.nbytes) / count,
            "bytes_per_passage": trie.nbytes / count,
        }
        sides[str(count)] = make_choice(trie, vocab_size)
        time_call(sides[str(count)])
    return {"name": "sizes", "sizes": sizes, **take_turns(sides, max(runs, 101))}


def make_up_corpus(count: int, vocab_size: int) -> list[np.ndarray]:
    """Passages of 100 tokens, as frequent as words are, ten behind each title of four."""
    rng = np.random.default_rng(count)
    # Zipf's law over the vocabulary, but for token 0, which ends every passage.
    draw = lambda *shape: 1 + np.minimum(rng.zipf(1.2, shape), vocab_size - 1) % (vocab_size - 1)  # noqa: E731
    titles = np.repeat(draw(-(-count // 10), 4).astype(np.int32), 10, axis=0)[:count]
    return list(np.concatenate([titles, draw(count, 100).astype(np.int32)], axis=1))


def make_choice(trie: Trie, vocab_size: int) -> Any:
    """A step's choice of `STEP_ROWS` beams, `BEAMS` a question, two tokens from the root."""
    rng, arrays = np.random.default_rng(0), trie.place()
    shape = (STEP_ROWS // BEAMS, BEAMS)
    nodes = rng.choice(find_level(trie, 2), shape)
    logits = rng.normal(size=(*shape, vocab_size)).astype(np.float32)
    state = jax.device_put((nodes, np.zeros(shape, np.float32), logits))
    ends, choose = find_ends(arrays), jax.jit(normalize_and_choose)
    return lambda: jax.block_until_ready(choose(arrays, ends, *state))


def find_level(trie: Trie, depth: int) -> np.ndarray:
    """The nodes so many tokens from the root that are no leaves."""
    first, behind = 0, 1
    for _ in range(depth):
        first, behind = trie.first_child[first], trie.first_child[behind]
    return first + np.flatnonzero(trie.leaves[first:behind] < 0)


def describe_building(facts: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in facts["bytes"].items())
    return (
        f"building: {facts['sequences']} sequences of {facts['tokens']} tokens, {facts['nodes']} "
        f"nodes, {facts['depth']} deep, at most {facts['most_children']} children, "
        f"{facts['forced']:.0%} of the nodes that go on have one; CPU "
        f"ours {facts['cpu_seconds']['ours']:.2f} s, dicts {facts['cpu_seconds']['dicts']:.2f} s; "
        f"{sizes}"
    )


def describe_sizes(facts: dict[str, Any]) -> str:
    return "\n".join(
        f"{int(count):9,d} passages: built in {size['cpu_seconds']:.2f} s of CPU, "
        f"{size['nodes_per_passage']:.1f} nodes a passage; bytes a passage "
        f"{size['device_bytes_per_passage']:.0f} on the device, "
        f"{size['bytes_per_passage_without_tails']:.0f} without tails, "
        f"{size['bytes_per_passage']:.0f} in all; a choice "
        f"{1000 * facts['wall_seconds'][count]:.3f} ms "
        f"(CPU {1000 * facts['cpu_seconds'][count]:.3f})"
        for count, size in facts["sizes"].items()
    )


def describe(result: dict[str, Any]) -> str:
    lines = []
    for side, wall in result["wall_seconds"].items():
        ratio = wall / result["wall_seconds"]["ours"]
        lines.append(
            f"{result['name']:32s} {side:8s} {1000 * wall:9.2f} ms "
            f"(CPU {1000 * result['cpu_seconds'][side]:9.2f})  this/ours {ratio:6.2f}"
        )
    compiling = result["compile_seconds"]
    for i, seconds in enumerate(compiling.values() if isinstance(compiling, dict) else [compiling]):
        lines[i] += f"  first call {seconds:.1f} s"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
