"""A whole query of Self-Retrieval in this library against the released procedure on PyTorch.

`benchmarks/trie.py` runs this comparison. The released code (Tang et al. 2024) searches five titles
with beams, then the first tokens of ten passages under each title. It continues greedily until each
passage is known, and reads every candidate after its question again to get the probability of the
rejection. The next tokens come from a nested dict that is walked from the header on. Here the
procedure is written anew on `generate`, with the steps of all titles and all candidates in batches.
This library does the same in its `reference` mode, whose candidates and probabilities are compared
first. Its `trie` mode, a full beam search, is timed too. Ours also writes the first token of an
answer.

The passages are the built-in encyclopedia's, twenty under a title, so that every title has ten.
"""

import dataclasses
from typing import Any

import bench
import numpy as np
import torch
import transformers
from guides import Walker, grow_dicts, pad_left
from models import as_tensor, synchronize

from rag_jax.data.gazetteer import build_world
from rag_jax.data.passages import Passage
from rag_jax.decoding import Trie
from rag_jax.systems.self_retrieval.config import SearchConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.self_retrieval.index import build_trie
from rag_jax.systems.self_retrieval.infer import Engine

TITLES, PASSAGES, SHARED, TOGETHER, LIMIT = 5, 10, 20, 12, 64
REFERENCE = SearchConfig(
    titles=TITLES, passages=PASSAGES, method="reference", lengths="mean", max_answer=1, batch_size=1
)


def compare_query(ours: Any, theirs: Any, *, cities: int, runs: int) -> dict[str, Any]:
    """Median seconds of a query on each side, after the candidates were compared."""
    world = build_world(cities=cities)
    passages = [
        Passage(p.id, f"Volume {i // SHARED + 1}", p.text) for i, p in enumerate(world.passages)
    ]
    format = Format(ours.tokenizer, titled=True, assessment="answer", max_text=256)
    trie = build_trie(format, passages)
    reference = Engine(ours.model, ours.params, format, passages, trie, REFERENCE)
    full = dataclasses.replace(reference, settings=dataclasses.replace(REFERENCE, method="trie"))
    released = Released(theirs, format, passages, trie)
    question = world.questions["test"][0].question
    sides = {
        "ours": lambda: full.retrieve([question]),
        "reference": lambda: reference.retrieve([question]),
        "dicts": lambda: released.retrieve(question),
    }
    compiling = {side: bench.time_call(sides[side]) for side in ("ours", "reference")}
    # By a candidate's row and title probability, the probability of the rejection.
    ((groups, _),) = sides["reference"]()
    found = {
        (row, round(c.title, 3)): c.reject for group in groups for c in group for row in c.rows
    }
    expected = {(row, round(title, 3)): reject for row, title, reject in sides["dicts"]()}
    others = found.keys() ^ expected.keys()
    bench.require(not others, f"other candidates: {others}")
    difference = max(abs(found[key] - expected[key]) for key in found)
    bench.require(difference < 1e-3, f"probabilities of rejection differ by {difference}")
    return {
        "name": f"a query, {TITLES} titles, {len(found)} candidates",
        "compile_seconds": compiling,
        "difference": difference,
        **bench.take_turns(sides, runs),
    }


class Released:
    """The released procedure, with a model of transformers and the trie of all passages."""

    def __init__(self, model: Any, format: Format, passages: list[Passage], trie: Trie):
        self.model, self.format, self.passages = model, format, passages
        self.end = format.tokenizer.eos_id
        leaves = np.flatnonzero(trie.leaves >= 0)
        sequences = sorted({(*trie.sequence(leaf), self.end) for leaf in leaves})
        header = format.tokenizer.encode(" Related document title:")
        self.guide = Walker(grow_dicts(sequences), self.end, header)
        title, title_end = (
            format.encode_title("Volume 1"),
            format.cut_title(format.encode_title("Volume 1")),
        )
        self.title_end, self.content = title_end[-1], title[len(title_end) - 1 :]
        # Rows of the corpus by the tokens up to the leaf, without the end token.
        self.rows = {tuple(trie.path(leaf)): trie.rows_at(leaf) for leaf in leaves}

    @torch.inference_mode()
    def retrieve(self, question: str) -> list[tuple[int, float, float]]:
        """Rows of the corpus, with the probabilities of their title and of their rejection."""
        prompt = self.format.encode_question(question)
        titles = self.generate(
            [prompt], beams=TITLES, is_done=lambda row: row[-1] == self.title_end
        )
        prompts = [prompt + title[:-1] + self.content for title, _ in titles]
        first = self.generate(prompts, beams=PASSAGES, limit=1)
        starts = [
            (i, prompts[i] + tokens)
            for i, group in enumerate(np.array_split(np.arange(len(first)), len(prompts)))
            for tokens, score in (first[j] for j in group)
            if score > -1e6  # a lower score is that of a filler
        ]
        continuations = self.generate(
            [tokens for _, tokens in starts], beams=1, is_done=lambda row: not self.guide.find(row)
        )
        candidates = []
        for (i, tokens), (continuation, _) in zip(starts, continuations, strict=True):
            path = tuple(tokens[len(prompt) :] + continuation)
            candidates += [(row, float(np.exp(titles[i][1]))) for row in self.rows[path]]
        rejections = self.assess(prompt, [self.passages[row] for row, _ in candidates])
        synchronize()
        return [(*pair, reject) for pair, reject in zip(candidates, rejections, strict=True)]

    def generate(
        self, prompts: list[list[int]], *, beams: int, is_done: Any = None, limit: int = LIMIT
    ) -> list[tuple[list[int], float]]:
        """The `beams` texts after each prompt, without padding, and their scores.

        Args:
            is_done: whether a row of tokens has ended.
        """
        arrays = pad_left(prompts)
        start = arrays["input_ids"].shape[1]
        stop = lambda rows, _, **__: torch.tensor([is_done(row) for row in rows.tolist()])  # noqa: E731
        found = self.model.generate(
            **arrays,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=limit,
            prefix_allowed_tokens_fn=self.guide.allow,
            stopping_criteria=transformers.StoppingCriteriaList([stop] if is_done else []),
            eos_token_id=self.end,
            pad_token_id=self.end,
            return_dict_in_generate=True,
            output_scores=beams > 1,
        )
        rows = [row[start:] for row in found.sequences.tolist()]
        rows = [row[: row.index(self.end)] if self.end in row else row for row in rows]
        scores = found.sequences_scores.tolist() if beams > 1 else [0.0] * len(rows)
        return list(zip(rows, scores, strict=True))

    def assess(self, prompt: list[int], passages: list[Passage]) -> list[float]:
        """`exp(-cross-entropy)` of the rejection after the question and each passage."""
        reject, values = self.format.encode_reject(), []
        for start in range(0, len(passages), TOGETHER):
            rows = [
                prompt + self.format.encode_reading(passage) + reject
                for passage in passages[start : start + TOGETHER]
            ]
            logits = self.model(**pad_left(rows)).logits[:, -len(reject) - 1 : -1]
            logprobs = torch.log_softmax(logits.float(), -1)
            targets = as_tensor([reject] * len(rows))
            values += logprobs.gather(-1, targets[..., None])[..., 0].mean(-1).exp().tolist()
        return values
