"""launch/plan.py with the real TPU compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONFIG, RAG = "--config=configs/srrag.py", "--config=configs/rag.py"

pytestmark = pytest.mark.parity


def launch(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "launch/plan.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 1020,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


BART = {
    "model_type": "bart",
    "vocab_size": 1021,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 128,
    "activation_function": "gelu",
    "forced_eos_token_id": 2,
}


def plan_tiny(folder, config, models, *flags):
    """The lines of a tiny run's programs, by name."""
    flags = [*flags, "--config.mesh.model=2", "--questions=50", "--passages=500"]
    for name, sizes in models.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(sizes))
        flags.append(f"--config.{name}.name={folder / name}")
    done = launch(config, "--topology=v5e:2x2", *flags)
    assert done.returncode == 0, done.stderr
    head, programs, stages, *_ = done.stdout.split("\n\n")
    assert head.startswith("4 x TPU v5 lite, mesh 2 data by 2 model, 15.75 GiB a device; 50 quest")
    lines = programs.splitlines()[2:]
    assert all(line.split()[-1] in ("compute", "memory", "links") for line in lines)
    assert stages.splitlines()[-1].startswith("all")
    return {line.split("  ")[0]: line for line in lines}


def test_every_program_of_a_tiny_run(tmp_path):
    models = {"model": LLAMA, "encoder": BERT}
    programs = plan_tiny(tmp_path, CONFIG, models, "--config.datastore.layer=1")
    assert {"write documents", "second round of shown questions", "vote"} <= programs.keys()
    assert any(name.startswith("stage2, gradients of pairs") for name in programs)
    assert "all-reduce" in programs["route"]


@pytest.mark.parametrize("generator", [LLAMA, BART])
def test_every_program_of_a_tiny_run_of_rag(tmp_path, generator):
    models = {"generator": generator, "retriever": BERT}
    programs = plan_tiny(tmp_path, RAG, models, "--config.generator.max_length=100")
    for start in ("index, embed passages", "joint, gradients of questions", "score answers"):
        assert any(name.startswith(start) for name in programs)
    assert "all-reduce" in programs["write with RAG-Token"]


@pytest.mark.parametrize(
    ("system", "models", "flags", "wanted"),
    [
        (
            "dpr",
            {"encoder": BERT},
            ["--config.encoder.max_length=64", "--only=train, gradients"],
            "train, gradients of pairs",
        ),
        (
            "prag",
            {"model": LLAMA, "retrieve.encoder": BERT},
            ["--config.model.chat=False", "--only=a step of documents"],
            "encode, a step of documents",
        ),
        (
            "self_retrieval",
            {"model": LLAMA, "dense.encoder": BERT},
            ["--config.dense.encoder.max_length=64", "--only=one token of"],
            "evaluate, ",
        ),
    ],
)
def test_programs_of_a_tiny_run_of_the_others(tmp_path, system, models, flags, wanted):
    programs = plan_tiny(tmp_path, f"--config=configs/{system}.py", models, *flags)
    assert programs and all(name.startswith(wanted) for name in programs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x3"], "--topology=v5e:3x3: no such slice; write CHIP:AxB such as v5e:8"),
        (["--topology=h200:8"], "--topology=h200:8: no such slice"),
        ([], "--topology is missing"),
        (
            ["--topology=v5e:2x2", "--config.datastore.layer=31"],
            "config.datastore.layer=31: the model has 30 layers",
        ),
        (["--topology=v5e:2x2", "--only=nothing"], "--only=nothing: no program's name has this"),
        (
            ["--topology=v5e:2x2", "--config.mesh.data=3"],
            "config.mesh.data=3 by config.mesh.model=1 does not fit 4 device(s)",
        ),
        (
            ["--topology=v5e:2x2", "--config.answer.batch_size=6"],
            "config.answer.batch_size=6 does not fit the mesh",
        ),
    ],
)
def test_a_mistake_takes_one_line(arguments, message):
    done = launch(CONFIG, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert done.stdout == ""
