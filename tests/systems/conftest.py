"""Tiny random models as folders in Hugging Face's layout.

Their tokenizers are made of a few sentences here, so nothing of them is a file in the tests.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rag_jax.models.io.configs import read_config
from rag_jax.models.io.weights import list_slots

SENTENCES = [
    "Write a Wikipedia-style background document of one or two sentences that helps to answer the "
    "question. Begin with the document itself and leave out links.",
    "Answer the question with a few words. The answer is Paris.",
    "Question: What is the capital of France? Background knowledge: Answer: Background document:",
    "Of which country is Riga the capital? In which country is the city of Lyon? What currency is "
    "used in Spain? Which language is spoken there? Which country does it share a border with?",
    "People in Andorra pay with the euro (EUR). Its main language is Catalan, its neighbours are "
    "Spain and France, and about 77,000 people live there in 468 square kilometres.",
    "Andorra, a country in Europe, spans around 468 square kilometres, and it is governed from its "
    "capital, Andorra la Vella. Its population is roughly 77,000.",
    "The official currency of the United Islands is the dollar, whose code is USD. Among its "
    "languages are English, Spanish and Portuguese, and the languages spoken include Arabic.",
    "The internet domain of the Republic is .ad; phone numbers begin with +376. Internet addresses "
    "end in .ad, and the calling code is +376.",
    "The neighbours on land are Spain and France. It is counted as part of Africa, Asia, Oceania, "
    "North America or South America, and its country code is AD. It shares land borders with "
    "others. Many people live in the most populous places, Saint George and New Guinea.",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def train_llama_tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    return core


def make_bert_tokenizer():
    """The sentences' words, and their letters; a trained one differs from process to process."""
    words = {word for text in SENTENCES for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    letters = {letter for word in words for letter in word} | set(
        "abcdefghijklmnopqrstuvwxyz0123456789"
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *sorted(words | letters), *sorted(f"##{letter}" for letter in letters)]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.add_special_tokens(special)
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def write_model(folder, *, config, core, settings, seed):
    """Writes one model: every tensor random, scales of norms near one."""
    folder.mkdir(parents=True)
    config = config | {"vocab_size": core.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    core.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(seed)
    tensors = {}
    for slot in list_slots(read_config(folder / "config.json")):
        noise = 0.3 * rng.normal(size=slot.shape[::-1] if slot.transposed else slot.shape)
        tensors[slot.name] = (noise + slot.path.endswith("scale")).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_llama(folder, *, layers):
    return write_model(
        folder,
        config=LLAMA | {"num_hidden_layers": layers},
        core=train_llama_tokenizer(),
        settings={"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE},
        seed=0,
    )


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """One layer, which compiles faster: that layers follow each other is tests/models' concern."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny-llama", layers=1)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny-bert",
        config=BERT,
        core=make_bert_tokenizer(),
        settings={"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        seed=1,
    )
