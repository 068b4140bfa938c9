"""Tiny random models as folders in Hugging Face's layout, and the language model ready for SR-RAG.

Their tokenizers are trained on a few sentences here, so nothing of them is a file in the tests.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from rag_jax.config import build, to_config_dict
from rag_jax.models import load
from rag_jax.models.configs import read_config
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.models.weights import list_slots
from rag_jax.systems.srrag import pipeline
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Format, special_tokens
from systems.srrag.tiny_run import describe_run, quick_programs

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
    "num_hidden_layers": 2,
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


def train_bert_tokenizer():
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
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


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny-llama",
        config=LLAMA,
        core=train_llama_tokenizer(),
        settings={"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE},
        seed=0,
    )


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny-bert",
        config=BERT,
        core=train_bert_tokenizer(),
        settings={"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        seed=1,
    )


@pytest.fixture(scope="session")
def base(llama_folder):
    """The language model with SR-RAG's tokens.

    Their embeddings, all the mean to begin with, are made to differ: the logits of the sources
    would be equal, and knowledge would never end.
    """
    grown = grow_vocabulary(load(llama_folder), special_tokens(SRRAGConfig().sources))
    table = np.array(grown.params["embed"]["embedding"])
    table[-4:] = np.random.default_rng(2).normal(size=(4, table.shape[1]))
    return replace(grown, params={**grown.params, "embed": {"embedding": jnp.asarray(table)}})


@pytest.fixture(scope="session")
def form(base):
    return Format(base.tokenizer, SRRAGConfig().sources)


@pytest.fixture(scope="session")
def make_config(llama_folder, bert_folder):
    """The settings of the tiny run as the command line would have them, with some changed."""

    def make(**changes):
        config = to_config_dict(describe_run(llama_folder, bert_folder))
        config.update_from_flattened_dict(changes)
        return config

    return make


@pytest.fixture(scope="session")
def finished(make_config, tmp_path_factory):
    """A run that nothing disturbed: its folder and report. No test changes it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    with quick_programs():
        return workdir, pipeline.run(make_config(), workdir)


@pytest.fixture(scope="session")
def session(make_config):
    """The models and stages of that run."""
    return pipeline.Session(build(SRRAGConfig, make_config()))


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run's folder, to change."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))
