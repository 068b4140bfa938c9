"""What the tests of reranking in a system share."""

import itertools

from tiny_encoders import lengthen, write_reranker

from rag_jax.models import load_reranker
from rag_jax.retrieval import score_pairs
from rag_jax.retrieval.rerank import join_passage

LENGTH = 64


def set_reranker(folder, **changes):
    """Writes a tiny reranker into a folder; returns the settings that name it, as of a flag."""
    reranker = lengthen(write_reranker(folder / "reranker"), LENGTH)
    settings = {"name": str(reranker), "depth": 4, **changes}
    return {f"retrieve.rerank.{name}": value for name, value in settings.items()}


def check_ranks(settings, question, shown, found, passages):
    """The passages of a prediction are ordered by the reranker and say where they were found.

    Args:
        settings: of `set_reranker`.
        shown: the prediction's passages, each with an id and its ranks.
        found: ids of what was found, best first.
        passages: of the corpus.
    """
    texts, depth = {p.id: join_passage(p) for p in passages}, settings["retrieve.rerank.depth"]
    reranker, read = load_reranker(settings["retrieve.rerank.name"]), found[:depth]
    scores = score_pairs(reranker, [(question, texts[id]) for id in read], max_length=LENGTH)
    scores = dict(zip(read, scores.tolist(), strict=True))
    assert [passage["rank_after"] for passage in shown] == list(range(1, len(shown) + 1))
    assert [found[passage["rank_before"] - 1] for passage in shown] == [p["id"] for p in shown]
    ordered = [scores[passage["id"]] for passage in shown[:depth]]
    assert all(left >= right - 1e-4 for left, right in itertools.pairwise(ordered))
    assert min(ordered) >= sorted(scores.values())[-len(ordered)] - 1e-4  # none better is left out
    assert [passage["id"] for passage in shown[depth:]] == found[depth : len(shown)]
