"""The stages of Self-Routing RAG, from an empty folder to the report."""

import base64
import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from rag_jax import metrics
from rag_jax.config import SRRAGConfig, build
from rag_jax.data.batches import choose_bucket, choose_widths, round_up
from rag_jax.data.gazetteer import Question, World
from rag_jax.data.gazetteer_tfds import load_world
from rag_jax.decoding import Sampling, generate, prefill
from rag_jax.errors import RagJaxError
from rag_jax.files import read_json, read_jsonl, write_json, write_jsonl
from rag_jax.models import Pretrained, load
from rag_jax.models.bert import Bert
from rag_jax.models.decoder import Decoder
from rag_jax.models.hub import fingerprint, resolve
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.pipeline import Stage, StageContext, compile_seconds, run_stages
from rag_jax.report import write_report
from rag_jax.retrieval.encode import encode_texts
from rag_jax.retrieval.index import Index
from rag_jax.systems.srrag import contexts as base_model
from rag_jax.systems.srrag import tune
from rag_jax.systems.srrag.data import Format, choose_source, special_tokens
from rag_jax.systems.srrag.infer import Datastore, Engine, decide, normalize_keys, vote


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs every stage that isn't made yet and writes the report.

    Raises:
        RagJaxError: whatever of the settings, the models or the disk the user can mend.
    """
    settings = build(SRRAGConfig, config)
    session = Session(settings)
    stages = session.stages()
    records = run_stages(stages, workdir, config=settings)
    predictions = read_json(Path(workdir) / "stages" / "evaluate" / "predictions.json")
    return write_report(
        workdir,
        system="srrag",
        config=settings,
        model=settings.model.name,
        dataset=f"gazetteer, {settings.evaluate_on} questions",
        methods={method: summarize(rows) for method, rows in predictions.items()},
        stages=records,
        predictions=predictions,
    )


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


class Session:
    """The models of a run, loaded when a stage first needs them, and the stages themselves."""

    def __init__(self, config: SRRAGConfig):
        self.config = config
        self.model_fingerprint = fingerprint(resolve(config.model.name))
        self.encoder_fingerprint = fingerprint(resolve(config.encoder.name))

    @cached_property
    def base(self) -> Pretrained:
        """The language model with the special tokens added, not yet trained."""
        dtype = jnp.dtype(self.config.model.dtype)
        loaded = load(self.config.model.name, dtype=dtype)
        if not isinstance(loaded.model, Decoder):
            raise RagJaxError(f"config.model.name={self.config.model.name}: is no language model")
        if self.config.datastore.layer > loaded.config.num_layers:
            raise RagJaxError(
                f"config.datastore.layer={self.config.datastore.layer}: the model has "
                f"{loaded.config.num_layers} layers"
            )
        return grow_vocabulary(loaded, special_tokens(self.config.sources))

    @cached_property
    def encoder(self) -> Pretrained:
        """The sentence encoder behind the index and the clusters."""
        loaded = load(self.config.encoder.name)
        if not isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.encoder.name={self.config.encoder.name}: is no encoder")
        return loaded

    @cached_property
    def losses(self) -> dict[str, Callable[..., Any]]:
        """The training losses."""
        return tune.make_losses(self)

    @cached_property
    def form(self) -> Format:
        """The packed sequence's pieces."""
        return Format(self.base.tokenizer, self.config.sources)

    def stages(self) -> list[Stage]:
        """Every stage with what it depends on."""
        c = self.config
        common = {
            "model": self.model_fingerprint,
            "dtype": c.model.dtype,
            "sources": c.sources,  # their tokens are part of the vocabulary
            "seed": c.seed,
        }
        encoder = {"encoder": self.encoder_fingerprint, **dataclasses.asdict(c.encoder)}
        rows = {"extra_mean": c.extra_mean, "loss_reduction": c.loss_reduction}
        tuning = {"tuning": c.tuning, **rows, **common}
        passes = {
            "answer": c.answer,
            "layer": c.datastore.layer,
            "max_knowledge": c.verbalise.max_tokens,
        }
        return [
            Stage("world", self.make_world, settings={"world": c.world}),
            Stage(
                "index", self.make_index, needs=("world",), settings={**encoder, "index": c.index}
            ),
            Stage(
                "demonstrations",
                self.make_demonstrations,
                needs=("world",),
                settings={**common, **encoder, "verbalise": c.verbalise, "contexts": c.contexts},
            ),
            Stage(
                "contexts",
                self.make_contexts,
                needs=("world", "index", "demonstrations"),
                settings={**common, **encoder, "verbalise": c.verbalise, "contexts": c.contexts},
            ),
            Stage(
                "labels",
                self.make_labels,
                needs=("world", "contexts"),
                settings={**common, "label": c.label},
            ),
            Stage(
                "stage1",
                partial(tune.run_stage1, self),
                settings={**tuning, "stage1": c.stage1},
                needs=("world", "contexts", "labels"),
            ),
            Stage(
                "reference",
                partial(tune.run_reference, self),
                settings={**tuning, "microbatch_tokens": c.stage2.microbatch_tokens},
                needs=("world", "contexts", "labels", "stage1"),
            ),
            Stage(
                "stage2",
                partial(tune.run_stage2, self),
                settings={**tuning, "stage2": c.stage2},
                needs=("world", "contexts", "labels", "stage1", "reference"),
            ),
            Stage(
                "datastore",
                self.make_datastore,
                needs=("world", "index", "stage2"),
                settings={**common, **encoder, **passes},
            ),
            Stage(
                "evaluate",
                self.evaluate,
                needs=("world", "index", "stage2", "datastore"),
                settings={
                    **common,
                    **encoder,
                    **passes,
                    "k": c.datastore.k,
                    "tau": c.route.tau,
                    "on": c.evaluate_on,
                },
            ),
        ]

    def make_world(self, context: StageContext) -> None:
        """Writes the encyclopedia and its questions as ArrayRecord."""
        load_world(data_dir=context.folder / "data", **dataclasses.asdict(self.config.world))

    def read_world(self, context: StageContext) -> World:
        """Reads them back."""
        folder = context.path("world", "data")
        return load_world(data_dir=folder, **dataclasses.asdict(self.config.world))

    def encode(self, texts: Sequence[Any]) -> np.ndarray:
        """Sentence embeddings with the run's settings."""
        c = self.config.encoder
        return encode_texts(self.encoder, texts, max_length=c.max_length, batch_size=c.batch_size)

    def make_index(self, context: StageContext) -> None:
        """Embeds the passages and indexes them."""
        passages = self.read_world(context).passages
        texts = [(passage.title, passage.text) for passage in passages]
        embeddings = context.map_arrays(
            "embeddings.npy",
            len(texts),
            lambda rows: self.encode(texts[rows]),
            batch_size=1024,
            unit="passages",
        )
        index = Index.build(
            embeddings, backend=self.config.index.backend, encoder=self.encoder_fingerprint
        )
        index.save(context.folder / "index")

    def make_search(
        self, context: StageContext, world: World, count: int
    ) -> Callable[[Sequence[str]], list[list[tuple[str, str]]]]:
        """The external source: questions to their `count` best passages as (title, text)."""
        index = Index.load(context.path("index", "index"), encoder=self.encoder_fingerprint)

        def search(questions: Sequence[str]) -> list[list[tuple[str, str]]]:
            _, rows = index.search(self.encode(questions), count)
            found = [[world.passages[row] for row in ranked] for ranked in rows]
            return [[(passage.title, passage.text) for passage in ranked] for ranked in found]

        return search

    def write_documents(
        self, questions: Sequence[str], demonstrations: Sequence[tuple[str, str]]
    ) -> list[str]:
        """Background documents by the model as it was, before any training."""
        c, tokenizer = self.config.verbalise, self.base.tokenizer
        prompts = [
            base_model.encode_document_prompt(tokenizer, question, demonstrations)
            for question in questions
        ]
        prefix, prompts = base_model.split_prefix(prompts)
        written = generate(
            self.base.model,
            self.base.params,
            prompts,
            prefix=prefix,
            max_tokens=c.max_tokens,
            stop_ids=(tokenizer.eos_id,),
            batch_size=c.batch_size,
            seed=self.config.seed,
            sampling=Sampling(temperature=c.temperature),
        )
        return [
            base_model.clean_document(tokenizer.decode(tokens), finished=len(tokens) < c.max_tokens)
            for tokens in written
        ]

    def make_demonstrations(self, context: StageContext) -> None:
        """GenRead's first round: documents for some training questions, clustered."""
        c = self.config
        questions = self.read_world(context).questions["train"]
        rng = np.random.default_rng(c.seed)
        pool = [questions[i] for i in rng.permutation(len(questions))[: c.verbalise.pool]]

        def write(batch: Sequence[Question]) -> list[dict[str, Any]]:
            documents = self.write_documents([q.question for q in batch], [])
            return [
                {
                    "question": q.question,
                    "document": d,
                    "good": base_model.is_document(d) and bool(metrics.match(d, q.answers)),
                }
                for q, d in zip(batch, documents, strict=True)
            ]

        records = context.map_batches(
            "documents.jsonl", pool, write, batch_size=c.verbalise.batch_size, unit="documents"
        )
        # A document without the answer is a bad example; GenRead leaves those out too. Where the
        # model knows too little for a full set, what it wrote is all there is.
        enough = c.contexts * c.verbalise.demonstrations
        good = [record for record in records if record["good"]]
        used = good if len(good) >= enough else records
        embeddings = self.encode([f"{r['question']} {r['document']}" for r in used])
        clusters = base_model.pick_demonstrations(
            embeddings, clusters=c.contexts, count=c.verbalise.demonstrations, seed=c.seed
        )
        chosen = [[(used[i]["question"], used[i]["document"]) for i in rows] for rows in clusters]
        write_json(context.folder / "clusters.json", chosen)

    def make_contexts(self, context: StageContext) -> None:
        """n contexts of each source for every training question."""
        c = self.config
        clusters = read_json(context.path("demonstrations", "clusters.json"))
        world = self.read_world(context)
        questions = world.questions["train"]
        size = c.verbalise.batch_size
        # Cluster by cluster, each filled up to whole batches of its own demonstrations.
        items = [(k, q.question) for k in range(len(clusters)) for q in questions]

        def write(batch: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
            documents: list[dict[str, Any]] = []
            for cluster in sorted({k for k, _ in batch}):
                asked = [question for k, question in batch if k == cluster]
                texts = self.write_documents(asked, clusters[cluster])
                documents += [{"cluster": cluster, "text": text} for text in texts]
            return documents

        written = context.map_batches(
            "verbalised.jsonl", items, write, batch_size=size, unit="documents"
        )
        found = self.make_search(context, world, c.contexts)([q.question for q in questions])
        records = []
        for i, question in enumerate(questions):
            mine = [written[k * len(questions) + i]["text"] for k in range(len(clusters))]
            by_kind = {"verbalise": mine, "search": found[i]}
            records.append({"id": question.id, "contexts": [by_kind[s.kind] for s in c.sources]})
        write_jsonl(context.folder / "contexts.jsonl", records)

    def make_labels(self, context: StageContext) -> None:
        """The likelihood of the answer under every context, and the source that helps more."""
        c, base = self.config, self.base
        questions = self.read_world(context).questions["train"]
        gathered = read_jsonl(context.path("contexts", "contexts.jsonl"))
        texts = [
            [[render_context(text) for text in source] for source in record["contexts"]]
            for record in gathered
        ]
        # The model often writes the same thing under different demonstrations: scored once.
        items = sorted({(q, t) for q, by_source in enumerate(texts) for s in by_source for t in s})
        prompts = [
            base_model.encode_answer_prompt(base.tokenizer, questions[q].question, text)
            for q, text in items
        ]
        prefix, prompts = base_model.split_prefix(prompts)
        answers = [base.tokenizer.encode(f" {q.answers[0]}") for q in questions]
        sizes = [len(p) + len(answers[item[0]]) for p, item in zip(prompts, items, strict=True)]

        widths = choose_widths(sizes, program_tokens=2500)
        shared = prefill(base.model, base.params, prefix)

        def score(batch: Sequence[int]) -> list[dict[str, Any]]:
            longest = max(sizes[i] for i in batch)
            scores = base_model.score_answers(
                base.model,
                base.params,
                [prompts[i] for i in batch],
                [answers[items[i][0]] for i in batch],
                prefix=shared,
                width=choose_bucket(longest, widths),
                batch_size=c.label.batch_size,
            )
            return [{"item": i, "score": value} for i, value in zip(batch, scores, strict=True)]

        scored = context.map_batches(
            "scores.jsonl",
            sorted(range(len(items)), key=sizes.__getitem__),
            score,
            batch_size=c.label.batch_size,
            unit="contexts",
        )
        found = {items[record["item"]]: record["score"] for record in scored}
        scores = [
            np.asarray([[found[q, text] for text in source] for source in by_source])
            for q, by_source in enumerate(texts)
        ]
        write_jsonl(
            context.folder / "labels.jsonl",
            (
                {"id": question.id, "source": choose_source(values), "scores": values}
                for question, values in zip(questions, scores, strict=True)
            ),
        )

    def make_engine(self, context: StageContext, world: World) -> Engine:
        """The trained model, ready to route, learn and answer."""
        c, form = self.config, self.form
        passages = [form.encode_knowledge(f"[1] {p.title}: {p.text}") for p in world.passages]
        longest = max(c.verbalise.max_tokens, c.answer.passages * max(map(len, passages)))
        return Engine(
            model=self.base.model,
            params=tune.load_tuned(self, context.path("stage2", "params")),
            form=form,
            search=self.make_search(context, world, c.answer.passages),
            layer=c.datastore.layer,
            batch_size=c.answer.batch_size,
            max_knowledge=c.verbalise.max_tokens,
            knowledge_width=round_up(1 + longest, 16),
            max_answer=c.answer.max_tokens,
        )

    def make_datastore(self, context: StageContext) -> None:
        """Which source works better for each training question, now that the model is tuned."""
        world = self.read_world(context)
        engine = self.make_engine(context, world)

        def roll_out(batch: Sequence[Question]) -> list[dict[str, Any]]:
            asked = [question.question for question in batch]
            routed = engine.route(asked)
            scores = []
            for source in range(len(self.config.sources)):
                cache, _, active = engine.learn(routed, range(len(batch)), source, asked)
                scores.append(engine.score_answers(cache, [q.answers[0] for q in batch], active))
            keys = np.asarray(normalize_keys(routed.key))
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

    def read_datastore(self, context: StageContext) -> Datastore:
        """The datastore on the device."""
        records = read_jsonl(context.path("datastore", "datastore.jsonl"))
        keys = [np.frombuffer(base64.b64decode(r["key"]), np.float32) for r in records]
        labels = np.asarray([r["source"] for r in records], np.int32)
        return Datastore(jnp.asarray(np.stack(keys)), jnp.asarray(labels))

    def evaluate(self, context: StageContext) -> None:
        """Every method on the same questions.

        The SR-RAG pass is run as it is used: route, then the chosen source alone. The two fixed
        policies then go on from the same cache with whatever source was not chosen.
        """
        c = self.config
        world = self.read_world(context)
        questions = world.questions[c.evaluate_on]
        engine = self.make_engine(context, world)
        datastore = self.read_datastore(context)
        kinds = [source.kind for source in c.sources]
        fixed = {"verbalise": kinds.index("verbalise"), "retrieve": kinds.index("search")}

        def answer_directly(batch: Sequence[Question]) -> list[dict[str, Any]]:
            clock = Clock()
            predictions = self.answer_directly([question.question for question in batch])
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
            votes = np.asarray(
                vote(datastore, routed.key, nobody, k=c.datastore.k, num_sources=len(kinds))
            )
            chosen = decide(np.asarray(routed.probabilities), votes, kinds, tau=c.route.tau)
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
                {name: grade(q, rows[i]) for name, rows in methods.items()}
                for i, q in enumerate(batch)
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

    def answer_directly(self, questions: Sequence[str]) -> list[str]:
        """Answers of the untrained model without any knowledge: it never learnt the format."""
        c, tokenizer = self.config, self.base.tokenizer
        prompts = [base_model.encode_answer_prompt(tokenizer, question) for question in questions]
        prefix, prompts = base_model.split_prefix(prompts)
        written = generate(
            self.base.model,
            self.base.params,
            prompts,
            prefix=prefix,
            max_tokens=c.answer.max_tokens,
            stop_ids=(tokenizer.eos_id,),
            batch_size=c.answer.batch_size,
        )
        return [tokenizer.decode(tokens).strip() for tokens in written]


class Clock:
    """Seconds since it was made, those spent on compiling left out."""

    def __init__(self):
        self.start, self.compiling = time.perf_counter(), compile_seconds()

    def read(self) -> float:
        return time.perf_counter() - self.start - (compile_seconds() - self.compiling)


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


def render_context(context: str | Sequence[str]) -> str:
    """A context as text: a verbalisation as it is, a passage as `title: text`."""
    return context if isinstance(context, str) else f"{context[0]}: {context[1]}"
