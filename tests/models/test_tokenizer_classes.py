"""What a tokenizer's class in transformers gives it, whatever `tokenizer.json` says."""

import json

import pytest
import tokenizers
from chats import TOKENIZERS
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rag_jax.models.tokenizer import Tokenizer
from rag_jax.models.tokenizer_files import make_special_tokens
from rag_jax.runtime.errors import RagJaxError

CASED = {"do_lower_case": False}
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def write(folder, core, *, model_type=None, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(core.to_str(), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def make_words(**normalizer):
    """BERT's tokenizer with a vocabulary of whole words."""
    words = ["[UNK]", "Hello", "hello", "é", "e", "中", "国", "中国", "_"]
    core = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    core.normalizer = normalizers.BertNormalizer(**normalizer)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def read_words(folder, text="Hello é 中国"):
    tokenizer = Tokenizer.from_folder(folder)
    return [tokenizer._core.id_to_token(i) for i in tokenizer.encode(text)]


LOWER = ["hello", "e", "中", "国"]


@pytest.mark.parametrize("kind", ["BertTokenizer", "DistilBertTokenizerFast", "MPNetTokenizer"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, LOWER),
        ({"do_lower_case": True, "strip_accents": None}, LOWER),
        (CASED, ["Hello", "é", "中", "国"]),
        (CASED | {"strip_accents": True}, ["Hello", "e", "中", "国"]),
        ({"strip_accents": False}, ["hello", "é", "中", "国"]),
        ({"tokenize_chinese_chars": False}, ["hello", "e", "中国"]),
    ],
)
def test_berts_kin_follow_the_settings(kind, settings, words, tmp_path):
    for lower in (True, False):
        core = make_words(lowercase=lower, strip_accents=not lower, handle_chinese_chars=lower)
        assert read_words(write(tmp_path, core, tokenizer_class=kind, **settings)) == words


def test_a_class_of_its_own_has_its_own_steps(tmp_path):
    """As in transformers: nothing is left of what `tokenizer.json` has in their place."""
    core = make_words(clean_text=False)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = write(tmp_path, core, tokenizer_class="BertTokenizer")
    assert read_words(folder, "Hel\u200blo_e") == ["hello", "_", "e"]


FRAMES = {
    "BertTokenizer": ("[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]"),
    "ElectraTokenizerFast": ("[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]"),
    "MPNetTokenizer": ("<s> A </s>", "<s> A </s> </s> B </s>"),
    "RobertaTokenizer": ("<s> A </s>", "<s> A </s> </s> B </s>"),
    "BartTokenizerFast": ("<s> A </s>", "<s> A </s> </s> B </s>"),
    "XLMRobertaTokenizer": ("<s> A </s>", "<s> A </s> </s> B </s>"),
}
MARKS = ["[CLS]", "[SEP]", "<s>", "</s>"]


@pytest.mark.parametrize("kind", [*FRAMES, *PLAIN])
@pytest.mark.parametrize("own", [None, ("</s> $A", "</s> $A $B"), ("[SEP] $A <s>", "$A <s> $B")])
def test_what_stands_around_texts_is_the_classs(kind, own, tmp_path):
    """huggingface/transformers#10395: a `tokenizer.json` of a trained vocabulary has no frame."""
    words = ["[UNK]", "A", "B", *MARKS]
    core = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(make_special_tokens(MARKS))
    if own is not None:
        ids = [(name, core.token_to_id(name)) for name in MARKS]
        core.post_processor = processors.TemplateProcessing(*own, special_tokens=ids)
    folder = write(tmp_path, core, tokenizer_class=kind, do_lower_case=False)
    tokenizer, found = Tokenizer.from_folder(folder), []
    for pair in (None, "B"):
        ids = tokenizer.encode_with_specials("A", max_length=9, pair=pair)
        found.append(" ".join(core.id_to_token(i) for i in ids))
    ours = [("[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]"), ("</s> A", "</s> A B")]
    others = dict(zip([None, "</s> $A"], ours, strict=True))
    wanted = others.get(own and own[0], ("[SEP] A <s>", "A <s> B"))
    assert tuple(found) == FRAMES.get(kind, wanted)


def test_the_names_in_the_settings_stand_around_texts(tmp_path):
    core = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "A": 1}, unk_token="[UNK]"))
    core.add_special_tokens(make_special_tokens(["<c>", "<e>"]))
    names = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    folder = write(tmp_path, core, **names, cls_token="<c>", sep_token={"content": "<e>"})
    assert Tokenizer.from_folder(folder).encode_with_specials("A", max_length=9) == [2, 1, 3]


@pytest.mark.parametrize("kind", PLAIN)
def test_other_classes_are_as_the_file_says(kind, tmp_path):
    core = make_words(lowercase=True)
    assert read_words(write(tmp_path, core, tokenizer_class=kind, **CASED)) == LOWER
    core = make_words(lowercase=False, strip_accents=False)
    settings = {"tokenizer_class": kind, "do_lower_case": True}
    folder = write(tmp_path, core, model_type="bert", **settings)
    assert read_words(folder) == ["Hello", "é", "中", "国"]


def test_a_class_that_is_not_named_is_that_of_the_models_type(tmp_path):
    cased = ["Hello", "é", "中", "国"]
    for model_type, words in {"bert": cased, "mpnet": cased, "modernbert": LOWER}.items():
        folder = write(tmp_path, make_words(), model_type=model_type, **CASED)
        assert read_words(folder) == words
    named = {"tokenizer_class": "BertTokenizer", **CASED}
    assert read_words(write(tmp_path, make_words(), model_type="modernbert", **named)) == LOWER
    assert read_words(write(tmp_path, make_words(), model_type="llama", **named)) == cased


@pytest.mark.parametrize(
    ("name", "value"),
    [("do_lower_case", "no"), ("strip_accents", 1), ("tokenize_chinese_chars", [])],
)
def test_damaged_settings_are_named(name, value, tmp_path):
    settings = {"tokenizer_class": "BertTokenizer", name: value}
    with pytest.raises(RagJaxError, match=f"{name} must be true or false, not ") as error:
        Tokenizer.from_folder(write(tmp_path, make_words(), **settings))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def make_bytes(*, prefix, steps=()):
    core = TOKENIZERS["byte level"]()
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    return core


@pytest.mark.parametrize(
    "kind", ["RobertaTokenizer", "BartTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast"]
)
@pytest.mark.parametrize("steps", [(), (pre_tokenizers.Digits(individual_digits=True),)])
@pytest.mark.parametrize("prefix", [True, False])
def test_byte_level_classes_follow_the_blank_before_a_text(kind, steps, prefix, tmp_path):
    core = make_bytes(prefix=prefix, steps=steps)
    found = {}
    for value in (True, False, None):
        settings = {} if value is None else {"add_prefix_space": value}
        folder = write(tmp_path, core, tokenizer_class=kind, **settings)
        found[value] = Tokenizer.from_folder(folder).encode("where is it?")
    with_blank = Tokenizer.from_folder(folder).encode(" where is it?")
    assert found[True] == with_blank != found[False]
    assert found[None] == found[False]


@pytest.mark.parametrize("settings", [{"tokenizer_class": name} for name in PLAIN])
def test_other_classes_keep_the_blank_of_the_file(settings, tmp_path):
    folders = [
        write(tmp_path / name, make_bytes(prefix=prefix), **settings, **own)
        for name, prefix, own in [("a", False, {"add_prefix_space": True}), ("b", True, {})]
    ]
    without, with_blank = (Tokenizer.from_folder(f).encode("where") for f in folders)
    assert with_blank == Tokenizer.from_folder(folders[0]).encode(" where") != without


def test_types_whose_class_is_always_the_same(tmp_path):
    """transformers knows Qwen2's by its type, and leaves Mistral's to `tokenizer.json`."""
    core = make_bytes(prefix=False)
    settings = {"tokenizer_class": PLAIN[0], "add_prefix_space": True}
    blanks = []
    for model_type in ("qwen2", "qwen3", "mistral"):
        tokenizer = Tokenizer.from_folder(write(tmp_path, core, model_type=model_type, **settings))
        blanks.append(tokenizer.encode("where") == tokenizer.encode(" where"))
    assert blanks == [True, False, False]
    core = TOKENIZERS["metaspace, legacy"]()
    named = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}
    found = {
        kind: Tokenizer.from_folder(write(tmp_path, core, model_type=kind, **named)).encode("where")
        for kind in ("llama", "mistral", "phi3")
    }
    assert found["mistral"] == found["phi3"] != found["llama"]


def test_qwens_class_composes_characters(tmp_path):
    for normalizer in (None, normalizers.Sequence([])):
        core = TOKENIZERS["byte level"]()
        core.normalizer = normalizer
        for kind, composes in (("Qwen2Tokenizer", True), (PLAIN[0], False)):
            tokenizer = Tokenizer.from_folder(write(tmp_path, core, tokenizer_class=kind))
            assert (tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")) == composes


@pytest.mark.parametrize("prefix", [True, False])
def test_the_blank_that_llamas_class_puts_before_a_text_is_taken_away_alone(prefix, tmp_path):
    core = TOKENIZERS["metaspace, legacy"]()
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])  # as Llama's file has it
    settings = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": prefix}
    tokenizer = Tokenizer.from_folder(write(tmp_path, core, model_type="llama", **settings))
    # A blank that a text has itself is the one before it.
    for text in ("the cat", *[" the cat", "  the"] * (not prefix)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def make_pieces(normalizer=None, step=None):
    """XLM-R's kind of tokenizer, whose file cuts texts at blanks alone."""
    pieces = ["<unk>", "\u2581", "\u2581a", "a", "\u2581b", "b", "\t"]
    core = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    core.normalizer = normalizer
    core.pre_tokenizer = step or pre_tokenizers.Metaspace()
    return core


XLMR = {"tokenizer_class": "XLMRobertaTokenizerFast"}


@pytest.mark.parametrize(
    ("settings", "first"),
    [({}, "\u2581"), ({"add_prefix_space": True}, "\u2581"), ({"add_prefix_space": False}, "")],
)
def test_xlm_robertas_class_cuts_at_any_white_space(settings, first, tmp_path):
    blanks = normalizers.Replace(tokenizers.Regex(" {2,}"), "x")
    for core in (make_pieces(), make_pieces(blanks, pre_tokenizers.WhitespaceSplit())):
        folder = write(tmp_path, core, **XLMR, **settings)
        for text in ("a b", "a\tb", " a \n\u3000 b  "):
            assert read_words(folder, text) == [f"{first}a", f"{first}b"]
    folder = write(tmp_path, make_pieces(), model_type="xlm-roberta", **settings)
    assert read_words(folder, "a\tb") == [f"{first}a", f"{first}b"]
    for other in PLAIN:
        folder = write(tmp_path, make_pieces(), tokenizer_class=other, **settings)
        assert read_words(folder, "a\tb") == ["\u2581a", "\t", "b"]


def test_xlm_robertas_class_keeps_a_normalizers_table(tmp_path):
    """As a sequence's part or alone; the rest of the sequence is left out."""
    empty = normalizers.Precompiled((1024).to_bytes(4, "little") + bytes(1024))
    for normalizer in (empty, normalizers.Sequence([normalizers.Replace("a", "b"), empty])):
        folder = write(tmp_path, make_pieces(normalizer), **XLMR)
        core = Tokenizer.from_folder(folder)._core
        assert isinstance(core.normalizer, normalizers.Precompiled)
        assert read_words(folder, "a") == ["\u2581a"]
