"""Folders that Hugging Face's `datasets` itself writes, against the same rows as JSON lines.

pip install -e .[parity] && pytest -m parity tests/parity/test_live_datasets.py
"""

import json

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection

pytestmark = pytest.mark.parity
datasets = pytest.importorskip("datasets", reason="writes the folders")

QUESTIONS = [
    {"id": str(i), "question": "Where?", "answers": ["x"], "passage_id": "p"} for i in range(5)
]
PASSAGE = {"id": "p", "title": "Riga", "text": "Riga is a city in Latvia."}


def read(folder):
    return read_collection(DataConfig(str(folder)), WorldConfig())


def test_what_the_library_writes(tmp_path):
    """With shards, with files of its own beside them, and with rows that were chosen."""
    datasets.disable_progress_bars()
    splits = {"train": QUESTIONS, "validation": QUESTIONS[:2], "corpus": [PASSAGE]}
    saved = datasets.DatasetDict({n: datasets.Dataset.from_list(r) for n, r in splits.items()})
    saved.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "validation": 1, "corpus": 1})
    again = datasets.load_from_disk(str(tmp_path / "saved"))
    again["train"].map(lambda row: {"longer": row["question"] * 2})
    assert any((tmp_path / "saved" / "train").glob("cache-*.arrow"))
    (tmp_path / "lines").mkdir()
    for name, rows in splits.items():
        (tmp_path / "lines" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "saved") == read(tmp_path / "lines")
    saved["train"].select([4, 1]).save_to_disk(tmp_path / "few" / "dev")
    saved["corpus"].save_to_disk(tmp_path / "few" / "passages")
    assert [q.id for q in read(tmp_path / "few").questions["dev"]] == ["4", "1"]


def test_classes_and_parts(tmp_path):
    """Of a part that `train_test_split` made, the library says that it is of the whole's split."""
    labels = datasets.ClassLabel(names=["false", "mixture", "true", "unproven"])
    text = datasets.Value("string")
    features = datasets.Features({"claim_id": text, "claim": text, "label": labels})
    rows = [{"claim_id": str(i), "claim": "c", "label": 2} for i in range(10)]
    claims = datasets.Dataset.from_list(rows, features=features, split="train")
    parts = claims.train_test_split(0.3)
    assert str(parts["test"].split) == "train"
    parts["corpus"] = datasets.Dataset.from_list([PASSAGE])
    parts.save_to_disk(tmp_path / "claims")
    found = read(tmp_path / "claims").questions
    assert {split: len(listed) for split, listed in found.items()} == {"train": 7, "test": 3}
    assert {q.answers for q in found["test"]} == {("true",)}
