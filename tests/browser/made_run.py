"""Small runs with everything that a page shows, and what each question's record says."""

import numpy as np

from rag_jax.data.passages import Passage, write_passages
from rag_jax.data.questions import PASSAGES, Question, store_questions
from rag_jax.evaluation.figures import Bars, Chart, Costs
from rag_jax.evaluation.report import write_report
from rag_jax.runtime.files import write_jsonl

COUNT = 120  # questions, more than two pages of the list
HOSTILE = "</script><img src=x onerror=window.hit=1><script>window.hit=1</script>\u2028<!--"
SOURCES = ("Self", "Wiki")
SETS, TYPES = ("places", "people"), ("capital", "birth")
FIGURES = {
    "Frontier": Chart(
        "retrieval rate",
        "accuracy",
        {"routed": [(0.0, 0.25), (0.5, 0.75), (1.0, 0.5)]},
        {"routed": (0.5, 0.75), "alone": (0.0, 0.125)},
        {"at random": [(0.0, 0.25), (1.0, 0.5)]},
    ),
    "Thirds": Bars("accuracy", ["head", "tail"], {"alone": [0.5, None], "routed": [1.0, 0.25]}),
    "Costs": Costs(
        "seconds", "accuracy", {"a": (0.0, 0.5), "b": (20.0, 1.0)}, {"a": "x", "b": "y"}
    ),
}


def list_questions(count=COUNT, first=0):
    asked = [
        Question(
            id=f"q/{n}",
            question=f"Question {n}: {HOSTILE}" if n == 3 else f"Where is the town {n}?",
            answers=(f"Land {n}",),
            relevant={f"p{n % 7}": 1},
            type=TYPES[n % 2],
            popularity=None if n % 10 == 9 else (n * 7919) % 1000,
            dataset=SETS[n % 3 == 0],
        )
        for n in range(first, first + count)
    ]
    return asked


def make_records(questions, seed, method):
    """A method's records; `routed` chooses a source, reads passages and has probabilities."""
    rng, records = np.random.default_rng(seed), []
    for n, question in enumerate(questions):
        right = float(rng.random() < 0.6)
        record = {
            "id": question.id,
            "question": question.question,
            "answers": list(question.answers),
            "dataset": question.dataset,
            "prediction": f"{question.answers[0] if right else HOSTILE} said {method}",
            "seconds": 0.5,
            "correct": right,
            "f1": float(rng.random()),
        }
        if method == "routed":
            share = float(rng.random())
            number = int(share > 0.5)
            found = [{"id": f"p{(n + k) % 7}", "score": 9.5 - k} for k in range(3)]
            record |= {
                "source": SOURCES[number],
                "probabilities": [1 - share, share],
                "votes": [0.25, 0.75],
                "correct_by_source": [right, 0.0] if number == 0 else [0.0, right],
                "knowledge": f"[1] knowledge of {question.answers[0]} and more",
                **({"passages": found} if number else {}),
            }
        records.append(record)
    return records


def write_run(folder, *, seed=0, questions=None, methods=("alone", "routed")):
    """A work folder with a report; returns each method's records."""
    questions = list_questions() if questions is None else questions
    corpus = folder / "stages" / "corpus"
    (folder / "stages" / "train").mkdir(parents=True)
    corpus.mkdir()
    passages = (
        Passage(f"p{n}", f"Title {n}", f"Passage {n} of Land {n}. {HOSTILE}") for n in range(7)
    )
    write_passages(corpus / PASSAGES, passages)
    store_questions(corpus, {"test": questions})
    log = [{"step": n, "loss": 4.0 / (1 + n + seed), "grad_norm": 1.0} for n in range(12)]
    write_jsonl(folder / "stages" / "train" / "log.jsonl", log)
    records = {name: make_records(questions, (seed, i), name) for i, name in enumerate(methods)}
    numbers = {
        name: {"n": len(rows), "accuracy": float(np.mean([row["correct"] for row in rows]))}
        for name, rows in records.items()
    }
    stage = {
        "name": "train",
        "seconds": 12.5,
        "compile_seconds": 2.0,
        "programs": {
            "train_step": {
                "compile_times": 1,
                "compile_seconds": 1.5,
                "read_times": 2,
                "read_seconds": 0.25,
            }
        },
        "peak_bytes": 5,
        "reused": False,
    }
    write_report(
        folder,
        system="srrag",
        config={"sources": [{"name": name} for name in SOURCES]},
        model=f"model {HOSTILE}",
        dataset="made",
        methods=numbers,
        stages=[{**stage, "name": "corpus", "programs": {}}, stage],
        predictions=records,
        columns=("n", "accuracy"),
        scores={"accuracy": "correct", "f1": "f1"},
        tables={f"A table {HOSTILE}": [["x", "y"], [HOSTILE, 0.5]]},
        figures=FIGURES,
    )
    return records
