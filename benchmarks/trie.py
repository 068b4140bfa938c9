"""Search along a trie against Hugging Face's `prefix_allowed_tokens_fn`: same model, one process.

    pip install -e '.[bench]' && python benchmarks/trie.py [--runs=7] [--out=FILE]

SmolLM2-135M searches the built-in encyclopedia's passages (title, then text), five beams behind
each of four questions. Both of theirs keep a nested dict: `dicts` walks it from the prompt's header
on at every step, as the code that Tang et al. (2024) released does; `pointers` remembers the node
after each path. Their beams end at a leaf, as ours do, by a stopping criterion that walks the same
way. What is found is compared before anything is timed; then the three take turns, and the tables
have the medians. A ratio above one means that this library is faster. Then the choice of the next
tokens alone, from logits that are there already: theirs is the log-softmax, the mask and the top-k.
Takes ten minutes on two CPU cores.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from models import as_tensor, describe_machine, load_theirs, measure_peak, require, synchronize
from turns import take_turns, time_call

from rag_jax.data.gazetteer import build_world
from rag_jax.decoding import Search, Trie, trie_search
from rag_jax.decoding.constrained import expand
from rag_jax.models import load

NAME, CITIES, BEAMS, QUESTIONS, LIMIT = "smollm2-135m-instruct", 1200, 5, 4, 64
HEADER = " Related document title:"
ROWS, DEPTH = (20, 60, 600), 6  # of the choice alone: beams, and how far from the root


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
        results.append(compare_choosing(ours, trie, guides, longest, rows, arguments.runs))
        print(describe(results[-1]))
    report = {"environment": describe_machine(measure_peak()), "results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


# Theirs.


def grow_dicts(texts: Sequence[tuple[int, ...]], depth: int = 0) -> dict[str, Any] | None:
    """Tokens, as strings, to what follows; None where one text remains. Recursive, as released."""
    if len(texts) == 1:
        return None
    groups: dict[int, list[tuple[int, ...]]] = {}
    for text in texts:
        groups.setdefault(text[depth], []).append(text)
    return {str(token): grow_dicts(group, depth + 1) for token, group in groups.items()}


class Walker:
    """Finds the header in a row and walks the dicts from there, at every step anew."""

    def __init__(self, dicts: dict[str, Any], end: int, header: list[int]):
        self.dicts, self.end, self.header = dicts, end, header

    def find(self, row: list[int]) -> dict[str, Any] | None:
        """The node that a row stands at; None at a leaf or where there is nothing."""
        size = len(self.header)
        start = next(i for i in range(len(row)) if row[i : i + size] == self.header) + size
        node = self.dicts
        for token in row[start:]:
            node = node and node.get(str(token))
        return node

    def allow(self, _: int, row: torch.Tensor) -> list[int]:
        node = self.find(row.tolist())
        return [int(token) for token in node] if node else [self.end]

    def is_done(self, rows: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([self.find(row) is None for row in rows.tolist()], device=rows.device)


class Pointers:
    """Remembers the node behind every path, so that a step looks up where its parent stood."""

    def __init__(self, dicts: dict[str, Any], end: int, start: int):
        self.root, self.end, self.start = dicts, end, start
        self.known: dict[tuple[int, ...], dict[str, Any] | None] = {}

    def find(self, path: tuple[int, ...]) -> dict[str, Any] | None:
        if not path:
            self.known = {(): self.root}  # a call's first step
        elif path not in self.known:
            parent = self.known[path[:-1]]
            self.known[path] = parent and parent.get(str(path[-1]))
        return self.known[path]

    def allow(self, _: int, row: torch.Tensor) -> list[int]:
        node = self.find(tuple(row[self.start :].tolist()))
        return [int(token) for token in node] if node else [self.end]

    def is_done(self, rows: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        paths = map(tuple, rows[:, self.start :].tolist())
        return torch.tensor([self.find(path) is None for path in paths], device=rows.device)


def pad_left(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": as_tensor(rows), "attention_mask": as_tensor(mask)}


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
    search = Search(BEAMS)
    arrays = pad_left(prompts)
    start = arrays["input_ids"].shape[1]

    def ours_run():
        return trie_search(ours.model, ours.params, prompts, trie, search=search)

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


def compare_choosing(
    ours: Any, trie: Trie, guides: dict, prompt: list[int], rows: int, runs: int
) -> dict[str, Any]:
    """One step's choice for `rows` beams, `BEAMS` a question, that stand at one depth."""
    rng, arrays = np.random.default_rng(rows), trie.place()
    nodes = rng.choice(find_level(trie, DEPTH), rows)
    logits = rng.normal(size=(rows, ours.config.vocab_size)).astype(np.float32)
    ends = arrays.first_child[1:] == arrays.first_child[:-1]
    shape = (rows // BEAMS, BEAMS)
    state = (nodes.reshape(shape), np.zeros(shape, np.float32), logits.reshape(*shape, -1))
    state = jax.device_put(state)
    choose = jax.jit(partial(expand, beams=BEAMS, part=True))

    def ours_run():
        return jax.block_until_ready(choose(arrays, ends, *state))

    paths = [tuple(trie.path(int(node))) for node in nodes]
    ids = as_tensor([[*prompt, *path] for path in paths])
    for n in range(DEPTH + 1):  # the steps before
        for path in paths if n else paths[:1]:
            guides["pointers"].find(path[:n])
    on_their_device = torch.asarray(logits, device=ids.device)

    def theirs_run(guide):
        process = transformers.PrefixConstrainedLogitsProcessor(guide.allow, BEAMS)
        scores = process(ids, torch.log_softmax(on_their_device, -1)).reshape(shape[0], -1)
        best = torch.topk(scores, 2 * BEAMS)
        synchronize()
        return best

    compiling = time_call(ours_run)
    (best, _), difference = ours_run(), 0.0
    for guide in guides.values():
        wanted = theirs_run(guide)[0][:, :BEAMS].cpu().numpy()
        difference = max(difference, float(np.abs(wanted - best.logprobs).max()))
    require(difference < 1e-4, f"the chosen tokens' scores differ by {difference}")
    sides = {"ours": ours_run, **{n: lambda g=g: theirs_run(g) for n, g in guides.items()}}
    return {
        "name": f"choice alone, {rows} beams",
        "compile_seconds": compiling,
        "difference": difference,
        **take_turns(sides, runs),
    }


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


def describe(result: dict[str, Any]) -> str:
    lines = []
    for side, wall in result["wall_seconds"].items():
        ratio = wall / result["wall_seconds"]["ours"]
        lines.append(
            f"{result['name']:32s} {side:8s} {1000 * wall:9.2f} ms "
            f"(CPU {1000 * result['cpu_seconds'][side]:9.2f})  this/ours {ratio:6.2f}"
        )
    lines[0] += f"  first call {result['compile_seconds']:.1f} s"
    return "\n".join(lines)


if __name__ == "__main__":
    main()
