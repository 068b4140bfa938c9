"""The tiny language model ready for SR-RAG, and a finished run of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.config import build, to_config_dict
from rag_jax.models import load
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.systems.srrag import pipeline
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Format, special_tokens
from rag_jax.systems.srrag.session import Session
from systems.conftest import write_llama
from systems.srrag.tiny_run import describe_run, quick_programs


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """Two layers, for what routes by a layer that is not the last."""
    return write_llama(tmp_path_factory.mktemp("models") / "tiny-llama", layers=2)


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
def format(base):
    return Format(base.tokenizer, SRRAGConfig().sources, 256)


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
    """The models and corpus of that run."""
    return Session(build(SRRAGConfig, make_config()))


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run's folder, to change."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


@pytest.fixture(scope="session")
def config_file(tmp_path_factory, llama_folder, bert_folder):
    """A config file of the tiny run, for commands."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from rag_jax.config import to_config_dict
from systems.srrag.tiny_run import describe_run

def get_config(preset=""):
    return to_config_dict(describe_run({str(llama_folder)!r}, {str(bert_folder)!r}))
"""
    )
    return path
