"""Control tokens: added tokens that steer a model, and that no text may become."""

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Set
from functools import lru_cache, partial

import tokenizers
from tokenizers import AddedToken

from rag_jax.models.traced import TEMPLATE, UNKNOWN, Traced, read_mask
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing

# Around what control tokens are called, marked as special or not: <tool_call>, <|im_end|>, [INST].
_BRACKETS = (("<", ">"), ("[", "]"), (("◁", "⟨", "〈"), ("▷", "⟩", "〉")))
_SURROGATE = re.compile("[\ud800-\udfff]")
# The private-use planes 15 and 16, without their last two code points, which are no characters.
_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def find_control_tokens(
    core: tokenizers.Tokenizer, *, names: Collection[str], written: str
) -> dict[str, int]:
    """The ids of the added tokens that are control tokens, by name.

    These are the special tokens, those that the tokenizer's settings name, those whose name is
    markup such as `<tool_call>`, and those that the chat template writes, such as `### User:`.
    Others are words or runs of white space, which texts do become.

    Args:
        names: of the settings.
        written: the chat template and what it writes; see `ChatTemplate.sample`.
    """
    return {
        token.content: i
        for i, token in core.get_added_tokens_decoder().items()
        if token.special
        or token.content in names
        or _is_markup(token.content)
        or (token.content in written and not token.content.isspace())
    }


def _is_markup(name: str) -> bool:
    """Whether a name is more than white space in brackets; a pattern would backtrack."""
    return bool(name[1:-1].strip()) and any(
        name.startswith(start) and name.endswith(end) for start, end in _BRACKETS
    )


def find_pieces(core: tokenizers.Tokenizer, control: Mapping[str, int]) -> set[int]:
    """The ids of control tokens that are pieces of texts, too, such as padding that is named "!".

    Args:
        core: the tokenizer for texts.
    """
    words = {name: id for name, id in control.items() if not _is_markup(name)}
    encode = partial(core.encode, add_special_tokens=False)
    return {id for name, id in words.items() if encode(name).ids == [id]}


def find_unknown(core: tokenizers.Tokenizer) -> int | None:
    """The id of the token for what the vocabulary lacks; None without one."""
    if isinstance(core.model, tokenizers.models.Unigram):
        return json.loads(core.to_str())["model"]["unk_id"]
    name = getattr(core.model, "unk_token", None)
    return None if name is None else core.token_to_id(name)


def make_text_core(core: tokenizers.Tokenizer, control: Mapping[str, int]) -> tokenizers.Tokenizer:
    """The tokenizer for texts, none of which encodes to a control token by its name.

    It is `core` itself, changed in place, unless a control token is not marked as special.
    """
    added = core.get_added_tokens_decoder()
    unmarked = [token for token in added.values() if not token.special and token.content in control]
    if unmarked:
        core = tokenizers.Tokenizer.from_str(core.to_str())
        core.add_tokens([_copy(token, token.content) for token in unmarked])
    core.encode_special_tokens = True
    return core


class ChatEncoder:
    """Encoding of rendered conversations, where the template's control tokens alone are such.

    A control token is known by a private-use character in place of its name, so that a name in the
    text is text. The tokenizer encodes the whole text at once and treats the white space beside a
    token as the token's flags say (`lstrip`, `rstrip`), as in transformers.
    """

    def __init__(self, core: tokenizers.Tokenizer, control: Mapping[str, int]):
        self._source = core.to_str()
        self._control = {name: number for number, name in enumerate(control)}
        self._control_ids = {*control.values()} - {find_unknown(core)}
        self._tokens = core.get_added_tokens_decoder()
        self._single = {token.content for token in self._tokens.values() if token.single_word}
        longest_first = sorted(control, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._make = lru_cache(maxsize=2)(self._make_core)

    def encode(self, text: Traced, contents: Collection[str]) -> list[int]:
        """The ids of a conversation's text, which a template made of `contents`.

        Raises:
            RagJaxError: the template made a control token in a way that is not followed.
        """
        marks = self._choose_marks(text)
        core, ids = self._make(marks)
        parts, end = [], 0
        for start, stop in self._find_written(text, "".join(contents)):
            parts += [text[end:start], marks[self._control[text[start:stop]]]]
            end = stop
        marked = _SURROGATE.sub("\ufffd", "".join([*parts, text[end:]]))
        encoded = core.encode(marked, add_special_tokens=False).ids
        # A vocabulary that lists control tokens among its words makes them of text as well.
        return [ids.get(i, i) for i in encoded if i in ids or i not in self._control_ids]

    def _find_written(self, text: Traced, contents: str) -> list[tuple[int, int]]:
        """Where the template wrote a control token: the start and the end of its name."""
        written, mask, start = [], read_mask(text), 0
        while match := self._names.search(text, start):
            span = match.span()
            writers = {*mask[slice(*span)]}
            if writers == {TEMPLATE}:
                written += [span] * self._stands_alone(text, match)
            elif writers == {UNKNOWN} and match[0] not in contents:
                raise RagJaxError(
                    f"the chat template makes {match[0]!r} by an operation that is not followed "
                    "on texts of its own and of messages, such as casefold: write the token's "
                    "name as it is"
                )
            start = span[1] if writers == {TEMPLATE} else span[0] + 1
        return written

    def _stands_alone(self, text: str, match: re.Match) -> bool:
        """False beside a word for a token that is one only by itself (`single_word`)."""
        beside = text[: match.start()][-1:] + text[match.end() :][:1]
        return match[0] not in self._single or not any(map(_is_word, beside))

    def _choose_marks(self, text: str) -> str:
        """As many private-use characters as there are control tokens, none of them in the text."""
        # Of `str`: a traced text would give a traced text for each character.
        count, used = len(self._control), set(str.__iter__(text))
        for plane in _PRIVATE:
            for start in range(plane.start, plane.stop - count, count or 1):
                marks = "".join(map(chr, range(start, start + count)))
                if used.isdisjoint(marks):
                    return marks
        raise RagJaxError("the messages hold every private-use character: leave some out")

    def _make_core(self, marks: str) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """The tokenizer that reads a mark as the control token of its number, and the tokens' ids.

        The ids of added tokens change, and are given as `core`'s by its own.
        """
        data = json.loads(self._source)
        data["added_tokens"] = []
        core = tokenizers.Tokenizer.from_str(json.dumps(data))
        named = dict(zip(self._control, marks, strict=True))
        renamed = {i: named.get(token.content, token.content) for i, token in self._tokens.items()}
        core.add_tokens([_copy(self._tokens[i], name) for i, name in renamed.items()])
        ids = {core.token_to_id(name): i for i, name in renamed.items()}
        taken = set(core.get_vocab(with_added_tokens=False).values())
        if any(new in taken and new != i for new, i in ids.items()):
            raise RagJaxError("the vocabulary has unused ids: chats cannot be encoded with it")
        return core, ids


def _is_word(character: str) -> bool:
    """Whether a character belongs to a word for `single_word`; accents, for instance, do."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or character in "\u200c\u200d"


def _copy(token: AddedToken, name: str) -> AddedToken:
    """A special token with the name `name` and all other flags of `token`."""
    return AddedToken(
        name,
        special=True,
        normalized=token.normalized,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
    )


def read_frame(core: tokenizers.Tokenizer, pair: str | None, *, vocab_size: int) -> list[list[int]]:
    """The tokens that a tokenizer puts before a text, maybe before a second one, and after.

    Raises:
        RagJaxError: one is none of the vocabulary.
    """
    with parsing("the tokenizer", "puts no tokens around a text"):
        encoding = core.encode("a", pair, add_special_tokens=True)
    parts, before = [[]], None
    for token, text in zip(encoding.ids, encoding.sequence_ids, strict=True):
        if text is None:
            parts[-1].append(token)
        elif text != before:
            parts, before = [*parts, []], text
    if beyond := [i for i in itertools.chain(*parts) if i >= vocab_size]:
        raise RagJaxError(
            f"the token {beyond[0]}, which the tokenizer puts around every text, is none of its "
            f"{vocab_size}"
        )
    return parts


def read_frames(
    core: tokenizers.Tokenizer,
    special: Collection[str],
    token_id: Callable[[str], int],
    *,
    vocab_size: int,
) -> dict[int, list[list[int]]]:
    """What an encoder reads around one text and around two: before, between and after.

    Raises:
        RagJaxError: the tokenizer's files have nothing between two texts, and no [CLS] and [SEP].
    """
    read = partial(read_frame, core, vocab_size=vocab_size)
    frames = {1: read(None), 2: read("a")}
    if any(map(len, frames[1])) and len(frames[2]) == 3:
        return frames
    if not any(map(len, frames[1])) and "[CLS]" not in special:
        return {1: [[], []], 2: [[], [], []]}  # as of decoders whose texts stand alone
    start, end = [token_id("[CLS]")], [token_id("[SEP]")]
    return {1: [start, end], 2: [start, end, end]}


def count_needed(core: tokenizers.Tokenizer, unused: Set[int]) -> int:
    """Number of ids that a model must have: but for control tokens at the end of no use to it.

    Gemma's tokenizer ends with a token for images, which its models for text do not have. No text
    encodes to it.

    Args:
        unused: the control tokens that are not named and that no chat template writes.
    """
    ids = core.get_vocab(with_added_tokens=True).values()
    return max((i for i in ids if i not in unused), default=0) + 1
