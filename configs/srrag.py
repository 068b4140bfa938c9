"""Self-Routing RAG on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/srrag.py
    python launch/ask.py --config=configs/srrag.py "QUESTION"    # after the training

Cost: 12 to 24 minutes on two CPU cores, 2.4 to 5.5 of them compiling; 3.9 to 4.1 GB of memory; 176
MB of downloads.

Score, 300 test questions, accuracy with 95 % interval (share of retrievals): direct 0.210 +- 0.046,
verbalise 0.517 +- 0.056 (0), retrieve 0.933 +- 0.029 (1), srrag 0.920 +- 0.031 (0.773).

The run chooses every router's threshold on the development questions: the least that searches at
most `route.rate`, 80 %, of them. `--config.route.rate=None` takes the most accurate threshold, and
`--config.route.tau=0.2` the paper's. Chosen by hand on the same questions
(`--config.evaluate_on=dev`): learning rates; batch sizes; the losses' reduction.

`--config.ablations=True` trains and evaluates what the method is compared with; it takes about
half an hour more and keeps what is already made. Presets: `two-indexes` has three sources, the
model and two indexes; `llama2-7b`, `phi3.5-mini` and `qwen2.5-7b` are the paper's recipe. All
tables, PopQA's among them, are in `docs/systems/srrag.md`; `benchmarks/systems.py` has their
commands.
"""

import ml_collections

from rag_jax.config import (
    EncoderConfig,
    MeshConfig,
    TrainConfig,
    WorldConfig,
    choose_preset,
    to_config_dict,
)
from rag_jax.systems.srrag.config import (
    DatastoreConfig,
    GroundedAnswerConfig,
    GrownReaderConfig,
    LabelConfig,
    NewTokensConfig,
    RouteConfig,
    SourceConfig,
    SRRAGConfig,
    Stage2Config,
    VerbaliseConfig,
)


def _follow_paper(name: str, *, tau: float, layer: int) -> SRRAGConfig:
    """The paper's recipe for a model, its threshold and the layer of the datastore's keys.

    Optimiser, schedule and sizes of everything that a mesh splits are ours.
    """
    # With 64 questions a step, a quarter of what 16 data rows compute would be padding.
    stage = {"batch_size": 128, "microbatch_tokens": 65536, "checkpoint_every": 50}
    return SRRAGConfig(
        contexts=5,
        extra_mean=2.0,
        # Four parts divide the heads of all three models, and a decoded token collects no weights.
        mesh=MeshConfig(model=4, weights="model"),
        model=GrownReaderConfig(name=name, dtype="bfloat16", vocab_multiple=128),
        encoder=EncoderConfig(max_length=256, batch_size=1024),
        world=WorldConfig(cities=30000, train=50000, dev=2000, test=4000),
        verbalise=VerbaliseConfig(max_tokens=150, pool=2048, batch_size=256),
        label=LabelConfig(batch_size=256),
        tuning=NewTokensConfig(mode="full", remat="full", scan_layers=True, new_token_rate=1.0),
        stage1=TrainConfig(learning_rate=1e-5, **stage),
        stage2=Stage2Config(learning_rate=5e-7, beta=0.3, **stage),
        datastore=DatastoreConfig(layer=layer, k=30),
        route=RouteConfig(tau=tau),
        answer=GroundedAnswerConfig(max_tokens=64, passages=5, batch_size=256),
    )


PRESETS = {
    "": SRRAGConfig(),
    "two-indexes": SRRAGConfig(
        sources=(
            SourceConfig("Self", "<Self>", "verbalise"),
            SourceConfig("Countries", "<Countries>", "search", prefix="country/"),
            SourceConfig("Cities", "<Cities>", "search", prefix="city/"),
        ),
        route=RouteConfig(decision="argmax_product"),
    ),
    "llama2-7b": _follow_paper("meta-llama/Llama-2-7b-chat-hf", tau=0.1, layer=15),
    "phi3.5-mini": _follow_paper("microsoft/Phi-3.5-mini-instruct", tau=0.2, layer=15),
    "qwen2.5-7b": _follow_paper("Qwen/Qwen2.5-7B-Instruct", tau=0.2, layer=11),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
