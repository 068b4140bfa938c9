"""Asks a finished run of Parametric RAG: the documents found, merged into the model, the answer."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from rag_jax.data.passages import Passage
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.ask import (
    Ask,
    Facts,
    Item,
    Note,
    Outcome,
    Piece,
    Threshold,
    check_length,
    name_passage,
)
from rag_jax.pipeline.citations import Citation
from rag_jax.pipeline.own_corpus import embed_texts, read_own
from rag_jax.pipeline.runner import open_stages
from rag_jax.retrieval import list_texts
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.likelihood import open_threshold
from rag_jax.systems.prag.evaluate import METHODS
from rag_jax.systems.prag.infer import Search
from rag_jax.systems.prag.pipeline import list_stages
from rag_jax.systems.prag.reader import answer_prompts, find_documents
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.translate import TRAIN, Translator
from rag_jax.training.fit import PARAMS


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_parts`."""
    parts = open_parts(session, workdir, corpus)
    return partial(_answer, session, *parts, open_threshold(list_stages(session), workdir))


def open_parts(
    session: Session, workdir: Path, corpus: Path | None
) -> tuple[AdapterStore | Translator | None, Search, Sequence[Passage]]:
    """Opens a run's adapters, the search for its passages, and the passages.

    Args:
        corpus: passages to search in place of the run's. The run's translator makes their adapters
            when they are found; without one they have none and are read in the prompt.

    Raises:
        RagJaxError: as `open_stages`, or the corpus cannot be read.
    """
    translates = corpus is not None and session.config.translator.documents > 0
    needed = ("corpus", "encode", *[TRAIN] * translates)
    context = open_stages(list_stages(session), workdir, needed)
    if corpus is None:
        folder = context.path("encode", "adapters")
        if not folder.exists():  # opening the store would make it
            raise RagJaxError(f"{workdir}: stage encode: its adapters are missing")
        store = session.open_store(folder, session.variants["encode"])
        session.open_corpus(context.path("corpus", ""))
        passages, name = session.passages, str(workdir)
    else:
        words = session.config.data.passage_words
        store, passages, name = None, read_own(corpus, words=words), str(corpus)
        if translates:
            store = session.make_translator(context.path(TRAIN, PARAMS), passages)

    def embed(encoder, passages):
        made_by = {"encoder": encoder.fingerprint, "max_length": session.encoding.max_length}
        encode = partial(session.encode, encoder, role="document")
        return embed_texts(list_texts(passages), encode, name=name, **made_by)

    return store, session.make_search(passages, embed), passages


def _answer(
    session: Session,
    store: AdapterStore | Translator | None,
    search: Search,
    passages: Sequence[Passage],
    threshold: Threshold | None,
    question: str,
) -> Iterator[Item]:
    check_length(len(session.format.encode_prompt(question)), session.room)
    (found,) = find_documents(session, search, passages, [question])
    encoded, reads = pick_adapters(session, store, found)
    if found:
        marks = ["adapter" if own.passage.id in encoded else "no adapter" for own in found]
        names = [name_passage(own.passage) for own in found]
        yield Facts("passages found", list(zip(marks, names, strict=True)))
    if not found:
        yield Note("no passage shares a word with the question: the model answers by itself")
    elif not encoded:
        yield Note("without adapters: the passages are read in the context")
    elif reads:
        yield Note("adapters are merged into the model, and the passages are read in the context")
    else:
        yield Note("adapters are merged into the model, the passages are not read")
    read = [passage for passage, _ in found] if reads else ()
    prompt = session.format.encode_prompt(question, read)
    size, store = count_data_rows(), store if encoded else None
    answers = answer_prompts(session, store, [prompt], [encoded], batch_size=size)
    for reason in answers.lost.values():
        yield Note(f"answered without an adapter: {reason}")
    (text,), verdict = answers.texts, {}
    yield Piece("answer", text)
    merged = [id for id in encoded if id not in answers.lost]
    if citations := list_read(found, merged, reads=reads):
        # The threshold was chosen without adapters.
        verdict = {"threshold": None if merged else threshold}
        verdict["likelihood"] = answers.likelihoods[0]
    yield Outcome(text, citations, **verdict)


def list_read(found: Sequence[Citation], merged: Collection[str], *, reads: bool) -> list[Citation]:
    """The documents that an answer rests on: those that were read or whose adapters were merged."""
    return [own for own in found if reads or own.passage.id in merged]


def pick_adapters(
    session: Session, store: AdapterStore | Translator | None, found: Sequence[Citation]
) -> tuple[list[str], bool]:
    """The ids of the documents whose adapters are merged, and whether the passages are read too."""
    has, merged = METHODS[session.config.ask]
    ids = [passage.id for passage, _ in found]
    encoded = [id for id in ids if merged and store is not None and id in store]
    return encoded, has == "passages" or not encoded
