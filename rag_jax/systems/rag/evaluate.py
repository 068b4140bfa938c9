"""The comparison: every way of answering on the same questions; and the index swapped."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.gazetteer import build_world, list_changes
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.decoding.beams import BeamConfig
from rag_jax.evaluation.answers import bleu_1, compute_accuracy, exact_match, f1, rouge_l
from rag_jax.evaluation.rankings import answer_hits
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import BM25, Index, make_text
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.files import write_json, write_jsonl
from rag_jax.systems.rag import train
from rag_jax.systems.rag.data import pick_passages
from rag_jax.systems.rag.infer import Engine, Way
from rag_jax.systems.rag.lookup import load_refreshed

if TYPE_CHECKING:
    from rag_jax.systems.rag.pipeline import Session

# What an answer is scored by; the first decides.
SCORES = {
    "qa": ("exact_match", "f1"),
    "classification": ("accuracy",),
    "generation": ("rouge_l", "bleu_1"),
}
_HITS = (1, 5)  # depths of the hits reported, beside K
_TOGETHER = 32  # questions between two writes to disk


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What a search found for every question, best first, and the logits of `p(z|x)`."""

    scores: Float[np.ndarray, "N k"]
    rows: Int[np.ndarray, "N k"]


def list_methods(task: str) -> list[str]:
    """The rows of the report's table."""
    return [method for *_, methods in _list_readings(task, "fast") for method in methods.values()]


def list_columns(task: str, passages: int) -> tuple[str, ...]:
    """What the report's table shows of a run that reads K passages."""
    hits = [f"answer@{k}" for k in sorted({*_HITS, passages})] if task == "qa" else []
    return ("n", *SCORES[task], *hits, "seconds_per_question")


def summarize(rows: Sequence[dict[str, Any]], task: str) -> dict[str, Any]:
    """A method's numbers over its questions."""
    numbers: dict[str, Any] = {"n": len(rows)}
    if task == "generation":
        answers = [row["answers"] for row in rows]
        numbers["bleu_1"] = bleu_1([row["prediction"] for row in rows], answers)
    else:
        main = SCORES[task][0]
        numbers["ci95"] = compute_accuracy([row[main] for row in rows])[1]
    names = [name for name in rows[0] if name in SCORES[task] or name.startswith("answer@")]
    numbers |= {name: float(np.mean([row[name] for row in rows])) for name in names}
    seconds = float(np.mean([row["seconds"] for row in rows]))
    return numbers | {"seconds_per_question": seconds}


def _list_readings(task: str, main: Way) -> list[tuple[str, str | None, dict[Way, str]]]:
    """Whose generator reads whose passages, and the methods that this gives, by way of decoding.

    Labels are the only answers of a classification, so decoding is not searching.
    """
    together: dict[Way, str] = {way: way for way in ("token", "fast", "thorough")}
    return [
        ("joint", None, {"fast": "closed_book"}),
        ("joint", "bm25", {main: "bm25"}),
        ("frozen", "frozen", {main: "frozen"}),
        ("joint", "joint", {main: "joint"} if task == "classification" else together),
    ]


def make_engine(session: "Session", params: Any) -> Engine:
    """Some parameters of the generator, ready to answer."""
    c = session.config.decode
    search = BeamConfig(c.beams, c.length_penalty, c.early_stopping)
    return Engine(
        model=session.generator.model,
        params=params,
        form=session.form,
        max_tokens=c.max_tokens,
        search=search,
        batch_size=c.batch_size,
    )


def load_final_index(
    session: "Session", context: StageContext, corpus: Collection
) -> tuple[Index, Pretrained]:
    """The index that goes with the trained encoder, and the passages' encoder that made it.

    It is as it was before training, unless training refreshed it.
    """
    folder = context.path("joint", "")
    refreshed = list(folder.glob("passages-*.npy"))
    if not refreshed:
        return session.load_index(context, corpus), session.passage_encoder
    last = max(int(path.stem.removeprefix("passages-")) for path in refreshed)
    trained = train.load_trained(session, folder / "params", joint=True)
    encoder = dataclasses.replace(session.encoder, params=trained["query"])
    return load_refreshed(session, folder, last), encoder


def run_evaluation(session: "Session", context: StageContext) -> None:
    """Every method on the same questions.

    `frozen` has the generator trained with the retriever as it was; all others have the one that
    was trained together with the question's encoder: `closed_book` without passages, `bm25` with
    BM25's and its scores as the logits of `p(z|x)` (Lewis et al. 2020, section 4.5), the last three
    with the trained encoder's.
    """
    c, corpus = session.config, session.read_corpus(context)
    questions = session.pick_questions(corpus, c.evaluate_on, c.decode.questions)
    asked = [question.question for question in questions]
    depth = min(max(*_HITS, c.passages), len(corpus.passages))
    trained = {
        name: train.load_trained(session, context.path(name, "params"), joint=name == "joint")
        for name in ("frozen", "joint")
    }
    engines = {name: make_engine(session, tree["generator"]) for name, tree in trained.items()}

    def search(index: Index, name: str) -> Ranking:
        queries = session.encode_questions(trained[name]["query"], asked)
        scores, rows = index.search(queries, depth)
        return Ranking(c.retriever.scale * scores, rows)

    rankings = {
        "bm25": Ranking(*BM25.build(map(make_text, corpus.passages)).search(asked, depth)),
        "frozen": search(session.load_index(context, corpus), "frozen"),
        "joint": search(load_final_index(session, context, corpus)[0], "joint"),
    }
    for engine, ranking, methods in _list_readings(c.task, choose_way(session)):
        found = rankings.get(ranking)
        records = _answer(session, context, engines[engine], asked, corpus.passages, found, methods)
        for way, method in methods.items():
            graded = [
                grade(session, question, record["answers"][way], corpus.passages, found, i)
                | {"seconds": record["seconds"]}
                for i, (question, record) in enumerate(zip(questions, records, strict=True))
            ]
            write_jsonl(context.folder / f"{method}.jsonl", graded)


def _answer(
    session: "Session",
    context: StageContext,
    engine: Engine,
    asked: Sequence[str],
    passages: Sequence[Passage],
    found: Ranking | None,
    methods: dict[Way, str],
) -> list[dict[str, Any]]:
    """For each question its answer in every way, and the seconds that all took together."""
    is_choice = session.config.task == "classification"
    labels = session.list_labels(session.read_corpus(context)) if is_choice else []

    def run(batch: Sequence[int]) -> list[dict[str, Any]]:
        read, scores = [[None]] * len(batch), np.zeros((len(batch), 1), np.float32)
        if found is not None:
            k = session.config.passages
            read = pick_passages(passages, found.rows[batch, :k])
            scores = found.scores[batch, :k]
        clock = Clock()
        questions = [asked[i] for i in batch]
        if labels:
            best = engine.classify(questions, read, scores, labels).argmax(axis=1).tolist()
            given = {way: [labels[i] for i in best] for way in methods}
        else:
            found_by = engine.answer(questions, read, scores, ways=list(methods))
            given = {way: [answers[0][0] for answers in rows] for way, rows in found_by.items()}
        seconds = clock.read() / len(batch)
        return [
            {"answers": {way: given[way][b] for way in methods}, "seconds": seconds}
            for b in range(len(batch))
        ]

    names = "-".join(methods.values())
    return context.map_batches(
        f"answers_{names}.jsonl",
        range(len(asked)),
        run,
        batch_size=_TOGETHER,
        unit=f"questions ({names})",
    )


def choose_way(session: "Session") -> Way:
    """How the methods answer that are shown in one way: as they were trained."""
    return "token" if session.config.marginal == "token" else "thorough"


def grade(
    session: "Session",
    question: Question,
    prediction: str,
    passages: Sequence[Passage],
    found: Ranking | None,
    place: int,
) -> dict[str, Any]:
    """One question's record; hits are DPR's, whether a passage's text has an answer.

    Args:
        place: the question's row in what was found.
    """
    task, k = session.config.task, session.config.passages
    record = {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "prediction": prediction,
    }
    if task == "generation":
        record["rouge_l"] = rouge_l(prediction, question.answers)
    elif task == "classification":
        record["accuracy"] = exact_match(prediction, question.answers)
    else:
        record["exact_match"] = exact_match(prediction, question.answers)
        record["f1"] = f1(prediction, question.answers)
    if found is None:
        return record
    ranked = [passages[row] for row in found.rows[place].tolist()]
    if task == "qa":
        texts = [passage.text for passage in ranked]
        record |= answer_hits(texts, question.answers, sorted({*_HITS, k}))
    scores = found.scores[place, :k].tolist()
    read = zip(ranked[:k], scores, strict=True)
    return record | {"passages": [{"id": p.id, "score": score} for p, score in read]}


def run_memory(session: "Session", context: StageContext) -> None:
    """Asks about what the world's other revision changed, with the index of either.

    The knowledge is in the index: a model that was trained once gives the answers of whichever
    index it has (Lewis et al. 2020, section 4.5, "index hot-swapping"). No country is asked about
    that the training questions are about.
    """
    c, corpus = session.config, session.read_corpus(context)
    worlds = [
        build_world(**dataclasses.asdict(c.world) | {"revision": revision}) for revision in (0, 1)
    ]
    seen = {question.subject for question in worlds[0].questions["train"]}
    changes = [
        pair
        for pair in list_changes(
            cities=c.world.cities, countries=c.world.countries, seed=c.world.seed
        )
        if pair[0].subject not in seen
    ]
    order = np.random.default_rng(c.seed).permutation(len(changes))
    changes = [changes[i] for i in order[: c.decode.memory_questions]]
    asked = [old.question for old, _ in changes]
    trained = train.load_trained(session, context.path("joint", "params"), joint=True)
    engine = make_engine(session, trained["generator"])
    queries = session.encode_questions(trained["query"], asked)
    index, encoder = load_final_index(session, context, corpus)
    main = choose_way(session)
    table: list[list[str | float]] = [["index", "old facts", "new facts", "n"]]
    for name, world in zip(("old", "new"), worlds, strict=True):
        passages = world.passages
        changed = [i for i, p in enumerate(passages) if p != corpus.passages[i]]
        embeddings = index.embeddings.copy()
        if changed:
            embeddings[changed] = session.encode_passages(encoder, [passages[i] for i in changed])
        swapped = session.build_index(embeddings, passages)
        scores, rows = swapped.search(queries, c.passages)
        found = Ranking(c.retriever.scale * scores, rows)
        records = _answer(session, context, engine, asked, passages, found, {main: name})
        right = [
            np.mean(
                [
                    exact_match(record["answers"][main], pair[facts].answers)
                    for record, pair in zip(records, changes, strict=True)
                ]
            )
            for facts in (0, 1)
        ]
        table.append([f"{name} index", *map(float, right), str(len(changes))])
    write_json(context.folder / "memory.json", table)
