"""Asking a finished run of SR-RAG, from Python and by launch/ask.py."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import continue_row

from rag_jax.commands import ask as command
from rag_jax.config import build
from rag_jax.decoding.stream import _continue, _start
from rag_jax.pipeline.ask import Facts, Piece, clean
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems import list_systems, open_room
from rag_jax.systems.srrag import ask, steps
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.policy import Datastore, find_nearest, read_datastore, scale_keys
from rag_jax.systems.srrag.session import Session
from systems.asked import (
    OWN,
    check_likelihood,
    list_notes,
    read_facts,
    read_text,
    take_stock,
    write_corpus,
)
from systems.srrag.tiny_run import fold_trained, open_stage

ROOT = Path(__file__).parents[3]
WIKI = 1


@pytest.fixture(scope="module")
def opened(session, finished):
    return ask.open_run(session, finished[0], None)


@pytest.mark.parametrize(("method", "tau"), [("srrag", 0.2), ("verbalise", 1.0)])
def test_answers_are_those_of_the_evaluation(make_config, finished, method, tau):
    """Word for word, from the source that was chosen there; above one is no product."""
    session = Session(build(SRRAGConfig, make_config(**{"route.tau": tau})))
    workdir = finished[0]
    before = take_stock(workdir)
    opened = ask.open_run(session, workdir, None)
    records = read_jsonl(workdir / "predictions" / f"{method}.jsonl")
    for record in records:
        shown = list(opened(record["question"]))
        assert read_text(shown) == record["prediction"]
        head, *rows = read_facts(shown, "sources")
        assert head[1:4] == ("model", "votes", "product")
        for (name, p, votes, product, mark), q, share, source in zip(
            rows, record["probabilities"], record["votes"], session.config.sources, strict=True
        ):
            assert name == source.name
            assert votes == f"{5 * share:.0f}/5"
            assert float(p) == pytest.approx(q, abs=6e-4)
            assert float(product) == pytest.approx(q * share, abs=6e-4)
            assert bool(mark) == (name == record["source"])
        if record["retrieved"]:
            assert read_facts(shown, "passages read") == [(record["knowledge"],)]
            assert not any(item.title == "verbalised" for item in shown if isinstance(item, Piece))
        else:
            assert read_text(shown, "verbalised") == record["knowledge"]
        cut = "cut off at 8 tokens, config.verbalise.max_tokens" in list_notes(shown)
        assert cut == record["cut_off"]
    assert take_stock(workdir) == before


def test_what_an_answer_rests_on_and_its_likelihood(opened, session, finished):
    """The likelihood is the mean over the answer's tokens and its end, in one full pass."""
    format, params = session.format, fold_trained(session, finished[0], "stage2")
    passages = {passage.id: passage for passage in session.passages}
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    assert len({record["retrieved"] for record in records}) == 2
    for record in records:
        outcome = list(opened(record["question"]))[-1]
        assert (outcome.answer, outcome.source) == (record["prediction"], record["source"])
        if not record["retrieved"]:
            assert (list(outcome.citations), outcome.likelihood) == ([], None)
            continue
        ((passage, score),) = outcome.citations
        assert join_passages([(passage.title, passage.text)]) == record["knowledge"]
        assert format.cut(passages[passage.id]) == (passage.title, passage.text)
        texts = [(passages[passage.id].title, passages[passage.id].text), record["question"]]
        embedded = session.encode(session.encoder, texts[:1], "document"), session.embed(texts[1:])
        assert score == pytest.approx(float((embedded[0] @ embedded[1].T)[0, 0]), abs=0.02)
        tokens = [*format.encode_question(record["question"]), format.source_ids[WIKI]]
        tokens += [*format.encode_knowledge(record["knowledge"]), *format.encode_answer_cue()]
        reading = outcome.likelihood, session.base.model, params, tokens
        check_likelihood(*reading, max_tokens=4, stop_ids=format.stop_ids)


def test_other_settings_of_answers(make_config, finished):
    changes = {"answer.max_tokens": 1, "answer.passages": 2, "route.tau": 0.0}
    session = Session(build(SRRAGConfig, make_config(**changes)))
    (record, *_) = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    shown = list(ask.open_run(session, finished[0], None)(record["question"]))
    ((knowledge,),) = read_facts(shown, "passages read")
    assert "[2] " in knowledge
    assert "cut off at 1 tokens, config.answer.max_tokens" in list_notes(shown)


def test_few_programs(opened, finished):
    """Asking compiles nothing that only the evaluation runs, and one width for short questions."""
    counted = (steps.route, steps.verbalise, steps.read, _start, _continue)
    before = [program._cache_size() for program in counted]
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    assert len({record["retrieved"] for record in records}) == 2
    for record in records:
        list(opened(record["question"]))
    made = [program._cache_size() - size for program, size in zip(counted, before, strict=True)]
    # One width of questions; a reading and a writing program for passages, for the verbalisation
    # and for the answer after it. Other tests may have made some.
    assert made[1:3] == [0, 0]
    assert made[0] <= 1 and made[3] <= 3 and made[4] <= 3


def test_nearest_questions(opened, session, finished):
    context = open_stage(session, finished[0], "evaluate")
    with np.load(context.path("datastore", "datastore.npz"), allow_pickle=False) as stored:
        better = stored["source"].tolist()
    for question, source in zip(session.train_questions, better, strict=True):
        rows = read_facts(list(opened(question.question)), "nearest questions")
        assert len(rows) == 5
        # The question is there itself.
        name = session.config.sources[source].name
        assert ("1.000", name, question.question) in rows
        assert [float(row[0]) for row in rows] == sorted(
            (float(row[0]) for row in rows), reverse=True
        )


def make_engine(session, finished, **changes):
    context = open_stage(session, finished[0], "evaluate")
    engine = session.open_engine(context, context.path("stage2", "params"))
    return replace(engine, batch_size=1, **changes), context


def ask_with(session, engine, context, question):
    path = context.path("datastore", "datastore.npz")
    datastore = read_datastore(path, session.config.datastore)
    inputs = engine, datastore, session.config.route.tau, None, session.train_questions
    return list(ask._answer(session, *inputs, question))


def fail(source, questions):
    raise OSError("the server is gone")


@pytest.mark.parametrize("search", [fail, lambda source, questions: [[] for _ in questions]])
def test_a_source_without_anything(session, finished, search, capsys):
    """The model itself goes on, and both are said."""
    engine, context = make_engine(session, finished, search=search)
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    searched = next(record for record in records if record["retrieved"])
    shown = ask_with(session, engine, context, searched["question"])
    assert "Wiki has nothing: the model goes on by itself" in list_notes(shown)
    assert (shown[-1].source, shown[-1].citations, shown[-1].likelihood) == ("Self", [], None)
    verbalise = read_jsonl(finished[0] / "predictions" / "verbalise.jsonl")
    alone = next(record for record in verbalise if record["id"] == searched["id"])
    assert read_text(shown, "verbalised") == alone["knowledge"]
    assert read_text(shown) == alone["prediction"]
    assert ("the server is gone" in capsys.readouterr().err) == (search is fail)


def test_control_tokens_in_questions_are_text(opened, session, finished):
    format = session.format
    spelled = "<EOQ><Self> no <EOK> Answer: <|im_end|> <|im_start|>?"
    params = fold_trained(session, finished[0], "stage2")
    go_on = partial(continue_row, session.base.model, params, stop_ids=format.stop_ids)
    tokens = format.encode_question(spelled)
    assert [t for t in tokens if t >= format.tokenizer.token_id("<EOQ>")] == [
        format.tokenizer.token_id("<EOQ>")
    ]
    shown = list(opened(spelled))
    # The slow loop on the very tokens.
    number = next(
        i for i, row in enumerate(read_facts(shown, "sources")[1:]) if row[4].startswith("chosen")
    )
    if number == format.internal:
        tokens.append(format.source_ids[number])
        tokens += go_on(tokens, max_tokens=8)[0]
    else:
        ((knowledge,),) = read_facts(shown, "passages read")
        tokens += [format.source_ids[number], *format.encode_knowledge(knowledge)]
    tokens += format.encode_answer_cue()
    written, _ = go_on(tokens, max_tokens=4)
    assert read_text(shown) == format.tokenizer.decode(written).strip()


def test_a_corpus_of_ones_own(session, finished, tmp_path, capsys):
    path = write_corpus(tmp_path / "own.jsonl")
    before = take_stock(finished[0])
    asked = ask.open_run(session, finished[0], path)
    assert f"{path}: 2 passages" in capsys.readouterr().err
    read = set()
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    for question in [record["question"] for record in records] + ["spells <EOK> Answer"]:
        shown = list(asked(question))
        read |= {row[0] for item in shown if isinstance(item, Facts) for row in item.rows}
    first = "[1] Atlantis: Poseidonis is the capital of Atlantis."
    second = f"[1] {OWN[1]['text']}"
    assert {first, second} & read
    # A passage's letters are no tokens that steer the model.
    special = session.format.tokenizer.token_id("<EOK>")
    assert special not in session.format.encode_knowledge(second)
    assert take_stock(finished[0]) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "own.jsonl: cannot be read (No such file or directory)"),
        ("", "own.jsonl: holds no passages"),
        ('{"id": "a", "text": "  "}', "own.jsonl:1: the text of passage 'a' is blank"),
        ("nothing", "own.jsonl:1: is not JSON"),
    ],
)
def test_a_corpus_that_cannot_be_asked(session, finished, tmp_path, content, message):
    path = tmp_path / "own.jsonl"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(RagJaxError) as error:
        ask.open_run(session, finished[0], path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_passage_of_ones_own_that_is_too_long(session, finished, tmp_path, capsys):
    text = "Riga is the capital of Latvia. " * 300
    path = write_corpus(tmp_path / "own.jsonl", [{"id": "a", "text": text}])
    asked = ask.open_run(session, finished[0], path)
    assert "1 passages are cut to 256 tokens (config.model.max_text)\n" in capsys.readouterr().err
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    question = next(record["question"] for record in records if record["retrieved"])
    ((knowledge,),) = read_facts(list(asked(question)), "passages read")
    assert text.startswith(knowledge.removeprefix("[1] "))
    assert len(session.format.tokenizer.encode(knowledge.removeprefix("[1] "))) == 256


def test_nearest_of_equal_keys_and_of_oneself():
    keys = np.asarray(scale_keys(jnp.asarray([[1.0, 0], [1, 1], [0, 2]]), "cosine"))
    store = Datastore(jnp.asarray(keys), jnp.asarray([0, 1, 0]))
    query = jnp.asarray([[3.0, 0.0]])
    similarities, rows = find_nearest(store, query, jnp.asarray([-1]), k=2)
    assert rows.tolist() == [[0, 1]]
    np.testing.assert_allclose(similarities, [[1, 0.5**0.5]], rtol=1e-6)
    assert find_nearest(store, query, jnp.asarray([0]), k=1)[1].tolist() == [[1]]


# The command.


@pytest.mark.parametrize("name", list_systems("ask"))
def test_every_system_is_asked_alike(name):
    pipeline = open_room(name, "pipeline")
    assert pipeline.CONFIG().system == name
    assert pipeline.Session and pipeline.list_stages and open_room(name, "ask").open_run


@pytest.fixture
def flags(config_file, finished):
    return [f"--config={config_file}", f"--workdir={finished[0]}"]


@pytest.fixture(autouse=True)
def pipe(monkeypatch):
    """What is piped in: nothing, or the bytes it is called with."""

    def give(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))

    give(b"")
    return give


def test_one_question(flags, finished, capsys):
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    record = next(record for record in records if record["retrieved"])
    command.main([*flags, record["question"]])
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0] == "sources"
    answer = f"answer: {clean(record['prediction']) or '(nothing)'}"
    assert answer in lines
    assert f"  {record['knowledge']}" in lines
    assert lines[-1].split()[1].startswith("s")
    assert float(lines[-1].split()[0]) > 0
    assert "\x1b" not in said


def test_one_question_in_json(flags, finished, capsys):
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    record = next(record for record in records if record["retrieved"])
    command.main([*flags, "--json", record["question"]])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.out.count("\n") == 1
    for name, value in {"question": "question", "answer": "prediction", "source": "source"}.items():
        assert found[name] == record[value]
    (cited,) = found["citations"]
    assert cited["title"] in record["knowledge"] and cited["file"] is None
    assert found["likelihood"] < 0
    assert (found["threshold"], found["in_documents"], found["error"]) == (None, None, None)
    assert "there are no 'dev' questions" in said.err


def test_lines_in_json(flags, pipe, capsys, tmp_path):
    """An object each, of documents with file and place, whatever they are named and spell."""
    folder = tmp_path / "my docs"
    folder.mkdir()
    for name, title in (("a#1", "Riga \x1b[2J"), ("\u202eb", "\u8cea\u554f")):
        (folder / f"{name}.txt").write_text(f"\n{title} lies <EOK> in Latvia.\n", "utf-8")
    asked = ["Where is Riga?", "\u6771\u4eac\u306f\u3069\u3053?", "word " * 10_000, "No\x1b."]
    pipe("\n\n".join(asked).encode())
    command.main([*flags, f"--corpus={folder}", "--config.route.tau=0.0", "--json"])
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert said.out.isascii() and "\x1b" not in said.out + said.err
    assert [own["question"] for own in found] == [q.replace("\x1b", "\ufffd") for q in asked]
    assert [own["error"] is None for own in found] == [True, True, False, True]
    assert "shorten it" in found[2]["error"] and found[2]["answer"] is None
    cited = [own["citations"][0] for own in found if own["citations"]]
    assert cited
    for own in cited:
        assert own["file"] in ("a#1.txt", "\u202eb.txt") and own["place"] == "line 2"
        assert own["id"] == f"{own['file']}#2" and own["rank"] == 1


def test_lines_that_are_piped_in(flags, pipe, capsys):
    """Endless questions are told and passed over, and blank lines are counted."""
    piped = [b"Where is Riga?", b"   ", b"word " * 10_000, b"Lyon \xff?", b"", b"No."]
    pipe(b"\n".join(piped))
    command.main(flags)
    said = capsys.readouterr()
    assert said.out.count("answer: ") == 3
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "that the model's context of 1024 has for it; shorten it" in errors[0]
    assert said.err.endswith("2 blank lines skipped\n")


@pytest.mark.parametrize("question", ["", "  ", "\n\t"])
def test_a_blank_question_on_the_command_line(flags, question, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([*flags, question])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.err == "error: the question is blank: write one, or leave it out\n"
    assert said.out == ""


def test_a_question_of_ten_thousand_words(flags, capsys):
    with pytest.raises(RagJaxError, match="a question of 1.... tokens is longer than the 8.. that"):
        command.main([*flags, "word " * 10_000])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Where", "is"], "'is' is a second question: put the whole one in quotes"),
        (["--workdr=x", "Where?"], "Unknown command line flag 'workdr'. Did you mean: workdir"),
        (["x", "--", "-1?"], "x: not a flag; all are written --name=value"),
    ],
)
def test_mistakes_on_the_command_line(flags, arguments, message):
    with pytest.raises(RagJaxError) as error:
        command.main([*flags, *arguments])
    assert message in str(error.value)


def test_questions_and_flags():
    assert command.split_question(["--a=b", "Where?"]) == (["--a=b"], "Where?")
    assert command.split_question(["--a=b"]) == (["--a=b"], None)
    assert command.split_question(["--a=b", "--", "--why?"]) == (["--a=b"], "--why?")
    assert command.split_question(["--a=b", "--"]) == (["--a=b"], None)


def test_values_as_words_of_their_own():
    flags = ["--workdir=a b", "-corpus=c", "--config.route.tau=0.5", "--json", "--noconfig.x"]
    given = ["--workdir", "a b", "-corpus", "c", "--config.route.tau", "0.5", *flags[3:]]
    assert command.split_question([*given, "Where?"]) == (flags, "Where?")
    assert command.split_question(["Where?", *given]) == (flags, "Where?")
    assert command.split_question([*given, "--", "-1?"]) == (flags, "-1?")
    assert command.split_question(given) == (flags, None)
    assert command.split_question(["--json", "a", "--nojson"]) == (["--json", "--nojson"], "a")
    assert command.split_question(["--workdir", "--json", "a"]) == (["--workdir", "--json"], "a")
    with pytest.raises(RagJaxError, match="'c' is a second question"):
        command.split_question(["--workdir", "a", "b", "c"])


def break_nothing(run):
    return run / "nowhere"


def break_stage(run):
    (run / "stages" / "stage2" / "stage.json").unlink()
    return run


def break_dependency(run):
    (run / "stages" / "labels" / "stage.json").unlink()
    (run / "stages" / "labels" / "started.json").unlink()
    return run


def break_record(run):
    (run / "stages" / "index" / "stage.json").write_text("{")
    return run


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (break_nothing, [], "nowhere: there is no finished run; run launch/train.py with the same"),
        (break_stage, [], "stage stage2: is not finished; run launch/train.py with the same"),
        (break_dependency, [], "stage labels: is not finished; run launch/train.py"),
        (break_record, [], "stage index: its record cannot be read; run launch/train.py"),
        (
            lambda run: run,
            ["--config.stage2.epochs=7"],
            "stage stage2: settings changed (stage2.epochs: 1 -> 7); run launch/train.py with the "
            "same --config and --workdir first, or give the settings that the run was made with",
        ),
        (lambda run: run, ["--config.index.backend=exact"], "stage index: settings changed"),
    ],
)
def test_a_work_folder_that_cannot_be_asked(config_file, copied, damage, changes, message):
    run = damage(copied)
    before = take_stock(copied)
    with pytest.raises(RagJaxError) as error:
        command.main([f"--config={config_file}", f"--workdir={run}", *changes, "Where?"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert take_stock(copied) == before
    assert run == copied or not run.exists()


def test_another_model(config_file, copied, bert_folder):
    with pytest.raises(RagJaxError, match="stage lengths: settings changed \\(model: "):
        command.main(
            [f"--config={config_file}", f"--workdir={copied}", "Where?",
             f"--config.model.name={bert_folder}"]
        )  # fmt: skip


def test_a_setting_that_only_the_choice_depends_on(flags, capsys):
    """Nothing has to be made again for another threshold."""
    for tau, source in ((0.0, "Wiki"), (1.0, "Self")):
        command.main([*flags, f"--config.route.tau={tau}", "Where is Riga?"])
        (chosen,) = [line for line in capsys.readouterr().out.splitlines() if "chosen" in line]
        assert chosen.split()[0] == source or tau == 0.0


def test_bytes_that_are_no_text(config_file, finished):
    """On a real command line and a real pipe; nothing is a terminal there."""
    command_line = [
        sys.executable, "launch/ask.py", f"--config={config_file}", f"--workdir={finished[0]}",
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    run = {"cwd": ROOT, "env": environment, "capture_output": True}
    done = subprocess.run(command_line, input=b"Where is \xff\xc3?\nO\xc3\xb9 est Riga?\n\n", **run)
    said = done.stdout.decode("utf-8")
    assert done.returncode == 0
    assert said.count("answer: ") == 2 and "\x1b" not in said
    assert b"Traceback" not in done.stderr and b"error" not in done.stderr
    done = subprocess.run([*command_line, b"Where is \xff\xc3?"], **run)
    assert done.returncode == 0
    assert done.stdout.decode("utf-8").count("answer: ") == 1
    assert b"Traceback" not in done.stderr
