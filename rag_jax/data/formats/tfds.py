"""Datasets that TensorFlow Datasets has prepared as ArrayRecord, read without TensorFlow.

Each is a folder with `dataset_info.json`. Questions are told by the features `question` and
`answers` or `answer`: a text, several, or as in its SQuAD and TriviaQA. `id` (or `question_id`),
`title` and `context`, the gold passage, are read where there are any; everything else is as in
plain JSON lines.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rag_jax.data.formats import dpr, jsonl
from rag_jax.data.formats.fields import Item
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.runtime.errors import RagJaxError

_INFO = "dataset_info.json"


def list_datasets(folder: Path) -> list[Path]:
    """The datasets in a folder and those below it."""
    return sorted(path.parent for path in folder.rglob(_INFO))


def read_examples(dataset: Path, bad: BadLines) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Every example of a dataset with its split and place, the split's name and its row.

    Raises:
        RagJaxError: the dataset is damaged or in another file format, or `bad` says so.
    """
    import tensorflow_datasets as tfds  # takes a second, and few runs need it

    try:
        builder = tfds.builder_from_directory(dataset)
        sources = {split: builder.as_data_source(split=split) for split in builder.info.splits}
    except NotImplementedError:
        raise RagJaxError(
            f"{dataset}: prepare it again with download_and_prepare(file_format='array_record')"
        ) from None
    except Exception as error:  # whatever the library met in the files
        reason = " ".join(str(error).split())[:200]
        raise RagJaxError(f"{dataset}: is no prepared dataset ({reason})") from None
    for split, source in sources.items():
        for row in range(len(source)):
            place = Place(dataset / split, row + 1, row + 1)
            try:
                yield split, place, _simplify(source[row], place)
            except BadLineError as error:
                bad.skip(error)


def is_question(example: Mapping[str, Any]) -> bool:
    """Whether an example has a question's features."""
    return "question" in example and bool({"answers", "answer"} & example.keys())


def parse(example: Mapping[str, Any], place: Place) -> Item:
    """A question, with its context as the gold passage.

    Raises:
        BadLineError: it is not as described.
    """
    record = dict(example)
    record["answers"] = _list_answers(record.get("answers", record.get("answer")))
    context = record.get("context")
    if record.get("id") is not None and not context:
        return jsonl.parse(record, place)
    if context:
        record["positive_ctxs"] = [{"title": record.get("title"), "text": context}]
    return dpr.parse(record, place)


def _list_answers(answers: Any) -> Any:
    if isinstance(answers, dict) and "text" in answers:  # SQuAD
        return list(dict.fromkeys(answers["text"]))
    if isinstance(answers, dict) and "value" in answers:  # TriviaQA
        return list(dict.fromkeys([answers["value"], *answers.get("aliases", [])]))
    return [answers] if isinstance(answers, str) else answers


def _simplify(value: Any, place: Place) -> Any:
    """An example with bytes as text, and arrays and their numbers as Python's."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadLineError(f"{place}: is not UTF-8 ({error.reason})") from None
    if isinstance(value, dict):
        return {key: _simplify(inner, place) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_simplify(inner, place) for inner in value]
    return value
