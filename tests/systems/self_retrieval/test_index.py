"""The corpus as the model's index: titles for passages without one, and tries."""

import json
from functools import partial

import pytest

from rag_jax.config import DataConfig, ReaderConfig, WorldConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import load_collection
from rag_jax.decoding import Trie
from rag_jax.models import load
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.systems.self_retrieval.config import SearchConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.self_retrieval.index import run_titled_corpus, run_trie

TEXTS = ["Riga is a town in Latvia.", "Lyon is a town in France.", "Oslo is a town in Norway."]


@pytest.fixture(scope="module")
def base(llama_folder):
    return load(llama_folder)


@pytest.fixture
def context(tmp_path):
    (tmp_path / "stage").mkdir()
    return StageContext(Stage("stage", lambda context: None), tmp_path)


def write_folder(folder, titles):
    """A folder in SQuAD's format with a passage of each title."""
    folder.mkdir()
    texts = zip(titles, TEXTS, strict=True)
    lines = {
        "passages": [{"id": f"p{i}", "title": t, "text": x} for i, (t, x) in enumerate(texts)],
        "train_questions": [{"id": "q", "question": "Where?", "answers": ["Latvia"]}],
    }
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return folder


def copy_corpus(context, folder, **changes):
    settings = {
        "data": DataConfig(path=str(folder)),
        "world": WorldConfig(),
        "check_corpus": lambda corpus: None,
        "model": ReaderConfig(max_text=24),
        "search": SearchConfig(),
    }
    run_titled_corpus(context, **settings | changes)
    return load_collection(context.folder).passages


def test_only_passages_without_a_title_get_one(context, tmp_path, base):
    folder = write_folder(tmp_path / "data", ["", "Lyons", " "])
    passages = copy_corpus(context, folder, load_base=lambda: base)
    assert [passage.text for passage in passages] == TEXTS
    assert [passage.id for passage in passages] == ["p0", "p1", "p2"]
    assert passages[1].title == "Lyons"
    for passage in (passages[0], passages[2]):
        assert passage.title == " ".join(passage.title.split()) != ""


def test_a_corpus_with_titles_opens_no_model(context, tmp_path):
    def fail():
        raise AssertionError

    folder = write_folder(tmp_path / "data", ["Riga", "Lyon", "Oslo"])
    passages = copy_corpus(context, folder, load_base=fail)
    assert [passage.title for passage in passages] == ["Riga", "Lyon", "Oslo"]


@pytest.mark.parametrize("titled", [True, False])
def test_the_trie_ends_each_passage_at_its_row(context, base, titled):
    passages = [Passage(str(i), "Town", text) for i, text in enumerate([*TEXTS, TEXTS[0]])]
    make_format = partial(Format, base.tokenizer, assessment="phrase", max_text=24)
    run_trie(context, titled=titled, passages=passages, make_format=make_format)
    trie, format = Trie.load(context.folder / "trie"), make_format(titled=titled)
    leaves = trie.find([format.encode_sequence(passage) for passage in passages])
    # The last text repeats the first.
    assert [trie.rows_at(int(leaf)) for leaf in leaves] == [[0, 3], [1], [2], [0, 3]]
