"""Paths on the command line and in configs, the home folder and where there is none; None."""

import pwd
import re
import textwrap
from pathlib import Path

import pytest

from rag_jax.commands import build_index, evaluate
from rag_jax.config import DataConfig, WorldConfig, build
from rag_jax.data.formats import read_collection
from rag_jax.models.io import hub
from rag_jax.models.io.sizes import find_sizes
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.paths import expand_path
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.srrag.config import SRRAGConfig

ROOT = Path(__file__).parents[2]
CONFIG = textwrap.dedent("""
    from rag_jax.config import choose_preset, to_config_dict
    from rag_jax.systems.rag.config import RAGConfig

    def get_config(preset=""):
        changes = {"": {}, "small": {"seed": 7}, "files": {"data.path": "somewhere"}}
        config = to_config_dict(RAGConfig())
        config.update_from_flattened_dict(choose_preset(changes, preset))
        return config
""")


@pytest.fixture
def home(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "rag.py").write_text(CONFIG)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    return home


@pytest.fixture
def homeless(monkeypatch):
    """A user whom the password file does not know, without $HOME: a container with another uid."""

    def refuse(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("RAG_JAX_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", refuse)


@pytest.mark.filterwarnings("ignore:the load_module")
def test_the_home_folder_in_every_flag(home):
    flags = ["--config=~/rag.py:small", "--config.data.path=~/data", "--workdir=~/runs/x"]
    config, options = command.read_command(flags, {"workdir": "", "out": ""})
    assert config.seed == 7
    assert command.find_config_file(flags) == home / "rag.py"
    assert command.find_workdir(flags, options) == home / "runs" / "x"
    assert command.find_workdir(flags, {"workdir": None}) == Path("runs/rag")
    assert command.read_path(options, "out") is None
    assert command.read_path({"out": "a/~b"}, "out") == Path("a/~b")
    assert build(RAGConfig, config).data.path == f"{home}/data"
    assert list(Path().iterdir()) == []


@pytest.mark.filterwarnings("ignore:the load_module")
def test_an_evaluation_looks_in_the_home_folder(home, monkeypatch):
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    source = CONFIG.replace("RAGConfig", "SRRAGConfig").replace("systems.rag", "systems.srrag")
    (home / "rag.py").write_text(source)
    flags = ["--config=~/rag.py", "--workdir=~/runs", "--data=~/data"]
    with pytest.raises(RagJaxError, match=f"{home}/runs: there is no finished run"):
        evaluate.main(flags)
    with pytest.raises(RagJaxError, match=f"--out={home}/runs: is in the work folder"):
        evaluate.main([*flags, "--out=~/runs"])


def test_files_of_an_index_in_the_home_folder(home, monkeypatch):
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    with pytest.raises(RagJaxError, match=f"{home}/none.jsonl: cannot be read"):
        build_index.main(["~/none.jsonl", f"--encoder={home}", "--workdir=~/index"])
    for flag, least in (("--max_length=2", 3), ("--bad_lines=-5", 0)):
        with pytest.raises(RagJaxError, match=f"^{flag}: must be at least {least}$"):
            build_index.main(["none.jsonl", flag])


def test_data_in_the_home_folder(home):
    (home / "data").mkdir()
    (home / "data" / "passages.jsonl").write_text('{"id": "1", "text": "a"}\n')
    question = '{"id": "q", "question": "Where?", "answers": ["x"]}\n'
    (home / "data" / "test_questions.jsonl").write_text(question)
    collection = read_collection(DataConfig(path="~/data"), WorldConfig())
    assert [passage.id for passage in collection.passages] == ["1"]
    assert DataConfig(path="./data/").path == "./data/"  # other paths stay as they are written


def test_model_folders_in_the_home_folder(home):
    (home / "model").mkdir()
    assert hub.resolve("~/model") == home / "model"
    with pytest.raises(RagJaxError, match="the sizes of '~/model' are not known"):
        find_sizes("~/model")


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize("preset", ["", ":files"])
def test_none_on_the_command_line_is_none(home, preset):
    flags = [f"--config={home}/rag.py{preset}", "--config.data.path=None"]
    settings = build(RAGConfig, command.read_command(flags, {})[0])
    assert settings.data.path is None
    flags = [f"--config={home}/rag.py", "--config.retriever.passage_name=None"]
    assert build(RAGConfig, command.read_command(flags, {})[0]).retriever.passage_name is None


@pytest.mark.filterwarnings("ignore:the load_module")
def test_of_two_config_files_the_last_is_read(home):
    flags = [f"--config={home}/rag.py:small", f"--config={home}/rag.py"]
    assert command.read_command(flags, {})[0].seed == 0
    assert command.read_command(flags[::-1], {})[0].seed == 7


def read_srrag(*flags):
    flags = [f"--config={ROOT}/configs/srrag.py", *(f"--config.{flag}" for flag in flags)]
    return build(SRRAGConfig, command.read_command(flags, {})[0])


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        (["route.rate=None"], None),
        (["route.rate=0.5"], 0.5),
        (["route.rate=0.5", "route.rate=None"], None),
        (["route.rate=None", "route.rate=0.5"], 0.5),
        (["route.tau=None"], 0.8),
        (["route.tau=0.3", "label.program_tokens=None"], 0.8),
    ],
)
def test_none_on_the_command_line_is_none_where_a_number_can_be_left_out(flags, rate):
    settings = read_srrag(*flags)
    assert settings.route.rate == rate
    assert settings.route.tau == (0.3 if flags[0] == "route.tau=0.3" else None)
    assert settings.label.program_tokens is None


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("seed=None", "config.seed=None: must be a whole number, not NoneType"),
        ("stage1.learning_rate=None", "config.stage1.learning_rate=None: must be a number"),
        ("sources[0]=None", "config.sources[0]: a group of fields"),
    ],
)
def test_none_is_refused_for_a_number_that_is_needed(flag, message):
    with pytest.raises(RagJaxError, match=re.escape(message)):
        read_srrag(flag)


def test_a_blank_path_is_refused():
    for path in ("", " "):
        with pytest.raises(RagJaxError, match="config.path='.*': is blank; name a folder, or give"):
            build(DataConfig, {"path": path})


def test_without_a_home_folder_the_cache_has_to_be_named(homeless, tmp_path, monkeypatch):
    with pytest.raises(RagJaxError, match="no home folder .* set RAG_JAX_CACHE to a writable"):
        hub.resolve("smollm2-135m-instruct")
    monkeypatch.setenv("RAG_JAX_CACHE", str(tmp_path))
    assert hub.cache_folder() == tmp_path
    monkeypatch.setenv("RAG_JAX_CACHE", "~/cache")
    with pytest.raises(RagJaxError, match="^~/cache: no home folder is known for the ~: set HOME"):
        hub.cache_folder()


@pytest.mark.parametrize("path", ["~/x", "~nobody-of-this-name/x"])
def test_a_home_folder_that_is_not_known(homeless, path):
    for call in (expand_path, lambda p: DataConfig(path=p), hub.resolve):
        with pytest.raises(RagJaxError, match=f"^{path}: no home folder is known"):
            call(path)
    with pytest.raises(RagJaxError, match="no home folder is known"):
        command.find_workdir([], {"workdir": path})
