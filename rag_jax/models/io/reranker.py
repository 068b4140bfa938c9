"""Loading of rerankers, which read a question and a passage together and give them a score."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from rag_jax.models.io.architectures import Config, EncoderConfig
from rag_jax.models.io.configs import describe_config
from rag_jax.models.io.fields import SCORED, Fields, read_fields
from rag_jax.models.io.load import OpenedModel, Pretrained, load, open_model
from rag_jax.models.io.modules import (
    MODULES,
    PROMPTS,
    find_answers,
    find_transformer,
    list_kinds,
    stands_alone,
)
from rag_jax.models.io.save import write_model
from rag_jax.models.io.sentence import read_text_settings
from rag_jax.models.io.slot import Slot, linear_slots, scale_slots
from rag_jax.models.io.slots import list_slots
from rag_jax.models.io.weights import build_params, build_slots, rename, set_leaf
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.modern_bert import ModernBertConfig
from rag_jax.models.nn.score_head import ScoreHead
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there, show
from rag_jax.runtime.sharding import HEAD_RULES
from rag_jax.search_config import YesNo

# By the family: names of the dense layer and of the last one.
_BERT_HEADS = {
    "bert": ("pooler.dense", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
}
_ANSWERS = ("true_token_id", "false_token_id")  # in sentence-transformers' LogitScore
_ROBERTA_HEAD = ("classifier.dense", "classifier.out_proj")


@dataclass(frozen=True)
class Reranker:
    """A model that scores a question and a passage that it reads together.

    Attributes:
        base: the model below the head, whose parameters have the head's too, under `head`.
        head: how states become a score.
        question: what a language model is asked; None for a model with a head of its own.
    """

    base: Pretrained
    head: ScoreHead
    question: YesNo | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the model's files."""
        return self.base.fingerprint


def load_reranker(
    name_or_path: str | Path,
    *,
    question: YesNo | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> Reranker:
    """Loads a reranker, and downloads the files first if needed.

    Args:
        name_or_path: a folder of a cross-encoder, `BertForSequenceClassification` and its kin, or
            of a decoder with a score for its last token, `LlamaForSequenceClassification` and its
            kin, each with one label; or a name, as for `load`.
        question: for a language model: what it is asked, to which it answers yes or no.
        dtype, mesh: as for `load`; the head is on every device.

    Raises:
        RagJaxError: as `load`, or the model is no reranker, or has several labels.
    """
    if question is not None:
        check_reranker(name_or_path, question=question)  # before the weights are read
        return _ask(load(name_or_path, dtype=dtype, mesh=mesh), question)
    found = open_model(name_or_path)
    head = _find_head(found.config, _check_config(found))
    slots = _list_head(found.config)
    options = {"dtype": dtype, "mesh": mesh, "source": found.source}
    names = {slot.name for slot in slots}
    tensors = rename(found.config, found.tensors)
    own = {name: tensor for name, tensor in tensors.items() if name in names}
    others = {name: tensor for name, tensor in tensors.items() if name not in names}
    params = build_params(found.config, others, **options)
    params |= build_slots(slots, own, rules=HEAD_RULES, **options)
    return Reranker(found.build(params), head)


def check_reranker(name_or_path: str | Path, *, question: YesNo | None = None) -> OpenedModel:
    """A reranker that can be loaded, without its weights.

    Args:
        question: as for `load_reranker`.

    Raises:
        RagJaxError: as `load_reranker`, but for what the weights hold.
    """
    found = open_model(name_or_path)
    if question is not None:
        _check_answers(found, question)
    else:
        _find_head(found.config, _check_config(found))
    return found


def describe_head(
    config: Config, dtype: Any, *, asked: bool
) -> tuple[ScoreHead, PyTree[jax.ShapeDtypeStruct]]:
    """The head of a model of these sizes, and its parameters, under `head`, without their values.

    Args:
        asked: whether the model is a language model that is asked a question.
    """
    if asked:
        shapes = {"head/out/kernel": (config.hidden_size, 1)}
        head = ScoreHead("last")
    else:
        shapes = {slot.path: slot.shape for slot in _list_head(config)}
        head = _make_head(config)
    params: dict = {}
    for path, shape in shapes.items():
        set_leaf(params, path, jax.ShapeDtypeStruct(shape, dtype))
    return head, params


def save_reranker(reranker: Reranker, path: str | os.PathLike) -> None:
    """Saves a reranker as a folder for `load_reranker` and for sentence-transformers' CrossEncoder.

    Raises:
        RagJaxError: it is a language model that is asked, which `save` keeps, or as `save`.
    """
    config = reranker.base.config
    if reranker.question is not None:
        raise RagJaxError("a language model that is asked has no head to save: save the model")
    names = describe_config(config)["architectures"]
    ends = [re.sub(r"(Model|ForCausalLM|ForMaskedLM)$", SCORED, name) for name in names]
    slots = [*list_slots(config), *_list_head(config)]
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    if isinstance(config, ModernBertConfig):
        labels["classifier_pooling"] = "mean" if reranker.head.pools == "mean" else "cls"
    write_model(reranker.base, path, slots, architectures=ends, **labels)


def _check_config(found: OpenedModel) -> Fields:
    """The fields of a config with a head for one score."""
    kind = type(found.config).__name__.removesuffix("Config")
    fields = found.fields
    if not found.scores or not isinstance(found.config, DecoderConfig | EncoderConfig):
        _refuse_modules(found.folder)
        names = show(fields and fields.raw.get("architectures"))
        raise RagJaxError(
            f"{found.folder}: a {kind} with architectures {names} is no reranker, which has a head "
            f"for a score ({SCORED}); a language model is one if it is asked a question"
        )
    if stands_alone(found.folder):
        _check_settings(found.folder)
    end = found.tokenizer.pair_frame[-1][-1:] if isinstance(found.config, DecoderConfig) else []
    if end and end[0] == fields.raw.get("pad_token_id"):
        raise RagJaxError(
            f"{fields.place('pad_token_id')}={end[0]} also ends every pair, where transformers "
            "takes it for padding and scores the token before it: this is not supported"
        )
    labels = fields.raw.get("id2label", {0: "", 1: ""})
    count = fields.raw.get("num_labels", len(labels) if isinstance(labels, Mapping) else None)
    if count != 1:
        raise RagJaxError(f"{fields.source}: {show(count)} labels: a reranker has one, the score")
    return fields


def _refuse_modules(folder: Path) -> None:
    """Refuses a reranker of sentence-transformers whose head is in modules of its own."""
    path = folder / PROMPTS
    if is_there(path) and read_fields(path).raw.get("model_type") == "CrossEncoder":
        kinds = ", ".join(map(show, list_kinds(folder)))
        raise RagJaxError(
            f"{folder / MODULES}: a CrossEncoder of the modules {kinds} is not read, only one that "
            "is a model alone, with its head in config.json"
        )


def _check_settings(folder: Path) -> None:
    """Refuses what sentence-transformers follows of the settings beside a reranker."""
    texts = read_text_settings(folder, "cosine", "dot", "dot_score")
    if texts.find_prompt(None):
        raise RagJaxError(
            f"{folder / PROMPTS}: default_prompt_name {show(texts.default_prompt)} is not "
            "supported: a reranker has no prompts"
        )
    path = find_transformer(folder)
    fields = read_fields(path) if is_there(path) else Fields({}, str(path))
    fields.refuse_unless("transformer_task", "sequence-classification")
    fields.refuse_unless("do_lower_case", False)
    fields.refuse_unless("max_seq_length")


def _find_head(config: Config, fields: Fields) -> ScoreHead:
    """The head as a model's files describe it."""
    head = _make_head(config)
    if not isinstance(config, ModernBertConfig):
        return head
    fields.refuse_unless("classifier_pooling", "cls", "mean")
    fields.refuse_unless("classifier_activation", "gelu")
    fields.refuse_unless("classifier_bias", False)
    is_mean = fields.raw.get("classifier_pooling") == "mean"
    return replace(head, pools="mean") if is_mean else head


def _make_head(config: Config) -> ScoreHead:
    if isinstance(config, DecoderConfig):
        return ScoreHead("last")
    if isinstance(config, ModernBertConfig):
        return ScoreHead("first", "gelu", config.norm_eps)
    return ScoreHead("first", "relu" if config.family == "distilbert" else "tanh")


def _list_head(config: Config) -> list[Slot]:
    """The slots of a head's parameters."""
    width = config.hidden_size
    if isinstance(config, DecoderConfig):
        return [Slot("score.weight", "head/out/kernel", (width, 1), True)]
    if isinstance(config, ModernBertConfig):
        return [
            Slot("head.dense.weight", "head/dense/kernel", (width, width), True),
            *scale_slots("head.norm", "head/norm", width),
            *linear_slots("classifier", "head/out", width, 1),
        ]
    dense, out = _BERT_HEADS.get(config.family, _ROBERTA_HEAD)
    return [
        *linear_slots(dense, "head/dense", width, width),
        *linear_slots(out, "head/out", width, 1),
    ]


def _check_asked(config: Config, tokenizer: Tokenizer, question: YesNo) -> tuple[int, int]:
    """The tokens of yes and no; a RagJaxError if the model cannot be asked."""
    if not isinstance(config, DecoderConfig):
        raise RagJaxError("question: only a language model can be asked: leave it out")
    ids = [tokenizer.encode(answer) for answer in (question.yes, question.no)]
    for answer, own in zip((question.yes, question.no), ids, strict=True):
        if len(own) != 1:
            raise RagJaxError(f"question: the answer {answer!r} has {len(own)} tokens, not one")
    (yes,), (no,) = ids
    return yes, no


def _check_answers(found: OpenedModel, question: YesNo) -> None:
    """Refuses a question with other answers than those in the folder of sentence-transformers."""
    ids = _check_asked(found.config, found.tokenizer, question)
    answers = find_answers(found.folder)
    if answers is None:
        return
    for name, word, id in zip(_ANSWERS, (question.yes, question.no), ids, strict=True):
        if (own := answers.raw.get(name)) is None:
            raise RagJaxError(
                f"{answers.place(name)} is missing or null: a score of one token alone is not "
                "supported"
            )
        if own != id:
            raise RagJaxError(
                f"{answers.place(name)} {show(own)} is not the token of the answer {word!r}, "
                f"{id}: set question.yes and question.no to the words that the model answers"
            )


def _ask(base: Pretrained, question: YesNo) -> Reranker:
    """A language model that is asked; its head is the column of yes less that of no."""
    yes, no = _check_asked(base.config, base.tokenizer, question)
    if base.config.tie_embeddings:
        table = base.params["embed"]["embedding"]
        column = table[yes] - table[no]
    else:
        kernel = base.params["head"]["kernel"]
        column = kernel[:, yes] - kernel[:, no]
    params = {**base.params, "head": {"out": {"kernel": column[:, None]}}}
    return Reranker(replace(base, params=params), ScoreHead("last"), question)
