"""Tokenizer: text to token ids and back. Text never encodes to control tokens."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from rag_jax.models import tokenizer_files, tokenizer_gguf
from rag_jax.models.chat_template import ChatTemplate, choose_template, sample_templates
from rag_jax.models.control_tokens import (
    ChatEncoder,
    count_needed,
    find_control_tokens,
    find_pieces,
    find_unknown,
    make_text_core,
    read_frame,
    read_frames,
)
from rag_jax.models.frames import frame_texts
from rag_jax.models.tokenizer_growth import check_length
from rag_jax.models.tokenizer_inputs import USUAL_INPUTS, Inputs
from rag_jax.models.traced import MESSAGE, concatenate, mark, trust
from rag_jax.runtime.arguments import check_token_row, describe
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing

_ROLES = ("system", "user", "assistant")
_USUAL = tokenizer_files.NAMED_TOKENS
_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Tokenizer that never encodes text to control tokens, even if the text spells their names.

    Control tokens are the special tokens, and others that steer a model, whatever their files mark
    as special; see `control_tokens.find_control_tokens`.

    Attributes:
        vocab_size: number of ids, added tokens included.
        needed_size: number of ids that a model must have; see `count_needed`.
        bos_id: id of the token that starts a text, or None.
        eos_id: id of the token that ends a text, or None.
        pad_id: id of the padding token, or None.
        mask_id: id of the token in the place of one to guess, or None.
        stop_ids: ids of the tokens at which a model stops: `eos_id`, and those that the model's
            settings add.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        chat_template: str | Mapping[str, str] | None = None,
        template_name: str = "the chat template",
        stop_ids: Iterable[int] = (),
        inputs: Inputs = USUAL_INPUTS,
        **others: str | None,
    ):
        """Wraps a tokenizer of the `tokenizers` library and changes its settings in place.

        `bos`, `eos` and `pad` are names of added tokens.

        Args:
            chat_template: Jinja source, or several by name.
            template_name: what errors call the chat template.
            stop_ids: ids of further tokens at which the model stops.
            inputs: what an encoder reads of texts.
            others: names of `unk`, `sep`, `cls`, `mask` and what else the chat template writes by
                a variable (`image` for `image_token`), for `save` and the chat template.

        Raises:
            RagJaxError: `bos`, `eos` or `pad` is no added token of `core`, or an id of `stop_ids`
                is not in the vocabulary.
        """
        self._core = core
        core.no_padding()
        core.no_truncation()
        self._names = {"bos": bos, "eos": eos, "pad": pad, **others}
        self._inputs = inputs
        self._template, self._template_name = chat_template, template_name
        named = set(self._names.values())
        written = self._read_template()
        self._special = find_control_tokens(core, names=named, written=written)
        self._text_core = make_text_core(core, self._special)
        pieces = find_pieces(self._text_core, self._special)
        # The unknown token is none: text outside the vocabulary encodes to it.
        self._control = {*self._special.values()} - {find_unknown(core)} - pieces
        added = core.get_added_tokens_decoder()
        self._unseen = {id for id, token in added.items() if token.special} - pieces
        self._ids: dict[int, int] = {}  # see `_share`
        self.vocab_size = max(core.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id, self.eos_id, self.pad_id = (
            None if name is None else self.token_id(name) for name in (bos, eos, pad)
        )
        self.mask_id = self._special.get(others.get("mask"))
        own = () if self.eos_id is None else (self.eos_id,)
        self.stop_ids = tuple(dict.fromkeys((*own, *stop_ids)))
        for id in self.stop_ids:
            if not 0 <= id < self.vocab_size:
                raise RagJaxError(
                    f"the token {id}, at which the model stops, is none of the tokenizer's "
                    f"{self.vocab_size}"
                )
        usual = {self._names.get(short) for short in _USUAL}  # and not `image` or the like
        used = {id for name, id in self._special.items() if name in usual or name in written}
        self.needed_size = count_needed(core, self._control - used - {*self.stop_ids})

    @classmethod
    def from_folder(cls, folder: Path, *, stop_ids: Iterable[int] = ()) -> "Tokenizer":
        """Reads a tokenizer in Hugging Face's format, with its chat template if there is one.

        The main file is `tokenizer.json`. If the folder has `vocab.json` and `merges.txt` instead,
        as BART's first releases have, these files are read as byte-level BPE with RoBERTa's
        special tokens.

        Args:
            stop_ids: as for the class.

        Raises:
            RagJaxError: `tokenizer.json` is missing, or a file is damaged.
        """
        with parsing(folder, "has tokenizer files that cannot be read"):
            core, names, template, path, inputs = tokenizer_files.read_folder(folder)
            named = {"chat_template": template, "template_name": f"{path}: the chat template"}
            return cls(core, **names, **named, stop_ids=stop_ids, inputs=inputs)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, source: str = "GGUF") -> "Tokenizer":
        """Builds the tokenizer described in a GGUF file's metadata.

        Raises:
            RagJaxError: the tokenizer is of another kind than those of SmolLM2, Llama, Qwen and
                Gemma.
        """
        with parsing(source, "has a tokenizer that cannot be read"):
            core, names, template, stop_ids = tokenizer_gguf.read_gguf(metadata, source)
            named = {"chat_template": template, "template_name": f"{source}: the chat template"}
            return cls(core, **names, **named, stop_ids=stop_ids)

    def save(self, folder: Path, *, max_length: int, typed: bool = False) -> None:
        """Writes the files that `from_folder` and transformers' `AutoTokenizer` read.

        Args:
            max_length: the context length in tokens, at which transformers truncates texts.
            typed: whether the model reads types of tokens, if the tokenizer tells them.
        """
        inputs = self._inputs._replace(has_types=typed and self.has_types)
        files = self._core, self._names, self._template, inputs
        tokenizer_files.write_folder(folder, *files, max_length=max_length)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS, EOS or any other control token.

        The unknown token is the exception. A lone surrogate is encoded as U+FFFD.

        Raises:
            RagJaxError: the text is longer than 1,000,000 characters, or the tokenizer's files are
                damaged in a way that shows only now.
            TypeError: `text` is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is {describe(text)}, expected a str: encode one text at a time")
        check_length(text)
        text = _SURROGATE.sub("\ufffd", text)
        try:
            ids = self._text_core.encode(text, add_special_tokens=False).ids
        except BaseException:  # without a cost for the many calls that do not fail
            with parsing("the tokenizer", "cannot encode a text", "its files are damaged"):
                raise
        return self._share(i for i in ids if i not in self._control)

    def _share(self, ids: Iterable[int]) -> list[int]:
        """The same ids, with one object for each: a list of a corpus's tokens is mostly objects."""
        share = self._ids.setdefault
        return [share(i, i) for i in ids]

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that a decoder reads from its start.

        They are those of `encode`, after the tokens that the tokenizer puts before every text: BOS
        for Llama and Mistral, none for SmolLM2 and Qwen2.
        """
        return [*self._start_ids, *self.encode(text)]

    @property
    def has_types(self) -> bool:
        """Whether it tells the tokens of two texts apart, for models with types of tokens."""
        return self._inputs.has_types

    @cached_property
    def _start_ids(self) -> list[int]:
        return read_frame(self._core, None, vocab_size=self.vocab_size)[0]

    @cached_property
    def _frames(self) -> dict[int, list[list[int]]]:
        """As `read_frames`."""
        return read_frames(self._core, self._special, self.token_id, vocab_size=self.vocab_size)

    def encode_with_specials(
        self, text: str, *, max_length: int, pair: str | None = None, prompt: str = ""
    ) -> list[int]:
        """Token ids of a text, or of two, as an encoder reads them.

        What stands around them is as the tokenizer's files have it, for BERT `[CLS] text [SEP]` and
        `[CLS] text [SEP] pair [SEP]`.

        Args:
            max_length: maximum number of ids, special tokens included. Texts are truncated at the
                end, or at the start if the files say so, the longer text of a pair first.
            prompt: by the model's authors, before the text; control tokens in it are such.

        Raises:
            RagJaxError: `max_length` has no room for what stands around them, or all is empty.
        """
        texts = [self.encode_after(prompt, text)]
        texts += [] if pair is None else [self.encode(pair)]
        options = {"name": self._core.id_to_token, "cuts_start": self._inputs.cuts_start}
        return frame_texts(texts, self._frames[len(texts)], max_length, **options)

    @property
    def pair_frame(self) -> list[list[int]]:
        """The tokens that the tokenizer's files put before, between and after two texts."""
        return self._frames[2]

    def encode_after(self, prompt: str, text: str) -> list[int]:
        """Token ids of a text after a prompt, with the control tokens of the prompt alone."""
        if not any(name in prompt for name in self._special):
            return self.encode(prompt + text)
        whole = concatenate([trust(prompt), mark(text, MESSAGE)])
        check_length(whole)
        return self._share(self._chat_encoder.encode(whole, [text]))

    def count_tokens_after(self) -> int:
        """Number of tokens that `encode_with_specials` puts after a text."""
        return len(self._frames[1][-1])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens are skipped.

        Raises:
            RagJaxError: `ids` is not a list of integers.
        """
        ids = ids if hasattr(ids, "__len__") else list(ids)
        check_token_row("ids", ids)
        return self._core.decode([int(i) for i in ids if i not in self._unseen], False)

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

    def find_id(self, token: str) -> int | None:
        """Id of any token of the vocabulary, as it is written there; None without one."""
        return self._core.token_to_id(token)

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
        core.add_special_tokens(tokenizer_files.make_special_tokens(new))
        if any(core.token_to_id(name) != self.vocab_size + i for i, name in enumerate(new)):
            raise RagJaxError("the vocabulary has unused ids: special tokens cannot be added to it")
        options = {"chat_template": self._template, "template_name": self._template_name}
        options |= {"stop_ids": self.stop_ids, "inputs": self._inputs}
        return Tokenizer(core, **self._names, **options)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        thinking: bool | None = None,
    ) -> list[int]:
        """Token ids of a conversation in the format of the model's chat template.

        The ids are those of transformers' `apply_chat_template`, except that the messages' contents
        never become control tokens, and that the text of a first system message joins the user's
        where the template has no place for it.

        Args:
            messages: dicts with `role` (system, user or assistant) and `content`.
            add_generation_prompt: whether to append the header of an assistant message.
            thinking: whether a model that can think before it answers does; None for its default.

        Raises:
            RagJaxError: there is no chat template, the template refuses the messages, or a message
                has another role or no text.
        """
        for i, message in enumerate(messages):
            if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
                raise RagJaxError(f"message {i} needs a role among {_ROLES} and text as content")
        options = {"add_generation_prompt": add_generation_prompt, "thinking": thinking}
        text = self._chat_template.render(messages, **options)
        check_length(text)
        contents = [message["content"] for message in messages]
        return self._share(self._chat_encoder.encode(text, contents))

    def _read_template(self) -> str:
        """The sources of the chat templates, and what they write."""
        template = self._template or {}
        sources = [*template.values()] if isinstance(template, Mapping) else [template]
        return sample_templates(sources, self._template_tokens, name=self._template_name)

    @property
    def _template_tokens(self) -> dict[str, str]:
        """The names of special tokens by the chat template's variables."""
        return {f"{short}_token": name for short, name in self._names.items() if name is not None}

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        source = self._template
        source = choose_template(source) if isinstance(source, Mapping) else source
        if source is None:
            raise RagJaxError("this tokenizer has no chat template: use a model tuned for chat")
        return ChatTemplate(source, self._template_tokens, name=self._template_name)

    @cached_property
    def _chat_encoder(self) -> ChatEncoder:
        return ChatEncoder(self._core, self._special)
