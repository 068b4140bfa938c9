"""From a folder of documents to a folder with questions: what is written, kept and left alone."""

import json
import re
from pathlib import Path

import pytest

from rag_jax.commands import write_questions
from rag_jax.config import DataConfig, MeshConfig, ReaderConfig, WorldConfig
from rag_jax.data.formats import read_collection
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import asking
from rag_jax.systems.questions import check, pipeline
from rag_jax.systems.questions.config import CheckConfig, CorpusConfig, QuestionsConfig, WriteConfig

CITIES = {"Riga": "Daugava", "Tartu": "Emajogi", "Turku": "Aura", "Narva": "Narova"}
FILLER = "There are many streets, squares, parks, bridges, shops and houses for everybody to see."


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for city, river in CITIES.items():
        text = f"# {city}\n\nThe city of {city} lies on the river {river}. {FILLER}\n"
        (folder / f"{city}.md").write_text(text)
    return folder


@pytest.fixture
def config(folder, llama_folder):
    return QuestionsConfig(
        mesh=MeshConfig(data=1),
        model=ReaderConfig(name=str(llama_folder)),
        data=CorpusConfig(path=str(folder)),
        write=WriteConfig(each=2, batch_size=2),
        check_by=CheckConfig(batch_size=2),
    )


@pytest.fixture
def written(monkeypatch):
    """A model's texts in place of a random model's; the prompts that it was given."""
    prompts = []

    def write(base, rows, *, max_tokens, batch_size, **_):
        texts = list(map(base.tokenizer.decode, rows))
        prompts.extend(texts)
        return [base.tokenizer.encode(answer(text)) for text in texts]

    def answer(prompt):
        city = re.findall("|".join(CITIES), prompt)[-1]
        if "Write 2 different questions" in prompt:
            return (
                f"Question: On which river is {city}?\nAnswer: {CITIES[city]}\n"
                f"Question: What does {city} have?\nAnswer: many streets\n"
                "Question: Which city does this text name?\nAnswer: " + city
            )
        if "river" not in prompt.rsplit("Question:", 1)[-1]:
            return "nothing of it"
        # Of Tartu the model knows it, and of Turku it does not find it.
        known = city == "Tartu" or ("Passage:" in prompt and city != "Turku")
        return CITIES[city] if known else "the Neva"

    monkeypatch.setattr(asking, "continue_prompts", write)
    monkeypatch.setattr(check, "continue_prompts", write)
    return prompts


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_from_documents_to_a_folder_that_every_system_reads(config, written, tmp_path, capsys):
    counts = pipeline.write_questions(config, tmp_path / "run")
    assert sum(counts.values()) == 2
    data = tmp_path / "run" / "data"
    collection = read_collection(DataConfig(path=str(data)), WorldConfig(), seed=0)
    assert len(collection.passages) == 4
    asked = [q for questions in collection.questions.values() for q in questions]
    assert sorted((q.question, q.answers, *q.relevant) for q in asked) == [
        ("On which river is Narva?", ("Narova",), "Narva.md#3"),
        ("On which river is Riga?", ("Daugava",), "Riga.md#3"),
    ]
    left = read_lines(tmp_path / "run" / "stages" / "split" / "left_out.jsonl")
    reasons = {(record["passage"], record["question"]): record["reason"] for record in left}
    assert reasons["Tartu.md#3", "On which river is Tartu?"] == "is answered without its passage"
    assert reasons["Turku.md#3", "On which river is Turku?"].startswith("is not answered so")
    assert reasons["Riga.md#3", "What does Riga have?"].startswith("is not answered so")
    assert reasons["Riga.md#3", "Which city does this text name?"] == "points at its passage"
    assert len(left) == 10
    assert "4 of 12 questions are left out: points at its passage" in capsys.readouterr().err
    # Nothing of it is made twice.
    written.clear()
    assert pipeline.write_questions(config, tmp_path / "run") == counts
    assert not written and f"{data}: kept\n" in capsys.readouterr().err


def test_what_was_changed_by_hand_stays(config, written, tmp_path, capsys):
    run = tmp_path / "run"
    pipeline.write_questions(config, run)
    (path, *_) = sorted((run / "data").glob("*_questions.jsonl"))
    corrected = path.read_text().replace("On which river is", "Which river flows through")
    path.write_text(corrected + '{"id": "mine", "question": "Why?", "answers": ["so"]}\n\n')
    counts = pipeline.write_questions(config, run)
    assert sum(counts.values()) == 3
    assert f"{path.name} as changed by hand" in capsys.readouterr().err
    other = QuestionsConfig(**{**vars(config), "seed": 1})
    with pytest.raises(RagJaxError, match=f"{path.name}: was changed by hand, and these settings"):
        pipeline.write_questions(other, run)
    assert "Which river flows through" in path.read_text()
    # Without the change they are made anew.
    path.write_text(corrected.replace("Which river flows through", "On which river is"))
    assert sum(pipeline.write_questions(other, run).values()) == 2
    # A broken line is named where the questions are read.
    path = sorted((run / "data").glob("*_questions.jsonl"))[0]
    path.write_text(path.read_text() + "{oops\n")
    with pytest.raises(RagJaxError, match=rf"{path.name}:\d+: "):
        read_collection(DataConfig(path=str(run / "data")), WorldConfig(), seed=0)


def test_what_cannot_be_asked_about(config, written, tmp_path, monkeypatch, capsys, caplog):
    (tmp_path / "run" / "data").mkdir(parents=True)
    with pytest.raises(RagJaxError, match="data: was not made by this command"):
        pipeline.write_questions(config, tmp_path / "run")
    monkeypatch.setattr(pipeline, "judge", lambda record: "is wrong")
    with pytest.raises(RagJaxError, match=r"no question is left: .*left_out.jsonl says why; "):
        pipeline.write_questions(config, tmp_path / "other")
    assert not (tmp_path / "other" / "data").exists()
    short = tmp_path / "short"
    short.mkdir()
    (short / "a.md").write_text("# A\n\nTwo words.\n")
    (short / "notes.jsonl").write_text("{}\n")
    few = QuestionsConfig(**{**vars(config), "data": CorpusConfig(path=str(short))})
    with pytest.raises(RagJaxError, match="no passage has 20 words, so there is nothing to"):
        pipeline.write_questions(few, tmp_path / "third")
    # What lies beside the documents, or beside a file of passages, is named once.
    assert caplog.text.count(f"{short / 'notes.jsonl'}: is not read") == 1
    assert "is not read" not in capsys.readouterr().err
    (short / "passages.jsonl").write_text('{"id": "b", "title": "B", "text": "Two words."}\n')
    with pytest.raises(RagJaxError, match="no passage has 20 words"):
        pipeline.write_questions(few, tmp_path / "fourth")
    told = capsys.readouterr().err
    assert f"{short / 'a.md'}: is not read" in told and f"{short / 'notes.jsonl'}: is not" in told
    assert "passages.jsonl: is not read" not in told


@pytest.mark.parametrize(
    ("files", "sources"),
    [
        (["corpus.jsonl", "notes.md"], ["corpus.jsonl"]),
        (["wiki.jsonl", "queries.jsonl"], ["wiki.jsonl"]),
        (["psgs_w100.tsv"], ["psgs_w100.tsv"]),
        (["notes.md", "wiki.jsonl"], [""]),  # the folder of documents
    ],
)
def test_files_that_are_asked_about(tmp_path, files, sources):
    contents = {".tsv": "id\ttext\ttitle\n1\tWords.\tT\n", ".md": "# T\n\nWords.\n"}
    for name in files:
        content = contents.get(name[name.rindex(".") :], '{"id": "1", "text": "Words."}\n')
        (tmp_path / name).write_text(content)
    found, _ = CorpusConfig(path=str(tmp_path)).list_sources()
    assert found == [tmp_path / name for name in sources]


def test_a_folder_without_anything_to_ask_about(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "Where?", "answers": ["x"]}\n')
    with pytest.raises(RagJaxError, match="holds no documents and no file of passages"):
        CorpusConfig(path=str(tmp_path)).list_sources()


def test_settings_that_do_not_fit():
    with pytest.raises(RagJaxError, match="config.data.path=None: name a folder of documents"):
        QuestionsConfig().check("config")
    with pytest.raises(RagJaxError, match="config.data.path=' ': name a folder of documents"):
        QuestionsConfig(data=CorpusConfig(path=" ")).check("config")
    with pytest.raises(RagJaxError, match=r"config.test=0.9 and config.dev=0.2: are more than 1"):
        QuestionsConfig(test=0.9, dev=0.2, data=CorpusConfig(path="x")).check("config")


def test_the_folder_of_the_data_is_no_work_folder(config):
    folder = Path(config.data.path)
    before = sorted(folder.rglob("*"))
    with pytest.raises(RagJaxError, match="has the data, which a run must not change; choose"):
        pipeline.write_questions(config, folder)
    assert sorted(folder.rglob("*")) == before


def test_the_command(config, written, tmp_path, capsys):
    given = [
        "--config=configs/questions.py",
        f"--config.data.path={config.data.path}",
        f"--config.model.name={config.model.name}",
        "--config.write.each=2",
        "--config.write.batch_size=2",
        f"--workdir={tmp_path / 'run'}",
    ]
    write_questions.main(given)
    assert f"{tmp_path / 'run' / 'data'}: 2 questions (" in capsys.readouterr().out
    described = write_questions.describe(command.read_command(given, write_questions.OPTIONS)[0])
    assert "config.write.passages" in described and "config.check_by.copied" in described
