"""Loading of late-interaction encoders (ColBERT), which give each token of a text an embedding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from rag_jax.models.io.architectures import EncoderConfig
from rag_jax.models.io.fields import Fields, read_fields
from rag_jax.models.io.load import OpenedModel, Pretrained, open_model
from rag_jax.models.io.modules import (
    CONVERT,
    COPY,
    MODULES,
    check_layers,
    find_layer_weights,
    find_transformer,
    read_dense,
    read_layer,
    read_modules,
)
from rag_jax.models.io.sentence import Sentence, read_text_settings
from rag_jax.models.io.weights import build_params
from rag_jax.models.nn.pooling import Dense
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there, show

_READS = "token_embeddings"
_TOKENIZER = "tokenizer_config.json"
_TASKS = ("query", "document")


@dataclass(frozen=True)
class Expansion:
    """Tokens that fill up a question, for words that it could have (Khattab and Zaharia 2020).

    Attributes:
        length: number of tokens up to which questions are filled up.
        cuts: whether longer questions are cut to this length.
        attends: whether other tokens attend to these.
        token: name of the token; None for the one of masked tokens.
    """

    length: int
    cuts: bool = True
    attends: bool = False
    token: str | None = None


@dataclass(frozen=True)
class TokenSettings:
    """The settings in the folder of a late-interaction encoder.

    Attributes:
        steps: dense layers over a token's state, and "normalize" for a scaling to length 1.
        lengths: maximum number of tokens of a "query" and a "document", where it is set.
        expansion: of questions; None for none.
        skipped: tokens whose embeddings are left out.
        skips: the roles in which they are left out.
    """

    steps: tuple[Dense | Literal["normalize"], ...]
    lengths: Mapping[str, int]
    expansion: Expansion | None = None
    skipped: tuple[str, ...] = ()
    skips: tuple[str, ...] = ("document",)

    @property
    def dense(self) -> tuple[Dense, ...]:
        """The dense layers."""
        return tuple(step for step in self.steps if isinstance(step, Dense))


@dataclass(frozen=True)
class MultiVectorEncoder:
    """An encoder that gives each token of a text an embedding.

    Attributes:
        base: the encoder of the tokens' states, whose parameters have the dense layers' too.
        lengths: maximum number of tokens of a "query" and a "document", special tokens included.
        expansion_id: the token that fills up questions.
        skipped_ids: for each role the tokens whose embeddings are left out.
    """

    base: Pretrained
    settings: TokenSettings
    lengths: Mapping[str, int]
    expansion_id: int | None
    skipped_ids: Mapping[str, tuple[int, ...]]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the encoder's files and settings."""
        return self.base.fingerprint

    @property
    def width(self) -> int:
        """Number of features of a token's embedding (`E`)."""
        dense = self.settings.dense
        return dense[-1].outputs if dense else self.base.config.hidden_size


def load_multi_vector(
    name_or_path: str | Path, *, dtype: Any = None, mesh: Mesh | None = None
) -> MultiVectorEncoder:
    """Loads a late-interaction encoder, and downloads the files first if needed.

    Args:
        name_or_path: a folder of sentence-transformers with a module `MultiVectorMask`, over BERT
            or its kin; or a name, as for `load`.
        dtype: as for `load`.
        mesh: as for `load`; the dense layers are on every device.

    Raises:
        RagJaxError: as `load`, or the model is no late-interaction encoder.
    """
    found = open_model(name_or_path)
    config, folder = found.config, found.folder
    if not isinstance(config, EncoderConfig) or config.dpr_role is not None:
        kind = type(config).__name__.removesuffix("Config")
        raise RagJaxError(f"{folder}: a {kind} is no late-interaction encoder")
    settings, places = read_token_settings(folder)
    check_layers(settings.dense, places, width=config.hidden_size)
    options = {"dtype": dtype, "mesh": mesh}
    params = build_params(config, found.tensors, **options, source=found.source)
    params |= read_dense(settings.dense, places, **options)
    base = found.build(params, describe_tokens, _read_texts(folder))
    known = (found.tokenizer.find_id(token) for token in settings.skipped)
    ids = tuple(sorted({i for i in known if i is not None}))
    return MultiVectorEncoder(
        base,
        settings,
        _resolve_lengths(found, settings, base.sentence),
        _find_expansion(found.tokenizer, settings.expansion, folder),
        {role: ids if role in settings.skips else () for role in _TASKS},
    )


def read_token_settings(folder: Path) -> tuple[TokenSettings, dict[str, Path]]:
    """The settings in an encoder's folder, and the folders of its dense layers by their names.

    Raises:
        RagJaxError: a file is damaged or missing, asks for what is not supported, or is of an
            encoder of another kind.
    """
    if not is_there(folder / MODULES):
        raise RagJaxError(
            f"{folder} has no {MODULES}, which would say what a token's embedding is. If it is a "
            f"ColBERT in another form: {CONVERT}"
        )
    modules = read_modules(folder / MODULES, "late-interaction")
    kinds = [kind for kind, _ in modules]
    if kinds[:1] != ["Transformer"] or kinds.count("MultiVectorMask") != 1:
        raise RagJaxError(
            f"{folder / MODULES} has no module MultiVectorMask after its Transformer: no embeddings"
        )
    steps, places, masking = [], {}, {}
    for kind, place in modules[1:]:
        path = place / "config.json"
        if kind == "Dense":
            name = f"dense_{len(places)}"
            steps.append(read_layer(path, name, reads=_READS))
            places[name] = place
        elif kind == "Normalize":
            steps.append(_read_scaling(path))
        else:
            masking = _read_mask(path)
    return TokenSettings(tuple(steps), **_read_transformer(folder), **masking), places


def describe_tokens(folder: Path, sum_file: Callable[[Path], str]) -> str:
    """What a fingerprint has of a late-interaction encoder's settings."""
    settings, places = read_token_settings(folder)
    texts = _read_texts(folder)
    own = settings, dict(texts.prompts), texts.lower_case, texts.max_length
    return repr((*own, [sum_file(find_layer_weights(place)) for place in places.values()]))


def _read_texts(folder: Path) -> Sentence:
    return read_text_settings(folder, "maxsim", "meanmaxsim")


def _read_scaling(path: Path) -> Literal["normalize"]:
    fields = read_fields(path, COPY)
    # Without the field it would scale an embedding of the whole text, of which there is none.
    named = fields.raw.get("module_input_name")
    if named != _READS:
        raise RagJaxError(f"{path}: module_input_name must be {_READS}, not {show(named)}")
    fields.refuse_unless("module_output_name", _READS)
    return "normalize"


def _read_mask(path: Path) -> dict[str, tuple[str, ...]]:
    fields = read_fields(path, COPY)
    fields.refuse_unless("keep_only_token_ids", [])
    words = _read_names(fields, "skiplist_words", [])
    tasks = _read_names(fields, "skiplist_tasks", ["document"])
    if other := [task for task in tasks if task not in _TASKS]:
        raise RagJaxError(f"{path}: skiplist_tasks names {show(other[0])}: no query or document")
    return {"skipped": words, "skips": tasks}


def _read_names(fields: Fields, name: str, default: list[str]) -> tuple[str, ...]:
    values = fields.raw.get(name)
    values = default if values is None else values
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise RagJaxError(f"{fields.place(name)} must be a list of texts, not {show(values)}")
    return tuple(values)


def _read_transformer(folder: Path) -> dict[str, Any]:
    """Lengths and the expansion of questions."""
    path = find_transformer(folder)
    if not is_there(path):
        return {"lengths": {}}
    fields = read_fields(path)
    fields.refuse_unless("transformer_task", "feature-extraction")
    named = {role: f"{role}_length" for role in _TASKS}
    lengths = {r: fields.size(n) for r, n in named.items() if fields.raw.get(n) is not None}
    if fields.raw.get("query_expansion") is None:
        return {"lengths": lengths}
    own = Fields(fields.section("query_expansion"), fields.source, prefix="query_expansion.")
    strategy, attends = own.raw.get("strategy"), own.raw.get("attend", False)
    if strategy not in ("fixed", "min") or not isinstance(attends, bool):
        raise RagJaxError(
            f"{own.place('strategy')} must be fixed or min, and attend true or false, not "
            f"{show((strategy, attends))}"
        )
    token = own.raw.get("token")
    if not isinstance(token, str | None):
        raise RagJaxError(f"{own.place('token')} must be a text, not {show(token)}")
    return {
        "lengths": lengths,
        "expansion": Expansion(own.size("length"), strategy == "fixed", attends, token),
    }


def _resolve_lengths(
    found: OpenedModel, settings: TokenSettings, sentence: Sentence
) -> dict[str, int]:
    """The most tokens of a text in each role: the settings', or what there are positions for."""
    most, path = found.config.max_length, found.folder / _TOKENIZER
    limits = [most] if sentence.max_length is None else [most, sentence.max_length]
    if is_there(path) and isinstance(limit := read_fields(path).raw.get("model_max_length"), int):
        limits.append(limit)
    lengths = {role: settings.lengths.get(role, min(limits)) for role in _TASKS}
    if (expansion := settings.expansion) is not None:
        cut = expansion.length if expansion.cuts else max(expansion.length, lengths["query"])
        lengths["query"] = cut
    for role, length in lengths.items():
        if length > most:
            raise RagJaxError(
                f"{find_transformer(found.folder)}: a {role} may have {length} tokens, but the "
                f"encoder has positions for only {most}"
            )
    return lengths


def _find_expansion(tokenizer: Tokenizer, expansion: Expansion | None, folder: Path) -> int | None:
    if expansion is None:
        return None
    name = expansion.token
    token = tokenizer.mask_id if name is None else tokenizer.find_id(name)
    if token is None:
        raise RagJaxError(
            f"{find_transformer(folder)}: query_expansion.token {show(name)} is none of the "
            "tokenizer's"
        )
    return token
