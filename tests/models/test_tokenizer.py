"""Text stays text: special tokens come only from where they are asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from chats import make_byte_level
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_metadata(**changes):
    """A byte-level tokenizer as GGUF describes it: three specials, all bytes, a few merges."""
    merges = ["t h", "th e", "\u0120 a", "i m", "_ e", "n d", "< |", "| >"]
    tokens = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [merge.replace(" ", "") for merge in merges]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    } | changes


BASE = Tokenizer.from_gguf(make_metadata())
EXTENDED = BASE.add_special_tokens(["<Self>", "<EOQ>"])
NAMES = [*SPECIALS, "<Self>", "<EOQ>"]
# Any text, and texts that spell special tokens, whole, broken and run together.
TEXTS = st.text() | st.lists(
    st.sampled_from([*NAMES, "<|", "|>", "im_end", "the", " ", "\n", "\0", "\ud800", "<"])
).map("".join)


def make_wordpiece(**options):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "##d", "[", "]", "sep"]
    core = tokenizers.Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.add_special_tokens(vocab[:4])
    core.enable_truncation(3)
    core.enable_padding(length=16)
    return Tokenizer(core, pad="[PAD]", **options)


def test_ids():
    assert (BASE.vocab_size, BASE.bos_id, BASE.eos_id, BASE.pad_id) == (267, 1, 2, None)
    assert BASE.token_id("<|im_end|>") == 2
    with pytest.raises(RagJaxError, match="'<Self>' is no special token .* it has: <|endoftext|>"):
        BASE.token_id("<Self>")


@given(TEXTS)
def test_text_never_becomes_a_special_token(text):
    for tokenizer in (BASE, EXTENDED):
        ids = tokenizer.encode(text)
        assert not {tokenizer.token_id(n) for n in NAMES if n in tokenizer._special} & set(ids)
        clean = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
        assert tokenizer.decode(ids) == clean


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_chat_contents_never_become_special_tokens(contents):
    messages = [{"role": "user", "content": content} for content in contents]
    ids = EXTENDED.encode_chat(messages)
    expected = []
    for content in contents:
        expected += [1, *EXTENDED.encode(f"user\n{content}"), 2, *EXTENDED.encode("\n")]
    assert ids == [*expected, 1, *EXTENDED.encode("assistant\n")]


@given(TEXTS)
def test_special_tokens_do_not_form_across_the_edge_of_a_content(content):
    template = "{% for m in messages %}<|im_{{ m['content'] }}|>{% endfor %}"
    tokenizer = Tokenizer.from_gguf(make_metadata(**{"tokenizer.chat_template": template}))
    ids = tokenizer.encode_chat([{"role": "user", "content": content}])
    assert not {0, 1, 2} & set(ids)
    assert not {0, 1, 2} & set(tokenizer.encode_chat([{"role": "user", "content": "end"}]))


def test_control_tokens_that_are_pieces_of_texts(tmp_path):
    """Padding that is named "!", and a type that a file gives its first character."""
    core = make_byte_level()
    core.save(str(tmp_path / "tokenizer.json"))
    settings = {"pad_token": "!", "eos_token": "<|end|>", "additional_special_tokens": ["a"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    metadata = make_metadata()
    place = metadata["tokenizer.ggml.tokens"].index("!")
    metadata["tokenizer.ggml.token_type"][place] = 3
    found = Tokenizer.from_folder(tmp_path), Tokenizer.from_gguf(metadata)
    for tokenizer, control in zip(found, ("<|end|>", "<|im_end|>"), strict=True):
        text = f"Hello! A bar, a. {control}!"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.find_id(control) not in ids
        assert tokenizer.decode([tokenizer.token_id(control), *ids]) == text
    assert found[0].pad_id == found[0].find_id("!") in found[0].encode("!")


def test_an_id_is_one_object_in_all_texts():
    """Python makes one for each use of a number above 256, of 28 bytes beside a list's 8."""
    tokenizer, text = Tokenizer.from_gguf(make_metadata()), "the and the " * 50
    texts = [tokenizer.encode(text), tokenizer.encode(text)]
    texts += [tokenizer.encode_chat([{"role": "user", "content": text}])]
    assert max(map(max, texts)) > 256
    assert len({id(i) for ids in texts for i in ids}) == len({i for ids in texts for i in ids})


def test_template_may_strip_and_inspect_contents():
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] | trim }}"
        "<|im_end|>{% else %}{{ raise_exception('only users') }}{% endif %}{% endfor %}"
        "{{ eos_token }}"
    )
    tokenizer = Tokenizer.from_gguf(make_metadata(**{"tokenizer.chat_template": template}))
    ids = tokenizer.encode_chat([{"role": "user", "content": " \n the end\t"}])
    assert ids == [1, *tokenizer.encode("the end"), 2, 2]
    with pytest.raises(RagJaxError, match="chat template refuses these messages: only users"):
        tokenizer.encode_chat([{"role": "system", "content": ""}])


def test_chat_without_generation_prompt():
    ids = BASE.encode_chat([{"role": "user", "content": ""}], add_generation_prompt=False)
    assert ids == [1, *BASE.encode("user\n"), 2, *BASE.encode("\n")]


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"role": "robot", "content": ""}, {"role": "user", "content": 1}]
)
def test_bad_messages(message):
    with pytest.raises(RagJaxError, match="message 1 needs a role among .* and text as content"):
        BASE.encode_chat([{"role": "user", "content": "fine"}, message])


def test_no_chat_template():
    with pytest.raises(RagJaxError, match="has no chat template"):
        make_wordpiece().encode_chat([])


def test_added_special_tokens():
    assert EXTENDED.vocab_size == BASE.vocab_size + 2
    assert EXTENDED.token_id("<Self>") == BASE.vocab_size
    assert EXTENDED.token_id("<EOQ>") == BASE.vocab_size + 1
    assert EXTENDED.bos_id == 1
    ids = [EXTENDED.token_id("<Self>"), *EXTENDED.encode("the"), EXTENDED.token_id("<EOQ>")]
    assert EXTENDED.decode(np.array(ids)) == "the"
    again = EXTENDED.add_special_tokens(["<EOQ>", "<New>", "<New>"])
    assert again.token_id("<EOQ>") == EXTENDED.token_id("<EOQ>")
    assert again.token_id("<New>") == EXTENDED.vocab_size == again.vocab_size - 1
    for name in ("the", ""):
        with pytest.raises(RagJaxError, match="cannot become a special token"):
            BASE.add_special_tokens([name])


def test_digits_are_split_one_by_one_and_no_space_is_put_before():
    merges = ["1 2", "\u0120 1"]
    tokens = make_metadata()["tokenizer.ggml.tokens"] + ["12", "\u01201"]
    metadata = make_metadata(
        **{
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        }
    )
    tokenizer = Tokenizer.from_gguf(metadata)
    assert [tokens[i] for i in tokenizer.encode("12 12")] == ["1", "2", "\u0120", "1", "2"]


def test_other_tokenizers_in_gguf_are_refused():
    with pytest.raises(RagJaxError, match=r"the pre-tokenizer 'tekken' cannot be read from GGUF"):
        Tokenizer.from_gguf(make_metadata(**{"tokenizer.ggml.pre": "tekken"}))


def test_encoder_form():
    tokenizer = make_wordpiece()
    assert tokenizer.encode("a b c") == [4, 5, 6]  # the file's own truncation and padding are off
    assert tokenizer.encode_with_specials("a b c", max_length=9) == [2, 4, 5, 6, 3]
    assert tokenizer.encode_with_specials("a b c", max_length=4) == [2, 4, 5, 3]
    assert tokenizer.encode_with_specials("", max_length=2) == [2, 3]
    pair = tokenizer.encode_with_specials("a b c", max_length=6, pair="cd")
    assert pair == [2, 4, 5, 3, 6, 3]
    with pytest.raises(RagJaxError, match="max_length 1 has no room for"):
        tokenizer.encode_with_specials("a", max_length=1)
    core = tokenizers.Tokenizer(models.BPE({"b": 0}, []))
    core.add_special_tokens(["<s>"])
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    with pytest.raises(RagJaxError, match=r"'\[CLS\]' is no special token"):
        Tokenizer(core).encode_with_specials("a", max_length=9)


def test_texts_around_which_a_tokenizer_puts_nothing():
    text, pair = BASE.encode("who is it"), BASE.encode("she")
    assert BASE.encode_with_specials("who is it", max_length=99) == text
    assert BASE.encode_with_specials("who is it", max_length=2) == text[:2]
    assert BASE.encode_with_specials("who is it", max_length=99, pair="she") == [*text, *pair]
    assert BASE.count_tokens_after() == 0
    with pytest.raises(RagJaxError, match="a text has no tokens, and none are put around it"):
        BASE.encode_with_specials("", max_length=9)


def test_unknown_words_are_text():
    tokenizer = make_wordpiece()
    assert tokenizer.encode("a zzz [SEP] [UNK]") == [4, 1, 8, 1, 9, 8, 1, 9]


def test_folder(tmp_path):
    with pytest.raises(RagJaxError, match="tokenizer.json is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RagJaxError, match="tokenizer.json is no tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(BASE._core.to_str())
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(RagJaxError, match="tokenizer_config.json must hold a JSON object"):
        Tokenizer.from_folder(tmp_path)
    settings = {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "bos_token": None,
        "chat_template": [{"name": "default", "template": TEMPLATE}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 2)
    messages = [{"role": "user", "content": "the end"}]
    assert tokenizer.encode_chat(messages) == BASE.encode_chat(messages)
    settings["pad_token"] = "<pad>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(RagJaxError, match="'<pad>' is no special token"):
        Tokenizer.from_folder(tmp_path)


def test_vocabulary_and_merges_without_a_tokenizer_file(tmp_path):
    golden = Path(__file__).parents[1] / "golden" / "bart"
    expected = Tokenizer.from_folder(golden)
    model = json.loads((golden / "tokenizer.json").read_text("utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])])
    (tmp_path / "merges.txt").write_text(merges, "utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    ids = (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id)
    assert ids == (expected.vocab_size, 0, 1, 2)
    for text in ("What is the capital of France?", "</s> <mask>\n\n東京 it's", ""):
        assert tokenizer.encode(text) == expected.encode(text)
        assert tokenizer.decode([0, *tokenizer.encode(text), 2]) == text
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n", "utf-8")
    with pytest.raises(RagJaxError, match=r"vocab.json and merges.txt cannot be read"):
        Tokenizer.from_folder(tmp_path)


def test_qwens_class_composes_characters(tmp_path):
    """As in transformers, where `tokenizer.json` has no normalizer."""
    BASE.save(tmp_path, max_length=8)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for kind, same in (("PreTrainedTokenizerFast", False), ("Qwen2TokenizerFast", True)):
        changed = json.dumps(settings | {"tokenizer_class": kind})
        (tmp_path / "tokenizer_config.json").write_text(changed)
        tokenizer = Tokenizer.from_folder(tmp_path)
        assert (tokenizer.encode("e\u0301") == tokenizer.encode("é")) == same


def test_gguf_says_what_begins_a_text_and_ends_a_turn():
    # The one that the file names, and `<|endoftext|>` by its name.
    assert (BASE.encode_prompt("the"), BASE.stop_ids) == (BASE.encode("the"), (2, 0))
    for field, prompt in ((True, [1, *BASE.encode("the")]), (False, BASE.encode("the"))):
        metadata = make_metadata(**{"tokenizer.ggml.add_bos_token": field})
        assert Tokenizer.from_gguf(metadata).encode_prompt("the") == prompt
    ends = {"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 2}
    assert Tokenizer.from_gguf(make_metadata(**ends)).stop_ids == (2, 1, 0)


def test_gguf_tokens_that_are_not_marked_as_control(tmp_path):
    tokens = [*make_metadata()["tokenizer.ggml.tokens"], "<tool_call>", "two words"]
    types = [3] * 3 + [1] * (len(tokens) - 5) + [4, 4]
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    tokenizer = Tokenizer.from_gguf(make_metadata(**metadata))
    text = "a <tool_call> of two words"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokens) - 1 in tokenizer.encode(text)
    assert len(tokens) - 2 not in tokenizer.encode(text)


@pytest.mark.parametrize("name", ["unknown", "bos", "eos", "eot"])
@pytest.mark.parametrize("i", [-1, 10**6])
def test_gguf_names_no_token_beyond_its_own(name, i):
    metadata = make_metadata(**{f"tokenizer.ggml.{name}_token_id": i})
    with pytest.raises(RagJaxError, match=f"GGUF: {name}_token_id {i} is none of the tokenizer's"):
        Tokenizer.from_gguf(metadata)


def test_damage_that_shows_only_in_a_text():
    core = tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(RagJaxError, match="cannot encode a text: .*its files are damaged"):
        Tokenizer(core).encode("b")


def test_tokens_before_a_text_are_in_the_vocabulary():
    core = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    core.post_processor = processors.TemplateProcessing("b $A", special_tokens=[("b", 7)])
    with pytest.raises(RagJaxError, match="the token 7, which the tokenizer puts around every"):
        Tokenizer(core).encode_prompt("a")


def test_an_endless_text_is_refused():
    """Before it is tokenised: 10 million letters without a space took 82 s."""
    tokenizer = Tokenizer(make_byte_level())
    with pytest.raises(RagJaxError, match=r"'a{30}'\.\.\. has 1,000,001 characters, more than the"):
        tokenizer.encode("a" * 1_000_001)
    with pytest.raises(RagJaxError, match="more than the limit of 1,000,000"):
        tokenizer.shorten("a" * 1_000_001, 3)
