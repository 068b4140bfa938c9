"""A question's one pass through SR-RAG against the same model in separate calls.

    pip install -e '.[bench]' && python benchmarks/srrag.py [--only=CASE] [--workdir=DIR]
        [--runs=7] [--out=FILE]

One pass: routing leaves a cache of the question, knowledge is written or read behind it, and the
answer behind that. Separate calls read their whole prompt every time: for the route, for what the
model writes, and for the answer; here and with transformers' `generate` on PyTorch. Sources,
knowledge and answers are compared before anything is timed; then the sides take turns, and the
table has the medians. A ratio above one means that the one pass is faster.

The second pair of cases is about retrieval that takes time: SR-RAG against always retrieving, with
10 and 100 ms more for every search. Questions asked together wait once a search. The last case
asserts that a second batch, which takes other routes, compiles nothing.

The model is that of a finished run, its work folder given. Without one it is SmolLM2-135M with the
new tokens, which are made to differ from one another, at random, so that questions take different
routes: half of them are then made to retrieve, and passages are found by BM25. Takes twelve minutes
on two CPU cores.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from guides import pad_left
from models import describe_machine, find_device, measure_peak, require, synchronize
from tqdm import tqdm
from turns import take_turns, time_call

from rag_jax import lora
from rag_jax.config import build
from rag_jax.data.batches import round_up
from rag_jax.data.gazetteer import build_world
from rag_jax.decoding import generate
from rag_jax.models import save
from rag_jax.models.vocabulary import put_tokens, take_tokens
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.bm25 import BM25
from rag_jax.runtime.files import read_json
from rag_jax.runtime.hosts import fetch
from rag_jax.systems.srrag import evaluate, policy, tune
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.pipeline import Session

TOGETHER, ALONE = 16, 4  # questions of a batch, and of those asked one by one
LATENCIES = (0.0, 0.01, 0.1)  # seconds that a search takes longer
CASES = ("together", "alone", "latency together", "latency alone", "programs")

# A question's source, knowledge and answer.
Answered = tuple[int, str, str]


class Setup(NamedTuple):
    """What is measured.

    Attributes:
        choose: sources by the model's probabilities `[B, S]` and the keys `[B, D]`.
        questions: of which the first half has both routes, and so has the second.
    """

    session: Session
    engine: Engine
    choose: Callable[[np.ndarray, Any], np.ndarray]
    questions: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--workdir", type=Path, help="of a finished run of configs/srrag.py")
    parser.add_argument("--runs", type=int, default=7, help="timed turns of each side, at least 7")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs={arguments.runs}: must be at least 7")

    torch.set_num_threads(os.cpu_count())
    settings = SRRAGConfig()
    if arguments.workdir:
        settings = build(SRRAGConfig, read_json(arguments.workdir / "config.json"))
    session, peak, results = Session(settings), measure_peak(), []
    with jax.set_mesh(session.mesh):
        make = open_run if arguments.workdir else make_untrained
        setup = make(session, arguments.workdir)
        cases = {
            "together": lambda: compare_passes(setup, TOGETHER),
            "alone": lambda: compare_passes(setup, 1),
            "latency together": lambda: compare_latency(setup, TOGETHER),
            "latency alone": lambda: compare_latency(setup, 1),
        }
        for name in tqdm([arguments.only] if arguments.only else CASES, unit="cases"):
            if name == "programs":
                results.append({"name": name, **count_programs(setup)})
            else:
                sides, facts = cases[name]()
                results.append({"name": name, **facts, **take_turns(sides, arguments.runs)})
            tqdm.write(describe(results[-1], peak))
    report = {"environment": describe_machine(peak), "results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def make_untrained(session: Session, _: None) -> Setup:
    """The model before any training, with new tokens that differ."""
    c, base = session.config, session.base
    world = build_world(**dataclasses.asdict(c.world))
    texts = [(passage.title, passage.text) for passage in world.passages]
    index = BM25.build(texts)
    taken = take_tokens(base.params, session.new_ids)
    table = taken["embed"]["embedding"]
    noise = np.random.default_rng(0).normal(0, float(table.std()), table.shape)
    taken = {"embed": {"embedding": table + jnp.asarray(noise, table.dtype)}}
    passages = [session.form.encode_knowledge(join_passages([text])) for text in texts]
    engine = Engine(
        model=base.model,
        params=put_tokens(base.params, taken, session.new_ids),
        form=session.form,
        search=lambda _, asked: [[texts[i] for i in rows] for rows in index.search(asked, 1)[1]],
        layer=c.datastore.layer,
        batch_size=TOGETHER,
        max_knowledge=c.verbalise.max_tokens,
        knowledge_width=round_up(1 + max(c.verbalise.max_tokens, *map(len, passages)), 16),
        max_answer=c.answer.max_tokens,
    )
    questions = [question.question for question in world.questions[c.evaluate_on]]
    questions = questions[: 2 * TOGETHER]
    external = 1 - session.form.internal
    values = np.sort(fetch(engine.route(questions).probabilities)[: len(questions), external])
    tau = values[TOGETHER - 1 : TOGETHER + 1].mean()

    def choose(probabilities: np.ndarray, _: Any) -> np.ndarray:
        kinds = [source.kind for source in c.sources]
        return policy.decide(probabilities, np.ones_like(probabilities), kinds, tau=tau)

    return Setup(session, engine, choose, questions)


def open_run(session: Session, workdir: Path) -> Setup:
    """The model of a finished run, its index and its policy."""
    (stage,) = (stage for stage in session.stages() if stage.name == "evaluate")
    context, c = StageContext(stage, workdir / "stages"), session.config
    corpus = session.read_corpus(context)
    engine = evaluate.make_engine(session, context, corpus)
    datastore = evaluate.read_datastore(session, context)

    def choose(probabilities: np.ndarray, key: Any) -> np.ndarray:
        votes = policy.vote(
            datastore,
            key,
            jnp.full(len(key), -1),
            k=c.datastore.k,
            num_sources=len(c.sources),
        )
        return evaluate.choose(c, probabilities, fetch(votes))

    questions = [question.question for question in session.list_questions(corpus)]
    if len(questions) < 2 * TOGETHER:
        raise SystemExit(f"error: {workdir} has fewer than {2 * TOGETHER} questions to answer")
    # Both sides have the adapter folded into the weights.
    trained = tune.load_trainable(session, context.path("stage2", "params"))
    params = trained["model"]
    if c.tuning.mode == "lora":
        params = lora.fold(session.base.params, params, scale=c.tuning.scale)
    params = put_tokens(params, trained["new_tokens"], session.new_ids)
    engine = dataclasses.replace(engine, params=params, batch_size=TOGETHER)
    return Setup(session, engine, choose, questions[: 2 * TOGETHER])


# One pass, and separate calls.


def answer_in_one_pass(setup: Setup, engine: Engine, questions: Sequence[str]) -> list[Answered]:
    """Routes the questions, which then go on from the same cache."""
    routed = engine.route(questions)
    chosen = setup.choose(fetch(routed.probabilities), routed.key)[: len(questions)]
    records = engine.answer_questions(routed, range(len(questions)), chosen, questions)
    return [
        (int(chosen[i]), records[i]["knowledge"], records[i]["prediction"])
        for i in range(len(questions))
    ]


Route = Callable[[Sequence[str]], tuple[np.ndarray, Any]]
Write = Callable[[Sequence[list[int]], int], list[list[int]]]


def answer_in_calls(
    setup: Setup, questions: Sequence[str], route: Route, write: Write
) -> list[Answered]:
    """Three calls, the second for those questions alone that the model writes knowledge for."""
    engine, form = setup.engine, setup.engine.form
    chosen = setup.choose(*route(questions))[: len(questions)]
    prompts = [
        [*form.encode_question(question), form.source_ids[source]]
        for question, source in zip(questions, chosen, strict=True)
    ]
    known: list[list[int]] = [[] for _ in questions]
    for source in np.unique(chosen):
        rows = np.flatnonzero(chosen == source)
        if source == form.internal:
            found = write([prompts[i] for i in rows], engine.max_knowledge)
        else:
            passages = engine.search(source, [questions[i] for i in rows])
            found = [form.encode_knowledge(join_passages(texts)) for texts in passages]
        for i, tokens in zip(rows, found, strict=True):
            known[i] = tokens
    cue = form.encode_answer_cue()
    prompts = [[*p, *k, *cue] for p, k in zip(prompts, known, strict=True)]
    answers = write(prompts, engine.max_answer)
    return [
        (int(source), *(form.tokenizer.decode(tokens).strip() for tokens in texts))
        for source, *texts in zip(chosen, known, answers, strict=True)
    ]


def make_our_calls(engine: Engine) -> tuple[Route, Write]:
    """This library's, each from the start."""

    def route(questions: Sequence[str]) -> tuple[np.ndarray, Any]:
        routed = engine.route(questions)
        return fetch(routed.probabilities), routed.key

    def write(prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        return generate(
            engine.model,
            engine.params,
            prompts,
            max_tokens=limit,
            stop_ids=engine.form.stop_ids,
            batch_size=engine.batch_size,
        )

    return route, write


def make_their_calls(setup: Setup, model: Any) -> tuple[Route, Write]:
    """The same on PyTorch."""
    form, layer = setup.engine.form, setup.engine.layer

    def route(questions: Sequence[str]) -> tuple[np.ndarray, Any]:
        arrays = pad_left([form.encode_question(question) for question in questions])
        with torch.inference_mode():
            output = model(**arrays, use_cache=False, logits_to_keep=1, output_hidden_states=True)
            logits = output.logits[:, -1, list(form.source_ids)]
            key = output.hidden_states[layer][:, -1]
        return torch.softmax(logits, -1).cpu().numpy(), key.cpu().numpy()

    def write(prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        arrays = pad_left(list(prompts))
        with torch.inference_mode():
            written = model.generate(
                **arrays,
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=list(form.stop_ids),
                pad_token_id=form.stop_ids[0],
            )
        synchronize()
        rows = written[:, arrays["input_ids"].shape[1] :].tolist()
        ends = [[row.index(stop) for stop in form.stop_ids if stop in row] for row in rows]
        return [row[: min(end, default=limit)] for row, end in zip(rows, ends, strict=True)]

    return route, write


def load_theirs(setup: Setup) -> Any:
    """The model, new tokens and all, as transformers reads it."""
    with tempfile.TemporaryDirectory() as folder:
        save(dataclasses.replace(setup.session.base, params=setup.engine.params), folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(find_device()).eval()


# The cases.

Sides = dict[str, Callable[[], Any]]


def choose_questions(setup: Setup, size: int) -> tuple[Engine, list[list[str]]]:
    """The engine for batches of `size` questions, and these: one batch, or some single questions,
    as many of each route as can be."""
    engine = dataclasses.replace(setup.engine, batch_size=size)
    if size > 1:
        return engine, [setup.questions[:size]]
    routed = setup.engine.route(setup.questions)
    chosen = setup.choose(fetch(routed.probabilities), routed.key)
    ranks = [int((chosen[:i] == source).sum()) for i, source in enumerate(chosen)]
    rows = np.argsort(ranks, kind="stable")[:ALONE]
    return engine, [[setup.questions[i]] for i in rows]


def compare_passes(setup: Setup, size: int) -> tuple[Sides, dict[str, Any]]:
    """The one pass and both kinds of separate calls."""
    engine, batches = choose_questions(setup, size)
    model = load_theirs(setup)
    calls = {"separate": make_our_calls(engine), "pytorch": make_their_calls(setup, model)}

    def run_calls(side: str) -> list[Answered]:
        return [a for batch in batches for a in answer_in_calls(setup, batch, *calls[side])]

    sides: Sides = {
        "ours": lambda: [a for b in batches for a in answer_in_one_pass(setup, engine, b)],
        "separate": lambda: run_calls("separate"),
        "pytorch": lambda: run_calls("pytorch"),
    }
    compiling = {side: time_call(sides[side]) for side in ("ours", "separate")}
    wanted = sides["ours"]()
    same = {}
    for side in calls:
        found = sides[side]()
        require([a[0] for a in found] == [a[0] for a in wanted], "other sources")
        same[side] = float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))
    # Rounding may turn a tie, after which a row goes another way; more than that is an error.
    require(min(same.values()) >= 0.9, f"only {same} of the knowledge and answers agree")
    questions = [question for batch in batches for question in batch]
    return sides, {
        "compile_seconds": compiling,
        "same_rows": same,
        "questions": len(questions),
        "self_routed": measure_share(setup, wanted),
        **count_work(setup, questions, wanted),
    }


def measure_share(setup: Setup, answered: Sequence[Answered]) -> float:
    """The part of the questions that the model wrote its own knowledge for."""
    return float(np.mean([source == setup.engine.form.internal for source, *_ in answered]))


def count_work(
    setup: Setup, questions: Sequence[str], answered: Sequence[Answered]
) -> dict[str, Any]:
    """Tokens that run through the layers on either side, padding left out, and the one pass's
    operations."""
    form = setup.engine.form
    passes, calls, targets = 0, 0, 0
    for question, (source, *texts) in zip(questions, answered, strict=True):
        asked, cue = len(form.encode_question(question)), len(form.encode_answer_cue())
        knowledge, answer = (len(form.encode_knowledge(text)) for text in texts)
        read = asked + 1 + knowledge + cue + answer
        passes += read
        calls += asked + read
        targets += 1 + answer
        if source == form.internal:
            calls += asked + 1 + knowledge
            targets += knowledge
    gigaflop = setup.session.base.config.count_flops(passes, targets) / 1e9
    return {"tokens": {"one pass": passes, "separate": calls}, "gigaflop": gigaflop}


def compare_latency(setup: Setup, size: int) -> tuple[Sides, dict[str, Any]]:
    """SR-RAG and always retrieving, which reads the question in the same way, at every latency."""
    engine, batches = choose_questions(setup, size)
    external = 1 - engine.form.internal
    waits: list[float] = []

    def search(source: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
        time.sleep(waits[-1])
        return setup.engine.search(source, questions)

    engine = dataclasses.replace(engine, config=search)

    def ask(latency: float, retrieving: bool) -> list[Answered]:
        waits.append(latency)
        always = setup._replace(choose=lambda p, _: np.full(len(p), external))
        chosen = always if retrieving else setup
        return [a for batch in batches for a in answer_in_one_pass(chosen, engine, batch)]

    sides: Sides = {}
    for latency in LATENCIES:
        name = f"{1000 * latency:.0f} ms"
        sides[f"srrag, {name}"] = lambda latency=latency: ask(latency, False)
        sides[f"always, {name}"] = lambda latency=latency: ask(latency, True)
    compiling = time_call(sides["srrag, 0 ms"])
    answered = sides["srrag, 0 ms"]()
    return sides, {
        "compile_seconds": {"ours": compiling},
        "questions": len(answered),
        "self_routed": measure_share(setup, answered),
    }


def count_programs(setup: Setup) -> dict[str, Any]:
    """Programs that a batch compiles, and another one with other routes after it."""
    compiled: list[str] = []

    def listen(event: str, _: float, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    counts, shares = [], []
    for batch in (setup.questions[:TOGETHER], setup.questions[TOGETHER:]):
        before = len(compiled)
        shares.append(measure_share(setup, answer_in_one_pass(setup, setup.engine, batch)))
        counts.append(len(compiled) - before)
    jax.monitoring.unregister_event_duration_listener(listen)
    if counts[1]:
        raise SystemExit(f"error: the second batch compiled {counts[1]} programs")
    return {"compiled": counts, "self_routed": shares}


def describe(result: dict[str, Any], peak: float) -> str:
    if "compiled" in result:
        first, second = result["compiled"]
        shares = " and ".join(f"{share:.0%}" for share in result["self_routed"])
        return f"programs: {first} in the first batch, {second} in the second; {shares} self-routed"
    wall, cpu, count = result["wall_seconds"], result["cpu_seconds"], result["questions"]
    compiling = ", ".join(f"{s} {t:.1f} s" for s, t in result["compile_seconds"].items())
    lines = [
        f"{result['name']}: {count} questions, {result['self_routed']:.0%} self-routed; "
        f"first call {compiling}"
    ]
    for side, seconds in wall.items():
        ratio = seconds / wall["ours"] if "ours" in wall else 0.0
        if side.startswith("srrag"):
            ratio = wall[side.replace("srrag", "always")] / seconds
        lines.append(
            f"  {side:14s} {seconds / count:7.3f} s a question (CPU {cpu[side] / count:7.3f})"
            + (f"  ratio {ratio:5.2f}" if ratio else "")
        )
    if result["name"] == "latency alone" and result["self_routed"]:
        # Of every self-routed question the search is saved, and something written for it.
        more = (wall["srrag, 0 ms"] - wall["always, 0 ms"]) / count / result["self_routed"]
        lines.append(f"  as fast as always retrieving where a search takes {more:.2f} s longer")
    if "gigaflop" in result:
        rate = result["gigaflop"] / wall["ours"]
        lines.append(
            f"  tokens {result['tokens']}, same {result['same_rows']}, ours {rate:4.0f} GFLOP/s, "
            f"{rate / peak:4.0%} of peak"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
