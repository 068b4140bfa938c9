"""Asks a finished run of Parametric RAG: the documents found, merged into the model, answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.batches import round_up
from rag_jax.data.formats import read_passages
from rag_jax.data.passages import Passage
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.ask import Ask, Facts, Note, Piece, check_length, embed_texts, name_passage
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.infer import Engine
from rag_jax.systems.prag.pipeline import Session
from rag_jax.systems.prag.train import open_store

__all__ = ["CONFIG", "Session", "open_run"]

CONFIG = PRAGConfig
Search = Callable[[Sequence[str]], list[list[Passage]]]


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Reads a run's model, passages and where their adapters are.

    Args:
        corpus: passages to find in place of the run's; without adapters, they are read in the
            context.

    Raises:
        RagJaxError: as `open_stages`, or the corpus cannot be read.
    """
    context = open_stages(session.stages(), workdir, ("corpus", "encode"))
    if corpus is None:
        if not context.path("encode", "adapters").exists():  # opening would make it
            raise RagJaxError(f"{workdir}: stage encode: its adapters are not there")
        store = open_store(session, context, "encode")
        passages, name = session.read_corpus(context).passages, str(workdir)
    else:
        store, passages, name = None, read_passages([corpus]), str(corpus)
    embed = partial(embed_texts, encode=session.encode, name=name)
    return partial(_answer, session, store, session.make_search(passages, embed))


def _answer(
    session: Session, store: AdapterStore | None, search: Search, question: str
) -> Iterator[Facts | Piece | Note]:
    c, model = session.config, session.base.model
    limit = model.config.max_length - c.answer.max_tokens
    check_length(len(session.form.encode_prompt(question)), limit)
    (found,) = search([question])
    encoded = [p.id for p in found if store is not None and p.id in store]
    marks = ["adapter" if passage.id in encoded else "no adapter" for passage in found]
    shown = [name_passage(passage) for passage in found]
    if found:
        yield Facts("passages found", list(zip(marks, shown, strict=True)))
    if not found:
        yield Note("no passage shares a word with the question: the model answers by itself")
    elif encoded:
        yield Note("adapters are merged into the model, the passages are not read")
    else:
        yield Note("without adapters: the passages are read in the context")
    prompt = session.form.encode_prompt(question, () if encoded else found)
    check_length(len(prompt), limit)
    engine = Engine(
        model=model,
        params=session.base.params,
        form=session.form,
        settings=replace(c.answer, batch_size=count_data_rows()),
        scale=c.tuning.scale,
        documents=c.retrieve.passages,
        width=round_up(len(prompt), 32),
    )
    answers = engine.answer([prompt], store if encoded else None, [encoded])
    for reason in answers.lost.values():
        yield Note(f"answered without it: {reason}")
    yield Piece("answer", answers.texts[0])
