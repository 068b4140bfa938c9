"""What a tokenizer's class in transformers 5 gives it, whatever `tokenizer.json` says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show

# The normalizer of Llama's, Mistral's and Phi-3's files from before transformers 5.
_BLANKS = repr(
    normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
)
# The classes of transformers 5 that take case and accents from the settings, with WordPiece.
_WORD_CLASSES = (
    "BertTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "MobileBertTokenizer",
    "MPNetTokenizer",
    "SqueezeBertTokenizer",
)
# Those that take `add_prefix_space` from the settings, with byte-level BPE.
_BYTE_CLASSES = (
    "BartTokenizer",
    "GPT2Tokenizer",
    "GPTNeoXTokenizer",
    "Qwen2Tokenizer",
    "RobertaTokenizer",
)
# Those that put two tokens between texts; the other ones with WordPiece put one.
_TWO_BETWEEN = ("BartTokenizer", "MPNetTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer")
# The class of a model's type, where the settings name none.
_TYPE_CLASSES = {
    "bart": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
# The types whose `tokenizer.json` counts alone, whatever class the settings name.
_PLAIN_TYPES = ("mistral", "modernbert", "phi3", "stablelm")


def follow_class(
    core: tokenizers.Tokenizer, kind: str, settings: Mapping[str, Any], folder: Path
) -> None:
    """Gives a tokenizer the steps of its class.

    BERT's kin follow the settings' case, accents and Chinese characters, byte-level classes
    `add_prefix_space`. `Qwen2Tokenizer` composes characters (NFC). `XLMRobertaTokenizer` cuts texts
    at any white space, and keeps a normalizer's table alone. `LlamaTokenizer` has blanks of its
    own: the older `tokenizer.json` puts one before every piece between special tokens, the class
    before the text alone, before every piece if `legacy`, or nowhere, as the settings say.
    """

    def read(name: str, default: bool | None) -> bool | None:
        value = settings.get(name)
        if not isinstance(value, bool | None):
            raise RagJaxError(f"{folder}: {name} must be true or false, not {show(value)}")
        return default if value is None else value

    if kind in _WORD_CLASSES and isinstance(core.model, models.WordPiece):
        core.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=read("tokenize_chinese_chars", True),
            strip_accents=read("strip_accents", None),
            lowercase=read("do_lower_case", True),
        )
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind in _BYTE_CLASSES:
        _set_prefix(core.pre_tokenizer, read("add_prefix_space", False))
    if kind == "Qwen2Tokenizer" and not any(_list_parts(core.normalizer, normalizers.Sequence)):
        core.normalizer = normalizers.NFC()
    if kind == "XLMRobertaTokenizer" and isinstance(core.model, models.Unigram):
        steps = _list_parts(core.normalizer, normalizers.Sequence)
        tables = (step for step in steps if isinstance(step, normalizers.Precompiled))
        core.normalizer = next(tables, None)
        scheme = "always" if read("add_prefix_space", True) else "never"
        metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    is_older = repr(core.normalizer) == _BLANKS and not core.pre_tokenizer
    is_newer = not core.normalizer and isinstance(core.pre_tokenizer, pre_tokenizers.Metaspace)
    if kind not in ("LlamaTokenizer", "CodeLlamaTokenizer") or not (is_older or is_newer):
        return
    is_legacy = kind == "LlamaTokenizer" and settings.get("legacy") is True
    scheme = "always" if is_legacy else "first"
    scheme = "never" if settings.get("add_prefix_space") is False else scheme
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    if scheme == "never":  # and no blank is taken away
        blanks = decoders.Replace("\u2581", " ")
        core.decoder = decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse()])


def set_frame(core: tokenizers.Tokenizer, kind: str, names: Mapping[str, str | None]) -> None:
    """Sets the tokens around texts of a class that has its own, unless the vocabulary lacks them.

    Args:
        names: of special tokens, such as `cls`; the class's own where one is missing.
    """
    has_two = kind in _TWO_BETWEEN
    if not has_two and not (kind in _WORD_CLASSES and isinstance(core.model, models.WordPiece)):
        return
    usual = ("<s>", "</s>") if has_two else ("[CLS]", "[SEP]")
    shorts = ("bos", "eos") if kind == "XLMRobertaTokenizer" else ("cls", "sep")
    tokens = [names.get(short) or own for short, own in zip(shorts, usual, strict=True)]
    start, end = ((token, core.token_to_id(token)) for token in tokens)
    if start[1] is not None and end[1] is not None:
        make = processors.RobertaProcessing if has_two else processors.BertProcessing
        core.post_processor = make(end, start)


def find_class(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The name of a tokenizer's class in transformers 5, which has none in `Fast`; "" for none.

    The model's type counts where the settings name no class; for some types, it always does.
    """
    model_type = config.get("model_type")
    if model_type in _PLAIN_TYPES:
        return ""
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if named is None or model_type == "qwen2":
        named = _TYPE_CLASSES.get(str(model_type), "")
    return str(named).removesuffix("Fast")


def _set_prefix(step: pre_tokenizers.PreTokenizer | None, prefix: bool | None) -> None:
    """Sets whether a byte-level pre-tokenizer, or one in a sequence, puts a blank before a text."""
    for part in _list_parts(step, pre_tokenizers.Sequence):
        if isinstance(part, pre_tokenizers.ByteLevel):
            part.add_prefix_space = prefix


def _list_parts(step: Any, sequence: type) -> list:
    """The parts of a tokenizer's step that is a sequence; else the step alone."""
    return [*step] if isinstance(step, sequence) else [step]
