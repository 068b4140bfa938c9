"""The architectures: the Flax module and the sharding rules of each kind of config."""

from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import Bert, BertConfig
from rag_jax.models.nn.decoder import Decoder, DecoderConfig
from rag_jax.models.nn.modern_bert import ModernBert, ModernBertConfig
from rag_jax.runtime.sharding import (
    BART_RULES,
    BERT_RULES,
    DECODER_RULES,
    MODERN_BERT_RULES,
    Rules,
)

Encoder = Bert | ModernBert
Embedder = Encoder | Decoder  # a decoder whose files say how it embeds a text
EncoderConfig = BertConfig | ModernBertConfig
Config = DecoderConfig | EncoderConfig | BartConfig

_MODELS = {
    DecoderConfig: Decoder,
    BertConfig: Bert,
    ModernBertConfig: ModernBert,
    BartConfig: Bart,
}
_RULES = {
    DecoderConfig: DECODER_RULES,
    BertConfig: BERT_RULES,
    ModernBertConfig: MODERN_BERT_RULES,
    BartConfig: BART_RULES,
}


def make_model(config: Config) -> Decoder | Encoder | Bart:
    """The module of a config."""
    return _MODELS[type(config)](config)


def get_rules(config: Config) -> Rules:
    """How the parameters of a config's module are split over a mesh."""
    return _RULES[type(config)]


def embeds_texts(model: Decoder | Encoder | Bart) -> bool:
    """Whether a model embeds texts: an encoder, or a decoder whose files say how."""
    if isinstance(model, Decoder):
        return model.pooling is not None
    return not isinstance(model, Bart)
