"""Self-Retrieval on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/self_retrieval.py
    python launch/ask.py --config=configs/self_retrieval.py "QUESTION"    # once it has ended

Cost: 643 and 700 s in two runs on two CPU cores, 129 and 111 of them compiling; 4.6 GB of memory;
176 MB of downloads. `--config.ablations=True` trains two more models and takes twice as long.

Score, 100 test questions, hits@1 with 95 % interval, hits@5, MRR@5 and exact match of the answer:
BM25 0.160 +- 0.072, 0.700, 0.374, 0.530; the dense encoder as it was 0.530 +- 0.096, 1.000, 0.746,
0.860; trained on the same 100 questions 0.950 +- 0.045, 1.000, 0.975, 0.940; Self-Retrieval 0.930
+- 0.052, 0.990, 0.958, 0.890; without self-assessment 0.230 +- 0.082, 0.990, 0.565, 0.590; without
indexing 0.770 +- 0.082, 0.990, 0.854, 0.850; without titles 0.350 +- 0.092, 1.000, 0.608, 0.520.

`search.over` was chosen on 60 development questions (`--config.evaluate_on=dev`) of a world of a
hundred countries: with the released code's softmax over the passages of one title hits@1 was 0.500,
over all passages 0.933, for a title with a single passage, as talk pages have, has no other that
its doubt could go to.

Ten articles of SQuAD's development set, 413 passages, 160 questions to train on and 80 to test
(`FOLDER` has them as the lines below make them, from a folder with `dev_passages.jsonl` and
`dev_questions.jsonl`):

    python launch/train.py --config=configs/self_retrieval.py --config.data.path=FOLDER

    import json, pathlib, random
    source, folder = pathlib.Path("squad"), pathlib.Path("FOLDER")
    read = lambda name: [json.loads(line) for line in open(source / name, encoding="utf-8")]
    passages, questions = read("dev_passages.jsonl"), read("dev_questions.jsonl")
    titles = list(dict.fromkeys(p["title"] for p in passages))[:10]
    asked = random.Random(0).sample([q for q in questions if q["title"] in titles], 300)
    folder.mkdir()
    parts = {
        "passages": [p for p in passages if p["title"] in titles],
        "train_questions": asked[:160],
        "dev_questions": asked[160:220],
        "test_questions": asked[220:],
    }
    for name, rows in parts.items():
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for row in rows:
                print(json.dumps(row), file=file)

hits@1, hits@5, MRR@5, the right document first, exact match: BM25 0.750 +- 0.093, 0.950, 0.834,
0.963, 0.163; the dense encoder as it was 0.550 +- 0.107, 0.787, 0.644, 0.963, 0.100; trained 0.588
+- 0.105, 0.812, 0.669, 0.963, 0.125; Self-Retrieval 0.050 +- 0.051, 0.163, 0.100, 0.900, 0.025. So
a model of 135M that has seen one sentence of each passage, once, finds the article and not the
paragraph in it, of which there are forty. Training took 1,017 s on a machine shared with other
programs.
"""

import ml_collections

from rag_jax.config import (
    ReaderConfig,
    TrainConfig,
    TuningConfig,
    choose_preset,
    to_config_dict,
)
from rag_jax.systems.self_retrieval.config import (
    ExamplesConfig,
    SearchConfig,
    SelfRetrievalConfig,
)


def _follow_paper(name: str) -> SelfRetrievalConfig:
    """The paper's recipe for a model: five titles, ten passages each, three epochs at 2e-5."""
    return SelfRetrievalConfig(
        ablations=True,
        model=ReaderConfig(name=name, dtype="bfloat16", vocab_multiple=128, max_text=512),
        examples=ExamplesConfig(sentences=3, same=5, other=5),
        tuning=TuningConfig(mode="full", remat="full"),
        train=TrainConfig(
            epochs=3,
            batch_size=128,
            learning_rate=2e-5,
            warmup_fraction=0.03,
            microbatch_tokens=65_536,
            checkpoint_every=500,
        ),
        search=SearchConfig(titles=5, passages=10, batch_size=64),
    )


PRESETS = {
    "": SelfRetrievalConfig(
        examples=ExamplesConfig(target="prefix", same=1, other=1),
        search=SearchConfig(over="all"),
    ),
    "stablelm-3b": _follow_paper("stabilityai/stablelm-3b-4e1t"),
    "llama2-7b": _follow_paper("meta-llama/Llama-2-7b-hf"),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
