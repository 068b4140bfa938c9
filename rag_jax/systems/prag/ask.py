"""Asks a finished run of Parametric RAG: the documents found, merged into the model, the answer."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rag_jax.data.batches import double_up
from rag_jax.data.formats import read_passages
from rag_jax.data.passages import Passage
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.ask import Ask, Facts, Note, Piece, check_length, name_passage
from rag_jax.pipeline.own_corpus import embed_texts
from rag_jax.pipeline.runner import open_stages
from rag_jax.retrieval import list_texts
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.prag.evaluate import METHODS
from rag_jax.systems.prag.infer import Answers, Search
from rag_jax.systems.prag.pipeline import list_stages
from rag_jax.systems.prag.session import Session


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_parts`."""
    return partial(_answer, session, *open_parts(session, workdir, corpus))


def open_parts(
    session: Session, workdir: Path, corpus: Path | None
) -> tuple[AdapterStore | None, Search, Sequence[Passage]]:
    """Opens a run's adapters, the search for its passages, and the passages.

    Args:
        corpus: passages to search in place of the run's; they have no adapters and are read in the
            prompt.

    Raises:
        RagJaxError: as `open_stages`, or the corpus cannot be read.
    """
    context = open_stages(list_stages(session), workdir, ("corpus", "encode"))
    if corpus is None:
        folder = context.path("encode", "adapters")
        if not folder.exists():  # opening the store would make it
            raise RagJaxError(f"{workdir}: stage encode: its adapters are missing")
        store = session.open_store(folder, session.variants["encode"])
        session.open_corpus(context.path("corpus", ""))
        passages, name = session.passages, str(workdir)
    else:
        words = session.config.data.passage_words
        store, passages, name = None, read_passages([corpus], words=words), str(corpus)

    def embed(encoder, passages):
        made_by = {"encoder": encoder.fingerprint, "max_length": session.encoding.max_length}
        encode = partial(session.encode, encoder, role="document")
        return embed_texts(list_texts(passages), encode, name=name, **made_by)

    return store, session.make_search(passages, embed), passages


def find_documents(
    session: Session, search: Search, passages: Sequence[Passage], questions: Sequence[str]
) -> list[list[Passage]]:
    """The documents of each question, best first: as found or, with a reranker, as it has them."""
    found = search(questions)
    if session.reranking is not None:
        found = session.reranking.order(questions, found, passages)
    count = session.config.retrieve.passages
    return [[passages[row] for row, _ in ranked[:count]] for ranked in found]


def _answer(
    session: Session,
    store: AdapterStore | None,
    search: Search,
    passages: Sequence[Passage],
    question: str,
) -> Iterator[Facts | Piece | Note]:
    check_length(len(session.format.encode_prompt(question)), session.room)
    (found,) = find_documents(session, search, passages, [question])
    encoded, reads = pick_adapters(session, store, found)
    marks = ["adapter" if passage.id in encoded else "no adapter" for passage in found]
    if found:
        yield Facts("passages found", list(zip(marks, map(name_passage, found), strict=True)))
    if not found:
        yield Note("no passage shares a word with the question: the model answers by itself")
    elif not encoded:
        yield Note("without adapters: the passages are read in the context")
    elif reads:
        yield Note("adapters are merged into the model, and the passages are read in the context")
    else:
        yield Note("adapters are merged into the model, the passages are not read")
    prompt = session.format.encode_prompt(question, found if reads else ())
    size, store = count_data_rows(), store if encoded else None
    answers = answer_prompts(session, store, [prompt], [encoded], batch_size=size)
    for reason in answers.lost.values():
        yield Note(f"answered without an adapter: {reason}")
    yield Piece("answer", answers.texts[0])


def answer_prompts(
    session: Session,
    store: AdapterStore | None,
    prompts: Sequence[Sequence[int]],
    merged: Sequence[Sequence[str]],
    *,
    batch_size: int,
) -> Answers:
    """Answers prompts of unknown lengths; see `Engine.answer`.

    Raises:
        RagJaxError: a prompt has no room.
    """
    longest = max(map(len, prompts))
    check_length(longest, session.room)
    # Few widths: a program is compiled for each.
    width = min(double_up(longest, 32), session.room)
    return session.make_engine(width, batch_size=batch_size).answer(prompts, store, merged)


def pick_adapters(
    session: Session, store: AdapterStore | None, found: Sequence[Passage]
) -> tuple[list[str], bool]:
    """The ids of the documents whose adapters are merged, and whether the passages are read too."""
    has, merged = METHODS[session.config.ask]
    encoded = [p.id for p in found if merged and store is not None and p.id in store]
    return encoded, has == "passages" or not encoded
