"""What an encoder reads of texts: types of tokens, the side that is cut, and what stands around."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from tiny_encoders import BERT, change_json
from tokenizers import models, pre_tokenizers

from rag_jax.models import load, save
from rag_jax.models.frames import frame_texts
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError

BART = Path(__file__).parents[1] / "golden" / "bart"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(BERT, tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "typed"),
    [
        ({}, True),
        ({"tokenizer_class": "BertTokenizerFast"}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ({"tokenizer_class": "XLMRobertaTokenizerFast"}, False),
        ({"tokenizer_class": "DistilBertTokenizer"}, False),
        ({"model_input_names": ["input_ids", "attention_mask"]}, False),
        (
            {
                "tokenizer_class": "XLMRobertaTokenizer",
                "model_input_names": ["input_ids", "token_type_ids"],
            },
            True,
        ),
    ],
)
def test_types_of_tokens(folder, tmp_path, settings, typed):
    path = folder / "tokenizer_config.json"
    old = json.loads(path.read_text())
    old.pop("tokenizer_class", None)
    path.write_text(json.dumps(old | settings))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.has_types is typed
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved", max_length=64, typed=True)
    written = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert ("token_type_ids" in written["model_input_names"]) is typed
    assert Tokenizer.from_folder(tmp_path / "saved").has_types is typed
    tokenizer.save(tmp_path / "saved", max_length=64)  # of a model without types
    assert not Tokenizer.from_folder(tmp_path / "saved").has_types


@pytest.mark.parametrize("field", ["model_input_names", "truncation_side"])
def test_settings_of_the_wrong_type_are_named(folder, field):
    change_json(folder / "tokenizer_config.json", **{field: "middle"})
    with pytest.raises(RagJaxError, match=f"{field} must be .* not 'middle'"):
        Tokenizer.from_folder(folder)


def test_texts_that_lose_their_start(folder, tmp_path):
    text, pair = "the capital of france is paris", "snow and rain and wind and ice"
    usual = Tokenizer.from_folder(folder)
    one, two = usual.encode(text), usual.encode(pair)
    start, middle, end = usual.pair_frame
    change_json(folder / "tokenizer_config.json", truncation_side="left")
    tokenizer = Tokenizer.from_folder(folder)
    whole = usual.encode_with_specials(text, max_length=60, pair=pair)
    assert tokenizer.encode_with_specials(text, max_length=60, pair=pair) == whole
    assert tokenizer.encode_with_specials(text, max_length=5) == [*start, *one[-3:], *end]
    room = 4 + 4
    found = tokenizer.encode_with_specials(
        text, max_length=room + len(start) + len(middle) + len(end), pair=pair
    )
    assert found == [*start, *one[-4:], *middle, *two[-4:], *end]
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved", max_length=64)
    again = Tokenizer.from_folder(tmp_path / "saved")
    assert again.encode_with_specials(text, max_length=5) == [*start, *one[-3:], *end]
    grown = tokenizer.add_special_tokens(["<new>"])
    assert grown.encode_with_specials(text, max_length=5) == [*start, *one[-3:], *end]


def test_the_side_that_the_tokenizers_own_file_has(folder):
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.enable_truncation(8, direction="left")
    core.save(str(folder / "tokenizer.json"))
    text = "the capital of france is paris"
    tokenizer = Tokenizer.from_folder(folder)
    start, _, end = tokenizer.pair_frame
    wanted = [*start, *tokenizer.encode(text)[-3:], *end]
    assert tokenizer.encode_with_specials(text, max_length=5) == wanted


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5, 9])
def test_both_sides_keep_as_many_tokens(room):
    options = {"name": str, "cuts_start": True}
    texts, frame = [[1, 2, 3], [4, 5, 6, 7, 8]], [[10], [11], [12]]
    at_end = frame_texts(texts, frame, room + 3, name=str)
    flipped = frame_texts([text[::-1] for text in texts], frame, room + 3, name=str)
    at_start = frame_texts(texts, frame, room + 3, **options)
    assert len(at_start) == len(at_end) == 3 + min(room, 8)
    middle = flipped.index(11)
    assert at_start == [10, *flipped[1:middle][::-1], 11, *flipped[middle + 1 : -1][::-1], 12]


def write_bpe(folder, names):
    """A folder of `vocab.json` and `merges.txt` alone."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*names, *alphabet, "th"])}
    tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h")])).model.save(str(folder))
    return folder


def test_roberta_from_its_first_files(tmp_path):
    """Texts stand between <s> and </s>, as RobertaTokenizer puts them."""
    folder = write_bpe(tmp_path / "model", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer = Tokenizer.from_folder(folder)
    one, two = tokenizer.encode("the"), tokenizer.encode("th")
    assert tokenizer.encode_with_specials("the", max_length=9) == [0, *one, 2]
    found = tokenizer.encode_with_specials("the", max_length=12, pair="th")
    assert found == [0, *one, 2, 2, *two, 2]


def test_other_vocabularies_need_the_fast_tokenizer(tmp_path):
    folder = write_bpe(tmp_path / "model", ["<|endoftext|>"])
    with pytest.raises(RagJaxError, match="tokenizer.json is missing, and vocab.json is no voc"):
        Tokenizer.from_folder(folder)


def test_bart_s_first_files_frame_as_its_fast_tokenizer(tmp_path):
    fast = Tokenizer.from_folder(BART)
    core = tokenizers.Tokenizer.from_file(str(BART / "tokenizer.json"))
    core.model.save(str(tmp_path))
    slow = Tokenizer.from_folder(tmp_path)
    for text in ("who is she", " the capital"):
        wanted = fast.encode_with_specials(text, max_length=20)
        assert slow.encode_with_specials(text, max_length=20) == wanted


def test_padding_of_the_tokenizer_and_of_the_positions(tmp_path):
    """Positions of RoBERTa's kin begin after the config's padding, whatever the tokenizer's is."""
    folder = shutil.copytree(BERT, tmp_path / "model")
    change_json(folder / "config.json", model_type="roberta", pad_token_id=1)
    model = load(folder)
    assert model.config.position_offset == 2 and model.tokenizer.pad_id == 0
    save(model, tmp_path / "saved")
    assert load(tmp_path / "saved").config == model.config
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert "token_type_ids" not in settings["model_input_names"]
