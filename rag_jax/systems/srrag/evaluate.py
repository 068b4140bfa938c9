"""The policy datastore and the comparison: what the trained model does with each source."""

import base64
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.batches import round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.evaluation.answers import compute_accuracy, popularity_thirds
from rag_jax.pipeline.runner import StageContext
from rag_jax.pipeline.stage import log
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.files import read_jsonl, write_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_over_devices
from rag_jax.systems.srrag import tune, untrained
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.policy import Datastore, decide, scale_keys, vote
from rag_jax.systems.srrag.sources import make_search

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session


COLUMNS = (
    "n",
    "accuracy",
    "head",
    "middle",
    "tail",
    "retrieval_rate",
    "prompt_tokens",
    "generated_tokens",
    "seconds_per_question",
)


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A method's numbers over its questions.

    Thirds are of the questions whose subject's popularity is known. `contains_answer` is the
    accuracy of Self-RAG, letter for letter, which questions with choices lack.
    """
    scores = [row["correct"] for row in rows]
    accuracy, interval = compute_accuracy(scores) if rows else (0.0, (0.0, 1.0))
    thirds = popularity_thirds([row["popularity"] for row in rows])
    numbers = {"n": len(rows), "accuracy": accuracy, "ci95": interval}
    for third in ("head", "middle", "tail") if any(thirds) else ():
        members = [score for score, name in zip(scores, thirds, strict=True) if name == third]
        numbers[third] = float(np.mean(members)) if members else None
    if contained := [row["contains_answer"] for row in rows if "contains_answer" in row]:
        numbers["contains_answer"] = float(np.mean(contained))
    for name, field in {
        "exact_match": "exact_match",
        "retrieval_rate": "retrieved",
        "prompt_tokens": "prompt_tokens",
        "generated_tokens": "generated_tokens",
        "seconds_per_question": "seconds",
    }.items():
        numbers[name] = float(np.mean([row[field] for row in rows])) if rows else None
    # Verbalisations that reached the limit, and searches that found nothing.
    return numbers | {name: sum(row[name] for row in rows) for name in ("cut_off", "fell_back")}


def make_engine(
    session: "Session",
    context: StageContext,
    corpus: Collection,
    *,
    trained: str = "stage2",
    made: StageContext | None = None,
) -> Engine:
    """The model that a stage trained, ready to route, learn and answer.

    Args:
        made: has that stage, where it is of another work folder than the index.
    """
    c, made = session.config, made or context
    return Engine(
        model=session.base.model,
        params=tune.load_tuned(session, made.path(trained, "params")),
        form=session.form,
        search=make_search(session, context, corpus, c.answer.passages),
        layer=c.datastore.layer,
        batch_size=c.answer.batch_size,
        max_knowledge=c.verbalise.max_tokens,
        knowledge_width=measure_knowledge(session, corpus.passages),
        max_answer=c.answer.max_tokens,
    )


def measure_knowledge(session: "Session", passages: Sequence[Passage]) -> int:
    """Slots for whatever knowledge any source can give."""
    c, form = session.config, session.form
    texts = (join_passages([(p.title, form.shorten(p.text))]) for p in passages)
    longest = max(len(form.encode_knowledge(text)) for text in texts)
    return round_up(1 + max(c.verbalise.max_tokens, c.answer.passages * longest), 16)


def run_datastore(session: "Session", context: StageContext, *, trained: str = "stage2") -> None:
    """Which source works better for each training question, now that the model is tuned."""
    corpus = session.read_corpus(context)
    engine = make_engine(session, context, corpus, trained=trained)
    sources = session.config.sources

    def roll_out(batch: Sequence[Question]) -> list[dict[str, Any]]:
        asked = [question.question for question in batch]
        routed = engine.route(asked)
        scores = []
        for source in range(len(sources)):
            learned = engine.learn(routed, range(len(batch)), source, asked)
            values = engine.score_answers(learned, [q.answers[0] for q in batch])
            # A source with nothing to say is never the better one.
            scores.append(np.where(learned.found, values, np.finfo(np.float32).min))
        keys = fetch(scale_keys(routed.key, session.config.datastore.metric))
        return [
            {
                "id": question.id,
                "source": int(np.argmax([values[i] for values in scores])),
                "scores": [float(values[i]) for values in scores],
                "key": base64.b64encode(keys[i].tobytes()).decode(),
            }
            for i, question in enumerate(batch)
        ]

    records = context.map_batches(
        "datastore.jsonl",
        session.list_training(corpus),
        roll_out,
        batch_size=engine.batch_size,
        unit="questions",
    )
    shares = np.bincount([r["source"] for r in records], minlength=len(sources)) / len(records)
    names = [source.name for source in sources]
    statistics = {"n": len(records), "share": dict(zip(names, shares.tolist(), strict=True))}
    write_json(context.folder / "statistics.json", statistics)
    if shares.max() == 1:
        log(
            f"stage {context.folder.name}: {names[shares.argmax()]} works better for every "
            "training question; the vote tells no two questions apart"
        )


def read_datastore(
    session: "Session", context: StageContext, stage: str = "datastore"
) -> Datastore:
    """The datastore on the devices."""
    records = read_jsonl(context.path(stage, "datastore.jsonl"))
    session.check_size(len(records))
    keys = np.stack([np.frombuffer(base64.b64decode(r["key"]), np.float32) for r in records])
    labels = np.asarray([r["source"] for r in records], np.int32)
    return Datastore(shard_over_devices(keys), jnp.asarray(labels), session.config.datastore.metric)


def run_evaluation(
    session: "Session", context: StageContext, made: StageContext | None = None
) -> None:
    """Every method on the same questions.

    Args:
        made: has the tuned model and the datastore, where they are of another work folder.
    """
    c, made = session.config, made or context
    corpus = session.read_corpus(context)
    questions = session.list_questions(corpus)
    engine = make_engine(session, context, corpus, made=made)
    datastore = read_datastore(session, made)

    predictions = {
        "direct": context.map_batches(
            "direct.jsonl",
            questions,
            partial(untrained.answer_directly, session),
            batch_size=4 * c.answer.batch_size,
            unit="questions (direct)",
        )
    }
    passes = answer_with_all(context, engine, datastore, questions, c, file="passes.jsonl")
    for method, (chosen, scores) in list_policies(c, passes).items():
        predictions[method] = follow(c, questions, passes, chosen, scores)
    write_json(context.folder / "predictions.json", predictions)


def answer_with_all(
    context: StageContext,
    engine: Engine,
    datastore: Datastore | None,
    questions: Sequence[Question],
    config: SRRAGConfig,
    *,
    file: str,
) -> list[dict[str, Any]]:
    """Routes every question and answers it from each source.

    The SR-RAG pass is run as it is used: route, then the chosen source alone. The other sources
    then go on from the same cache.

    Args:
        datastore: None routes by the model's probabilities alone.
        file: keeps what was done so far.

    Returns:
        For each question the `votes` and, in the order of the sources, the `answers`.
    """
    count = len(config.sources)

    def run(batch: Sequence[Question]) -> list[dict[str, Any]]:
        asked = [question.question for question in batch]
        clock = Clock()
        routed = engine.route(asked)
        probabilities = fetch(routed.probabilities)
        votes = np.ones_like(probabilities)
        if datastore:
            nobody = jnp.full(len(votes), -1)  # these questions have no entry themselves
            votes = fetch(
                vote(datastore, routed.key, nobody, k=config.datastore.k, num_sources=count)
            )
        chosen = choose(config, probabilities, votes)[: len(batch)]
        routing = clock.read() / len(batch)
        answers: list[dict[int, dict[str, Any]]] = [{} for _ in batch]
        for follows in (np.equal, np.not_equal):
            for source in range(count):
                rows = np.flatnonzero(follows(chosen, source))
                clock = Clock()
                answered = engine.answer_questions(routed, rows, source, asked)
                seconds = routing + clock.read() / max(len(rows), 1)
                for row, record in answered.items():
                    answers[row][source] = record | {"seconds": seconds}
        return [
            {"votes": votes[i], "answers": [answers[i][source] for source in range(count)]}
            for i in range(len(batch))
        ]

    return context.map_batches(
        file,
        questions,
        run,
        batch_size=4 * config.answer.batch_size,
        unit="questions (all sources)",
    )


def choose(
    config: SRRAGConfig, probabilities: Float[np.ndarray, "N S"], votes: Float[np.ndarray, "N S"]
) -> Int[np.ndarray, "N"]:
    """The sources by the run's decision."""
    return decide(
        np.asarray(probabilities, float),
        np.asarray(votes, float),
        [source.kind for source in config.sources],
        tau=config.route.tau,
        decision=config.route.decision,
    )


Policy = tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N S"]]


def list_policies(config: SRRAGConfig, passes: Sequence[dict[str, Any]]) -> dict[str, Policy]:
    """For each method the source that it chooses for every question, and the sources' scores that
    the choice is by: the policy's products, or without the datastore the probabilities alone.

    Always retrieving is from the source with the largest product, and where there are several
    searched sources also from each of them.
    """
    probabilities = np.asarray([found["answers"][0]["probabilities"] for found in passes])
    votes = np.asarray([found["votes"] for found in passes])
    products, alone = probabilities * votes, np.ones_like(votes)
    kinds = [source.kind for source in config.sources]
    external = [number for number, kind in enumerate(kinds) if kind == "search"]
    always = {"verbalise": np.full(len(passes), kinds.index("verbalise"))}
    always["retrieve"] = np.asarray(external)[products[:, external].argmax(axis=1)]
    if len(external) > 1:
        for number in external:
            name = f"retrieve_{config.sources[number].name}"
            always[name] = np.full(len(passes), number)
    policies = {name: (chosen, products) for name, chosen in always.items()}
    policies["srrag"] = (choose(config, probabilities, votes), products)
    policies["without_knn"] = (choose(config, probabilities, alone), probabilities)
    return policies


def follow(
    config: SRRAGConfig,
    questions: Sequence[Question],
    passes: Sequence[dict[str, Any]],
    chosen: Int[np.ndarray, "N"],
    scores: Float[np.ndarray, "N S"],
) -> list[dict[str, Any]]:
    """A method's records: answers from the sources that it chooses, and how the others fared."""
    rows = []
    for question, found, number, worth in zip(
        questions, passes, chosen.tolist(), scores.tolist(), strict=True
    ):
        answers = found["answers"]
        facts = {
            "number": number,
            "votes": found["votes"],
            "scores": worth,
            "retrieved": float(config.sources[number].kind == "search"),
            "correct_by_source": [
                untrained.judge(question, record["prediction"]) for record in answers
            ],
        }
        rows.append(untrained.grade(question, answers[number] | facts))
    return rows
