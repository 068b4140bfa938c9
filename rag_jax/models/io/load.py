"""Loading of a pretrained model: config, module, parameters and tokenizer."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from rag_jax.models.io.architectures import Config, Encoder, EncoderConfig, make_model
from rag_jax.models.io.configs import open_config, read_config
from rag_jax.models.io.fields import Fields, gives_scores, read_fields
from rag_jax.models.io.gguf_config import read_gguf_config
from rag_jax.models.io.gguf_file import read_gguf
from rag_jax.models.io.hub import Describe, fingerprint, resolve
from rag_jax.models.io.modules import MODULES, find_answers, read_dense, refuse_nested
from rag_jax.models.io.sentence import Sentence, describe_sentence, read_sentence
from rag_jax.models.io.stops import read_stop_ids
from rag_jax.models.io.tensors import StoredTensor, read_safetensors
from rag_jax.models.io.weight_files import find_weights
from rag_jax.models.io.weights import build_params
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.decoder import Decoder, DecoderConfig
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there, show
from rag_jax.runtime.sharding import Rules

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model with its weights and its tokenizer.

    Attributes:
        model: the Flax module. For a decoder, `model.apply({"params": params}, tokens)` returns
            logits `[B, T, V]`. For an encoder, `model.apply({"params": params}, tokens, mask)`
            returns hidden states `[B, T, D]`. For an encoder-decoder,
            `model.apply({"params": params}, input_tokens, decoder_tokens)` returns logits
            `[B, T, V]`.
        params: parameters as a nested dict of arrays.
        fingerprint: SHA-256 over the model's files.
        sentence: what an encoder reads besides a text, by its own files; None without such files.
        reads_images: whether the files are of a model that reads images too, of which this is the
            language model.
    """

    config: Config
    model: Decoder | Encoder | Bart
    params: dict
    tokenizer: Tokenizer
    fingerprint: str
    sentence: Sentence | None = None
    reads_images: bool = False


def load(
    name_or_path: str | Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> Pretrained:
    """Loads a pretrained model, and downloads the files first if needed.

    Args:
        name_or_path: a folder in Hugging Face's layout (one or several safetensors files) or with
            one GGUF model, whole or in parts; one of several weight files in a folder; the name of
            a known model, or a name on the Hugging Face hub; see `hub.resolve`.
        dtype: NumPy or JAX dtype of the parameters, float32 by default.
        mesh: devices to shard the parameters over. Each tensor is sharded right after it is read,
            so no device and no host holds the whole model. None for one device.
        rules: sharding rules; by default the rules of the model's family in
            `rag_jax.runtime.sharding`.

    Raises:
        RagJaxError: the model is not found or cannot be fetched, a file is damaged, the
            architecture is not supported, the tokenizer has more ids than the config allows, or
            the tensors contradict the config (one message lists all of them).
    """
    found = open_model(name_or_path)
    config, folder = found.config, found.folder
    if found.scores:
        raise RagJaxError(
            f"{folder} has a head for scores: load a reranker by rag_jax.models.load_reranker"
        )
    sentence_files = read_sentence(folder) if found.embeds else None
    options = {"dtype": dtype, "mesh": mesh}
    params = build_params(config, found.tensors, rules=rules, source=found.source, **options)
    if sentence_files is None and getattr(config, "dpr_role", "none") is None:
        _logger.warning(
            "%s has no %s, which would say what an embedding is: the mean of the tokens' states, "
            "scaled to length 1, is assumed",
            folder,
            MODULES,
        )
    if sentence_files is None:
        return found.build(params)
    pooling = sentence_files.pooling
    params |= read_dense(pooling.dense, sentence_files.dense, **options)
    built = found.build(params, sentence=sentence_files.sentence)
    return replace(built, model=built.model.clone(pooling=pooling))


@dataclass(frozen=True)
class OpenedModel:
    """A model's files, before its weights are read.

    Attributes:
        path: of the model: its folder, or its weight file.
        folder: of its other files.
        tensors: without their data, under the names in the files.
        embeds: whether the folder may say how a text is embedded.
        fields: of its `config.json`; None for a GGUF file.
    """

    path: Path
    folder: Path
    config: Config
    tensors: Mapping[str, StoredTensor]
    tokenizer: Tokenizer
    embeds: bool
    fields: Fields | None

    @property
    def source(self) -> str:
        """Name of the weights in error messages."""
        return f"the weights in {self.folder}"

    @property
    def scores(self) -> bool:
        """Whether the model is a classification, as rerankers are."""
        return self.fields is not None and gives_scores(self.fields)

    def build(
        self,
        params: dict,
        describe: Describe = describe_sentence,
        sentence: Sentence | None = None,
    ) -> Pretrained:
        """The model with parameters that were read of its tensors.

        Args:
            describe: of the folder's settings, as for `fingerprint`.
        """
        own = fingerprint(self.path, describe)
        model = make_model(self.config)
        images = self.fields is not None and self.fields.raw["model_type"] == "gemma3"
        return Pretrained(self.config, model, params, self.tokenizer, own, sentence, images)


def open_model(name_or_path: str | Path) -> OpenedModel:
    """Opens a model's files, and downloads them first if needed; see `load`.

    Raises:
        RagJaxError: as `load`, but for what the tensors hold.
    """
    path, files, folder = _find_files(name_or_path)
    if files[0].suffix == ".gguf":
        gguf = read_gguf(files[0], files[1:])
        tensors, embeds, fields = gguf.tensors, False, None
        config = read_gguf_config(gguf.metadata, tensors, path=files[0])
        tokenizer = Tokenizer.from_gguf(gguf.metadata, source=str(files[0]))
    else:
        config, fields = open_config(folder / "config.json")
        if isinstance(config, BartConfig) and gives_scores(fields):
            raise RagJaxError(f"{folder}: a BART with a head for classes is not supported")
        tensors = read_safetensors(files)
        has_modules = is_there(folder / MODULES) and find_answers(folder) is None
        embeds = isinstance(config, EncoderConfig) or has_modules
        if embeds:
            _refuse_code(folder, fields)
        tokenizer = _read_tokenizer(folder, config)
        if isinstance(config, DecoderConfig) and embeds:
            config = _drop_head(config, tensors)
    if tokenizer.needed_size > config.vocab_size:
        # JAX clamps indices that are out of range: the model would read another token's vector.
        raise RagJaxError(
            f"the tokenizer in {folder} has {tokenizer.needed_size} ids, but the config's "
            f"vocab_size is {config.vocab_size}"
        )
    return OpenedModel(path, folder, config, tensors, tokenizer, embeds, fields)


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """A model's tokenizer without the model's weights, as `load` gives it.

    Raises:
        RagJaxError: the model is not found or cannot be fetched, or a file is damaged.
    """
    _, (file, *others), folder = _find_files(name_or_path)
    if file.suffix == ".gguf":
        return Tokenizer.from_gguf(read_gguf(file, others).metadata, source=str(file))
    return _read_tokenizer(folder, read_config(folder / "config.json"))


def load_config(name_or_path: str | Path) -> Config:
    """A model's sizes without the model's weights, as `load` gives them.

    Raises:
        RagJaxError: the model is not found or cannot be fetched, or a file is damaged.
    """
    _, (file, *others), folder = _find_files(name_or_path)
    if file.suffix == ".gguf":
        gguf = read_gguf(file, others)
        return read_gguf_config(gguf.metadata, gguf.tensors, path=file)
    return read_config(folder / "config.json")


def _find_files(name_or_path: str | Path) -> tuple[Path, list[Path], Path]:
    """The path of a model, the files of its weights, and the folder of its other files."""
    path = resolve(name_or_path)
    if path.is_dir():
        refuse_nested(path)
    return path, find_weights(path), path.parent if path.is_file() else path


def _refuse_code(folder: Path, fields: Fields) -> None:
    """Refuses an encoder that has code of its own, which may make other embeddings of its weights.

    Some are Qwen2 by their type, and have every token attend to all others.
    """
    path = folder / "tokenizer_config.json"
    settings = read_fields(path) if is_there(path) else Fields({}, str(path))
    for own, name in ((fields, "AutoModel"), (settings, "AutoTokenizer")):
        if code := own.section("auto_map").get(name):
            raise RagJaxError(
                f"{own.source}: auto_map has {name} {show(code)}, code of the model's own, which "
                "is not run: without it embeddings may differ; remove the entry to load it as its "
                f"model_type {show(fields.raw.get('model_type'))}"
            )


def _drop_head(config: DecoderConfig, tensors: Mapping[str, StoredTensor]) -> DecoderConfig:
    """An encoder's config as its file has it: without a head where none is stored.

    The file's `architectures` may name a model with a head, although it was saved without.
    """
    has_head = any(name.endswith("lm_head.weight") for name in tensors)
    return config if has_head else replace(config, tie_embeddings=True)


def _read_tokenizer(folder: Path, config: Config) -> Tokenizer:
    is_encoder = isinstance(config, EncoderConfig)
    stop_ids = () if is_encoder else read_stop_ids(folder)
    return Tokenizer.from_folder(folder, stop_ids=stop_ids)
