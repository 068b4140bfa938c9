"""Chat templates and tokenizers against transformers, on odd texts.

pip install -e .[parity] && pytest -m parity tests/parity/test_live_chat.py
"""

import itertools

import pytest
from chats import TEMPLATES, TOKENIZERS, draw_texts, make_chats, write_folder
from tokenizers import pre_tokenizers

from rag_jax.models.io.gguf_file import read_gguf
from rag_jax.models.io.hub import resolve
from rag_jax.models.tokenizer import Tokenizer

pytestmark = pytest.mark.parity
TEXTS = draw_texts(400)


def compare(ours, theirs, texts, *, roles=3):
    """The number of conversations compared; transformers refuses some of them."""
    compared = 0
    for text, prompt in zip(texts, itertools.cycle((True, False))):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.encode_prompt(text) == theirs.encode(text)
        for messages in make_chats(text, "Hi")[:roles]:
            options = {"add_generation_prompt": prompt}
            try:
                expected = theirs.apply_chat_template(messages, return_dict=False, **options)
            except Exception:  # a template's own error, of any kind
                continue
            assert ours.encode_chat(messages, **options) == expected, messages
            compared += 1
    return compared


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_every_kind_of_tokenizer_with_every_template(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    core = TOKENIZERS[kind]()
    for number, (name, template) in enumerate(TEMPLATES.items()):
        folder = write_folder(tmp_path / name, core, template, unk_token="<unk>")
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        ours = Tokenizer.from_folder(folder)
        # Every text with one template, and every tenth with each.
        texts = TEXTS[number :: len(TEMPLATES)] + TEXTS[::10]
        assert compare(ours, theirs, texts) > len(texts)


def test_the_flags_of_the_settings(tmp_path):
    transformers = pytest.importorskip("transformers")
    core = TOKENIZERS["byte level"]()
    added = {}
    for i, token in core.get_added_tokens_decoder().items():
        flags = {"rstrip": token.special, "lstrip": i % 2 == 0, "single_word": False}
        flags |= {"normalized": False, "special": token.special}
        added[str(i)] = {"content": token.content} | flags
    folder = write_folder(tmp_path, core, TEMPLATES["phi3"], added_tokens_decoder=added)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    assert compare(Tokenizer.from_folder(folder), theirs, TEXTS) == 3 * len(TEXTS)


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}, {"prefix": False}])
def test_blanks_by_the_tokenizers_class(kind, settings, tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {"add_prefix_space": False} if "prefix" in settings else settings
    core = TOKENIZERS["metaspace, legacy"]()
    folder = write_folder(tmp_path, core, TEMPLATES["phi3"], tokenizer_class=kind, **settings)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    # What the published vocabularies have bytes for, and this one does not, goes other ways.
    unknown = core.token_to_id("<unk>")
    texts = [text for text in TEXTS if unknown not in core.encode(text).ids]
    assert compare(Tokenizer.from_folder(folder), theirs, texts) == 3 * len(texts)


def test_a_real_decoder():
    transformers = pytest.importorskip("transformers")
    folder = resolve("smollm2-135m-instruct")
    (file,) = folder.glob("*.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    # SmolLM2's own tokenizer.json splits digits; what transformers makes of the GGUF file does not.
    steps = [pre_tokenizers.Digits(individual_digits=True), theirs._tokenizer.pre_tokenizer]
    theirs._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    ours = Tokenizer.from_gguf(read_gguf(file).metadata)
    assert compare(ours, theirs, TEXTS) == 3 * len(TEXTS)


def test_a_real_encoder():
    transformers = pytest.importorskip("transformers")
    folder = resolve("all-minilm-l6-v2")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    for text, other in itertools.pairwise(TEXTS):
        assert ours.encode_with_specials(text, max_length=512) == theirs.encode(text)
        pair = ours.encode_with_specials(text, max_length=512, pair=other)
        assert pair == theirs.encode(text, other)
