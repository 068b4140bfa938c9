"""A corpus of one passage, one title and one question: every system runs, with fewer neighbours."""

import jax
import numpy as np
import pytest

from rag_jax.config import build, to_config_dict
from rag_jax.pipeline.runner import run_stages
from rag_jax.runtime.files import read_jsonl, write_jsonl
from rag_jax.systems import open_room

TRAIN = {"train.epochs": 1, "train.batch_size": 2}
SYSTEMS = {
    "dpr": {"encoder.max_length": 16, "train.microbatch_tokens": 64, **TRAIN},
    "rag": {
        "passages": 3,
        "decode.passages": 5,
        "decode.curve": (1, 4),
        "index.backend": "exact",
        "generator.max_length": 64,
        "retriever.max_length": 16,
        "tuning.rank": 2,
        "decode.max_tokens": 2,
        "decode.batch_size": 1,
        "train.generator": False,  # one training is enough
        **TRAIN,
    },
    "self_retrieval": {
        "model.max_text": 24,
        "tuning.rank": 2,
        "search.max_answer": 2,
        "search.batch_size": 1,
        "dense.encoder.max_length": 16,
        "dense.train.epochs": 0,
        "train.microbatch_tokens": 64,
        **TRAIN,
    },
    "prag": {
        "model.max_text": 24,
        "retrieve.encoder.max_length": 16,
        "encode.together": 1,
        "augment.questions": 1,
        "answer.max_tokens": 2,
        "answer.batch_size": 1,
    },
    "srrag": {
        "model.max_text": 24,
        "encoder.max_length": 16,
        "index.backend": "exact",
        "answer.passages": 2,
        "route.tau": 0.2,
        "datastore.layer": 1,
        "answer.max_tokens": 2,
        "answer.batch_size": 1,
        "verbalise.max_tokens": 4,
        "verbalise.batch_size": 1,
        "label.batch_size": 1,
        "tuning.rank": 2,
        "stage1.microbatch_tokens": 64,
        "stage2.microbatch_tokens": 64,
    },
}
SAID = {
    "rag": ["config.passages=3: the corpus has only 1, and all are read"],
    "srrag": [
        "config.contexts=3: 1 of each source, because Wiki has only 1",
        "config.answer.passages=2: Wiki has only 1, and all are read",
        "all 1 training questions vote",
    ],
}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    passage = {"id": "1", "title": "Riga", "text": "Riga is the capital of Latvia."}
    write_jsonl(folder / "passages.jsonl", [passage])
    for split in ("train", "test"):
        asked = {"question": "Of which country is Riga the capital?", "answers": ["Latvia"]}
        write_jsonl(folder / f"{split}_questions.jsonl", [{"id": "q", "passage_id": "1", **asked}])
    return folder


@pytest.fixture
def make_config(data, llama_folder, bert_folder):
    def make(system):
        config = to_config_dict(open_room(system, "pipeline").CONFIG())
        models = dict.fromkeys(("model.name", "generator.name"), llama_folder)
        encoders = "encoder.name", "retriever.name", "dense.encoder.name", "retrieve.encoder.name"
        models |= dict.fromkeys(encoders, bert_folder)
        known = {name: str(path) for name, path in models.items() if has_field(config, name)}
        config.update_from_flattened_dict({**SYSTEMS[system], **known, "data.path": str(data)})
        return config

    return make


def has_field(config, path):
    for name in path.split("."):
        if name not in config:
            return False
        config = config[name]
    return True


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "srrag"])
def test_one_passage_and_one_question(system, make_config, tmp_path, capfd):
    report = open_room(system, "pipeline").run(make_config(system), tmp_path / "run")
    assert all(numbers["n"] == 1 for numbers in report["methods"].values())
    said = capfd.readouterr().err
    assert all(said.count(line) == 1 for line in SAID.get(system, []))


def test_the_contexts_of_one_passage_and_one_question(make_config, tmp_path, capfd):
    """One of each source; what follows in SR-RAG asks for no more."""
    pipeline, workdir = open_room("srrag", "pipeline"), tmp_path / "run"
    session = pipeline.Session(build(pipeline.CONFIG, make_config("srrag")))
    with jax.set_mesh(session.mesh):
        run_stages(pipeline.list_stages(session)[:6], workdir)
    (record,) = read_jsonl(workdir / "stages" / "contexts" / "contexts.jsonl")
    assert [len(texts) for texts in record["contexts"]] == [1, 1]
    (label,) = read_jsonl(workdir / "stages" / "labels" / "labels.jsonl")
    assert np.shape(label["scores"]) == (2, 1)
    said = capfd.readouterr().err
    assert [said.count(line) for line in SAID["srrag"]] == [1, 1, 1]
