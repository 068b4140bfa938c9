"""A tokenizer that would make texts of boundless size is refused before it makes any."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from rag_jax.models import tokenizer_growth
from rag_jax.models.tokenizer import Tokenizer as Ours
from rag_jax.models.tokenizer_growth import check_growth
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_tied"
Replace, Sequence = normalizers.Replace, normalizers.Sequence


def make(normalizer=None, decoder=None, model=None):
    core = Tokenizer(model or models.BPE())
    if normalizer:
        core.normalizer = normalizer
    if decoder:
        core.decoder = decoder
    return core


@pytest.mark.parametrize(
    "core",
    [
        make(Sequence([Replace("a", "aa")] * 40)),
        make(Sequence([Sequence([Replace("ab", "x" * 50)] * 2)] * 2)),
        make(Replace(Regex("a*"), "b" * 100)),
        make(normalizers.Prepend("x" * 100)),
        make(decoder=decoders.Sequence([decoders.Replace("a", "aaaa")] * 4)),
    ],
)
def test_growth_is_refused(core):
    with pytest.raises(ValueError, match=r"makes texts up to [\d,]+ times as long, more than 100"):
        check_growth(core)


@pytest.mark.parametrize(
    "core",
    [
        make(),
        make(Sequence([normalizers.Prepend("\u2581"), Replace(" ", "\u2581")])),
        make(Sequence([Replace(Regex(" {2,}"), " "), Replace("``", '"'), normalizers.NFKD()])),
        make(decoder=decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])),
        make(Sequence([Replace("a", "")] * 100)),
        make(model=models.WordPiece(max_input_chars_per_word=200)),
    ],
)
def test_what_known_models_do_is_not(core):
    check_growth(core)


@pytest.mark.parametrize("step", [Replace("a", "aab"), Replace(Regex("b*"), "cc")])
def test_no_text_becomes_longer_than_measured(step):
    core = Sequence([step] * 2)
    most = tokenizer_growth._measure(json.loads(core.__getstate__()))
    for text in ("a", "aaaa", "ab", "bbb", "xyz"):
        assert len(core.normalize_str(text)) <= most * len(text) + most


def test_a_word_that_would_take_for_ever_is_refused():
    with pytest.raises(ValueError, match="a word may have 2,147,483,648 characters, more than"):
        check_growth(make(model=models.WordPiece(max_input_chars_per_word=2**31)))


def test_the_file_is_named(tmp_path):
    folder = shutil.copytree(GOLDEN, tmp_path / "x")
    data = json.loads((folder / "tokenizer.json").read_text())
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    data["normalizer"] = {"type": "Sequence", "normalizers": [step] * 3}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(RagJaxError, match=r"json is no tokenizer: it makes .* 1,000,000,000 times"):
        Ours.from_folder(folder)


def test_very_many_chat_templates_are_not_rendered(tmp_path):
    folder = shutil.copytree(GOLDEN, tmp_path / "x")
    (folder / "additional_chat_templates").mkdir()
    for number in range(8):
        (folder / "additional_chat_templates" / f"{number}.jinja").write_text("")
    with pytest.raises(RagJaxError, match=r"there are 9 of them, more than the limit of 8: keep"):
        Ours.from_folder(folder)
