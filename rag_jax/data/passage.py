"""A passage of a corpus."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """A passage; its title is empty where there is none. Titles need not be unique; ids are."""

    id: str
    title: str
    text: str
