"""A reranker for `retrievers.py`: all-MiniLM-L6-v2, trained on a dataset's training questions.

    python benchmarks/train_reranker.py FOLDER --save=DIR [--epochs=2]

FOLDER is a dataset with training questions; in the committed results it is SciFact, of whose 809 a
tenth is held out, by which nothing was chosen: one setting was tried. Negatives are BM25's. The
same command again continues. Takes half an hour on two CPU cores.
"""

import argparse

import jax
import numpy as np

from rag_jax.config import DataConfig, MeshConfig, WorldConfig
from rag_jax.data.formats import read_collection
from rag_jax.evaluation.rankings import reciprocal_rank
from rag_jax.models import load, save_reranker
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import BM25, Reranked, make_text
from rag_jax.retrieval.negatives import make_miner
from rag_jax.retrieval.pairs import list_pairs
from rag_jax.retrieval.rerank_train import RerankTrainConfig, fit_reranker, start_reranker
from rag_jax.runtime.paths import expand_path
from rag_jax.runtime.sharding import make_mesh

LENGTH, NEGATIVES, DEPTH = 192, 20, 20


def main() -> None:
    """Trains a reranker, says how it ranks the questions that are held out, and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=expand_path)
    parser.add_argument("--save", type=expand_path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    collection = read_collection(DataConfig(path=str(arguments.folder)), WorldConfig())
    passages, questions = list(collection.passages), collection.questions["train"]
    held_out, train = questions[::10], [q for i, q in enumerate(questions) if i % 10]
    mined = make_miner(passages, train, depth=100, count=NEGATIVES)(train)
    pairs = list_pairs(train, [record["rows"] for record in mined], passages)
    reranker, kept = start_reranker(load("all-minilm-l6-v2")), []
    settings = RerankTrainConfig(epochs=arguments.epochs, negatives=5, learning_rate=5e-5)
    folder = arguments.save.with_name(arguments.save.name + "-training")
    stage = StageContext(Stage("train", lambda context: None), folder)
    stage.folder.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1])
    inputs = pairs, train, passages, settings, mesh, stage.folder, stage.progress
    fit_reranker(reranker, *inputs, max_length=LENGTH, seed=0, save=kept.append)
    save_reranker(kept[0], arguments.save)
    words = BM25.build(map(make_text, passages))
    for name, searcher in (
        ("BM25", words),
        ("reranked", Reranked(kept[0], words, passages, DEPTH, LENGTH)),
    ):
        _, found = searcher.search([question.question for question in held_out], DEPTH)
        ids = [[passages[row].id for row in rows] for rows in found]
        pairs = zip(ids, held_out, strict=True)
        ranks = [reciprocal_rank(own, question.relevant) for own, question in pairs]
        print(f"{name}: MRR {np.mean(ranks):.4f} of {len(ranks)} questions held out")


if __name__ == "__main__":
    main()
