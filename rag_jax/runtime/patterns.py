"""Regular expressions from files and settings, which may take only a limited time to match."""

import regex

from rag_jax.runtime.errors import RagJaxError

_LONGEST = 10_000  # characters of a pattern
_SECONDS = 0.5  # of the processor for one name; a pattern that does not backtrack takes 0.00001


class NamePattern:
    """A regular expression for the names of a model's layers.

    Some patterns, such as `(a|a)*b`, take a time that doubles with every character of a name. No
    look at a pattern tells them all from harmless ones, and a limit on the time does.
    """

    def __init__(self, pattern: str, *, source: str):
        """A pattern, and where it comes from, for errors.

        Raises:
            RagJaxError: it is no regular expression, or a very long one.
        """
        self._source = source
        if len(pattern) > _LONGEST:
            raise RagJaxError(
                f"{source}: a regular expression of {len(pattern):,} characters, more than the "
                f"limit of {_LONGEST:,}: write a shorter one"
            )
        try:
            self._compiled = regex.compile(pattern)
        except regex.error as error:
            raise RagJaxError(f"{source} {pattern!r}: {error}") from None

    def fullmatch(self, name: str) -> bool:
        """Whether the pattern matches a whole name.

        Raises:
            RagJaxError: the time is up.
        """
        try:
            return self._compiled.fullmatch(name, timeout=_SECONDS) is not None
        except TimeoutError:
            raise RagJaxError(
                f"{self._source}: the regular expression takes more than the limit of "
                f"{_SECONDS} s on {name!r}: write one without nested repeats"
            ) from None
