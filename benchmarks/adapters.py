"""Seconds and bytes of a document's adapter: made by a translator, and trained on the document.

    python benchmarks/adapters.py RUN [--documents=8] [--runs=7] [--out=FILE] -- FLAGS

RUN is the work folder of a finished run of Parametric RAG with a translator, FLAGS those that
`launch/train.py` made it with. Adapters of as many of the documents that its questions find, drawn
at random, are made from their texts and trained on their augmentations as the run does, in turns.
Neither side writes files, and the writing of augmentations is not counted. Documents are read
together in batches of `config.answer.batch_size`, which has to divide their number: a batch that
is not full takes as long.
"""

from functools import partial
from typing import Any

import bench
import jax
import numpy as np

from rag_jax.commands.finished import OPENING, find_run
from rag_jax.data.passages import Passage
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.paths import expand_path
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.systems.prag.augment import list_augmented
from rag_jax.systems.prag.data import Augmented, group_documents
from rag_jax.systems.prag.loss import make_document_loss
from rag_jax.systems.prag.pipeline import list_stages
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.train import list_examples, make_group_trainer
from rag_jax.systems.prag.translate import TRAIN
from rag_jax.training.fit import PARAMS
from rag_jax.training.rows import PROGRAM_TOKENS
from rag_jax.training.trainable import set_passes


def compare(
    session: Session, translator: Any, documents: list[Passage], augmented: list[Augmented]
) -> bench.Compared:
    """Every document's adapter, from its text and from a training of its own."""
    c, base = session.config, session.base
    examples = list_examples(session.format, documents, augmented, c.augment)
    lengths = np.asarray([[len(tokens) for tokens in rows] for rows in examples])
    worth = count_program_tokens(c.encode.program_tokens, on_cpu=PROGRAM_TOKENS)
    groups = group_documents(lengths, together=c.encode.together, program_tokens=worth)
    loss = make_document_loss(set_passes(base.model, c.tuning), session.trainable)
    start = fetch(session.trainable.init(base.params))
    train_group = make_group_trainer(base, loss, c.encode, groups, examples, start)
    starts = range(0, len(groups.order), groups.size)

    banks: dict[str, Any] = {}

    def make() -> None:
        banks["ours"] = jax.block_until_ready(translator.translate(documents))

    def train() -> None:
        trained = [train_group(groups.order[i : i + groups.size])[0] for i in starts]
        banks["trained"] = trained[0]

    compiling = {"ours": bench.time_call(make), "trained": bench.time_call(train)}
    one = [jax.tree.map(lambda leaf: leaf[0], banks[side]) for side in compiling]
    shapes = [jax.tree.map(np.shape, adapter) for adapter in one]
    bench.require(shapes[0] == shapes[1], "the adapters have other shapes")
    for side, adapter in zip(compiling, one, strict=True):
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(adapter))
        bench.require(finite, f"{side}: an adapter is not finite")
    return {"ours": make, "trained": train}, {
        "compile_seconds": compiling,
        "documents": len(documents),
        "together": groups.size,
        "trained_tokens": int(lengths.sum()) * c.encode.epochs,
        "read_tokens": sum(len(translator.encode(document)) for document in documents),
        "adapter_bytes": count_bytes(one[1]),
        "translator_bytes": count_bytes(translator.params),
    }


def count_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def describe(result: dict[str, Any], peak: float | None) -> str:
    """A line of a result."""
    wall, cpu, count = result["wall_seconds"], result["cpu_seconds"], result["documents"]
    sides = [f"{side} {wall[side] / count:.3f} s (CPU {cpu[side] / count:.3f})" for side in wall]
    return f"a document: {', '.join(sides)}, ratio {wall['trained'] / wall['ours']:.1f}"


def main() -> None:
    """Opens the run, draws documents, and times both sides."""
    own, flags = bench.split_arguments()
    parser = bench.make_parser(__doc__)
    parser.add_argument("run", type=expand_path)
    parser.add_argument("--documents", type=int, default=8)
    arguments = parser.parse_args(own)
    run, _ = find_run([*flags, f"--workdir={arguments.run}"], OPENING, "ask")
    session = run.open_session()
    with jax.set_mesh(session.mesh):
        context = open_stages(
            list_stages(session), run.workdir, ("corpus", "retrieve", "augment", TRAIN)
        )
        session.open_corpus(context.path("corpus", ""))
        documents, augmented = list_augmented(context, session.passages)
        rng = np.random.default_rng(session.config.seed)
        drawn = rng.permutation(len(documents))[: arguments.documents].tolist()
        chosen = [documents[i] for i in drawn], [augmented[i] for i in drawn]
        translator = session.make_translator(context.path(TRAIN, PARAMS))
        if arguments.documents % translator.batch_size:
            parser.error(f"--documents must be a multiple of {translator.batch_size}")
        cases = {"adapters": partial(compare, session, translator, *chosen)}
        model = session.config.model.name
        bench.run_cases(arguments, cases, ["jax"], describe=describe, model=model)


if __name__ == "__main__":
    main()
