"""Beams along a trie against Hugging Face's `prefix_allowed_tokens_fn`: same model, one process.

    pip install -e '.[bench]' && python benchmarks/trie.py [--runs=7] [--out=FILE]

SmolLM2-135M searches the built-in encyclopedia's passages (title, then text) with five beams after
each of four questions. Both of theirs keep a nested dict: `dicts` walks the dict from the prompt's
header on at every step, as in the released code of Tang et al. (2024); `pointers` remembers the
node of each path. Their beams end at a leaf, as ours do, by a stopping criterion that walks the
same way. The sequences are compared before anything is timed. The three then take turns, and the
tables have the medians. A ratio above one means that this library is faster.

Further cases: a step alone, without the model, from log-probabilities (theirs is the mask; ours has
no mask, but gathers the children's log-probabilities and chooses the best) and from logits (theirs
is the log-softmax, the mask and the top-k; a third side only adds up the exponentials of all
logits, which every log-probability needs); a whole query of Self-Retrieval (see `query.py`); and
our trie and the choice alone at up to a million made-up passages. Takes twenty minutes on two CPU
cores.
"""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import bench
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from guides import Pointers, Walker, grow_dicts, pad_left
from models import PACKAGES, as_tensor, load_theirs, measure_peak, synchronize
from query import compare_query

from rag_jax.data.gazetteer import build_world
from rag_jax.decoding import BeamConfig, Trie, TrieArrays, trie_search
from rag_jax.decoding.trie_beams import expand_nodes
from rag_jax.losses import sum_exponentials
from rag_jax.models import load

NAME, CITIES, BEAMS, QUESTIONS, LIMIT = "smollm2-135m-instruct", 1200, 5, 4, 64
HEADER = " Related document title:"
ROWS, DEPTH = (20, 60, 600), 6  # of a step alone: numbers of beams, and tokens from the root
SIZES, STEP_ROWS = (1000, 100_000, 1_000_000), 60  # numbers of made-up passages, and of beams


def main() -> None:
    """Runs every comparison and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    runs, results = arguments.runs, []

    def add(result: dict[str, Any], describe: Callable[[dict[str, Any]], str]) -> None:
        results.append(result)
        print(describe(result), flush=True)

    ours, theirs = load(NAME), load_theirs()
    world = build_world(cities=CITIES)
    encode, end = ours.tokenizer.encode, ours.tokenizer.eos_id
    sequences = [encode(f" {p.title}\n {p.text}") for p in world.passages]
    questions = world.questions["test"][:QUESTIONS]
    prompts = [encode(f"Question: {q.question}\n\n{HEADER}") for q in questions]
    trie, dicts, building = compare_building(sequences, end)
    add(building, describe_building)
    guides = {
        "dicts": Walker(dicts, end, encode(HEADER)),
        "pointers": Pointers(dicts, end, max(map(len, prompts))),
    }
    add(compare_searching(ours, theirs, trie, guides, prompts, runs), describe)
    longest = max(prompts, key=len)  # the pointers expect paths after as many tokens
    for rows in ROWS:
        step = make_step(ours, trie, guides, longest, rows)
        add(compare_masking(step, runs), describe)
        add(compare_choosing(step, runs), describe)
    add(compare_query(ours, theirs, cities=CITIES, runs=runs), describe)
    add(measure_sizes(ours.config.vocab_size, runs), describe_sizes)
    machine = bench.describe_machine(PACKAGES, measure_peak())
    bench.write_report(arguments.out, environment=machine, results=results)


def compare_building(sequences: list[list[int]], end: int) -> tuple[Trie, dict, dict[str, Any]]:
    """Both tries, with their sizes and the CPU seconds to build them."""
    their_sequences = sorted({(*sequence, end) for sequence in sequences})
    start = time.process_time()
    trie = Trie.from_sequences(sequences, end_id=end)
    middle = time.process_time()
    dicts = grow_dicts(their_sequences)
    seconds = {"ours": middle - start, "dicts": time.process_time() - middle}
    children = np.diff(trie.first_child)
    return (
        trie,
        dicts,
        {
            "name": "building",
            "sequences": len(sequences),
            "tokens": sum(map(len, sequences)),
            "nodes": trie.size,
            "depth": trie.depth,
            "most_children": int(children.max()),
            "forced": float((children == 1).sum() / (children > 0).sum()),  # of the inner nodes
            "bytes": {
                "on the device": trie.first_child.nbytes + trie.tokens.nbytes,
                "all": trie.nbytes,
                "dicts as JSON, without passages": len(json.dumps(dicts)),
            },
            "cpu_seconds": seconds,
        },
    )


def compare_searching(
    ours: Any, theirs: Any, trie: Trie, guides: dict, prompts: list[list[int]], runs: int
) -> dict[str, Any]:
    """A whole search on all sides.

    Args:
        guides: theirs by name, a `Walker` and a `Pointers`.
    """
    arrays = pad_left(prompts)
    start = arrays["input_ids"].shape[1]

    def run_ours():
        return trie_search(ours.model, ours.params, prompts, trie, config=BeamConfig(BEAMS))

    def run_theirs(guide):
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

    bench.require(trie.depth <= LIMIT, f"the trie is {trie.depth} tokens deep")
    compiling = bench.time_call(run_ours)
    paths = [path for of_prompt in run_ours() for path in of_prompt]
    difference = 0.0
    for name, guide in guides.items():
        found = run_theirs(guide)
        rows = found.sequences[:, start:].tolist()
        same = [p.tokens[: p.length] == row[: p.length] for p, row in zip(paths, rows, strict=True)]
        bench.require(all(same), f"{same.count(False)} sequences differ from those of {name}")
        scores = found.sequences_scores.cpu().numpy()
        difference = max(difference, float(np.abs(scores - [p.score for p in paths]).max()))
    bench.require(difference < 1e-3, f"scores differ by {difference}")
    sides = {"ours": run_ours, **{n: partial(run_theirs, g) for n, g in guides.items()}}
    return {
        "name": f"search, {len(prompts)} questions, {BEAMS} beams",
        "steps": found.sequences.shape[1] - start,
        "compile_seconds": compiling,
        "difference": difference,
        **bench.take_turns(sides, runs),
    }


# A step alone.


class Step(NamedTuple):
    """A step of `rows` beams at one depth, `BEAMS` a question, after all steps before it."""

    rows: int
    arrays: TrieArrays
    ends: jax.Array  # `[N]`, True on leaves
    nodes: jax.Array  # `[B, w]`
    logits: np.ndarray  # `[B * w, V]`
    ids: torch.Tensor  # `[B * w, T]`, the prompt and the beams' paths
    guides: dict


def make_step(ours: Any, trie: Trie, guides: dict, prompt: list[int], rows: int) -> Step:
    """A step of random beams and logits."""
    rng, arrays = np.random.default_rng(rows), trie.place()
    nodes = rng.choice(find_level(trie, DEPTH), rows)
    logits = rng.normal(size=(rows, ours.config.vocab_size)).astype(np.float32)
    paths = [tuple(trie.path(int(node))) for node in nodes]
    for n in range(DEPTH + 1):  # the pointers of the steps before
        for path in paths if n else paths[:1]:
            guides["pointers"].find(path[:n])
    ids = as_tensor([[*prompt, *path] for path in paths])
    nodes = jax.device_put(nodes.reshape(-1, BEAMS))
    return Step(rows, arrays, find_ends(arrays), nodes, logits, ids, guides)


def find_ends(arrays: TrieArrays) -> jax.Array:
    """True on nodes without children."""
    return arrays.first_child[1:] == arrays.first_child[:-1]


choose = jax.jit(partial(expand_nodes, beams=BEAMS, compete=True))


@jax.jit
def choose_normalized(*arrays):
    """The same choice from log-probabilities, which need no sum over the vocabulary."""
    zero = lambda logits: jnp.zeros(logits.shape[:-1])  # noqa: E731
    with patch("rag_jax.decoding.trie_beams.sum_exponentials", zero):
        return expand_nodes(*arrays, beams=BEAMS, compete=True)


def compare_masking(step: Step, runs: int) -> dict[str, Any]:
    """From log-probabilities to those that the trie allows; ours also chooses the best."""
    logprobs = np.asarray(jax.nn.log_softmax(step.logits, axis=-1))
    zeros = jax.device_put(np.zeros(step.nodes.shape, np.float32))
    our_logprobs = jax.device_put(logprobs.reshape(*step.nodes.shape, -1))
    their_logprobs = torch.asarray(logprobs, device=step.ids.device)

    def run_ours():
        arrays = step.arrays, step.ends, step.nodes, zeros, our_logprobs
        return jax.block_until_ready(choose_normalized(*arrays))

    def run_theirs(guide):
        process = transformers.PrefixConstrainedLogitsProcessor(guide.allow, BEAMS)
        masked = process(step.ids, their_logprobs)
        synchronize()
        return masked

    return _compare_steps(f"mask alone, {step.rows} beams", step, run_ours, run_theirs, runs)


def compare_choosing(step: Step, runs: int) -> dict[str, Any]:
    """From logits to the best tokens that the trie allows."""
    zeros = jax.device_put(np.zeros(step.nodes.shape, np.float32))
    our_logits = jax.device_put(step.logits.reshape(*step.nodes.shape, -1))
    their_logits = torch.asarray(step.logits, device=step.ids.device)

    def run_ours():
        return jax.block_until_ready(choose(step.arrays, step.ends, step.nodes, zeros, our_logits))

    def run_theirs(guide):
        process = transformers.PrefixConstrainedLogitsProcessor(guide.allow, BEAMS)
        scores = process(step.ids, torch.log_softmax(their_logits, -1))
        best = torch.topk(scores.reshape(len(step.nodes), -1), 2 * BEAMS)[0]
        synchronize()
        return best

    # What no choice along a trie can do without: the log-probabilities' normaliser.
    normalize = jax.jit(sum_exponentials)
    sides = {"normaliser": lambda: jax.block_until_ready(normalize(our_logits))}
    sides["normaliser"]()
    name = f"choice alone, {step.rows} beams"
    return _compare_steps(name, step, run_ours, run_theirs, runs, sides)


def _compare_steps(
    name: str,
    step: Step,
    run_ours: Callable,
    run_theirs: Callable,
    runs: int,
    further: Mapping[str, Callable[[], Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    compiling = bench.time_call(run_ours)
    (best, _), difference = run_ours(), 0.0
    for guide in step.guides.values():
        scores = run_theirs(guide).reshape(len(step.nodes), -1)
        expected = torch.topk(scores, BEAMS)[0].cpu().numpy()
        difference = max(difference, float(np.abs(expected - best.logprobs).max()))
    bench.require(difference < 1e-4, f"the chosen tokens' scores differ by {difference}")
    sides = {"ours": run_ours, **{n: partial(run_theirs, g) for n, g in step.guides.items()}}
    sides |= dict(further)
    return {
        "name": name,
        "compile_seconds": compiling,
        "difference": difference,
        **bench.take_turns(sides, runs),
    }


# Large tries.


def measure_sizes(vocab_size: int, runs: int) -> dict[str, Any]:
    """Our trie of more and more passages: CPU seconds to build, bytes, and a step's choice."""
    sizes, sides = {}, {}
    for count in SIZES:
        sequences = make_up_sequences(count, vocab_size)
        start = time.process_time()
        trie = Trie.from_sequences(sequences, end_id=0)
        sizes[str(count)] = {
            "cpu_seconds": time.process_time() - start,
            "nodes_per_passage": trie.size / count,
            "device_bytes_per_passage": (trie.first_child.nbytes + trie.tokens.nbytes) / count,
            "bytes_per_passage_without_tails": (trie.nbytes - trie.tails.nbytes) / count,
            "bytes_per_passage": trie.nbytes / count,
        }
        sides[str(count)] = make_choice(trie, vocab_size)
        bench.time_call(sides[str(count)])
    return {"name": "sizes", "sizes": sizes, **bench.take_turns(sides, max(runs, 101))}


def make_up_sequences(count: int, vocab_size: int) -> list[np.ndarray]:
    """Passages of 100 tokens, as frequent as words are, ten after each title of four tokens."""
    rng = np.random.default_rng(count)
    # Zipf's law over the vocabulary, but for token 0, which ends every passage.
    draw = lambda *shape: 1 + np.minimum(rng.zipf(1.2, shape), vocab_size - 1) % (vocab_size - 1)  # noqa: E731
    titles = np.repeat(draw(-(-count // 10), 4).astype(np.int32), 10, axis=0)[:count]
    return list(np.concatenate([titles, draw(count, 100).astype(np.int32)], axis=1))


def make_choice(trie: Trie, vocab_size: int) -> Callable[[], Any]:
    """A step's choice of `STEP_ROWS` beams, `BEAMS` a question, two tokens from the root."""
    rng, arrays = np.random.default_rng(0), trie.place()
    shape = (STEP_ROWS // BEAMS, BEAMS)
    nodes = rng.choice(find_level(trie, 2), shape)
    logits = rng.normal(size=(*shape, vocab_size)).astype(np.float32)
    state = jax.device_put((nodes, np.zeros(shape, np.float32), logits))
    ends = find_ends(arrays)
    return lambda: jax.block_until_ready(choose(arrays, ends, *state))


def find_level(trie: Trie, depth: int) -> np.ndarray:
    """The inner nodes that are `depth` tokens from the root."""
    first, last = 0, 1
    for _ in range(depth):
        first, last = trie.first_child[first], trie.first_child[last]
    return first + np.flatnonzero(trie.leaves[first:last] < 0)


# The tables.


def describe_building(facts: dict[str, Any]) -> str:
    """Sizes and CPU seconds of both tries."""
    sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in facts["bytes"].items())
    return (
        f"building: {facts['sequences']} sequences of {facts['tokens']} tokens, {facts['nodes']} "
        f"nodes, {facts['depth']} deep, at most {facts['most_children']} children, "
        f"{facts['forced']:.0%} of the inner nodes have one; CPU "
        f"ours {facts['cpu_seconds']['ours']:.2f} s, dicts {facts['cpu_seconds']['dicts']:.2f} s; "
        f"{sizes}"
    )


def describe_sizes(facts: dict[str, Any]) -> str:
    """A line for each number of passages."""
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
    """A line for each side of a comparison."""
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
