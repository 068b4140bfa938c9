"""Self-Routing RAG on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/srrag.py
    python launch/ask.py --config=configs/srrag.py "QUESTION"    # once it has ended

Cost: 12.5 minutes on two CPU cores, 2.1 of them compiling; 6.6 GB of memory; 176 MB of downloads.

Score, 300 test questions, accuracy with 95 % interval (share of retrievals): direct 0.210 +- 0.046,
verbalise 0.520 +- 0.056 (0), retrieve 0.957 +- 0.024 (1), srrag 0.937 +- 0.028 (0.757).

Chosen on the development split (`--config.evaluate_on=dev`): `route.tau`, the least hundredth that
kept retrieval below 80 % of the questions; learning rates; batch sizes; the losses' reduction.
Where the paper leaves a choice open, `rag_jax/systems/srrag/config.py` names it.

`--config.ablations=True` also trains and evaluates what the method is compared with: the untrained
model on each source, selective retrieval, and the method without verbalising in its labels and with
stage 1's loss in stage 2. It trains four times more and keeps what is already made.
Accuracy and share of retrievals on the test questions: untrained model verbalising 0.353, 0, and
retrieving 0.667, 1; selective retrieval 0.927 +- 0.030, 0.927; SR-RAG 0.937 +- 0.028, 0.757;
without kNN 0.950, 0.880; without verbalising 0.947, 0.897; without stage 2's preferences 0.933,
0.780. It took 110 minutes on a machine whose two cores were shared with several other programs.

`:two-indexes --config.train_questions=150 --config.questions=100`, 950 s beside other programs:
direct 0.190, verbalise 0.530 +- 0.096, countries alone 0.420, cities alone 0.840, the likelier of
the two 0.930 +- 0.052, srrag 0.920 +- 0.054 at 0.740 retrievals, without kNN 0.900 at 0.790.

On PopQA (`FOLDER` is made by the lines below, from a folder with its `questions.jsonl` and
`passages.jsonl`: the questions about subjects that have a passage and a known popularity, split by
subject, so that none is both trained on and asked about):

    python launch/train.py --config=configs/srrag.py --config.data.path=FOLDER
        --config.train_questions=100 --config.questions=100 --config.evaluate_on=dev
        --config.model.max_text=64 --config.encoder.max_length=64

    import json, pathlib, random
    source, folder = pathlib.Path("popqa"), pathlib.Path("FOLDER")
    read = lambda name: [json.loads(line) for line in open(source / name, encoding="utf-8")]
    passages, questions = read("passages.jsonl"), read("questions.jsonl")
    titles = {p["title"] for p in passages}
    about = lambda q: q["s_wiki_title"]
    asked = [q for q in questions if q["s_pop"] is not None and about(q) in titles]
    subjects = sorted(set(map(about, asked)))
    random.Random(0).shuffle(subjects)
    parts = {"train": subjects[:400], "dev": subjects[400:600], "test": subjects[600:]}
    files = {"passages": passages}
    for name, part in parts.items():
        files[f"{name}_questions"] = [q for q in asked if about(q) in part]
    folder.mkdir()
    for name, rows in files.items():
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for row in rows:
                print(json.dumps(row), file=file)

100 development questions over 7,180 passages, accuracy with 95 % interval, by thirds of popularity
(head, middle, tail), share of retrievals: direct 0.060 +- 0.048 (0.118, 0.030, 0.030), 0; verbalise
0.120 +- 0.064 (0.088, 0.121, 0.152), 0; retrieve 0.290 +- 0.088 (0.206, 0.242, 0.424), 1; srrag
0.290 +- 0.088 (0.206, 0.242, 0.424), 0.960. Self-RAG's metric, letter for letter, gives the same.
An answer stands in the first passage of 48 questions. The model knows next to nothing of such
subjects, so nearly everything is retrieved, as in the paper (0.96 to 0.99). `route.tau` is that of
the encyclopedia. It took 54 minutes on a machine whose two cores were shared with several other
programs, 9 of them for the index; 7.2 GB of memory. `launch/evaluate.py` asks that run 60 questions
of TriviaQA over 3,460 passages of its own, which it was never trained on, in 200 s: direct 0.050 +-
0.060, verbalise 0.100 +- 0.077, retrieve and srrag 0.233 +- 0.105 (0.183 letter for letter), for it
retrieves for every question.

PubHealth's first 507 true or false claims, of which 60 are trained on and 60 others asked, with the
passages that come with them (`--config.data.path=FOLDER --config.train_questions=60
--config.questions=60 --config.verbalise.pool=32 --config.model.max_text=128
--config.encoder.max_length=128`, 19 minutes beside other programs): direct 0.667 +- 0.116, and
0.600 +- 0.120 for verbalise, retrieve and srrag, at 0.050 retrievals: after so little training a
model of this size says "true" of every claim, whatever it reads.

Preset `two-indexes` has three sources: the model, and the passages about countries and those about
cities as two indexes, each with its token; the source with the largest product is asked.

Presets `llama2-7b`, `phi3.5-mini` and `qwen2.5-7b` are the paper's recipe (full tuning, batches of
64, learning rates 1e-5 and 5e-7, five contexts a source, 150 tokens a verbalisation) on the
built-in encyclopedia; `launch/plan.py` says which slices hold them.

    python launch/plan.py --config=configs/srrag.py:llama2-7b --topology=v5e:8x8
"""

import ml_collections

from rag_jax.config import (
    EncoderConfig,
    ReaderConfig,
    TrainConfig,
    WorldConfig,
    choose_preset,
    to_config_dict,
)
from rag_jax.systems.srrag.config import (
    DatastoreConfig,
    GroundedAnswerConfig,
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
    stage = {"batch_size": 64, "microbatch_tokens": 65536, "checkpoint_every": 100}
    return SRRAGConfig(
        contexts=5,
        extra_mean=2.0,
        model=ReaderConfig(name=name, dtype="bfloat16", vocab_multiple=128),
        encoder=EncoderConfig(max_length=256, batch_size=1024),
        world=WorldConfig(cities=30000, train=50000, dev=2000, test=4000),
        verbalise=VerbaliseConfig(max_tokens=150, pool=2048, batch_size=256),
        label=LabelConfig(batch_size=256),
        tuning=NewTokensConfig(mode="full", remat="full"),
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
