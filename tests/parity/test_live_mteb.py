"""MTEB's evaluation of an encoder against ours, on a small task of a local corpus.

pip install -e .[parity] && pytest -m parity tests/parity/test_live_mteb.py
"""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_encoders import BERT, change_json, lengthen, write_modules

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import ndcg, rank_hits
from rag_jax.models import load
from rag_jax.retrieval import Index, encode_texts, list_texts
from rag_jax.retrieval.texts import configure_encoder
from rag_jax.runtime.errors import RagJaxError

pytestmark = pytest.mark.parity
mteb = pytest.importorskip("mteb", reason="the other side: pip install 'rag_jax[mteb]'")

NOUNS = ("Riga", "Oslo", "the river", "a ship", "the old house", "a bridge", "some music")
VERBS = ("lies near", "is older than", "was built by", "sails to", "belongs to")
PASSAGES = [
    Passage(f"p{i}", noun if i % 3 else "", f"{noun} {verb} {NOUNS[(i + 3) % len(NOUNS)]}.")
    for i, (noun, verb) in enumerate((noun, verb) for noun in NOUNS for verb in VERBS)
]
QUESTIONS = [
    Question(f"q{i}", f"What {verb} {noun}?", (), {f"p{i * 4 % 35}": 1, f"p{i * 9 % 35}": 2})
    for i, (noun, verb) in enumerate(zip(NOUNS, [*VERBS, *VERBS[:2]], strict=True))
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = shutil.copytree(BERT, tmp_path_factory.mktemp("encoder") / "bert")
    lengthen(folder, 128)
    prompts = {"query": "ask: ", "document": "read this: "}
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    write_modules(folder, ("Pooling", pooling), ("Normalize", {}))
    change_json(folder / "config_sentence_transformers.json", prompts=prompts)
    return load(folder)


@pytest.fixture(scope="module")
def task():
    """A task with its data in memory."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Ships(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Ships",
            description="Ships and towns.",
            prompt={"query": "A prompt of the task, which no encoder here was trained with."},
            dataset={"path": "local/ships", "revision": "1"},
            type="Retrieval",
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc=None, **_):
            part = {
                "corpus": Dataset.from_list([vars(p) for p in PASSAGES]),
                "queries": Dataset.from_list([{"id": q.id, "text": q.question} for q in QUESTIONS]),
                "relevant_docs": {q.id: dict(q.relevant) for q in QUESTIONS},
                "top_ranked": None,
            }
            self.dataset, self.data_loaded = {"default": {"test": part}}, True

    return Ships()


def evaluate(encoder):
    """Our nDCG@10 of the exact search."""
    options = {"max_length": 64}
    index = Index.build(
        encode_texts(encoder, list_texts(PASSAGES), role="document", **options),
        backend="exact",
        encoder=encoder.fingerprint,
    )
    queries = encode_texts(encoder, [q.question for q in QUESTIONS], role="query", **options)
    scores, rows = index.search(queries, 20)
    values = []
    for question, found, hits in zip(QUESTIONS, scores, rows, strict=True):
        pairs = [(PASSAGES[row], score) for row, score in zip(hits, found, strict=True)]
        ranked = rank_hits(question, pairs, lambda passage: passage.id)
        values.append(ndcg([passage.id for passage, _ in ranked], question.relevant, 10))
    return float(np.mean(values))


def test_ndcg_is_ours(encoder, task):
    """With the folder's prompts, and with others, which make another number and revision."""
    from rag_jax.retrieval.mteb import MtebEncoder

    settings = EncoderConfig(query_prompt="", passage_prompt="music: ")
    found, revisions = [], set()
    for own in (encoder, configure_encoder(encoder, settings)):
        model = MtebEncoder("tiny/bert", own, max_length=64)
        assert isinstance(model, mteb.EncoderProtocol)
        done = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
        (scores,) = done.task_results[0].scores["test"]
        found.append(scores["ndcg_at_10"])
        revisions.add(model.mteb_model_meta.revision)
        print("nDCG@10", found[-1], evaluate(own))
        assert found[-1] == pytest.approx(evaluate(own), abs=1e-5)  # MTEB rounds
    assert len(set(found)) == len(revisions) == 2


@pytest.mark.parametrize("role", ["query", "document", None])
def test_prompts_by_role(encoder, role):
    from rag_jax.retrieval.mteb import MtebEncoder

    model = MtebEncoder("tiny/bert", encoder, max_length=64)
    batches = [{"text": ["Riga", "the river"]}, {"text": ["Oslo lies"], "title": ["Oslo"]}]
    batches[1]["body"] = ["lies"]
    named = {"task_metadata": SimpleNamespace(name="T"), "hf_split": "test", "hf_subset": "x"}
    named["prompt_type"] = None if role is None else mteb.types.PromptType(role)
    texts = ["Riga", "the river", ("Oslo", "lies")]
    wanted = encode_texts(encoder, texts, role=role, max_length=64)
    np.testing.assert_array_equal(model.encode(batches, **named), wanted)
    with pytest.raises(RagJaxError, match="T: has no texts, but image"):
        model.encode([{"image": [0]}], **named)
    with pytest.raises(RagJaxError, match="precision='int8': embeddings are float32"):
        model.encode(batches, precision="int8", **named)
