"""Sizes of published models, copied from each `config.json`, for planning without weights."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rag_jax.models.io.architectures import Config, EncoderConfig, make_model
from rag_jax.models.io.configs import read_config
from rag_jax.models.io.modules import MODULES, stands_alone
from rag_jax.models.io.sentence import read_sentence
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder_config import DecoderConfig
from rag_jax.models.nn.pooling import Dense, Pooling
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there
from rag_jax.runtime.paths import expand_path

_BERT_BASE = BertConfig(
    vocab_size=30522,
    hidden_size=768,
    ffn_size=3072,
    num_layers=12,
    num_heads=12,
    num_types=2,
    norm_eps=1e-12,
    max_length=512,
)

_LLAMA2 = DecoderConfig(
    vocab_size=32000,
    hidden_size=4096,
    ffn_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rope_theta=1e4,
    norm_eps=1e-5,
    tie_embeddings=False,
    max_length=4096,
)
_LLAMA3 = replace(
    _LLAMA2, vocab_size=128256, ffn_size=14336, num_kv_heads=8, rope_theta=5e5, max_length=8192
)
_QWEN = DecoderConfig(
    vocab_size=152064,
    hidden_size=3584,
    ffn_size=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    rope_theta=1e6,
    norm_eps=1e-6,
    tie_embeddings=False,
    max_length=32768,
    family="qwen2",
    qkv_bias=True,
)

_QWEN3 = replace(
    _QWEN,
    vocab_size=151936,
    hidden_size=1024,
    ffn_size=3072,
    num_heads=16,
    num_kv_heads=8,
    tie_embeddings=True,
    max_length=40960,
    family="qwen3",
    qkv_bias=False,
    query_key_norm=True,
)
_GEMMA3 = DecoderConfig(
    vocab_size=262144,
    hidden_size=640,
    ffn_size=2048,
    num_layers=18,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    rope_theta=1e6,
    norm_eps=1e-6,
    tie_embeddings=True,
    max_length=32768,
    family="gemma3_text",
    query_key_norm=True,
    output_norms=True,
    offset_norms=True,
    scale_embedding=True,
    activation="gelu_tanh",
    query_scalar=256,
    window=512,
    sliding_layers=tuple(i for i in range(18) if (i + 1) % 6),
    local_rope_theta=1e4,
)
_GEMMA3_1B = replace(
    _GEMMA3,
    hidden_size=1152,
    ffn_size=6912,
    num_layers=26,
    sliding_layers=tuple(i for i in range(26) if (i + 1) % 6),
)

# Without rotary scaling, which takes no memory and almost no time.
_SIZES: dict[str, Config] = {
    "smollm2-135m-instruct": DecoderConfig(
        vocab_size=49152,
        hidden_size=576,
        ffn_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rope_theta=1e5,
        norm_eps=1e-5,
        tie_embeddings=True,
        max_length=8192,
    ),
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA2,
    "meta-llama/Llama-2-7b-hf": _LLAMA2,
    "meta-llama/Llama-3.2-1B-Instruct": replace(
        _LLAMA3,
        hidden_size=2048,
        ffn_size=8192,
        num_layers=16,
        head_dim=64,
        tie_embeddings=True,
        max_length=131072,
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3,
    "stabilityai/stablelm-3b-4e1t": DecoderConfig(
        vocab_size=50304,
        hidden_size=2560,
        ffn_size=6912,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=80,
        rope_theta=1e4,
        norm_eps=1e-5,
        tie_embeddings=False,
        max_length=4096,
        family="stablelm",
        layer_norm=True,
        rotary_fraction=0.25,
    ),
    "microsoft/Phi-3.5-mini-instruct": DecoderConfig(
        vocab_size=32064,
        hidden_size=3072,
        ffn_size=8192,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=96,
        rope_theta=1e4,
        norm_eps=1e-5,
        tie_embeddings=False,
        max_length=131072,
        family="phi3",
    ),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN,
    "Qwen/Qwen2.5-1.5B-Instruct": replace(
        _QWEN,
        vocab_size=151936,
        hidden_size=1536,
        ffn_size=8960,
        num_heads=12,
        num_kv_heads=2,
        tie_embeddings=True,
    ),
    "Qwen/Qwen3-0.6B": _QWEN3,
    "Qwen/Qwen3-1.7B": replace(_QWEN3, hidden_size=2048, ffn_size=6144),
    "Qwen/Qwen3-8B": replace(
        _QWEN3,
        hidden_size=4096,
        ffn_size=12288,
        num_layers=36,
        num_heads=32,
        tie_embeddings=False,
    ),
    "google/gemma-3-270m": _GEMMA3,
    "google/gemma-3-270m-it": _GEMMA3,
    "google/gemma-3-1b-pt": _GEMMA3_1B,
    "google/gemma-3-1b-it": _GEMMA3_1B,
    "HuggingFaceTB/SmolLM3-3B": DecoderConfig(
        vocab_size=128256,
        hidden_size=2048,
        ffn_size=11008,
        num_layers=36,
        num_heads=16,
        num_kv_heads=4,
        head_dim=128,
        rope_theta=5e6,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_length=65536,
        family="smollm3",
        unrotated_layers=tuple(range(3, 36, 4)),
    ),
    "Qwen/Qwen3-Embedding-0.6B": replace(_QWEN3, vocab_size=151669, max_length=32768),
    "google/embeddinggemma-300m": replace(
        _GEMMA3,
        hidden_size=768,
        ffn_size=1152,
        num_layers=24,
        num_heads=3,
        max_length=2048,
        window=257,
        sliding_layers=tuple(i for i in range(24) if (i + 1) % 6),
        bidirectional=True,
    ),
    "google-bert/bert-base-uncased": _BERT_BASE,
    "all-minilm-l6-v2": replace(_BERT_BASE, hidden_size=384, ffn_size=1536, num_layers=6),
    "facebook/bart-large": BartConfig(forced_bos_id=0),
    "facebook/dpr-question_encoder-single-nq-base": replace(_BERT_BASE, dpr_role="question"),
    "facebook/dpr-ctx_encoder-single-nq-base": replace(_BERT_BASE, dpr_role="context"),
    "facebook/dpr-question_encoder-multiset-base": replace(_BERT_BASE, dpr_role="question"),
    "facebook/dpr-ctx_encoder-multiset-base": replace(_BERT_BASE, dpr_role="context"),
}

# How the decoders among these embed texts.
_POOLINGS = {
    "Qwen/Qwen3-Embedding-0.6B": Pooling(("lasttoken",)),
    "google/embeddinggemma-300m": Pooling(
        steps=(
            Dense("dense_0", 768, 3072, bias=False, activation="Identity"),
            Dense("dense_1", 3072, 768, bias=False, activation="Identity"),
            "normalize",
        )
    ),
}


def find_sizes(name_or_path: str) -> Config:
    """The sizes of a published model in this module's table, or of a folder with a `config.json`.

    Raises:
        RagJaxError: `name_or_path` is neither, or the `config.json` cannot be read.
    """
    if name_or_path in _SIZES:
        return _SIZES[name_or_path]
    if (path := expand_path(name_or_path) / "config.json").is_file():
        return read_config(path)
    raise RagJaxError(
        f"the sizes of {name_or_path!r} are not known: give a folder with its config.json, or one "
        f"of {', '.join(_SIZES)}"
    )


def find_pooling(name_or_path: str) -> Pooling | None:
    """How a model of `find_sizes` embeds texts, by the table or the files in its folder.

    Returns:
        None for a decoder that embeds no texts, a reranker, and an encoder without such files.

    Raises:
        RagJaxError: a file in the folder is damaged, or asks for what is not supported.
    """
    if name_or_path in _SIZES:
        return _POOLINGS.get(name_or_path)
    folder = expand_path(name_or_path)
    embeds = is_there(folder / MODULES) and not stands_alone(folder)
    files = read_sentence(folder) if embeds else None
    return files and files.pooling


def find_decoder(field: str, name_or_path: str) -> DecoderConfig:
    """As `find_sizes`, of a setting that names a language model; a RagJaxError if it names none."""
    sizes = find_sizes(name_or_path)
    if not isinstance(sizes, DecoderConfig) or sizes.bidirectional:
        raise RagJaxError(f"config.{field}={name_or_path}: is no language model")
    return sizes


def find_encoder(field: str, name_or_path: str) -> EncoderConfig | DecoderConfig:
    """As `find_sizes`, of a setting that names an encoder; a RagJaxError if it names none."""
    sizes = find_sizes(name_or_path)
    embeds = isinstance(sizes, DecoderConfig) and find_pooling(name_or_path) is not None
    if not embeds and not isinstance(sizes, EncoderConfig):
        raise RagJaxError(f"config.{field}={name_or_path}: is no encoder")
    return sizes


def describe_params(
    config: Config, dtype: jnp.dtype, dense: Sequence[Dense] = ()
) -> PyTree[jax.ShapeDtypeStruct]:
    """The tree of a model's parameters, all of the given dtype, without their values.

    Args:
        dense: the dense layers of its pooling.
    """
    model = make_model(config)
    # BART takes the encoder's and the decoder's tokens.
    tokens = [jnp.zeros((1, 1), jnp.int32)] * (1 + isinstance(config, BartConfig))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *tokens)["params"]
    tree = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    for layer in dense:
        tree[layer.name] = {"kernel": jax.ShapeDtypeStruct((layer.inputs, layer.outputs), dtype)}
        if layer.bias:
            tree[layer.name]["bias"] = jax.ShapeDtypeStruct((layer.outputs,), dtype)
    return tree
