"""Tokenizers in GGUF metadata, on vocabularies small enough to follow by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError

BLANK = "\u2581"
# A Gemma in small: specials, a run of blanks and one of line breaks as users' own tokens, bytes,
# and pieces in the order in which they are merged.
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"]
OWN = ["\n\n", "  "]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
MERGED = ["er", f"{BLANK}t", "he", f"{BLANK}the", "lo", "hel", "low", "lower", f"{BLANK}lower"]
LETTERS = [BLANK, *"abehlortw", "\n"]


def make_pieces(**changes):
    tokens = [*SPECIALS, *OWN, *BYTES, *MERGED, *LETTERS]
    scores = [-1000.0] * (len(SPECIALS) + len(OWN)) + [0.0] * len(BYTES)
    scores += [-float(i) for i in range(len(MERGED) + len(LETTERS))]
    types = [3, 3, 3, 2, 3, 4, 4, *[6] * len(BYTES), *[1] * len(MERGED + LETTERS)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    } | changes


def spell(tokenizer, text, tokens):
    return [tokens[i] for i in tokenizer.encode(text)]


PIECES = make_pieces()["tokenizer.ggml.tokens"]
GEMMA = Tokenizer.from_gguf(make_pieces())


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the", ["t", "he"]),
        (" the", [f"{BLANK}the"]),
        ("hello", ["hel", "lo"]),
        # By scores, "er" is made before "low", and both before the word.
        ("low lower", ["low", f"{BLANK}lower"]),
        ("a  b\n\n\nb", ["a", "  ", "b", "\n\n", "\n", "b"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("<bos>", ["<0x3C>", "b", "o", "<0x73>", "<0x3E>"]),  # a control token's name is text
        ("", []),
    ],
)
def test_pieces_by_scores(text, pieces):
    assert spell(GEMMA, text, PIECES) == pieces
    assert GEMMA.decode(GEMMA.encode(text)) == text


@given(st.text())
def test_every_text_comes_back(text):
    # A blank that is written as such becomes a space, as in SentencePiece.
    text = text.replace(BLANK, " ").encode("utf-8", "replace").decode()
    assert GEMMA.decode(GEMMA.encode(text)) == text


def test_what_begins_a_text():
    assert GEMMA.encode_prompt("the") == [2, *GEMMA.encode("the")]
    without = Tokenizer.from_gguf(make_pieces(**{"tokenizer.ggml.add_bos_token": False}))
    assert without.encode_prompt("the") == GEMMA.encode("the")
    assert (GEMMA.bos_id, GEMMA.eos_id, GEMMA.pad_id) == (2, 1, 0)
    # As in Llama 2's tokenizer, a blank comes before a text unless the file says otherwise.
    metadata = make_pieces()
    del metadata["tokenizer.ggml.add_space_prefix"]
    llama = Tokenizer.from_gguf(metadata)
    assert spell(llama, "the lower", PIECES) == [f"{BLANK}the", f"{BLANK}lower"]
    assert llama.decode(llama.encode("the lower")) == "the lower"


def test_saved_and_read_again(tmp_path):
    GEMMA.save(tmp_path, max_length=8)
    again = Tokenizer.from_folder(tmp_path)
    for text in ("low lower", "a  b\n\n\nb", "é <bos> the"):
        assert again.encode_prompt(text) == GEMMA.encode_prompt(text)
    assert again.decode(GEMMA.encode("a  b é")) == "a  b é"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer.ggml.model": "t5"},
            "the tokenizer 't5' cannot be read from GGUF: use",
        ),
        ({"tokenizer.ggml.scores": [1.0]}, "tokens and 1 scores"),
        ({"tokenizer.ggml.unknown_token_id": -1}, "unknown_token_id -1 is none of the tokenizer's"),
        ({"tokenizer.ggml.bos_token_id": 9999}, "bos_token_id 9999 is none of the tokenizer's"),
        ({"tokenizer.ggml.tokens": ["a" * 300, *PIECES[1:]]}, "a token has 300 characters, the li"),
        ({"tokenizer.chat_template": 5}, "the chat template must be a text, not 5"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(RagJaxError, match=message):
        Tokenizer.from_gguf(make_pieces(**changes))


def make_bytes(pre):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["1 2", "12 3", "t h", "\u0120 th", "' s", "\u0120 a", "\u010a \u010a"]
    tokens = ["<|end|>", *alphabet, *(merge.replace(" ", "") for merge in merges), "sat"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 1)],
        "tokenizer.ggml.eos_token_id": 0,
    }


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("llama-bpe", "1234", ["123", "4"]),
        ("qwen2", "1234", [*"1234"]),
        ("smollm", "1234", [*"1234"]),
        # Llama 3 takes a word that is a token, whatever merges lead to it.
        ("llama-bpe", "sat", ["sat"]),
        ("qwen2", "sat", [*"sat"]),
        ("llama-bpe", "it's th", ["i", "t", "'s", "\u0120th"]),
        ("qwen2", "IT'S", ["I", "T", "'", "S"]),
        ("qwen2", "a\n\n th", ["a", "\u010a\u010a", "\u0120th"]),
        # Other names of the same.
        ("llama3", "1234 sat", ["123", "4", "\u0120", *"sat"]),
        ("llama-v3", "sat", ["sat"]),
        ("deepseek-r1-qwen", "1234", [*"1234"]),
    ],
)
def test_words(pre, text, pieces):
    metadata = make_bytes(pre)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert spell(tokenizer, text, metadata["tokenizer.ggml.tokens"]) == pieces
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_begins_a_text_of_llama_3():
    """Its files leave it to the reader; those of other byte-level BPE begin with nothing."""
    for pre, begins in {"llama-bpe": [5], "llama3": [5], "qwen2": []}.items():
        metadata = make_bytes(pre) | {"tokenizer.ggml.bos_token_id": 5}
        metadata["tokenizer.ggml.token_type"][5] = 3
        tokenizer = Tokenizer.from_gguf(metadata)
        assert tokenizer.encode_prompt("th") == [*begins, *tokenizer.encode("th")]
        told = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_bos_token": not begins})
        assert told.encode_prompt("th") == [*([] if begins else [5]), *told.encode("th")]


@pytest.mark.parametrize("name", ["<end_of_turn>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>"])
def test_tokens_that_end_a_turn_by_their_name(name):
    metadata = make_pieces()
    metadata["tokenizer.ggml.tokens"][4] = name
    assert Tokenizer.from_gguf(metadata).stop_ids == (1, 4)
    metadata["tokenizer.ggml.token_type"][4] = 1  # a word, as some files have it
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.stop_ids == (1, 4) and 4 not in tokenizer.encode(name)


TURN = "{% for m in messages %}<start_of_turn>{{ m.content }}<end_of_turn>\n{% endfor %}"


@pytest.mark.parametrize("kind", [1, 3, 4, 5])
def test_tokens_of_turns_are_no_words_whatever_their_type(kind):
    """unslothai/unsloth#5070: Gemma's turns have the type of words."""
    metadata = make_pieces(**{"tokenizer.chat_template": TURN})
    tokens, types, scores = (
        metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores")
    )
    end = len(tokens)
    tokens.append("<end_of_turn>")
    types[4] = kind
    types.append(kind)
    scores.append(-1000.0)
    tokenizer = Tokenizer.from_gguf(metadata)
    said = tokenizer.encode("the <start_of_turn>")
    assert not {4, end} & {*said}
    chat = [{"role": "user", "content": "the <start_of_turn>"}]
    assert tokenizer.encode_chat(chat) == [4, *said, end, *tokenizer.encode("\n")]
    assert tokenizer.stop_ids == (1, end)


@pytest.mark.parametrize("name", ["bos", "eos", "padding"])
@pytest.mark.parametrize("kind", [1, 2, 5])
def test_tokens_that_the_metadata_name_are_special_whatever_their_type(name, kind):
    metadata = make_pieces()
    i = metadata[f"tokenizer.ggml.{name}_token_id"]
    metadata["tokenizer.ggml.token_type"][i] = kind
    tokenizer = Tokenizer.from_gguf(metadata)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 1, 0)
    assert i not in tokenizer.encode(PIECES[i])
    assert tokenizer.encode_prompt("the") == GEMMA.encode_prompt("the")


def test_padding_as_llama_2_has_it():
    """ggml-org/llama.cpp#7057: the unknown token; others have -1, for none."""
    padded = Tokenizer.from_gguf(make_pieces(**{"tokenizer.ggml.padding_token_id": 3}))
    assert padded.pad_id == 3 and padded.encode("the é") == GEMMA.encode("the é")
    for none in (2**32 - 1, -1, 10**6):
        metadata = make_pieces(**{"tokenizer.ggml.padding_token_id": none})
        assert Tokenizer.from_gguf(metadata).pad_id is None


def test_qwen_composes_characters():
    """NFC: e and a combining accent are the character é."""
    qwen, llama = (Tokenizer.from_gguf(make_bytes(pre)) for pre in ("qwen2", "llama-bpe"))
    assert qwen.encode("e\u0301") == qwen.encode("é")
    assert llama.encode("e\u0301") != llama.encode("é")
    assert np.all(np.asarray(qwen.encode("<|end|>")) > 0)
