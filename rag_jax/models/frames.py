"""What an encoder reads around a text: special tokens, within a number of tokens."""

from collections.abc import Callable, Sequence

from rag_jax.runtime.errors import RagJaxError


def frame_texts(
    texts: Sequence[Sequence[int]],
    frame: Sequence[Sequence[int]],
    max_length: int,
    *,
    name: Callable[[int], str],
    cuts_start: bool = False,
) -> list[int]:
    """One or two texts with special tokens before, between and after them.

    Args:
        texts: token ids of each text, of which the longer one of a pair is cut first.
        frame: the special tokens before the first text and after each.
        max_length: maximum number of ids, special tokens included.
        name: from the id of a special token to its name.
        cuts_start: whether a text is cut at its start and not at its end.

    Raises:
        RagJaxError: `max_length` has no room for the special tokens, or there are no tokens.
    """
    start, *ends = frame
    texts = list(texts)
    room = max_length - len(start) - sum(map(len, ends))
    if room < 0:
        tokens = " and ".join(map(name, (*start, *ends[-1])))
        raise RagJaxError(f"max_length {max_length} has no room for {tokens}; raise it")
    if len(texts) == 2:
        shorter = min(len(texts[0]), len(texts[1]), room // 2)
        kept = shorter if len(texts[0]) <= len(texts[1]) else room - shorter
        texts[1] = _cut(texts[1], room - min(kept, len(texts[0])), cuts_start)
        room = kept
    texts[0] = _cut(texts[0], room, cuts_start)
    ids = list(start)
    for part, end in zip(texts, ends, strict=True):
        ids += [*part, *end]
    if not ids:
        raise RagJaxError("a text has no tokens, and none are put around it: leave it out")
    return ids


def _cut(text: Sequence[int], room: int, at_start: bool) -> Sequence[int]:
    return text[max(0, len(text) - room) :] if at_start else text[:room]
