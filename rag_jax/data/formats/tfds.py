"""Datasets prepared by TensorFlow Datasets as ArrayRecord, read without TensorFlow.

A dataset is a folder with `dataset_info.json`, unless the file is Hugging Face's. An example is a
question if the example has the feature `question` and either `answers` or `answer`: a string, a
list of strings, true or false for yes or no, or the structure of SQuAD or TriviaQA in TensorFlow
Datasets. `id` (or `question_id`), `title` and the gold passage, `context` or in BoolQ `passage`,
are optional. An example with choices is read as in `arc`. All other features are as in plain JSON
lines. In SQuAD's titles, spaces stand for underscores, and TriviaQA's `<unk>` is no answer, as in
`squad` and `triviaqa`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rag_jax.data.formats import arc, dpr, jsonl, triviaqa
from rag_jax.data.formats.fields import YES_NO, Item, get_text, is_impossible
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.outside import parsing, require_files, show

_INFO = "dataset_info.json"
_FEATURES = "features.json"
# The kinds of features that questions and passages are made of. The library imports the module of
# any class that a folder's file names, from wherever Python finds one.
_CORE = "tensorflow_datasets.core.features."
_KINDS = {
    f"{_CORE}{name}"
    for name in (
        "class_label_feature.ClassLabel",
        "features_dict.FeaturesDict",
        "scalar.Scalar",
        "sequence_feature.Sequence",
        "tensor_feature.Tensor",
        "text_feature.Text",
    )
}
_MOST_FEATURES, _MOST_SHARDS = 1000, 10_000  # the library takes long for each
# Fields that only Hugging Face's file of the same name has.
_HUGGING_FACE = {"features", "builder_name", "dataset_name"}


def list_datasets(folder: Path) -> list[Path]:
    """Returns the folders of all datasets in a folder, at any depth, in sorted order."""
    found = folder.rglob(_INFO)
    return sorted(path.parent for path in found if not is_of_hugging_face(path))


def is_of_hugging_face(path: Path) -> bool:
    """Returns whether a file describes a dataset of Hugging Face's `datasets`."""
    if path.name != _INFO or (path.parent / "state.json").exists():
        return path.name in (_INFO, "dataset_infos.json", "dataset_dict.json", "state.json")
    try:
        info = read_json(path)
    except RagJaxError:
        return False  # a damaged file of TensorFlow Datasets is reported when the dataset is read
    return isinstance(info, dict) and bool(_HUGGING_FACE & info.keys())


def read_examples(dataset: Path, bad: BadLines) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Yields the split, the place and the features of the examples of a dataset's folder.

    A place is the path of the dataset and the split, and the row, counted from 1. An example with a
    string that is not UTF-8 is a bad line.

    Raises:
        RagJaxError: if the dataset is damaged or in another file format, or has too many bad lines.
    """
    import tensorflow_datasets as tfds  # the import takes a second, and few runs need the package

    with parsing(dataset, "is not a prepared dataset"):
        require_files(dataset)
        _check_features(dataset)
        _check_names(dataset)
        builder = tfds.builder_from_directory(dataset)
        try:
            sources = {split: builder.as_data_source(split=split) for split in builder.info.splits}
        except NotImplementedError:
            raise RagJaxError(
                f"{dataset}: is not in ArrayRecord; prepare the dataset again with "
                "download_and_prepare(file_format='array_record')"
            ) from None
        sizes = {split: len(source) for split, source in sources.items()}
    for split, source in sources.items():
        for row in range(sizes[split]):
            place = Place(dataset / split, row + 1, row + 1)
            with parsing(place):
                example = source[row]
            with bad:
                yield split, place, _simplify(example, place)


def _check_features(dataset: Path) -> None:
    """Raises a RagJaxError if a dataset has features of a kind that is not read."""
    pending = [read_json(dataset / _FEATURES, advice="it is not a prepared dataset")]
    count = 0
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            # Three spellings: protobuf's two, and that of old versions of the library.
            named = (value.get(key) for key in ("pythonClassName", "python_class_name", "type"))
            for kind in (name for name in named if isinstance(name, str)):
                count += 1
                if count > _MOST_FEATURES:
                    raise RagJaxError(
                        f"{dataset / _FEATURES}: has more than {_MOST_FEATURES} features"
                    )
                if kind not in _KINDS:
                    known = ", ".join(sorted(name.rsplit(".", 1)[1] for name in _KINDS))
                    raise RagJaxError(
                        f"{dataset / _FEATURES}: features of the kind {show(kind)} are not read, "
                        f"only {known} of TensorFlow Datasets itself"
                    )
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _check_names(dataset: Path) -> None:
    """Raises a ValueError if a dataset says that its files lie elsewhere, or are very many.

    The library makes the files' names of these.
    """
    info = read_json(dataset / _INFO)
    names = [info.get("name"), info.get("fileFormat")]
    for split in info.get("splits", []):
        names += [split.get(key) for key in ("name", "filepathTemplate", "filepath_template")]
        if (count := len(split.get("shardLengths", ()))) > _MOST_SHARDS:
            raise ValueError(f"{_INFO} has {count:,} shards, the limit is {_MOST_SHARDS:,}")
    if outside := [name for name in names if isinstance(name, str) and {"/", "\\"} & {*name}]:
        raise ValueError(f"{_INFO} names files elsewhere: {show(outside[0])}")


def is_question(example: Mapping[str, Any]) -> bool:
    """Returns whether an example has the features of a question."""
    return arc.matches(example) or ("question" in example and jsonl.names_answer(example))


def parse(example: Mapping[str, Any], place: Place) -> Item:
    """Parses a question. The context, if there is one, becomes the gold passage.

    Raises:
        BadLineError: if a required feature is missing, or a feature has the wrong type.
    """
    if arc.matches(example):
        return arc.parse(example, place)
    jsonl.check_right(example, place)
    record = dict(example)
    given = record.pop("answer", None)
    given = record.get("answers", given)
    record["answers"] = [] if is_impossible(record) else _list_answers(given)
    context = next(filter(None, map(record.get, jsonl.PARAGRAPHS)), None)
    if record.get("id") is not None and not context:
        return jsonl.parse(record, place)
    if context:
        title = get_text(record, "title", place, default="")
        title = title.replace("_", " ") if _is_of_squad(given) else title
        record["positive_ctxs"] = [{"title": title, "text": context}]
    return dpr.parse(record, place)


def _is_of_squad(answers: Any) -> bool:
    return isinstance(answers, dict) and "text" in answers


def _list_answers(answers: Any) -> Any:
    if _is_of_squad(answers):
        return list(dict.fromkeys(answers["text"]))
    if isinstance(answers, dict) and "value" in answers:  # TriviaQA
        listed = dict.fromkeys([answers["value"], *answers.get("aliases", [])])
        return [answer for answer in listed if answer != triviaqa.UNKNOWN]
    if isinstance(answers, bool):
        return [YES_NO[answers]]
    return [answers] if isinstance(answers, str) else answers


def _simplify(value: Any, place: Place) -> Any:
    """Returns a feature with bytes decoded to strings, and NumPy values as Python values."""
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
