"""Loading of learned sparse encoders: a masked language model whose logits weigh words (SPLADE)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from rag_jax.models.io.architectures import EncoderConfig
from rag_jax.models.io.fields import Fields, read_fields
from rag_jax.models.io.load import OpenedModel, Pretrained, open_model
from rag_jax.models.io.masked_head import build_head
from rag_jax.models.io.modules import COPY, MODULES, PROMPTS, find_transformer, read_modules
from rag_jax.models.io.sentence import read_text_settings
from rag_jax.models.io.weights import build_params
from rag_jax.models.nn.masked_head import MaskedHead, Splade
from rag_jax.models.nn.modern_bert import ModernBertConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there, show


@dataclass(frozen=True)
class SparseEncoder:
    """An encoder that gives every word of its vocabulary a weight for a text.

    Attributes:
        base: the encoder below the head, whose parameters have the head's too, under `head`.
        head: the module of the head over masked tokens.
        pooling: how the head's logits become weights.
    """

    base: Pretrained
    head: MaskedHead
    pooling: Splade

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the encoder's files and settings."""
        return self.base.fingerprint

    @property
    def width(self) -> int:
        """Number of words of the vocabulary (`V`)."""
        return self.base.config.vocab_size


def load_sparse(
    name_or_path: str | Path, *, dtype: Any = None, mesh: Mesh | None = None
) -> SparseEncoder:
    """Loads a learned sparse encoder, and downloads the files first if needed.

    Args:
        name_or_path: a folder of sentence-transformers with a module `SpladePooling`, or one of a
            masked language model (`BertForMaskedLM` and its kin), whose weights then are the
            maximum over the tokens of log(1 + relu(x)); or a name, as for `load`.
        dtype: as for `load`.
        mesh: as for `load`; the head is on every device.

    Raises:
        RagJaxError: as `load`, or the model is no sparse encoder.
    """
    found = open_model(name_or_path)
    config, fields = found.config, _check_config(found)
    pooling = read_splade(found.folder)
    options = {"dtype": dtype, "mesh": mesh, "source": found.source}
    tied = fields.raw.get("tie_word_embeddings", True) is not False
    # First the head's, which a dense encoder lacks.
    head = build_head(config, found.tensors, tied=tied, **options)
    params = build_params(config, found.tensors, **options) | {"head": head}
    sentence = read_text_settings(found.folder, "dot", "dot_score")
    base = found.build(params, describe_splade, sentence)
    plain = isinstance(config, ModernBertConfig)
    return SparseEncoder(base, MaskedHead(config.norm_eps, use_bias=not plain), pooling)


def read_splade(folder: Path) -> Splade:
    """How a folder's logits become weights; without settings by the maximum of log(1 + relu(x)).

    Raises:
        RagJaxError: a file is damaged, asks for what is not supported, or is of an encoder of
            another kind.
    """
    if not is_there(folder / MODULES):
        return Splade()
    modules = read_modules(folder / MODULES, "sparse")
    kinds = [kind for kind, _ in modules]
    if kinds[1:] != ["SpladePooling"]:
        raise RagJaxError(
            f"{folder / MODULES} has no module SpladePooling after its Transformer: no weights"
        )
    if kinds[0] == "Transformer" and is_there(path := find_transformer(folder)):
        read_fields(path).refuse_unless("transformer_task", "fill-mask")
    if is_there(folder / PROMPTS):
        read_fields(folder / PROMPTS).refuse_unless("max_active_dims")
    fields = read_fields(modules[1][1] / "config.json", COPY)
    fields.refuse_unless("pooling_strategy", "max", "sum")
    fields.refuse_unless("activation_function", "relu", "log1p_relu")
    named = "pooling_strategy", "activation_function"
    return Splade(*(fields.raw.get(n) or d for n, d in zip(named, ("max", "relu"), strict=True)))


def describe_splade(folder: Path, _sum_file: Callable[[Path], str]) -> str:
    """What a fingerprint has of a sparse encoder's settings."""
    texts = read_text_settings(folder, "dot", "dot_score")
    own = read_splade(folder), dict(texts.prompts), texts.default_prompt, texts.lower_case
    return repr(own)


def _check_config(found: OpenedModel) -> Fields:
    """The fields of a config whose head is one of those that are read."""
    config = found.config
    if not isinstance(config, EncoderConfig) or config.dpr_role is not None:
        kind = type(config).__name__.removesuffix("Config")
        raise RagJaxError(
            f"{found.folder}: a {kind} is no sparse encoder, which has a head over masked tokens"
        )
    fields = found.fields
    if isinstance(config, ModernBertConfig):
        fields.refuse_unless("classifier_activation", "gelu")
        fields.refuse_unless("classifier_bias", False)
        fields.refuse_unless("decoder_bias", True)
    tied = fields.raw.get("tie_word_embeddings")
    if not isinstance(tied, bool | None):
        raise RagJaxError(
            f"{fields.place('tie_word_embeddings')} must be true or false, not {show(tied)}"
        )
    return fields
