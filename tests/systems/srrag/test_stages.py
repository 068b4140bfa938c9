"""What each stage made of the tiny run, against slow references from the files before it."""

import itertools

import jax
import numpy as np
import pytest
from tiny import continue_row, read_row, softmax

from rag_jax.config import build
from rag_jax.pipeline.runner import run_stages
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.systems.srrag import pipeline, verbalise
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import (
    TERMS,
    encode_answer_prompt,
    encode_document_prompt,
    join_passages,
    make_row,
    plan_examples,
)
from rag_jax.systems.srrag.label import choose_source
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.verbalise import clean_document
from systems.srrag.reference import answer_logprob, sum_terms
from systems.srrag.tiny_run import METHODS, fold_trained, open_stage, read_predictions


def write_knowledge(session, params, question):
    """The sequence with a greedy verbalisation, without `<EOK>`."""
    format = session.format
    tokens = [*question, format.source_ids[0]]
    written, _ = continue_row(
        session.base.model,
        params,
        tokens,
        max_tokens=session.config.verbalise.max_tokens,
        stop_ids=format.stop_ids,
    )
    return tokens + written


def check_answer(session, params, tokens, record):
    format = session.format
    written, _ = continue_row(
        session.base.model,
        params,
        [*tokens, *format.encode_answer_cue()],
        max_tokens=session.config.answer.max_tokens,
        stop_ids=format.stop_ids,
    )
    assert record["prediction"] == format.tokenizer.decode(written).strip()


def test_only_good_documents_are_shown(copied, make_config, monkeypatch):
    """Where there are enough of them: in the finished run there are none, and all are used."""
    settings = build(SRRAGConfig, make_config(**{"verbalise.pool": 11}))
    session = Session(settings)
    open_stage(session, copied, "demonstrations")
    train = session.corpus.questions["train"]
    answers = {question.question: question.answers[0] for question in train}

    def write_documents(base, questions, demonstrations, settings, *, seed):
        patterns = ["It is {}.", "It is elsewhere.", "The answer is {}."]
        return [patterns[i % 3].format(answers[q]) for i, q in enumerate(questions)]

    monkeypatch.setattr(verbalise, "write_documents", write_documents)
    run_stages(pipeline.list_stages(session)[:4], copied)
    clusters = read_json(copied / "stages" / "demonstrations" / "clusters.json")
    # Of 11 documents every third is good, each in one cluster.
    shown = [pair for cluster in clusters for pair in cluster]
    assert len(clusters) == 3 and len(shown) == 4 == len({question for question, _ in shown})
    assert all(document == f"It is {answers[question]}." for question, document in shown)


def test_documents_of_the_second_round_do_not_copy_the_first(finished, session):
    """Each document again by a full pass, after another question's demonstration."""
    workdir, _ = finished
    context = open_stage(session, workdir, "contexts")
    clusters = read_json(context.path("demonstrations", "clusters.json"))
    written = read_jsonl(context.path("contexts", "verbalised.jsonl"))
    questions = [q.question for q in session.train_questions]
    tokenizer, own = session.base.tokenizer, 0
    for i, record in enumerate(written):
        question, cluster = questions[i % 12], clusters[record["cluster"]]
        own += cluster[0][0] == question
        shown = [tuple(pair) for pair in cluster if pair[0] != question][:1]
        limit = session.config.verbalise.max_tokens
        tokens, _ = continue_row(
            session.base.model,
            session.base.params,
            encode_document_prompt(tokenizer, question, shown),
            max_tokens=limit,
            stop_ids=tokenizer.stop_ids,
        )
        text = tokenizer.decode(tokens)
        assert record["text"] == clean_document(text, finished=len(tokens) < limit)
    assert own == 3


def test_contexts_and_labels(finished, session):
    workdir, _ = finished
    stages, format = workdir / "stages", session.format
    open_stage(session, workdir, "labels")
    questions = session.corpus.questions["train"]
    passages = {(p.title, p.text) for p in session.passages}
    written = read_jsonl(stages / "contexts" / "verbalised.jsonl")
    assert [record["cluster"] for record in written] == [0] * 12 + [1] * 12 + [2] * 12
    contexts = read_jsonl(stages / "contexts" / "contexts.jsonl")
    labels = read_jsonl(stages / "labels" / "labels.jsonl")
    for i, (question, record, label) in enumerate(zip(questions, contexts, labels, strict=True)):
        assert record["id"] == label["id"] == question.id
        mine, found = record["contexts"]
        assert mine == [written[cluster * 12 + i]["text"] for cluster in range(3)]
        assert len({tuple(p) for p in found} & passages) == 3
        assert label["source"] == choose_source(np.asarray(label["scores"]))
    answer = format.tokenizer.encode(f" {questions[0].answers[0]}")
    texts = [*contexts[0]["contexts"][0], *map(": ".join, contexts[0]["contexts"][1])]
    expected = [
        answer_logprob(
            session.base.model,
            session.base.params,
            encode_answer_prompt(format.tokenizer, questions[0].question, text),
            answer,
        )
        for text in texts
    ]
    np.testing.assert_allclose(np.ravel(labels[0]["scores"]), expected, rtol=1e-4)


def test_rows_follow_the_labels(finished, session):
    workdir, _ = finished
    context, format = open_stage(session, workdir, "stage1"), session.format
    examples = session.make_examples(context)
    questions = session.corpus.questions["train"]
    contexts = read_jsonl(context.path("contexts", "contexts.jsonl"))
    labels = read_jsonl(context.path("labels", "labels.jsonl"))
    for question, record, label, example in zip(questions, contexts, labels, examples, strict=True):
        source, scores = label["source"], label["scores"][label["source"]]
        texts = record["contexts"][source]
        best, worst = (texts[scores.index(pick(scores))] for pick in (max, min))
        assert example.source == source
        if source == 0:
            fits = {best}
            rejected = make_row(format, question.id, question.question, source, worst, None)
            assert example.rejected == (rejected if worst != best else None)
        else:
            # The best one and any others, in any order.
            blocks = (b for n in (1, 2, 3) for b in itertools.permutations(texts, n) if best in b)
            fits = {join_passages(block) for block in blocks}
            assert example.rejected is None
        rows = [
            make_row(format, question.id, question.question, source, text, question.answers[0])
            for text in fits
        ]
        assert example.row in rows
    counts = read_json(context.path("stage1", "rows.json"))
    sources = [example.source for example in examples]
    assert counts["questions"] == 12 == len(sources)
    assert counts["by_source"] == {"Self": sources.count(0), "Wiki": sources.count(1)}
    assert counts["preference_pairs"] == sum(e.rejected is not None for e in examples) > 0


def test_first_steps(finished, session):
    """The losses that were logged first, from full passes over the rows of the first batch."""
    workdir, _ = finished
    examples = session.make_examples(open_stage(session, workdir, "stage1"))
    settings, seed = session.config.stage1, session.config.seed
    plan, _ = plan_examples(examples, settings, session.base.config, seed=seed)
    first = [examples[i] for i in plan.examples_at(0)]
    rows, model = [example.row for example in first], session.base.model
    settings = {"scale": 1 / len(first), "reduction": session.config.loss_reduction}
    logs = {
        stage: read_jsonl(workdir / "stages" / stage / "log.jsonl")
        for stage in ("stage1", "stage2")
    }
    for log in logs.values():
        assert [line["step"] for line in log] == list(range(plan.num_steps_per_epoch))

    terms = sum_terms(model, session.base.params, rows, terms=TERMS, **settings)
    found = {key: logs["stage1"][0][key] for key in (*TERMS, "loss")}
    assert found == pytest.approx(terms | {"loss": sum(terms.values())}, rel=1e-3)

    # Stage 2 begins at its own reference, where every pair costs log 2.
    params = fold_trained(session, workdir, "stage1")
    terms = sum_terms(model, params, rows, terms=("source", "answer"), **settings)
    terms["preference"] = np.log(2) * sum(e.rejected is not None for e in first) / len(first)
    found = {key: logs["stage2"][0][key] for key in (*terms, "loss")}
    assert found == pytest.approx(terms | {"loss": sum(terms.values())}, rel=1e-3)


def test_an_adapter_leaves_the_base_as_it_was(finished, session, make_config):
    workdir, _ = finished
    fresh = Session(build(SRRAGConfig, make_config())).base.params
    jax.tree.map(np.testing.assert_array_equal, session.base.params, fresh)
    new_tokens = [np.asarray(fresh["embed"]["embedding"])[-4:]]
    for stage in ("stage1", "stage2"):
        tuned = session.trainable.load_merged(workdir / "stages" / stage / "params")
        assert tuned["embed"]["embedding"] is session.base.params["embed"]["embedding"]
        new_tokens.append(np.asarray(tuned["embed"]["rows"]))
        assert (np.abs(new_tokens[-1] - new_tokens[-2]).max(axis=1) > 1e-4).all()
        kernels = tuned["layers_1"]["attention"]["query"]
        assert np.abs(kernels["lora_a"] @ kernels["lora_b"]).max() > 1e-4
        del kernels["lora_a"], kernels["lora_b"]
        np.testing.assert_array_equal(
            kernels["kernel"].array, fresh["layers_1"]["attention"]["query"]["kernel"]
        )


def test_datastore(finished, session):
    workdir, _ = finished
    context, format = open_stage(session, workdir, "datastore"), session.format
    model, params = session.base.model, fold_trained(session, workdir, "stage2")
    search = session.open_search(context, 1)
    with np.load(context.path("datastore", "datastore.npz"), allow_pickle=False) as stored:
        arrays = dict(stored)
    assert set(arrays) == {"id", "source", "scores", "key"}
    assert (arrays["key"].dtype, arrays["scores"].dtype) == (np.float32, np.float32)
    records = [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]
    for question, record in zip(session.corpus.questions["train"], records, strict=True):
        assert record["id"] == question.id
        tokens = format.encode_question(question.question)
        # After layer 1, at <EOQ>.
        state = read_row(model, params, tokens)[0][1][-1]
        np.testing.assert_allclose(record["key"], state / np.linalg.norm(state), atol=1e-4)

        learnt = [
            write_knowledge(session, params, tokens),
            make_row(
                format,
                question.id,
                question.question,
                1,
                join_passages(search(1, [question.question])[0]),
                None,
            ).tokens[:-1],
        ]
        answer = format.encode_answer(question.answers[0])
        scores = [
            answer_logprob(model, params, [*known, *format.encode_answer_cue()], answer)
            for known in learnt
        ]
        np.testing.assert_allclose(record["scores"], scores, rtol=1e-4)
        assert record["source"] == int(scores[1] > scores[0])


def test_answers_are_those_of_full_passes(finished, session):
    """Routing, knowledge and answers of the tuned model; direct answers of the untrained one."""
    workdir, _ = finished
    found, format, c = read_predictions(workdir), session.format, session.config
    model, params = session.base.model, fold_trained(session, workdir, "stage2")
    for i in range(9):
        records = {method: found[method][i] for method in METHODS}
        question = format.encode_question(records["srrag"]["question"])
        logits = read_row(model, params, question)[2][-1, list(format.source_ids)]
        assert records["srrag"]["probabilities"] == pytest.approx(softmax(logits), rel=1e-3)

        tokens = write_knowledge(session, params, question)
        knowledge = format.tokenizer.decode(tokens[len(question) + 1 :]).strip()
        assert records["verbalise"]["knowledge"] == knowledge
        check_answer(session, params, tokens, records["verbalise"])
        tokens = [*question, format.source_ids[1]]
        tokens += format.encode_knowledge(records["retrieve"]["knowledge"])
        check_answer(session, params, tokens, records["retrieve"])

        prompt = encode_answer_prompt(format.tokenizer, records["direct"]["question"])
        written, _ = continue_row(
            model,
            session.base.params,
            prompt,
            max_tokens=c.answer.max_tokens,
            stop_ids=(format.tokenizer.eos_id,),
        )
        assert records["direct"]["prediction"] == format.tokenizer.decode(written).strip()
