"""Splits of questions, as the names of files, folders and prepared datasets give them.

The words are those of Hugging Face's `datasets`: `train` and `training`; `dev`, `development`,
`val`, `valid` and `validation`; `test`, `testing`, `eval` and `evaluation`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from rag_jax.data.formats.files import find_stem
from rag_jax.runtime.errors import RagJaxError

_WORDS = {
    "train": ("train", "training"),
    "dev": ("dev", "devel", "development", "val", "valid", "validation"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLITS = {word: split for split, words in _WORDS.items() for word in words}
_ANY = "|".join(sorted(_SPLITS, key=len, reverse=True))
_WHOLE = re.compile(rf"({_ANY})(?:set|data|split|questions|queries|examples|qs)?")
# A word that ends in a split, such as `nqtrain`, may name it; "strain" and its kind do not.
_DOUBTFUL = re.compile(
    rf"(?:pre)?train.*|trn|validat.*|(?:{_ANY}){{2,}}|.*(?<!s)train(?:ing|set|data)?|.*dev(?:set)?"
)


def name_split(name: str) -> str:
    """Returns the split that a name means as a whole; another name is a split of its own."""
    return _SPLITS.get(name.lower(), name)


def find_split(path: Path) -> str:
    """Returns the split named by a word of a file's name; "test" if no word names a split.

    Raises:
        RagJaxError: if words name several splits, or a word may or may not name one.
    """
    return find_named_split(path) or "test"


def find_named_split(path: Path) -> str | None:
    """As `find_split`, but None if no word names a split."""
    words = _find_words(path)
    splits = {_SPLITS[word] for word in words if word in _SPLITS}
    doubtful = [word for word in words if word not in _SPLITS]
    if doubtful or len(splits) > 1:
        raise RagJaxError(
            f"{path}: which split does {(doubtful or [path.name])[0]!r} name? rename the file, "
            "with train, dev or test as one word of the name"
        )
    return splits.pop() if splits else None


def check_splits(paths: Iterable[Path]) -> None:
    """Raises a RagJaxError if files name one split in two ways, such as dev and validation.

    Files that name a split alike, such as `train_1` and `train_2`, are parts of the split.
    """
    first: dict[str, tuple[Path, str]] = {}
    for path in paths:
        split = find_split(path)
        word = next((word for word in _find_words(path)), "")
        other, other_word = first.setdefault(split, (path, word))
        if word != other_word or (path != other and find_stem(path) == find_stem(other)):
            raise RagJaxError(
                f"{path}: means the split {split!r}, as {other.name} does: move one of the files "
                "away, or name them alike"
            )


def _find_words(path: Path) -> list[str]:
    """Returns the words of a file's name that name a split, or that may."""
    # Words begin at a capital after a small letter, and before one: "HotpotQATrain" has three.
    stem = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", find_stem(path)).lower()
    found = []
    for word in re.split(r"[^a-z]+", stem):
        if whole := _WHOLE.fullmatch(word):
            found.append(whole[1])
        elif _DOUBTFUL.fullmatch(word):
            found.append(word)
    return list(dict.fromkeys(found))
