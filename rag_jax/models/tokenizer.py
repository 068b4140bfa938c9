"""Tokenizer: text to token ids and back. Text never encodes to special tokens."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json

_ROLES = ("system", "user", "assistant")
_NAMED_TOKENS = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_SURROGATE = re.compile("[\ud800-\udfff]")
# RoBERTa's and BART's special tokens, for folders with `vocab.json` and `merges.txt` alone.
_BPE_SPECIALS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
# Token types in GGUF metadata (llama.cpp, `llama_token_type`).
_CONTROL, _USER_DEFINED = 3, 4


class Tokenizer:
    """Tokenizer that never encodes text to special tokens, even if the text spells their names.

    Attributes:
        vocab_size: number of ids, added tokens included.
        bos_id: id of the token that starts a text, or None.
        eos_id: id of the token that ends a text, or None.
        pad_id: id of the padding token, or None.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        chat_template: str | None = None,
        **others: str | None,
    ):
        """Wraps a tokenizer of the `tokenizers` library and changes its settings in place.

        `bos`, `eos` and `pad` are names of special tokens.

        Args:
            chat_template: Jinja source.
            others: names of `unk`, `sep`, `cls` and `mask`, for `save` and the chat template.

        Raises:
            RagJaxError: `bos`, `eos` or `pad` is not a special token of `core`.
        """
        self._core = core
        core.encode_special_tokens = True
        core.no_padding()
        core.no_truncation()
        added = core.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}
        # The unknown token is no control token: text outside the vocabulary encodes to it.
        unknown = getattr(core.model, "unk_token", None)
        self._control = set(self._special.values()) - {self._special.get(unknown)}
        self._names = {"bos": bos, "eos": eos, "pad": pad, **others}
        self._template = chat_template
        self.vocab_size = max(core.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id, self.eos_id, self.pad_id = (
            None if name is None else self.token_id(name) for name in (bos, eos, pad)
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads a tokenizer in Hugging Face's format, with its chat template if there is one.

        The main file is `tokenizer.json`. If the folder has `vocab.json` and `merges.txt` instead,
        as BART's first releases have, these files are read as byte-level BPE with RoBERTa's
        special tokens.

        Raises:
            RagJaxError: `tokenizer.json` is missing, or a file is damaged.
        """
        path, settings = folder / "tokenizer.json", {}
        if not path.exists() and (folder / "merges.txt").exists():
            core = _read_bpe(folder)
            settings = {f"{short}_token": name for short, name in _BPE_SPECIALS.items()}
        elif not path.exists():
            raise RagJaxError(f"{path} is missing: save the fast version of the tokenizer there")
        else:
            core = _read_core(path)
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            settings.update(_read_settings(folder / name))
        names = {short: settings.get(f"{short}_token") for short in _NAMED_TOKENS}
        # A name is stored either as a string or as an object with flags.
        names = {key: v.get("content") if isinstance(v, dict) else v for key, v in names.items()}
        template = settings.get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if (folder / "chat_template.jinja").exists():
            template = (folder / "chat_template.jinja").read_text("utf-8")
        return cls(core, **names, chat_template=template)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, source: str = "GGUF") -> "Tokenizer":
        """Builds the tokenizer described in a GGUF file's metadata.

        Raises:
            RagJaxError: the tokenizer is not byte-level BPE with SmolLM's pre-tokenizer.
        """
        kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise RagJaxError(
                f"{source}: tokenizer {kind[0]!r} with pre-tokenizer {kind[1]!r} cannot be read "
                "from GGUF: use the model's Hugging Face folder"
            )
        tokens = metadata["tokenizer.ggml.tokens"]
        merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
        core = tokenizers.Tokenizer(
            models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
        )
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        core.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        core.decoder = decoders.ByteLevel()
        typed = list(zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True))
        core.add_special_tokens(_special_tokens(t for t, k in typed if k == _CONTROL))
        core.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == _USER_DEFINED])
        ids = [metadata.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos", "padding")]
        bos, eos, pad = (None if i is None else tokens[i] for i in ids)
        template = metadata.get("tokenizer.chat_template")
        return cls(core, bos=bos, eos=eos, pad=pad, chat_template=template)

    def save(self, folder: Path, *, max_length: int) -> None:
        """Writes the files that `from_folder` and transformers' `AutoTokenizer` read.

        `max_length` is the context length in tokens, at which transformers truncates texts.
        """
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
            # Names that are None too: transformers would replace a missing name by its default.
            **{f"{short}_token": self._names.get(short) for short in _NAMED_TOKENS},
        }
        (folder / "tokenizer.json").write_text(self._core.to_str(pretty=True), "utf-8")
        write_json(folder / "tokenizer_config.json", settings)
        if self._template is not None:
            (folder / "chat_template.jinja").write_text(self._template, "utf-8")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS, EOS or any other special token.

        The unknown token is the exception. A lone surrogate is encoded as U+FFFD.
        """
        ids = self._core.encode(_SURROGATE.sub("\ufffd", text), add_special_tokens=False).ids
        return [i for i in ids if i not in self._control]

    def encode_with_specials(
        self, text: str, *, max_length: int, pair: str | None = None
    ) -> list[int]:
        """Token ids of `[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`, for a BERT encoder.

        Args:
            max_length: maximum number of ids, special tokens included. Texts are truncated at the
                end, the longer text of a pair first.

        Raises:
            RagJaxError: there is no [CLS] or [SEP], or `max_length` has no room for both.
        """
        texts = [self.encode(part) for part in (text, pair) if part is not None]
        room = max_length - 1 - len(texts)
        if room < 0:
            raise RagJaxError(f"max_length {max_length} has no room for [CLS] and [SEP]; raise it")
        if pair is not None:
            shorter = min(len(texts[0]), len(texts[1]), room // 2)
            kept = shorter if len(texts[0]) <= len(texts[1]) else room - shorter
            texts[1] = texts[1][: room - min(kept, len(texts[0]))]
            room = kept
        texts[0] = texts[0][:room]
        ids = [self.token_id("[CLS]")]
        for part in texts:
            ids += [*part, self.token_id("[SEP]")]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens are skipped."""
        return self._core.decode([int(i) for i in ids], skip_special_tokens=True)

    def shorten(self, text: str, limit: int) -> str:
        """A text truncated to `limit` tokens; a character cut in the middle is dropped."""
        tokens = self.encode(text)
        return text if len(tokens) <= limit else self.decode(tokens[:limit]).rstrip("\ufffd")

    def token_id(self, name: str) -> int:
        """Id of a special token; a RagJaxError if `name` is no special token."""
        if name not in self._special:
            known = ", ".join(sorted(self._special)) or "none"
            raise RagJaxError(f"{name!r} is no special token of this tokenizer; it has: {known}")
        return self._special[name]

    def add_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """A copy of the tokenizer with additional special tokens, numbered from `vocab_size`.

        A name that is a special token already keeps its id.

        Raises:
            RagJaxError: a name is empty or an ordinary token, or the vocabulary has unused ids.
        """
        vocabulary = self._core.get_vocab(with_added_tokens=True)
        new = [name for name in dict.fromkeys(names) if name not in self._special]
        for name in new:
            if not name or name in vocabulary:
                raise RagJaxError(f"{name!r} cannot become a special token: it is ordinary text")
        core = tokenizers.Tokenizer.from_str(self._core.to_str())
        core.add_special_tokens(_special_tokens(new))
        if any(core.token_to_id(name) != self.vocab_size + i for i, name in enumerate(new)):
            raise RagJaxError("the vocabulary has unused ids: special tokens cannot be added to it")
        return Tokenizer(core, **self._names, chat_template=self._template)

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation in the format of the model's chat template.

        The template's markers encode to special tokens; the messages' contents never do.

        Args:
            messages: dicts with `role` (system, user or assistant) and `content`.
            add_generation_prompt: whether to append the header of an assistant message.

        Raises:
            RagJaxError: there is no chat template, the template refuses the messages, or a message
                has another role or no text.
        """
        if self._template is None:
            raise RagJaxError("this tokenizer has no chat template: use a model tuned for chat")
        for i, message in enumerate(messages):
            if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
                raise RagJaxError(f"message {i} needs a role among {_ROLES} and text as content")
        guard = _pick_guard(message["content"] for message in messages)
        guarded = [
            {"role": m["role"], "content": self._guard_text(m["content"], guard)} for m in messages
        ]
        rendered = self._render(guarded, add_generation_prompt)
        ids = []
        for part in re.split(f"({self._special_pattern()})", rendered):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids += self.encode(part.replace(guard, ""))
        return ids

    def _special_pattern(self) -> str:
        longest_first = sorted(self._special, key=len, reverse=True)
        return "|".join(map(re.escape, longest_first)) or "(?!)"  # `(?!)` matches nothing

    def _guard_text(self, text: str, guard: str) -> str:
        """Inserts the guard into every name of a special token, and around the text.

        The guards around the text keep a name from forming across its edges. White space at the
        edges stays outside of the guards, because a template may strip it.
        """
        broken = re.sub(self._special_pattern(), lambda m: m[0][0] + guard + m[0][1:], text)
        stripped = broken.strip()
        start = len(broken) - len(broken.lstrip())
        end = start + len(stripped)
        return f"{broken[:start]}{guard}{stripped}{guard}{broken[end:]}"

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        variables = {f"{short}_token": name or "" for short, name in self._names.items()}
        variables |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return _environment().from_string(self._template).render(**variables)
        except jinja2.TemplateError as error:
            raise RagJaxError(f"the chat template refuses these messages: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja sandbox with the settings and helpers that Hugging Face's chat templates expect."""

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment


def _pick_guard(texts: Iterable[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    used = set().union(*texts)
    return next(chr(code) for code in range(0xE000, 0x110000) if chr(code) not in used)


def _read_core(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises no narrower class
        raise RagJaxError(f"{path} is no tokenizer: {error}; download the file again") from None


def _read_bpe(folder: Path) -> tokenizers.Tokenizer:
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:
        raise RagJaxError(f"{folder}: vocab.json and merges.txt cannot be read: {error}") from None
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(_special_tokens(_BPE_SPECIALS.values()))
    return core


def _special_tokens(names: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = read_json(path)
    except ValueError as error:
        raise RagJaxError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise RagJaxError(f"{path} must hold a JSON object")
    return settings
