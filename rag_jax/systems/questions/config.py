"""Settings of the questions that a language model writes about a corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rag_jax.config import (
    Count,
    CountOrZero,
    DataConfig,
    MeshConfig,
    NonNegative,
    Range,
    ReaderConfig,
    Seed,
)
from rag_jax.data.formats.detect import PASSAGES, find_named_format, is_named
from rag_jax.data.formats.documents import list_documents
from rag_jax.data.formats.files import list_others
from rag_jax.data.formats.folder import list_files
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.paths import expand_path


@dataclass(frozen=True)
class CorpusConfig:
    """The corpus that is asked about.

    Attributes:
        path: folder with a file of passages, or of documents; or such a file.
        bad_lines: maximum number of malformed lines and documents that are skipped.
        passage_words: the most words of a passage that is cut from a document.
    """

    path: str | None = None
    bad_lines: CountOrZero = 0
    passage_words: Count = DataConfig.passage_words

    def list_sources(self) -> tuple[list[Path], list[Path]]:
        """What `stream_passages` is to read, and the files that make it up.

        Raises:
            RagJaxError: there is no such folder, or it has neither documents nor passages.
        """
        path = expand_path(self.path)
        if path.is_file():
            return [path], [path]
        files = list_files(path)
        if named := [file for file in files if is_named(file, "passages", "corpus")]:
            return named, named
        if documents := list_documents(path):
            return [path], documents
        if found := [file for file in files if find_named_format(file) == PASSAGES]:
            return found, found
        raise RagJaxError(f"config.data.path={path}: holds no documents and no file of passages")

    def list_unread(self, sources: Sequence[Path]) -> list[Path]:
        """What lies in a folder of which only the files of passages are read."""
        path = expand_path(self.path)
        if path.is_file() or path in sources:  # beside documents it is named where they are read
            return []
        return [*list_others(path, sources)]


@dataclass(frozen=True)
class WriteConfig:
    """How questions are written.

    Attributes:
        passages: maximum number of passages that are asked about, drawn evenly from the documents;
            0 for all.
        each: number of questions that are asked for about a passage.
        max_tokens: maximum number of tokens of the questions and answers about a passage.
        top_k: number of likeliest tokens that are sampled from; 0 for all.
    """

    passages: CountOrZero = 150
    each: Annotated[int, Range(1, 5)] = 3
    max_tokens: Count = 200
    temperature: NonNegative = 0.7
    top_k: CountOrZero = 50
    batch_size: Count = 16


@dataclass(frozen=True)
class CheckConfig:
    """How questions are checked: the model that wrote them answers them.

    Attributes:
        copied: number of consecutive words of the passage from which on a question is a copy.
        answer_words: largest number of words of an answer.
        max_tokens: maximum number of tokens of an answer.
    """

    copied: Count = 8
    answer_words: Count = 10
    max_tokens: Count = 16
    batch_size: Count = 16


@dataclass(frozen=True)
class QuestionsConfig:
    """Questions about a corpus, split by document.

    Attributes:
        test, dev: shares of the questions for these splits; the others are to train on.
        model: the model that writes and answers, asked in its chat template.
    """

    system: Literal["questions"] = "questions"
    seed: Seed = 0
    test: Annotated[float, Range(0, 1)] = 0.5
    dev: Annotated[float, Range(0, 1)] = 0.1
    mesh: MeshConfig = MeshConfig()
    model: ReaderConfig = ReaderConfig(name="Qwen/Qwen2.5-1.5B-Instruct")
    data: CorpusConfig = CorpusConfig()
    write: WriteConfig = WriteConfig()
    check_by: CheckConfig = CheckConfig()

    def check(self, path: str) -> None:
        """Raises a RagJaxError if there is no folder to ask about, or nothing is left to ask."""
        if self.data.path is None or not self.data.path.strip():
            raise RagJaxError(
                f"{path}.data.path={self.data.path!r}: name a folder of documents or passages"
            )
        if self.test + self.dev > 1:
            raise RagJaxError(f"{path}.test={self.test} and {path}.dev={self.dev}: are more than 1")
