"""The batch plans of a whole run, drawn for a slice, and their tables."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from rag_jax.evaluation.tables import format_columns
from rag_jax.planning.batches import Corpus, Drawn, StageBatches
from rag_jax.planning.slices import Slice, check_mesh


def draw_run(
    system: Any, config: Any, batch_sizes: Sequence[str], slice: Slice, corpus: Corpus
) -> Drawn:
    """The batches of a run's stages on a slice.

    Args:
        system: a system's `batches` module, with `list_heads(config)` and `list_batches(config,
            corpus)`.
        batch_sizes: paths of the settings that the mesh must divide.

    Raises:
        RagJaxError: the slice has no such mesh, or the mesh does not divide batches or heads.
    """
    mesh = slice.make_mesh(config.mesh)
    sizes = {f"config.{path}": operator.attrgetter(path)(config) for path in batch_sizes}
    check_mesh(mesh, system.list_heads(config), sizes)
    with jax.sharding.use_abstract_mesh(mesh):
        stages = system.list_batches(config, corpus)
        return Drawn(corpus, {stage.stage: stage for stage in stages})


def describe_run(config: Any, slice: Slice, corpus: Corpus) -> str:
    """What is planned, in a line."""
    axes = slice.make_mesh(config.mesh).shape
    return (
        f"{slice.name}: {slice.devices} device(s), mesh {axes['data']} data by {axes['model']} "
        f"model; {describe_corpus(corpus)}"
    )


def describe_corpus(corpus: Corpus) -> str:
    """What a run reads."""
    return (
        f"{corpus.trained:,} questions to train on, {corpus.asked:,} to evaluate, "
        f"{corpus.passages:,} passages"
    )


def format_batches(stages: Iterable[StageBatches]) -> str:
    """A table of the stages, and one of their programs."""
    rows = [["stage", "steps", "drawn", "programs", "useful"]]
    programs = [["program", "rows", "tokens a row", "runs"]]
    for stage in stages:
        numbers = f"{stage.steps:,}", f"{stage.drawn:,}", str(len(stage.runs))
        rows.append([stage.stage, *numbers, f"{stage.useful:.1%}"])
        for shape, runs in stage.runs.items():
            name = f"{stage.stage}, {shape.kind}" if shape.kind else stage.stage
            programs.append([name, str(shape.rows), str(shape.width), f"{runs:,.0f}"])
    return f"{format_columns(rows)}\n\n{format_columns(programs)}"
