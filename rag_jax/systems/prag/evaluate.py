"""The comparison: every way of giving the model its passages, on the same questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_jax.data.batches import round_up
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import compute_accuracy, exact_match, f1, match
from rag_jax.pipeline.stage import StageContext, log
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.files import read_json, read_jsonl, write_json
from rag_jax.systems.prag.infer import Engine
from rag_jax.systems.prag.train import open_store

if TYPE_CHECKING:
    from rag_jax.systems.prag.pipeline import Session

COLUMNS = ("n", "exact_match", "f1", "match", "prompt_tokens", "seconds_per_question")
# For each method whether its prompt has the passages, and whose adapters are merged.
METHODS = {
    "direct": (False, None),
    "in_context": (True, None),
    "parametric": (False, "own"),
    "both": (True, "own"),
    "random": (False, "random"),
}


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A method's numbers over its questions; the interval is that of the exact match."""
    matches = [row["exact_match"] for row in rows]
    numbers: dict[str, Any] = {"n": len(rows)}
    for name in COLUMNS[1:]:
        numbers[name] = float(np.mean([row[name] for row in rows])) if rows else None
    numbers["ci95"] = compute_accuracy(matches)[1] if rows else (0.0, 1.0)
    return numbers


def draw_others(
    questions: Sequence[Question],
    found: Sequence[Sequence[str]],
    encoded: Sequence[str],
    *,
    seed: int,
) -> list[list[str]]:
    """For each question as many documents as it found, none of them found or relevant."""
    drawn = []
    for i, (question, own) in enumerate(zip(questions, found, strict=True)):
        others = [id for id in encoded if id not in own and id not in question.relevant]
        rng = np.random.default_rng((seed, i))
        drawn.append([others[j] for j in rng.permutation(len(others))[: len(own)]])
    return drawn


def run_evaluation(session: "Session", context: StageContext) -> None:
    """Answers all questions in every way; what an adapter costs is in `adapters.json`."""
    c, corpus = session.config, session.read_corpus(context)
    questions = session.list_questions(corpus, c.evaluate_on, c.questions)
    documents = {passage.id: passage for passage in session.list_documents(context)}
    records = read_jsonl(context.path("retrieve", "found.jsonl"))
    found = [record["passages"] for record in records]
    stores = {name: open_store(session, context, name) for name in session.variants}
    encoded = [id for id in documents if id in stores["encode"]]
    choices = {None: [[]] * len(found), "own": found}
    choices["random"] = draw_others(questions, found, encoded, seed=c.seed)
    prompts = {
        given: [
            session.form.encode_prompt(q.question, [documents[id] for id in ids] if given else ())
            for q, ids in zip(questions, found, strict=True)
        ]
        for given in (False, True)
    }
    session.check_length(max(map(len, prompts[True])) + c.answer.max_tokens)
    lost: dict[str, str] = {}
    loads: list[float] = []

    def answer(name: str, given: bool, ids: Sequence[Sequence[str]], store: Any) -> None:
        engine = Engine(
            model=session.base.model,
            params=session.base.params,
            form=session.form,
            settings=c.answer,
            scale=c.tuning.scale,
            documents=c.retrieve.passages,
            width=round_up(max(map(len, prompts[given])), 32),
        )

        def run(batch: Sequence[int]) -> list[dict[str, Any]]:
            clock = Clock()
            read = [prompts[given][i] for i in batch]
            answers = engine.answer(read, store, [ids[i] for i in batch])
            seconds = clock.read() / len(batch)
            load = 1000 * answers.load_seconds / answers.loaded if answers.loaded else None
            return [
                grade(questions[i], text)
                | {"prompt_tokens": len(prompts[given][i]), "seconds_per_question": seconds}
                | {"passages": found[i] if given else [], "adapters": ids[i], "load_ms": load}
                | {"lost": {id: answers.lost[id] for id in ids[i] if id in answers.lost}}
                for i, text in zip(batch, answers.texts, strict=True)
            ]

        records = context.map_batches(
            f"{name}.jsonl",
            range(len(questions)),
            run,
            batch_size=c.answer.batch_size,
            unit=f"questions ({name})",
        )
        for record in records:
            lost.update(record["lost"])
        loads.extend(record["load_ms"] for record in records if record["load_ms"] is not None)

    for name, (given, kind) in METHODS.items():
        answer(name, given, choices[kind], kind and stores["encode"])
    for name in session.list_ablations():
        answer(name, False, found, stores[name])
    for reason in lost.values():
        log(f"answered without it: {reason}")
    sizes = [stores["encode"].count_bytes(id) for id in encoded]
    write_json(
        context.folder / "adapters.json",
        {
            "documents": len(encoded),
            "bytes_per_document": float(np.mean(sizes)) if sizes else 0.0,
            "load_ms_per_document": float(np.mean(loads)) if loads else 0.0,
            "lost": lost,
        },
    )


def grade(question: Question, prediction: str) -> dict[str, Any]:
    """A prediction with its question and scores."""
    return {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "type": question.type,
        "prediction": prediction,
        "exact_match": exact_match(prediction, question.answers),
        "f1": f1(prediction, question.answers),
        "match": match(prediction, question.answers),
    }


def tabulate_types(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[list[str | float]]:
    """F1 by type of question, a row for each method."""
    types = sorted({row["type"] for rows in predictions.values() for row in rows})
    table: list[list[str | float]] = [["method", *types]]
    for name, rows in predictions.items():
        scores = ([row["f1"] for row in rows if row["type"] == type_] for type_ in types)
        table.append([name, *(float(np.mean(some)) for some in scores)])
    return table


def tabulate_adapters(stages: Path) -> list[list[str | float]]:
    """What the documents' adapters took to make and take to use, of a finished run."""
    made = read_json(stages / "encode" / "groups.json")
    used = read_json(stages / "evaluate" / "adapters.json")
    return [
        ["", "value"],
        ["documents encoded", str(used["documents"])],
        ["trained together", str(made["size"])],
        ["tokens trained on", str(made["tokens"])],
        ["share of padding", made["padding"]],
        ["programs compiled", str(made["programs"])],
        ["bytes a document", f"{used['bytes_per_document']:.0f}"],
        ["milliseconds to load a document", used["load_ms_per_document"]],
    ]
