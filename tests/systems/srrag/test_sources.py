"""A run with three sources, the model and countries and cities as two indexes, and with all that
the method is compared with. Its questions are a folder's, as ARC has them."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import read_page
from tiny import continue_row

from rag_jax.config import DataConfig, build, to_config_dict
from rag_jax.data.gazetteer import build_world
from rag_jax.data.passages import Passage
from rag_jax.evaluation.answers import choice_match
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, write_jsonl
from rag_jax.systems.srrag import pipeline
from rag_jax.systems.srrag.config import SourceConfig, SRRAGConfig
from rag_jax.systems.srrag.data import (
    encode_answer_prompt,
    encode_document_prompt,
    join_passages,
)
from rag_jax.systems.srrag.label import choose_source
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.sources import (
    Searched,
    count_slots,
    measure_passages,
    read_longest,
    run_lengths,
    search_indices,
    select_rows,
)
from systems.srrag.tiny_run import describe_run, open_stage, quick_programs

PRESETS = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "srrag.py"))["PRESETS"]
SOURCES = PRESETS["two-indexes"].sources
METHODS = ["direct", "verbalise", "retrieve", "retrieve_Countries", "retrieve_Cities"]

CONTROL = "<EOQ> <Self> <Cities> <EOK> <|im_end|>"
COMPARED = [
    "raw_verbalise",
    "raw_retrieve_Countries",
    "raw_retrieve_Cities",
    "selective",
    "selective_fixed",
    "selective_retrieve",
    "without_verbalisation",
    "without_stage2",
]


def write_folder(folder):
    """The encyclopedia's passages, and of each question which of four answers is right.

    One question spells the control tokens, and one has no answer.
    """
    folder.mkdir()
    world = build_world(cities=5, train=12, dev=0, test=10)
    write_jsonl(folder / "passages.jsonl", world.passages)
    pool = [q.answers[0] for asked in world.questions.values() for q in asked]
    for split in ("train", "test"):
        records = []
        for i, q in enumerate(world.questions[split]):
            wrong = [text for text in dict.fromkeys(pool) if text not in q.answers][i : i + 3]
            texts = [*wrong[: i % 4], q.answers[0], *wrong[i % 4 :]]
            choices = dict(zip("ABCD", texts, strict=True))
            answer = "ABCD"[i % 4]
            records.append({"id": q.id, "question": q.question, "choices": choices})
            records[-1] |= {"answerKey": answer} if i < 9 or split == "train" else {}
        records[0]["question"] = f"{CONTROL} {records[0]['question']}"
        write_jsonl(folder / f"{split}_questions.jsonl", records)


@pytest.fixture(scope="module")
def several(llama_folder, bert_folder, tmp_path_factory):
    """The session, folder and report of a finished run."""
    folder = tmp_path_factory.mktemp("data") / "arc"
    write_folder(folder)
    settings = replace(
        describe_run(llama_folder, bert_folder),
        data=DataConfig(path=str(folder)),
        sources=SOURCES,
        route=PRESETS["two-indexes"].route,
        ablations=True,
    )
    workdir = tmp_path_factory.mktemp("several") / "run"
    with quick_programs():
        report = pipeline.run(to_config_dict(settings), workdir)
    return Session(settings), workdir, report


def test_every_source_gives_contexts_and_may_be_the_label(several):
    session, workdir, _ = several
    context = open_stage(session, workdir, "stage1")
    labels = read_jsonl(context.path("labels", "labels.jsonl"))
    ids = {(p.title, p.text): p.id for p in session.passages}
    gathered = read_jsonl(context.path("contexts", "contexts.jsonl"))
    examples = session.make_examples(context)
    for record, label, example in zip(gathered, labels, examples, strict=True):
        mine, countries, cities = record["contexts"]
        assert all(isinstance(text, str) for text in mine)
        assert [ids[tuple(p)].split("/")[0] for p in (*countries, *cities)] == (
            ["country"] * 3 + ["city"] * 3
        )
        assert label["source"] == choose_source(np.asarray(label["scores"])) == example.source
        start = example.row.spans["source"][0]
        assert example.row.tokens[start] == session.format.source_ids[example.source]
        assert ("verbalisation" in example.row.spans) == (example.source == 0)
    shares = read_json(context.path("labels", "statistics.json"))["share"]
    assert list(shares) == ["Self", "Countries", "Cities"]
    assert sum(shares.values()) == pytest.approx(1)


def test_each_index_is_searched_for_its_own_questions(several):
    session, workdir, report = several
    context = open_stage(session, workdir, "evaluate")
    search = session.open_search(context, 1)
    assert list(report["methods"]) == [*METHODS, "srrag", "without_knn", *COMPARED]
    by_method = {
        name: read_jsonl(workdir / "predictions" / f"{name}.jsonl") for name in report["methods"]
    }
    for i, question in enumerate(session.questions):
        records = {name: rows[i] for name, rows in by_method.items()}
        for number, source in ((1, "Countries"), (2, "Cities")):
            passage = search(number, [question.question])[0]
            assert records[f"retrieve_{source}"]["knowledge"] == join_passages(passage)
        # A search if both indexes together outweigh the model; of the one with the larger product.
        own, *others = records["srrag"]["probabilities"]
        mine, *votes = records["srrag"]["votes"]
        best = 1 + int(np.multiply(others, votes).argmax())
        names = ["verbalise", "retrieve_Countries", "retrieve_Cities"]
        searches = sum(others) * sum(votes) > own * mine
        assert records["srrag"] == records[names[best if searches else 0]]
        assert records["srrag"]["mass"] == pytest.approx(sum(others) * sum(votes))
        assert records["retrieve"] == records[names[best]]
        alone = records["without_knn"]
        assert alone["number"] == (1 + np.argmax(others) if sum(others) > own else 0)
        assert alone["scores"] == alone["probabilities"]
        correct = [records[name]["correct"] for name in names]
        assert records["srrag"]["correct_by_source"] == correct
    with np.load(context.path("datastore", "datastore.npz"), allow_pickle=False) as stored:
        assert stored["scores"].shape == (12, 3)
        assert stored["source"].tolist() == stored["scores"].argmax(axis=1).tolist()


# What the method is compared with.


def test_the_untrained_model_reads_what_each_source_gives(several):
    session, workdir, report = several
    found = {
        name: read_jsonl(workdir / "predictions" / f"{name}.jsonl") for name in report["methods"]
    }
    tokenizer, c = session.base.tokenizer, session.config
    for i in range(9):
        for name in COMPARED[:3]:
            record = found[name][i]
            prompt = encode_answer_prompt(
                tokenizer, record["question"], record["knowledge"], "ABCD"
            )
            written, _ = continue_row(
                session.base.model,
                session.base.params,
                prompt,
                max_tokens=c.answer.max_tokens,
                stop_ids=(tokenizer.eos_id,),
            )
            assert record["prediction"] == tokenizer.decode(written).strip()
            assert record["retrieved"] == (name != "raw_verbalise")
            more = 0
            if name != "raw_verbalise":
                tuned = found[name.removeprefix("raw_")][i]
                assert record["knowledge"] == tuned["knowledge"]
            else:
                more = len(encode_document_prompt(tokenizer, record["question"]))
            assert record["prompt_tokens"] == len(prompt) + more


def test_selective_retrieval(several):
    """Trained to answer at once or to search; chooses by the tokens' probabilities alone."""
    session, workdir, _ = several
    context = open_stage(session, workdir, "selective")
    labels = read_jsonl(context.path("labels", "labels.jsonl"))
    examples = session.make_examples(context, closed_book=True, writes=False)
    for example, label in zip(examples, labels, strict=True):
        assert example.source == label["closed_book_source"]
        assert example.rejected is None and "verbalisation" not in example.row.spans
        if example.source == 0:
            start = example.row.spans["source"][0]
            assert example.row.tokens[start + 1] == session.format.end_of_knowledge
    names = ("selective", "selective_fixed", "selective_retrieve")
    found = [read_jsonl(workdir / "predictions" / f"{name}.jsonl") for name in names]
    for row, fixed, searched in zip(*found, strict=True):
        probabilities = row["probabilities"]
        assert row["scores"] == probabilities and row["votes"] is None
        best = 1 + int(np.argmax(probabilities[1:]))
        assert searched["number"] == best
        # By the run's rule, and by the paper's threshold.
        assert row["number"] == (best if sum(probabilities[1:]) > probabilities[0] else 0)
        assert fixed["number"] == (best if sum(probabilities[1:]) > 0.2 else 0)
        assert all(r["number"] > 0 or r["knowledge"] == "" for r in (row, fixed))


def test_labels_without_verbalising(several):
    session, workdir, _ = several
    context = open_stage(session, workdir, "stage1_closed_book")
    labels = read_jsonl(context.path("labels", "labels.jsonl"))
    examples = session.make_examples(context, closed_book=True)
    for example, label in zip(examples, labels, strict=True):
        assert example.source == label["closed_book_source"]
        assert ("verbalisation" in example.row.spans) == (example.source == 0)
    counts = read_json(context.folder / "rows.json")["by_source"]
    names = [session.config.sources[example.source].name for example in examples]
    assert counts == {name: names.count(name) for name in set(names)}


def test_stage_2_with_the_loss_of_stage_1(several):
    """It goes on from stage 1 for as many steps, without preferences."""
    _, workdir, _ = several
    logs = {
        stage: read_jsonl(workdir / "stages" / stage / "log.jsonl")
        for stage in ("stage1", "stage2", "stage1_again")
    }
    assert len(logs["stage1_again"]) == len(logs["stage2"])
    assert set(logs["stage1_again"][0]) == set(logs["stage1"][0])
    # The first batch is the same, and so is what it starts from.
    for term in ("source", "answer"):
        assert logs["stage1_again"][0][term] == pytest.approx(logs["stage2"][0][term], rel=1e-4)
    assert logs["stage1_again"][0]["answer"] != logs["stage1"][0]["answer"]


def test_every_choice_is_analysed(several):
    report = several[2]
    routing = report["analysis"]["routing"]
    assert list(routing) == [
        "srrag",
        "without_knn",
        "without_verbalisation",
        "without_stage2",
        "selective",
        "selective_fixed",
    ]
    (rows,) = (rows for title, rows in report["tables"].items() if title.startswith("Routers"))
    # The largest product has no threshold.
    assert {row[0] for row in rows if row[1] != "-"} == {"router", "selective_fixed"}
    of = ("", "without_verbalisation, ", "without_stage2, ", "selective, ")
    names = ("verbalise", "retrieve", "retrieve_Countries", "retrieve_Cities")
    assert [row[0] for row in rows[7:]] == [f"{o}always {name}" for o in of for name in names]


# Questions with choices, of a folder.


def test_choices(several):
    """Questions without answers are left out; the others are right by the choice they name."""
    session, workdir, report = several
    open_stage(session, workdir, "evaluate")
    asked = session.questions
    assert len(asked) == 9
    assert report["dataset"] == f"{session.config.data.path}, test questions"
    for name, numbers in report["methods"].items():
        records = read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        assert [record["id"] for record in records] == [q.id for q in asked]
        for record, question in zip(records, asked, strict=True):
            right = choice_match(record["prediction"], question.answers, question.choices)
            assert record["correct"] == right
            assert record["popularity"] is None and "contains_answer" not in record
        assert not {"head", "middle", "tail", "contains_answer"} & set(numbers)
    (page,) = read_page(workdir / "report.html")["runs"]
    assert len(page["figures"]) == 2


def test_each_method_has_a_file_in_the_stage_that_answered(several):
    _, workdir, report = several
    stages = workdir / "stages"
    compared = [
        name for name in report["methods"] if (stages / "compare" / f"{name}.jsonl").exists()
    ]
    assert compared == COMPARED
    for name in report["methods"]:
        stage = stages / ("compare" if name in COMPARED else "evaluate")
        written = read_jsonl(stage / f"{name}.jsonl")
        assert written == read_jsonl(workdir / "predictions" / f"{name}.jsonl")


def test_no_question_spells_a_control_token(several):
    session, workdir, _ = several
    context, format = open_stage(session, workdir, "stage1"), session.format
    question = session.corpus.questions["train"][0]
    assert question.question.startswith(CONTROL)
    example = session.make_examples(context)[0]
    special = [format.tokenizer.token_id(name) for name in ("<EOQ>", "<EOK>")]
    counts = [example.row.tokens.count(token) for token in (*special, *format.source_ids)]
    assert sorted(counts) == [0, 0, 1, 1, 1] and counts[:2] == [1, 1]
    assert example.row.tokens.count(format.tokenizer.eos_id) == 1
    prompt = encode_answer_prompt(format.tokenizer, question.question)
    plain = encode_answer_prompt(format.tokenizer, "Which?")
    assert prompt.count(format.tokenizer.eos_id) == plain.count(format.tokenizer.eos_id)


# Sources.

PASSAGES = [Passage(f"{kind}/1", "Title", "Text.") for kind in ("city", "country", "city", "talk")]


def test_a_source_has_the_passages_with_its_prefix():
    rows = [select_rows(source, PASSAGES).tolist() for source in SOURCES[1:]]
    assert rows == [[1], [0, 2]]
    assert select_rows(SourceConfig("Wiki", "<Wiki>", "search"), PASSAGES).tolist() == [0, 1, 2, 3]
    message = (
        "source Rivers: no passage's id begins with its prefix 'river/'; they are like 'city/1'"
    )
    with pytest.raises(RagJaxError, match=re.escape(message)):
        select_rows(SourceConfig("Rivers", "<Rivers>", "search", "river/"), PASSAGES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "config.name='a/b': must be of letters, digits, - and _"),
        ({"token": "Other"}, "config.token='Other': must look like '<Other>'"),
        ({"kind": "verbalise"}, "config.prefix='city/': a model that verbalises has no ids"),
    ],
)
def test_sources_that_cannot_be(changes, message):
    good = {"name": "Other", "token": "<Other>", "kind": "search", "prefix": "city/"}
    assert build(SourceConfig, good).prefix == "city/"
    with pytest.raises(RagJaxError, match=re.escape(message)):
        build(SourceConfig, good | changes)


def test_a_source_of_few_passages_gives_fewer(several, capfd):
    """The number of contexts is odd, and the same of each source; it is told once."""
    settings, workdir = several[0].config, several[1]
    many = replace(settings, contexts=11, answer=replace(settings.answer, passages=11))
    session = Session(replace(many, verbalise=replace(settings.verbalise, pool=11)))
    for _ in range(2):
        open_stage(session, workdir, "contexts")
        assert session.contexts == 9
    said = capfd.readouterr().err
    assert said.count("config.contexts=11: 9 of each source, because Cities has only 10") == 1
    assert said.count("config.answer.passages=11: Cities has only 10, and all are read") == 1


def test_a_source_without_passages_is_refused_before_anything_is_kept(several, tmp_path):
    settings, workdir = several[0].config, tmp_path / "run"
    rivers = SourceConfig("Rivers", "<Rivers>", "search", "river/")
    config = to_config_dict(replace(settings, sources=(*SOURCES, rivers)))
    message = "source Rivers: no passage's id begins with its prefix 'river/'; they are like "
    with pytest.raises(RagJaxError, match=re.escape(message)) as caught:
        pipeline.run(config, workdir)
    assert "\n" not in str(caught.value)
    stages = workdir / "stages"
    assert [path.name for path in stages.iterdir()] == ["corpus"]
    assert [path.name for path in (stages / "corpus").iterdir()] == ["started.json"]
    # The same folder does for other settings.
    session = Session(settings)
    (made,) = run_stages(pipeline.list_stages(session)[:1], workdir)
    assert (made["name"], made["reused"]) == ("corpus", False)
    open_stage(session, workdir, "corpus")
    assert len(session.passages) == len(read_jsonl(stages / "corpus" / "passages.jsonl")) > 10


# The room for knowledge.


def test_the_longest_passage_is_measured(finished, session):
    context, format = open_stage(session, finished[0], "lengths"), session.format
    blocks = [join_passages([(p.title, p.text)]) for p in session.passages]
    lengths = [len(format.encode_knowledge(block)) for block in blocks]
    assert np.load(context.path("lengths", "lengths.npy")).tolist() == lengths
    assert read_json(context.path("lengths", "longest.json")) == {"longest_passage": max(lengths)}
    assert read_longest(context) == max(lengths)


def test_lengths_are_of_what_is_read_of_a_passage(format, tmp_path):
    """The text is cut, title and number are not; and nothing but passages and format is needed."""
    context = StageContext(Stage("lengths", lambda context: None), tmp_path)
    context.folder.mkdir()
    passages = [
        Passage("a", "The Republic of Latvia", "Its capital is Riga. " * 9),
        Passage("b", "", "Riga."),
        Passage("c", "", "Riga is the capital of Latvia."),
    ]
    cut = replace(format, max_text=3)
    run_lengths(context, passages=passages, format=cut)
    texts = [format.tokenizer.decode(format.tokenizer.encode(p.text)[:3]) for p in passages]
    assert texts[0] != passages[0].text and texts[2] != passages[2].text
    titles = ["[1] The Republic of Latvia: ", "[1] ", "[1] "]
    lengths = [
        len(format.encode_knowledge(title + text))
        for title, text in zip(titles, texts, strict=True)
    ]
    assert lengths[0] > lengths[2]
    assert np.load(context.folder / "lengths.npy").tolist() == lengths
    assert read_longest(context) == lengths[0]


@pytest.mark.parametrize("size", [100, 3_000])
def test_one_long_passage_does_not_widen_the_programs(size, format):
    """The room for knowledge follows the setting, whatever a title or a text has."""
    long = Passage("a", "The Republic of Latvia " * size, "Riga is its capital. " * size)
    short = replace(format, max_text=70)
    (tokens,) = measure_passages([long], short)
    assert 130 < tokens <= 2 * 70 + 10
    search = search_indices(
        {0: Searched(FirstIndex(), np.zeros(1, int))},
        [long],
        lambda texts: texts,
        short.cut,
        count=1,
    )
    ((found,),) = search(0, ["?"])
    assert len(short.encode_knowledge(join_passages([found]))) == tokens


@pytest.mark.parametrize("asked", [4, 40])
def test_a_passage_is_read_and_cut_once_however_many_questions_find_it(asked):
    passages, read = [Passage(f"{i}", f"t{i}", f"text {i}") for i in range(6)], []

    def cut(passage):
        read.append(passage.id)
        return passage.title, passage.text[:5]

    class Index:
        size = 3

        def search(self, questions, count):
            places = np.tile([[2, 0], [0, 1]], (len(questions) // 2, 1))
            return 1.0 - places, places

    search = search_indices(
        {1: Searched(Index(), np.asarray([1, 3, 5]))}, passages, list, cut, count=2
    )
    found = search(1, ["?"] * asked)
    t1, t3, t5 = (("t1", "text ", "1", 1.0), ("t3", "text ", "3", 0.0), ("t5", "text ", "5", -1.0))
    assert [[text[:4] for text in own] for own in found] == [[t5, t1], [t1, t3]] * (asked // 2)
    assert sorted(read) == ["1", "3", "5"]


class FirstIndex:
    """An index that finds its only passage."""

    size = 1

    def search(self, questions, count):
        return np.ones((1, 1)), np.zeros((1, 1), int)


@pytest.mark.parametrize(
    ("longest", "passages", "verbalised", "slots"),
    [
        *[(10, 1, 9, 16), (15, 1, 9, 16), (16, 1, 9, 32), (8, 2, 9, 32)],
        *[(3, 2, 40, 48), (3, 1, 15, 16)],
        (1, 15, 9, 32),  # of which [10] to [15] have a digit more
    ],
)
def test_slots_for_the_knowledge_of_any_source(longest, passages, verbalised, slots):
    """Passages or a verbalisation, and the token that ends them, in multiples of 16."""
    assert count_slots(longest, passages, verbalised) == slots


def test_the_preset_is_the_small_run_with_other_sources():
    preset = build(SRRAGConfig, to_config_dict(PRESETS["two-indexes"]))
    assert replace(preset, sources=SRRAGConfig().sources, route=SRRAGConfig().route) == (
        SRRAGConfig()
    )
