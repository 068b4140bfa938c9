"""The passages of a source, reranked: in contexts, in answers and in predictions."""

import shutil

import jax

from rag_jax.config import build
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.srrag import evaluate
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.pipeline import list_stages
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.sources import load_indices
from systems.reranked import check_ranks, set_reranker
from systems.srrag.tiny_run import open_stage

WIKI = 1  # the number of the searched source


def test_a_source_gives_what_a_reranker_puts_first(finished, make_config, tmp_path):
    changes, folder = set_reranker(tmp_path), tmp_path / "stages"
    session = Session(build(SRRAGConfig, make_config(**changes)))
    stages = {stage.name: stage for stage in list_stages(session)}
    read = {name for name, stage in stages.items() if "reranker" in stage.settings}
    assert read == {"contexts", "evaluate", "likelihood"}  # of a run with a given threshold

    made = ("contexts", "evaluate")
    shutil.copytree(finished[0] / "stages", folder, ignore=shutil.ignore_patterns(*made))
    context = open_stage(session, tmp_path, "evaluate")
    encoder = session.fingerprint("encoder.name")
    passages, sources = session.passages, session.config.sources
    index, rows = load_indices(context, passages, sources, encoder=encoder)[WIKI]
    known = {passage.id: passage for passage in passages}

    def find(question):
        (places,) = index.search(session.embed([question]), 4)[1]
        return [passages[row].id for row in rows[places]]

    for name in made:
        (folder / name).mkdir()
        with jax.set_mesh(session.mesh):
            stages[name].run(StageContext(stages[name], folder))
    # At test time one passage is read.
    for record in read_jsonl(folder / "evaluate" / "retrieve.jsonl"):
        (shown,) = record["passages"]
        found = find(record["question"])
        check_ranks(changes, record["question"], [shown], found, passages)
        assert record["knowledge"] == join_passages([session.format.cut(known[shown["id"]])])
    spec = evaluate.describe_report(session.config, trained=False)
    tables = spec.extras(StageContext(stages["evaluate"], folder), {}, {})["tables"]
    head, found, reranked = tables["passages as found and reranked"]
    assert head[:2] == ["passages", "answer@1"]
    assert (found[0], reranked[0]) == ("found", "reranked")
    direct = read_jsonl(folder / "evaluate" / "verbalise.jsonl")
    assert direct and not any("passages" in record for record in direct)

    asked = {question.id: question.question for question in session.train_questions}
    cut = {session.format.cut(passage): id for id, passage in known.items()}
    for record in read_jsonl(folder / "contexts" / "contexts.jsonl"):
        question = asked[record["id"]]
        found = find(question)
        ids = [cut[tuple(text)] for text in record["contexts"][WIKI]]
        shown = [
            {"id": id, "rank_before": 1 + found.index(id), "rank_after": rank}
            for rank, id in enumerate(ids, 1)
        ]
        check_ranks(changes, question, shown, found, passages)
