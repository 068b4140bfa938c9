"""A whole query of Self-Retrieval in this library against the released procedure on PyTorch.

`benchmarks/trie.py` runs it. The released code (Tang et al. 2024) searches five titles with beams,
the first tokens of ten passages under each, goes on greedily until each passage is known, and reads
every candidate behind its question once more to ask whether it is rejected; the next tokens come
from a nested dict that is walked from the header on. Here it is written anew on `generate`, with
the steps of all titles and all candidates in batches. This library does the same in its
`reference` mode, whose candidates and probabilities are compared first, and searches properly in
its `trie` mode, which is timed beside it. Ours also writes the first token of an answer.

The passages are the built-in encyclopedia's, twenty under a title, so that ten can be found.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
import transformers
from guides import Walker, grow_dicts, pad_left
from models import as_tensor, require, synchronize
from turns import take_turns, time_call

from rag_jax.data.gazetteer import build_world
from rag_jax.data.passages import Passage
from rag_jax.decoding import Trie
from rag_jax.systems.self_retrieval.config import SearchConfig
from rag_jax.systems.self_retrieval.data import Format
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
    form = Format(ours.tokenizer, titled=True, assessment="answer", max_text=256)
    corpus = [form.encode_sequence(passage) for passage in passages]
    trie = Trie.from_sequences(corpus, end_id=ours.tokenizer.eos_id)
    reference = Engine(ours.model, ours.params, form, passages, trie, REFERENCE)
    proper = dataclasses.replace(reference, settings=dataclasses.replace(REFERENCE, method="trie"))
    released = Released(theirs, form, passages, trie)
    question = world.questions["test"][0].question

    compiling = {"ours": time_call(lambda: proper.retrieve([question]))}
    compiling["reference"] = time_call(lambda: reference.retrieve([question]))
    ((groups, _),) = reference.retrieve([question])
    found = {
        (row, round(c.title, 3)): c.reject for group in groups for c in group for row in c.rows
    }
    wanted = {(row, round(title, 3)): reject for row, title, reject in released.retrieve(question)}
    require(found.keys() == wanted.keys(), f"other candidates: {found.keys() ^ wanted.keys()}")
    difference = max(abs(found[key] - wanted[key]) for key in found)
    require(difference < 1e-3, f"probabilities of rejection differ by {difference}")
    sides = {
        "ours": lambda: proper.retrieve([question]),
        "reference": lambda: reference.retrieve([question]),
        "dicts": lambda: released.retrieve(question),
    }
    return {
        "name": f"a query, {TITLES} titles, {len(found)} candidates",
        "compile_seconds": compiling,
        "difference": difference,
        **take_turns(sides, runs),
    }


class Released:
    """The released procedure."""

    def __init__(self, model: Any, form: Format, passages: list[Passage], trie: Trie):
        self.model, self.form, self.passages = model, form, passages
        self.end = form.tokenizer.eos_id
        self.header = form.tokenizer.encode(" Related document title:")
        texts = sorted({(*trie.sequence(n), self.end) for n in np.flatnonzero(trie.leaves >= 0)})
        self.guide = Walker(grow_dicts(texts), self.end, self.header)
        self.title_end = form.encode_title_end("Volume 1")[-1]
        self.content = form.encode_title("Volume 1")[len(form.encode_title_end("Volume 1")) - 1 :]
        # By the tokens up to the leaf, without the end: rows of the corpus.
        self.rows = {tuple(trie.path(n)): trie.rows_at(n) for n in np.flatnonzero(trie.leaves >= 0)}

    @torch.inference_mode()
    def retrieve(self, question: str) -> list[tuple[int, float, float]]:
        """Rows of the corpus, the probability of their title and that of being rejected."""
        prompt = self.form.encode_question(question)
        titles = self.generate(
            [prompt], beams=TITLES, is_done=lambda row: row[-1] == self.title_end
        )
        read = [prompt + title[:-1] + self.content for title, _ in titles]
        first = self.generate(read, beams=PASSAGES, limit=1)
        starts = [
            (i, read[i] + tokens)
            for i, group in enumerate(np.array_split(np.arange(len(first)), len(read)))
            for tokens, score in (first[j] for j in group)
            if score > -1e6  # no filler
        ]
        rest = self.generate(
            [tokens for _, tokens in starts], beams=1, is_done=lambda row: not self.guide.find(row)
        )
        results = []
        for (i, tokens), (more, _) in zip(starts, rest, strict=True):
            path = tuple(tokens[len(prompt) :] + more)
            results += [(row, float(np.exp(titles[i][1]))) for row in self.rows[path]]
        rejections = self.assess(prompt, [self.passages[row] for row, _ in results])
        synchronize()
        return [(*pair, reject) for pair, reject in zip(results, rejections, strict=True)]

    def generate(
        self, prompts: list[list[int]], *, beams: int, is_done: Any = None, limit: int = LIMIT
    ) -> list[tuple[list[int], float]]:
        """Each prompt's texts, `beams` a prompt, without padding, and their scores."""
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

    def assess(self, prompt: list[int], found: list[Passage]) -> list[float]:
        """`exp(-cross-entropy)` of the rejection behind the question and each passage."""
        reject, values = self.form.encode_reject(), []
        for start in range(0, len(found), TOGETHER):
            rows = [
                prompt + self.form.encode_reading(passage) + reject
                for passage in found[start : start + TOGETHER]
            ]
            logits = self.model(**pad_left(rows)).logits[:, -len(reject) - 1 : -1]
            logprobs = torch.log_softmax(logits.float(), -1)
            said = as_tensor([reject] * len(rows))
            values += logprobs.gather(-1, said[..., None])[..., 0].mean(-1).exp().tolist()
        return values
