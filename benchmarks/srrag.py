"""A question's one pass through SR-RAG against the same model in separate calls.

    pip install -e '.[bench]' && python benchmarks/srrag.py [--only=CASE] [--workdir=DIR]
        [--runs=7] [--out=FILE]

In the one pass, routing leaves a cache of the question, knowledge is written or read after the
question, and the answer is written after the knowledge. Separate calls for the route, for what the
model writes and for the answer each read their whole prompt; they are made in this library and with
transformers' `generate` on PyTorch. Sources, knowledge and answers are compared before anything is
timed. The sides then take turns, and the table has the medians. A ratio above one means that the
one pass is faster.

The latency cases compare SR-RAG with always retrieving when every search takes 0, 10 and 100 ms
longer. Questions asked together wait once a search. The case "programs" asserts that a second batch
with other routes compiles nothing.

The model is that of a finished run if its work folder is given. Otherwise it is SmolLM2-135M with
random embeddings of the new tokens, so that questions take different routes: the threshold is set
so that half of the questions retrieve, and passages are found by BM25. Takes twelve minutes on two
CPU cores.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from guides import pad_left
from models import PACKAGES, find_device, measure_peak, synchronize

from rag_jax import lora
from rag_jax.config import build
from rag_jax.data.gazetteer import build_world
from rag_jax.decoding import generate
from rag_jax.models import save
from rag_jax.models.vocabulary import put_tokens, take_tokens
from rag_jax.pipeline.runner import open_stages
from rag_jax.retrieval import BM25
from rag_jax.runtime.files import read_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.paths import expand_path
from rag_jax.systems.srrag import passes, policy
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.pipeline import list_stages
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.sources import count_slots
from rag_jax.systems.srrag.thresholds import read_thresholds

TOGETHER, ALONE = 16, 4  # questions of a batch, and questions asked one by one
LATENCIES = (0.0, 0.01, 0.1)  # further seconds of a search
# A question's source, knowledge and answer.
Answered = tuple[int, str, str]


class Setup(NamedTuple):
    """The model and the questions.

    Attributes:
        choose: from the model's probabilities `[B, S]` and the keys `[B, D]` to sources `[B]`.
        questions: twice `TOGETHER`; each half has both routes.
    """

    session: Session
    engine: Engine
    choose: Callable[[np.ndarray, Any], np.ndarray]
    questions: list[str]


def main() -> None:
    """Runs every case, or one, and writes the report."""
    cases = {
        "together": partial(compare_passes, size=TOGETHER),
        "alone": partial(compare_passes, size=1),
        "latency together": partial(compare_latency, size=TOGETHER),
        "latency alone": partial(compare_latency, size=1),
        "programs": count_programs,
    }
    parser = bench.make_parser(__doc__)
    parser.add_argument("--workdir", type=expand_path, help="of a finished run of configs/srrag.py")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    settings = SRRAGConfig()
    if arguments.workdir:
        settings = build(SRRAGConfig, read_json(arguments.workdir / "config.json"))
    session, peak = Session(settings), measure_peak()
    with jax.set_mesh(session.mesh):
        setup = (
            open_run(session, arguments.workdir) if arguments.workdir else make_untrained(session)
        )
        chosen = {name: partial(run, setup) for name, run in cases.items()}
        bench.run_cases(arguments, chosen, PACKAGES, peak=peak, describe=describe)


def make_untrained(session: Session) -> Setup:
    """The model before any training, with new tokens that differ from one another."""
    c, base, format = session.config, session.base, session.format
    world = build_world(**dataclasses.asdict(c.world))
    texts = [(passage.title, passage.text) for passage in world.passages]
    index = BM25.build(texts)
    tokens = take_tokens(base.params, session.new_ids)
    table = tokens["embed"]["embedding"]
    noise = np.random.default_rng(0).normal(0, float(table.std()), table.shape)
    tokens = {"embed": {"embedding": table + jnp.asarray(noise, table.dtype)}}
    longest = max(len(format.encode_knowledge(join_passages([text]))) for text in texts)

    def search(_: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
        return [[texts[row] for row in rows] for rows in index.search(questions, 1)[1]]

    engine = Engine(
        model=base.model,
        params=put_tokens(base.params, tokens, session.new_ids),
        format=format,
        search=search,
        layer=c.datastore.layer,
        batch_size=TOGETHER,
        max_knowledge=c.verbalise.max_tokens,
        knowledge_width=count_slots(longest, 1, c.verbalise.max_tokens),
        max_answer=c.answer.max_tokens,
    )
    questions = [question.question for question in world.questions[c.evaluate_on]]
    questions = questions[: 2 * TOGETHER]
    values = fetch(engine.route(questions).probabilities)[: len(questions), 1 - format.internal]
    tau = np.sort(values)[TOGETHER - 1 : TOGETHER + 1].mean()

    def choose(probabilities: np.ndarray, _: Any) -> np.ndarray:
        kinds = [source.kind for source in c.sources]
        return policy.decide(probabilities, None, kinds, tau=tau)

    return Setup(session, engine, choose, questions)


def open_run(session: Session, workdir: Path) -> Setup:
    """The model, the index and the policy of a finished run."""
    c = session.config
    tuned = ("thresholds",) if c.route.is_tuned else ()
    needs = ("corpus", "index", "lengths", "stage2", "datastore", *tuned)
    context = open_stages(list_stages(session), workdir, needs)
    session.open_corpus(context.path("corpus", ""))
    questions = [question.question for question in session.questions]
    if len(questions) < 2 * TOGETHER:
        raise SystemExit(f"error: {workdir} has fewer than {2 * TOGETHER} questions to answer")
    datastore = session.open_datastore(context)
    tau = read_thresholds(context, c)["srrag"]

    def choose(probabilities: np.ndarray, key: Any) -> np.ndarray:
        nobody = jnp.full(len(key), -1)  # these questions have no entry in the datastore
        votes = policy.vote(datastore, key, nobody, k=c.datastore.k, num_sources=len(c.sources))
        return passes.choose(c, probabilities, fetch(votes), tau)

    # On both sides an adapter is folded into the weights.
    folder = context.path("stage2", "params")
    trained = session.trainable.load(folder)
    params = trained["model"]
    if c.tuning.mode == "lora":
        params = lora.fold(session.base.params, params, scale=c.tuning.scale)
    params = put_tokens(params, trained["new_tokens"], session.new_ids)
    engine = session.open_engine(context, folder)
    engine = dataclasses.replace(engine, params=params, batch_size=TOGETHER)
    return Setup(session, engine, choose, questions[: 2 * TOGETHER])


# One pass, and separate calls.


def answer_in_one_pass(setup: Setup, engine: Engine, questions: Sequence[str]) -> list[Answered]:
    """Routes the questions, which then continue from the same cache."""
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
    """Three calls; the second is only for questions for which the model writes knowledge."""
    engine, format = setup.engine, setup.engine.format
    chosen = setup.choose(*route(questions))[: len(questions)]
    prompts = [
        [*format.encode_question(question), format.source_ids[source]]
        for question, source in zip(questions, chosen, strict=True)
    ]
    knowledge: list[list[int]] = [[] for _ in questions]
    for source in np.unique(chosen):
        rows = np.flatnonzero(chosen == source)
        if source == format.internal:
            texts = write([prompts[i] for i in rows], engine.max_knowledge)
        else:
            passages = engine.search(source, [questions[i] for i in rows])
            texts = [format.encode_knowledge(join_passages(found)) for found in passages]
        for i, tokens in zip(rows, texts, strict=True):
            knowledge[i] = tokens
    cue = format.encode_answer_cue()
    prompts = [[*p, *k, *cue] for p, k in zip(prompts, knowledge, strict=True)]
    answers = write(prompts, engine.max_answer)
    return [
        (int(source), *(format.tokenizer.decode(tokens).strip() for tokens in texts))
        for source, *texts in zip(chosen, knowledge, answers, strict=True)
    ]


def make_our_calls(engine: Engine) -> tuple[Route, Write]:
    """This library's calls, each of which reads its whole prompt."""

    def route(questions: Sequence[str]) -> tuple[np.ndarray, Any]:
        routed = engine.route(questions)
        return fetch(routed.probabilities), routed.key

    def write(prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        return generate(
            engine.model,
            engine.params,
            prompts,
            max_tokens=limit,
            stop_ids=engine.format.stop_ids,
            batch_size=engine.batch_size,
        )

    return route, write


def make_their_calls(setup: Setup, model: Any) -> tuple[Route, Write]:
    """The same calls on PyTorch."""
    format, layer = setup.engine.format, setup.engine.layer

    def route(questions: Sequence[str]) -> tuple[np.ndarray, Any]:
        arrays = pad_left([format.encode_question(question) for question in questions])
        with torch.inference_mode():
            output = model(**arrays, use_cache=False, logits_to_keep=1, output_hidden_states=True)
            logits = output.logits[:, -1, list(format.source_ids)]
            key = output.hidden_states[layer][:, -1]
        return torch.softmax(logits, -1).cpu().numpy(), key.cpu().numpy()

    def write(prompts: Sequence[list[int]], limit: int) -> list[list[int]]:
        arrays = pad_left(list(prompts))
        with torch.inference_mode():
            written = model.generate(
                **arrays,
                do_sample=False,
                max_new_tokens=limit,
                eos_token_id=list(format.stop_ids),
                pad_token_id=format.stop_ids[0],
            )
        synchronize()
        rows = written[:, arrays["input_ids"].shape[1] :].tolist()
        ends = [[row.index(stop) for stop in format.stop_ids if stop in row] for row in rows]
        return [row[: min(end, default=limit)] for row, end in zip(rows, ends, strict=True)]

    return route, write


def load_theirs(setup: Setup) -> Any:
    """The model with its new tokens, as transformers reads it."""
    with tempfile.TemporaryDirectory() as folder:
        save(dataclasses.replace(setup.session.base, params=setup.engine.params), folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(find_device()).eval()


# The cases.


def choose_questions(setup: Setup, size: int) -> tuple[Engine, list[list[str]]]:
    """The engine for batches of `size` questions, and the batches: one, or some of one question.

    Questions asked alone are as evenly of all routes as they can be.
    """
    engine = dataclasses.replace(setup.engine, batch_size=size)
    if size > 1:
        return engine, [setup.questions[:size]]
    routed = setup.engine.route(setup.questions)
    chosen = setup.choose(fetch(routed.probabilities), routed.key)
    ranks = [int((chosen[:i] == source).sum()) for i, source in enumerate(chosen)]
    rows = np.argsort(ranks, kind="stable")[:ALONE]
    return engine, [[setup.questions[i]] for i in rows]


def compare_passes(setup: Setup, size: int) -> bench.Compared:
    """The one pass, and separate calls on both sides."""
    engine, batches = choose_questions(setup, size)
    theirs = make_their_calls(setup, load_theirs(setup))
    calls = {"separate": make_our_calls(engine), "pytorch": theirs}

    def run_calls(side: str) -> list[Answered]:
        return [a for batch in batches for a in answer_in_calls(setup, batch, *calls[side])]

    sides: bench.Sides = {
        "ours": lambda: [a for b in batches for a in answer_in_one_pass(setup, engine, b)],
        **{side: partial(run_calls, side) for side in calls},
    }
    compiling = {side: bench.time_call(sides[side]) for side in ("ours", "separate")}
    expected = sides["ours"]()
    same = {}
    for side in calls:
        found = sides[side]()
        bench.require([a[0] for a in found] == [a[0] for a in expected], "other sources")
        same[side] = float(np.mean([a == b for a, b in zip(found, expected, strict=True)]))
    # Rounding may turn a tie, after which a row goes another way; more than that is an error.
    bench.require(min(same.values()) >= 0.9, f"only {same} of the knowledge and answers agree")
    questions = [question for batch in batches for question in batch]
    return sides, {
        "compile_seconds": compiling,
        "same_rows": same,
        "questions": len(questions),
        "self_routed": measure_share(setup, expected),
        **count_work(setup, questions, expected),
    }


def measure_share(setup: Setup, answered: Sequence[Answered]) -> float:
    """The share of questions for which the model wrote its own knowledge."""
    return float(np.mean([source == setup.engine.format.internal for source, *_ in answered]))


def count_work(
    setup: Setup, questions: Sequence[str], answered: Sequence[Answered]
) -> dict[str, Any]:
    """Tokens that the layers read on each side, without padding, and the one pass's operations."""
    format = setup.engine.format
    single, calls, targets = 0, 0, 0
    for question, (source, *texts) in zip(questions, answered, strict=True):
        prompt, cue = len(format.encode_question(question)), len(format.encode_answer_cue())
        knowledge, answer = (len(format.encode_knowledge(text)) for text in texts)
        read = prompt + 1 + knowledge + cue + answer
        single += read
        calls += prompt + read
        targets += 1 + answer
        if source == format.internal:
            calls += prompt + 1 + knowledge
            targets += knowledge
    gigaflop = setup.session.base.config.count_flops(single, targets) / 1e9
    return {"tokens": {"one pass": single, "separate": calls}, "gigaflop": gigaflop}


def compare_latency(setup: Setup, size: int) -> bench.Compared:
    """SR-RAG and always retrieving, both after routing the question, at every latency."""
    engine, batches = choose_questions(setup, size)
    external = 1 - engine.format.internal
    always = setup._replace(choose=lambda p, _: np.full(len(p), external))

    def run(variant: Setup, latency: float) -> list[Answered]:
        def search(source: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
            time.sleep(latency)
            return setup.engine.search(source, questions)

        slow = dataclasses.replace(engine, search=search)
        return [a for batch in batches for a in answer_in_one_pass(variant, slow, batch)]

    sides: bench.Sides = {}
    for latency in LATENCIES:
        name = f"{1000 * latency:.0f} ms"
        sides[f"srrag, {name}"] = partial(run, setup, latency)
        sides[f"always, {name}"] = partial(run, always, latency)
    compiling = bench.time_call(sides["srrag, 0 ms"])
    answered = sides["srrag, 0 ms"]()
    return sides, {
        "compile_seconds": {"ours": compiling},
        "questions": len(answered),
        "self_routed": measure_share(setup, answered),
    }


def count_programs(setup: Setup) -> bench.Compared:
    """The number of programs that a batch compiles, and a second batch with other routes."""
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
    return {}, {"compiled": counts, "self_routed": shares}


def describe(result: dict[str, Any], peak: float) -> str:
    """The lines of a case."""
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
        # Every self-routed question saves its search, at the cost of writing the knowledge.
        extra = (wall["srrag, 0 ms"] - wall["always, 0 ms"]) / count / result["self_routed"]
        lines.append(f"  as fast as always retrieving where a search takes {extra:.2f} s longer")
    if "gigaflop" in result:
        rate = result["gigaflop"] / wall["ours"]
        lines.append(
            f"  tokens {result['tokens']}, same {result['same_rows']}, ours {rate:4.0f} GFLOP/s, "
            f"{rate / peak:4.0%} of peak"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
