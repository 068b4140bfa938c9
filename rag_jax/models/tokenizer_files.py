"""Tokenizer files: the core tokenizer and its settings in a folder."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from rag_jax.models.tokenizer_classes import find_class, follow_class, set_frame
from rag_jax.models.tokenizer_growth import check_growth
from rag_jax.models.tokenizer_inputs import Inputs, describe_inputs, read_inputs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.outside import LARGEST_SETTINGS, is_there, parsing, require_file, show

NAMED_TOKENS = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
# RoBERTa's and BART's special tokens, for folders with `vocab.json` and `merges.txt` alone.
_BPE_SPECIALS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
Names = dict[str, str | None]
Templates = str | dict[str, str] | None


def read_folder(
    folder: Path,
) -> tuple[tokenizers.Tokenizer, Names, Templates, Path, Inputs]:
    """The core tokenizer of a folder, the names of its special tokens, its chat template, where
    that comes from, and what an encoder reads of texts.

    Several chat templates are returned by name.

    Raises:
        RagJaxError: `tokenizer.json` is missing, or a file is damaged.
    """
    path, settings = folder / "tokenizer.json", {}
    if not is_there(path) and is_there(folder / "merges.txt"):
        core = _read_bpe(folder)
        settings = {f"{short}_token": name for short, name in _BPE_SPECIALS.items()}
    elif not is_there(path):
        raise RagJaxError(f"{path} is missing: save the fast version of the tokenizer there")
    else:
        core = _read_core(path)
    own, older = (
        _read_settings(folder / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    # As in transformers: the older file counts unless the newer one describes added tokens.
    described = "added_tokens_decoder" in own
    settings |= {**older, **own} if described else {**own, **older}
    names = {short: settings.get(f"{short}_token") for short in NAMED_TOKENS}
    # A name is stored either as a string or as an object with flags.
    names = {key: v.get("content") if isinstance(v, dict) else v for key, v in names.items()}
    for key, name in names.items():
        if not isinstance(name, str | None):
            raise RagJaxError(f"{folder}: {key}_token must be a token's name, not {show(name)}")
    kind = find_class(settings, _read_settings(folder / "config.json"))
    follow_class(core, kind, settings, folder)
    source = f"{folder / 'tokenizer_config.json'}: added_tokens_decoder"
    _add_tokens(core, settings.get("added_tokens_decoder"), source)
    extras = _read_extras(settings, folder)
    usual = [names[short] for short in ("bos", "eos", "pad")]
    _add_older(core, folder, settings, [*usual, *extras.values()])
    # A usual name that is no piece of the vocabulary is a mistake, which the class refuses.
    _add_named(core, [name for name in usual if name and core.token_to_id(name) is not None])
    _add_named(core, [*extras.values()])
    names |= {key.removesuffix("_token"): name for key, name in extras.items() if "_token" in key}
    set_frame(core, kind, names)
    inputs = read_inputs(core, settings, kind, folder)
    return core, names, *_read_templates(folder, settings), inputs


def write_folder(
    folder: Path,
    core: tokenizers.Tokenizer,
    names: Names,
    templates: Mapping[str, str] | str | None,
    inputs: Inputs,
    *,
    max_length: int,
) -> None:
    """Writes the files that `read_folder` and transformers' `AutoTokenizer` read."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **describe_inputs(inputs),
        # Names that are None too: transformers would replace a missing name by its default.
        **{f"{short}_token": names.get(short) for short in NAMED_TOKENS},
    }
    extra = {f"{short}_token": name for short, name in names.items() if short not in NAMED_TOKENS}
    if extra:
        settings["extra_special_tokens"] = extra
    if isinstance(templates, Mapping):
        named = templates.items()
        settings["chat_template"] = [{"name": n, "template": source} for n, source in named]
    (folder / "tokenizer.json").write_text(core.to_str(pretty=True), "utf-8")
    write_json(folder / "tokenizer_config.json", settings)
    if isinstance(templates, str):
        (folder / "chat_template.jinja").write_text(templates, "utf-8")


def make_special_tokens(names: Iterable[str]) -> list[AddedToken]:
    """Special tokens with these names."""
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _read_core(path: Path) -> tokenizers.Tokenizer:
    require_file(path, largest=LARGEST_SETTINGS)
    with parsing(path, "is no tokenizer", "download the file again"):
        core = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
        check_growth(core)
        return core


def _read_bpe(folder: Path) -> tokenizers.Tokenizer:
    paths = folder / "vocab.json", folder / "merges.txt"
    for path in paths:
        require_file(path, largest=LARGEST_SETTINGS)
    with parsing(f"{folder}: vocab.json and merges.txt"):
        model = models.BPE.from_file(*map(str, paths))
    core = tokenizers.Tokenizer(model)
    start, end = (_BPE_SPECIALS[name] for name in ("bos", "eos"))
    if core.token_to_id(start) is None or core.token_to_id(end) is None:
        raise RagJaxError(
            f"{folder / 'tokenizer.json'} is missing, and vocab.json is no vocabulary of RoBERTa's "
            "or BART's: save the fast version of the tokenizer there"
        )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(make_special_tokens(_BPE_SPECIALS.values()))
    core.post_processor = processors.RobertaProcessing(
        *((name, core.token_to_id(name)) for name in (end, start)), add_prefix_space=False
    )
    return core


def _add_tokens(core: tokenizers.Tokenizer, described: Any, source: str) -> None:
    """Gives the added tokens the flags that a file has by id, which hold in transformers."""
    if not isinstance(described, dict):
        return
    with parsing(source, "is damaged"):
        wanted = {int(i): AddedToken(**fields) for i, fields in described.items()}
    present = core.get_added_tokens_decoder()
    for i, token in sorted(wanted.items()):
        if repr(token) != repr(present.get(i)):
            core.add_tokens([token])
            if core.token_to_id(token.content) != i:
                raise RagJaxError(
                    f"{source} gives {token.content!r} the id {i}, "
                    f"tokenizer.json {core.token_to_id(token.content)}: save the tokenizer again"
                )


def _read_extras(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The special tokens that have no usual name, by what a chat template calls them.

    Those of a list have no such name, and get a number. `additional_special_tokens` is what older
    versions of transformers call the field.
    """
    keys = "extra_special_tokens", "additional_special_tokens"
    key = next((key for key in keys if settings.get(key)), keys[0])
    listed = settings.get(key) or []
    if not isinstance(listed, list | dict):
        raise RagJaxError(f"{folder}: {key} must be a list or an object, not {show(listed)}")
    named = listed if isinstance(listed, dict) else {str(i): v for i, v in enumerate(listed)}
    named = {k: v.get("content") if isinstance(v, dict) else v for k, v in named.items()}
    for name in named.values():
        if not isinstance(name, str) or not name:
            raise RagJaxError(f"{folder}: {key} must hold names of tokens, not {show(name)}")
    return named


def _add_older(
    core: tokenizers.Tokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    special: Sequence[str | None],
) -> None:
    """Adds the tokens of `added_tokens.json`, which counts without `added_tokens_decoder`."""
    path = folder / "added_tokens.json"
    if "added_tokens_decoder" in settings or not is_there(path):
        return
    ids = _read_settings(path)
    present = {token.content for token in core.get_added_tokens_decoder().values()}
    described = {
        i: {"content": name, "special": name in special, "normalized": name not in special}
        for name, i in ids.items()
        if name not in present
    }
    _add_tokens(core, described, str(path))


def _add_named(core: tokenizers.Tokenizer, names: Sequence[str]) -> None:
    """Adds special tokens that the settings name and `tokenizer.json` lacks, as transformers does.

    A piece of the vocabulary keeps its id; others get the next ones.
    """
    added = {token.content for token in core.get_added_tokens_decoder().values()}
    missing = dict.fromkeys(name for name in names if name not in added)
    core.add_special_tokens(make_special_tokens(missing))


def _read_templates(folder: Path, settings: Mapping[str, Any]) -> tuple[Templates, Path]:
    """A folder's chat template, several by name, and the file or folder that has them.

    Files come before `tokenizer_config.json`.
    """
    files = {"default": folder / "chat_template.jinja"}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        files[path.stem] = path
    files = {name: _read_text(path) for name, path in files.items() if is_there(path)}
    if set(files) == {"default"}:
        return files["default"], folder / "chat_template.jinja"
    if files:
        return files, folder
    template, path = settings.get("chat_template"), folder / "tokenizer_config.json"
    if isinstance(template, list):
        with parsing(path, "needs a name and a template for each entry of chat_template"):
            template = {entry["name"]: entry["template"] for entry in template}
    texts = template.values() if isinstance(template, dict) else [template]
    names = list(template) if isinstance(template, dict) else []
    if not all(isinstance(text, str) for text in [*names, *texts] if text is not None):
        raise RagJaxError(f"{path}: chat_template must be a text, or texts by name")
    return template, path


def _read_settings(path: Path) -> dict[str, Any]:
    if not is_there(path):
        return {}
    settings = read_json(path, largest=LARGEST_SETTINGS)
    if not isinstance(settings, dict):
        raise RagJaxError(f"{path} must hold a JSON object")
    return settings


def _read_text(path: Path) -> str:
    require_file(path, largest=LARGEST_SETTINGS)
    with parsing(path):
        return path.read_text("utf-8")
