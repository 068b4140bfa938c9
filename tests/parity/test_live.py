"""The real models against Hugging Face's own, both reading the same files.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.models import load
from rag_jax.models.io.hub import resolve

pytestmark = pytest.mark.parity

TEXTS = [
    "The capital of France is Paris.",
    "In 1889, 32 million people came to see it;\n\n\tnobody knows why... isn't it odd?",
    "東京 and Zürich, naïve café \U0001f5fc <|im_end|",
    "a",
]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def decoder():
    return load("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def their_decoder():
    """Read from the GGUF file by transformers, so our reader is checked as well."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = resolve("smollm2-135m-instruct")
    (file,) = folder.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )  # fmt: skip
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


def pad_rows(rows, *, left=False):
    """Token rows as one array and its mask."""
    width = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if left else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, True
    return tokens, mask


@pytest.mark.parametrize("left", [False, True])
def test_decoder_logits(decoder, their_decoder, left):
    import torch

    tokens, mask = pad_rows([decoder.tokenizer.encode(text) for text in TEXTS], left=left)
    ours = decoder.model.apply(
        {"params": decoder.params}, jnp.asarray(tokens), mask=jnp.asarray(mask)
    )
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        theirs = their_decoder[0](
            torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions),
        ).logits.numpy()  # fmt: skip
    np.testing.assert_allclose(np.asarray(ours)[mask], theirs[mask], atol=1e-3, rtol=0)


def test_decoder_tokens(decoder, their_decoder):
    _, theirs = their_decoder
    for text in TEXTS:
        assert decoder.tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
    expected = theirs.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert decoder.tokenizer.encode_chat(QUESTION) == expected


def test_decoder_answers(decoder):
    step = jax.jit(lambda params, tokens: decoder.model.apply({"params": params}, tokens))
    prompt = decoder.tokenizer.encode_chat(QUESTION)
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(prompt)] = prompt
    end = len(prompt)
    while end < 64:
        token = int(step(decoder.params, jnp.asarray(tokens))[0, end - 1].argmax())
        if token == decoder.tokenizer.eos_id:
            break
        tokens[0, end] = token
        end += 1
    assert "Paris" in decoder.tokenizer.decode(tokens[0, len(prompt) : end])


def test_encoder_hidden_states():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoder = load("all-minilm-l6-v2")
    folder = resolve("all-minilm-l6-v2")
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [encoder.tokenizer.encode_with_specials(text, max_length=64) for text in TEXTS]
    assert rows == [their_tokenizer.encode(text) for text in TEXTS]
    tokens, mask = pad_rows(rows)
    ours = encoder.model.apply({"params": encoder.params}, jnp.asarray(tokens), jnp.asarray(mask))
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(ours)[mask], expected[mask], atol=1e-3, rtol=0)
