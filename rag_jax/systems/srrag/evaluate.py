"""The policy datastore and the comparison: what the trained model does with each source."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from rag_jax import metrics
from rag_jax.compiling import Clock
from rag_jax.data.batches import round_up
from rag_jax.data.gazetteer import Question, World
from rag_jax.decoding import generate
from rag_jax.files import read_jsonl, write_json
from rag_jax.hosts import fetch
from rag_jax.pipeline import StageContext
from rag_jax.sharding import spread
from rag_jax.systems.srrag import contexts as base_model
from rag_jax.systems.srrag import tune
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.policy import Datastore, decide, scale_keys, vote

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A method's numbers over its questions; thirds are by the subject's popularity."""
    scores = [row["correct"] for row in rows]
    accuracy, interval = metrics.compute_accuracy(scores) if rows else (0.0, (0.0, 1.0))
    thirds = metrics.popularity_thirds([row["popularity"] for row in rows])
    numbers = {"n": len(rows), "accuracy": accuracy, "ci95": interval}
    for third in ("head", "middle", "tail"):
        members = [score for score, name in zip(scores, thirds, strict=True) if name == third]
        numbers[third] = float(np.mean(members)) if members else None
    numbers["exact_match"] = float(np.mean([row["exact_match"] for row in rows])) if rows else None
    numbers["retrieval_rate"] = float(np.mean([row["retrieved"] for row in rows])) if rows else None
    seconds = float(np.mean([row["seconds"] for row in rows])) if rows else None
    return numbers | {"seconds_per_question": seconds}


def make_engine(session: "Session", context: StageContext, world: World) -> Engine:
    """The trained model, ready to route, learn and answer."""
    c, form = session.config, session.form
    passages = [form.encode_knowledge(f"[1] {p.title}: {p.text}") for p in world.passages]
    longest = max(c.verbalise.max_tokens, c.answer.passages * max(map(len, passages)))
    return Engine(
        model=session.base.model,
        params=tune.load_tuned(session, context.path("stage2", "params")),
        form=form,
        search=session.make_search(context, world, c.answer.passages),
        layer=c.datastore.layer,
        batch_size=c.answer.batch_size,
        max_knowledge=c.verbalise.max_tokens,
        knowledge_width=round_up(1 + longest, 16),
        max_answer=c.answer.max_tokens,
    )


def run_datastore(session: "Session", context: StageContext) -> None:
    """Which source works better for each training question, now that the model is tuned."""
    world = session.read_world(context)
    engine = make_engine(session, context, world)

    def roll_out(batch: Sequence[Question]) -> list[dict[str, Any]]:
        asked = [question.question for question in batch]
        routed = engine.route(asked)
        scores = []
        for source in range(len(session.config.sources)):
            cache, _, active = engine.learn(routed, range(len(batch)), source, asked)
            scores.append(engine.score_answers(cache, [q.answers[0] for q in batch], active))
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

    context.map_batches(
        "datastore.jsonl",
        world.questions["train"],
        roll_out,
        batch_size=engine.batch_size,
        unit="questions",
    )


def read_datastore(session: "Session", context: StageContext) -> Datastore:
    """The datastore on the devices."""
    records = read_jsonl(context.path("datastore", "datastore.jsonl"))
    keys = np.stack([np.frombuffer(base64.b64decode(r["key"]), np.float32) for r in records])
    labels = np.asarray([r["source"] for r in records], np.int32)
    return Datastore(spread(keys), jnp.asarray(labels), session.config.datastore.metric)


def run_evaluation(session: "Session", context: StageContext) -> None:
    """Every method on the same questions.

    The SR-RAG pass is run as it is used: route, then the chosen source alone. The two fixed
    policies then go on from the same cache with whatever source was not chosen.
    """
    c = session.config
    world = session.read_world(context)
    questions = world.questions[c.evaluate_on]
    engine = make_engine(session, context, world)
    datastore = read_datastore(session, context)
    kinds = [source.kind for source in c.sources]
    fixed = {"verbalise": kinds.index("verbalise"), "retrieve": kinds.index("search")}

    def answer_directly(batch: Sequence[Question]) -> list[dict[str, Any]]:
        clock = Clock()
        predictions = predict_directly(session, [question.question for question in batch])
        seconds = clock.read() / len(batch)
        return [
            grade(q, {"prediction": text, "retrieved": 0.0, "seconds": seconds})
            for q, text in zip(batch, predictions, strict=True)
        ]

    def answer_all(batch: Sequence[Question]) -> list[dict[str, Any]]:
        asked = [question.question for question in batch]
        clock = Clock()
        routed = engine.route(asked)
        nobody = jnp.full(routed.key.shape[0], -1)  # these questions have no entry themselves
        votes = fetch(vote(datastore, routed.key, nobody, k=c.datastore.k, num_sources=len(kinds)))
        chosen = decide(
            fetch(routed.probabilities),
            votes,
            kinds,
            tau=c.route.tau,
            decision=c.route.decision,
        )
        chosen = chosen[: len(batch)]
        routing = clock.read() / len(batch)

        def follow(wanted: np.ndarray, known: dict[int, Any]) -> dict[int, dict[str, Any]]:
            records = {r: known[r] for r in known if known[r]["number"] == wanted[r]}
            for source in range(len(kinds)):
                rows = [r for r in np.flatnonzero(wanted == source) if r not in records]
                clock = Clock()
                answered = engine.answer_questions(routed, rows, source, asked)
                seconds = routing + clock.read() / max(len(rows), 1)
                for row, record in answered.items():
                    facts = {"number": source, "votes": votes[row], "seconds": seconds}
                    retrieved = float(kinds[source] == "search")
                    records[row] = {**record, **facts, "retrieved": retrieved}
            return records

        methods = {"srrag": follow(chosen, {})}
        for method, source in fixed.items():
            methods[method] = follow(np.full(len(batch), source), methods["srrag"])
        return [
            {name: grade(q, rows[i]) for name, rows in methods.items()} for i, q in enumerate(batch)
        ]

    size = 4 * c.answer.batch_size
    records = context.map_batches(
        "direct.jsonl",
        questions,
        answer_directly,
        batch_size=size,
        unit="questions (direct)",
    )
    passes = context.map_batches(
        "passes.jsonl", questions, answer_all, batch_size=size, unit="questions (all sources)"
    )
    predictions = {"direct": records}
    for method in ("verbalise", "retrieve", "srrag"):
        predictions[method] = [record[method] for record in passes]
    write_json(context.folder / "predictions.json", predictions)


def predict_directly(session: "Session", questions: Sequence[str]) -> list[str]:
    """Answers of the untrained model without any knowledge: it never learnt the format."""
    c, tokenizer = session.config, session.base.tokenizer
    prompts = [base_model.encode_answer_prompt(tokenizer, question) for question in questions]
    prefix, prompts = base_model.split_prefix(prompts)
    written = generate(
        session.base.model,
        session.base.params,
        prompts,
        prefix=prefix,
        max_tokens=c.answer.max_tokens,
        stop_ids=(tokenizer.eos_id,),
        batch_size=c.answer.batch_size,
    )
    return [tokenizer.decode(tokens).strip() for tokens in written]


def grade(question: Question, record: dict[str, Any]) -> dict[str, Any]:
    """A prediction's record with the question and its scores."""
    return {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "popularity": question.popularity,
        "correct": metrics.match(record["prediction"], question.answers),
        "exact_match": metrics.exact_match(record["prediction"], question.answers),
        **record,
    }
