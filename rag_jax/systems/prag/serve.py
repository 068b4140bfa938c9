"""Serves a finished run of Parametric RAG: answers with the adapters of the documents found."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rag_jax.data.batches import list_widths
from rag_jax.data.passages import Passage
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.ask import check_length
from rag_jax.systems.prag.ask import list_read, open_parts, pick_adapters
from rag_jax.systems.prag.evaluate import METHODS
from rag_jax.systems.prag.infer import Search
from rag_jax.systems.prag.reader import answer_prompts, find_documents
from rag_jax.systems.prag.session import Session
from rag_jax.systems.served import Answer, Served, make_embedding, make_scoring


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Served:
    """Opens a run; see `ask.open_parts`."""
    store, *search = open_parts(session, workdir, corpus)
    _, merged = METHODS[session.config.ask]
    store = store if merged else None  # the program without adapters is a faster one
    embed = None
    if session.config.retrieve.by_encoder:
        session.query_widths = list_widths(session.encoding.max_length)
        embed = make_embedding(session, query=session.encoder, document=session.encoder)

    def check(question: str) -> int:
        tokens = len(session.format.encode_prompt(question))
        check_length(tokens, session.room)
        return tokens

    return Served(
        batch_size=session.config.answer.batch_size,
        answer=partial(_answer, session, store, *search),
        check=check,
        embed=embed,
        score=make_scoring(session.reranking),
    )


def _answer(
    session: Session,
    store: AdapterStore | None,
    search: Search,
    passages: Sequence[Passage],
    questions: Sequence[str],
) -> list[Answer]:
    found = find_documents(session, search, passages, questions)
    picked = [pick_adapters(session, store, documents) for documents in found]
    prompts = [
        session.format.encode_prompt(question, [p for p, _ in documents] if reads else ())
        for question, documents, (_, reads) in zip(questions, found, picked, strict=True)
    ]
    merged = [encoded for encoded, _ in picked]
    answers = answer_prompts(session, store, prompts, merged, batch_size=len(questions))
    for reason in answers.lost.values():
        session.note(f"answered without an adapter: {reason}")
    cited = [
        list_read(documents, {*encoded} - {*answers.lost}, reads=reads)
        for documents, (encoded, reads) in zip(found, picked, strict=True)
    ]
    cut_off = [length >= session.config.answer.max_tokens for length in answers.lengths]
    columns = answers.texts, cited, map(len, prompts), answers.lengths, cut_off
    return [Answer(*row) for row in zip(*columns, strict=True)]
