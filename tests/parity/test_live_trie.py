"""Beam search along a trie against transformers' `prefix_allowed_tokens_fn`, a tiny random Llama.

    pip install -e .[parity] && pytest -m parity tests/parity

A beam of theirs ends at a leaf by a stopping criterion of ours. They keep `1 + n` times as many
candidates as beams, `n` being the number of EOS tokens, and lose a live beam where more of them
end at once: with a few EOS tokens that the corpus does not use, none is lost here. Where a trie has
fewer sequences than there are beams, theirs come back with scores about -1e9 / length as well.
"""

from pathlib import Path

import numpy as np
import pytest

from rag_jax.decoding import BeamConfig, Trie, trie_search
from rag_jax.models import load

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FOLDER = Path(__file__).parents[1] / "golden" / "llama3"
UNUSED = list(range(3, 11))  # EOS tokens, the first of which is our end token
LIMIT = 16


@pytest.fixture(scope="module")
def models():
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return theirs.eval(), load(FOLDER)


def make_corpus(rng, vocabulary):
    """Sequences over few tokens, so that they share much, some equal, some beginning others."""
    tokens = rng.choice(np.arange(11, vocabulary), 6, replace=False)
    corpus = [tokens[rng.integers(0, 6, rng.integers(1, 9))].tolist() for _ in range(30)]
    return [*corpus, corpus[0], corpus[1][:-1] or corpus[1]]


class Guide:
    """What may come next, and whether a row is at a leaf, by a nested dict."""

    def __init__(self, corpus, end, start):
        self.start, self.trie = start, {}
        distinct = sorted({(*text, end) for text in corpus})
        for text in distinct:
            here = self.trie
            for n, token in enumerate(text):
                alone = sum(other[: n + 1] == text[: n + 1] for other in distinct) == 1
                here = here.setdefault(int(token), None if alone else {})
                if alone:
                    break

    def walk(self, row):
        """The node after a row's new tokens, None at a leaf, and how many led there."""
        here = self.trie
        for n, token in enumerate(row[self.start :].tolist()):
            if not here or token not in here:
                return None, n
            here = here[token]
        return here, len(row) - self.start

    def allowed(self, _, row):
        here, _ = self.walk(row)
        return list(here) if here else UNUSED[1:]

    def at_leaf(self, rows, scores, **_):
        return torch.tensor([self.walk(row)[0] is None for row in rows])


def pad_left(prompts):
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def ask(model, prompts, guide, **settings):
    with torch.inference_mode():
        return model.generate(
            **pad_left(prompts), do_sample=False, pad_token_id=0, eos_token_id=UNUSED,
            prefix_allowed_tokens_fn=guide.allowed, return_dict_in_generate=True,
            output_scores=True, **settings,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "search",
    [
        BeamConfig(2, length_penalty=0.0),
        BeamConfig(5),
        BeamConfig(4, length_penalty=2.0, early_stopping="never"),
        BeamConfig(40),
    ],
)
def test_same_sequences_and_scores(models, search, seed):
    theirs, ours = models
    rng = np.random.default_rng(seed)
    corpus = make_corpus(rng, ours.config.vocab_size)
    prompts = [rng.integers(11, ours.config.vocab_size, n).tolist() for n in (7, 3, 12)]
    trie = Trie.from_sequences(corpus, end_id=UNUSED[0])
    found = trie_search(ours.model, ours.params, prompts, trie, config=search)

    guide, beams = Guide(corpus, UNUSED[0], start=12), search.num_beams
    wanted = ask(
        theirs, prompts, guide, num_beams=beams, num_return_sequences=beams,
        length_penalty=search.length_penalty, early_stopping=search.early_stopping,
        max_new_tokens=LIMIT, stopping_criteria=[guide.at_leaf],
    )  # fmt: skip
    rows = wanted.sequences.reshape(len(prompts), beams, -1)
    scores = wanted.sequences_scores.reshape(len(prompts), beams).numpy()
    for paths, their_rows, their_scores in zip(found, rows, scores, strict=True):
        real = their_scores > -1e6
        assert len(paths) == real.sum() == min(beams, len({tuple(text) for text in corpus}))
        for path, row in zip(paths, their_rows, strict=False):
            end = guide.start + guide.walk(row)[1]
            assert [*path.tokens, UNUSED[0]][: path.length] == row[guide.start : end].tolist()
        np.testing.assert_allclose([p.score for p in paths], their_scores[real], atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_released_codes_passages(models, seed):
    """Beams over one new token, then a greedy search along the trie from each of them."""
    theirs, ours = models
    rng = np.random.default_rng(seed)
    corpus = make_corpus(rng, ours.config.vocab_size)
    prompt = rng.integers(11, ours.config.vocab_size, 9).tolist()
    trie = Trie.from_sequences(corpus, end_id=UNUSED[0])
    search = BeamConfig(4, length_penalty=0.0)
    (found,) = trie_search(ours.model, ours.params, [prompt], trie, config=search, greedy=True)
    guide = Guide(corpus, UNUSED[0], start=9)
    first = ask(theirs, [prompt], guide, num_beams=4, num_return_sequences=4, max_new_tokens=1)
    wanted = []
    for row in first.sequences:
        if guide.walk(row)[0] is not None:
            row = ask(
                theirs, [row.tolist()], guide, max_new_tokens=LIMIT,
                stopping_criteria=[guide.at_leaf],
            ).sequences[0]  # fmt: skip
        wanted.append(tuple(row[9 : 9 + guide.walk(row)[1]].tolist()))
    assert {(*f.tokens, UNUSED[0])[: f.length] for f in found} == set(wanted)
    assert len(wanted) == len(found) == 4
