"""Tokenizers in the metadata of GGUF files: byte-level BPE, and SentencePiece's BPE with scores."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from rag_jax.models.tokenizer_files import Names, make_special_tokens
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show

# Token types (llama.cpp, `llama_token_type`).
_CONTROL, _USER_DEFINED = 3, 4
# Names of tokens that end a turn or a text, though a file names one of them alone, as in llama.cpp.
_ENDS = {
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>"),
    *("<end_of_turn>", "<EOT>"),
}
# And those that begin one. Some files have them as words (unslothai/unsloth#5070).
_TURNS = _ENDS | {"<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>"}
_BLANK = "\u2581"
_LONGEST_PIECE = 256  # characters of a SentencePiece token; its own limit is 16 unless raised
_NAMED = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How texts are cut into words before the merges, by `tokenizer.ggml.pre`: with digits one by one,
# or up to three together.
_WORDS = {
    "llama-bpe": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}",
}
# Other names of the same, as llama.cpp has them in `llama-vocab.cpp`.
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def read_gguf(
    metadata: Mapping[str, Any], source: str
) -> tuple[tokenizers.Tokenizer, Names, str | None, list[int]]:
    """The core tokenizer in GGUF metadata, the names of its special tokens, its chat template, and
    the ids of the tokens that end a turn or a message.

    Raises:
        RagJaxError: the tokenizer is of another kind than those of SmolLM2, Llama, Qwen and Gemma.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = _read_ids(metadata, len(tokens), source)
    names = {
        short: None if ids[name] is None else tokens[ids[name]] for short, name in _NAMED.items()
    }
    if kind == "gpt2":
        core = _make_byte_level(metadata, tokens, source)
    elif kind == "llama":
        core = _make_sentencepiece(metadata, tokens, names["unk"])
    else:
        raise RagJaxError(
            f"{source}: the tokenizer {show(kind)} cannot be read from GGUF: use the model's "
            "Hugging Face folder"
        )
    typed = list(zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True))
    # What is named, by the metadata or by us, is a control token whatever its type.
    named = {i for name, i in ids.items() if name != "unknown"}
    is_control = [k == _CONTROL or i in named or t in _TURNS for i, (t, k) in enumerate(typed)]
    core.add_special_tokens(make_special_tokens(itertools.compress(tokens, is_control)))
    core.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == _USER_DEFINED])
    bos = names["bos"]
    # Llama 3's files leave it to the reader, as llama.cpp has it in `llama-vocab.cpp`.
    usual = kind == "llama" or _find_words(metadata) == "llama-bpe"
    if metadata.get("tokenizer.ggml.add_bos_token", usual) and bos is not None:
        pairs = [(bos, ids["bos"])]
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=pairs)
    if kind == "gpt2":
        names.pop("unk")  # every text is bytes
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise RagJaxError(f"{source}: the chat template must be a text, not {show(template)}")
    ends = [ids[name] for name in ("eot", "eom") if ids[name] is not None]
    ends += [i for i, token in enumerate(tokens) if token in _ENDS]
    return core, names, template, [*dict.fromkeys(ends)]


def _find_words(metadata: Mapping[str, Any]) -> Any:
    """The key of `_WORDS`, where `tokenizer.ggml.pre` is one or another name of one."""
    pre = metadata.get("tokenizer.ggml.pre")
    return _ALIASES.get(pre, pre) if isinstance(pre, str) else pre


def _make_byte_level(
    metadata: Mapping[str, Any], tokens: Sequence[str], source: str
) -> tokenizers.Tokenizer:
    """Byte-level BPE, as GPT-2's, with the words of `tokenizer.ggml.pre`."""
    pre = _find_words(metadata)
    if pre != "smollm" and pre not in tuple(_WORDS):
        raise RagJaxError(
            f"{source}: the pre-tokenizer {show(pre)} cannot be read from GGUF; those that can are "
            f"smollm, {', '.join(_WORDS)}: use the model's Hugging Face folder"
        )
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token as it is, without the merges that would make it.
    core = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    if pre == "smollm":
        words = pre_tokenizers.Digits(individual_digits=True)
    else:
        words = pre_tokenizers.Split(Regex(_WORDS[pre]), behavior="isolated")
    if pre == "qwen2":
        core.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre == "smollm")
    core.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    core.decoder = decoders.ByteLevel()
    return core


def _make_sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], unknown: str | None
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE, where the scores say which pieces are merged first.

    What has no piece is written in bytes. Blanks are the character U+2581; one is put before every
    text unless `tokenizer.ggml.add_space_prefix` is false.
    """
    core = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_derive_merges(metadata, tokens),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = normalizers.Replace(" ", _BLANK)
    core.decoder = decoders.Sequence(steps)
    return core


def _derive_merges(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, in the order in which they are merged.

    The piece with the highest score comes first, and of equal ones the first in the vocabulary.

    Raises:
        ValueError: a score is missing, or a piece is very long.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = metadata["tokenizer.ggml.scores"]
    if len(scores) != len(tokens):
        raise ValueError(f"there are {len(tokens)} tokens and {len(scores)} scores")
    if (longest := max(map(len, tokens), default=0)) > _LONGEST_PIECE:
        raise ValueError(f"a token has {longest:,} characters, the limit is {_LONGEST_PIECE}")
    merges = []
    for place in sorted(range(len(tokens)), key=lambda i: (-scores[i], i)):
        piece = tokens[place]
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


def _read_ids(metadata: Mapping[str, Any], count: int, source: str) -> dict[str, int | None]:
    """The ids of the tokens that the metadata name, by llama.cpp's short names."""
    ids = {
        name: metadata.get(f"tokenizer.ggml.{name}_token_id")
        for name in (*_NAMED.values(), "eot", "eom")
    }
    for name, i in ids.items():
        if i is None or 0 <= i < count:
            continue
        if name == "padding":  # -1 in some files; nothing is read of it
            ids[name] = None
            continue
        raise RagJaxError(
            f"{source}: {name}_token_id {show(i)} is none of the tokenizer's {count}: use the "
            "model's Hugging Face folder"
        )
    return ids
