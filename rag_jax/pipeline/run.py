"""What running a system is: its stages, then the report on what its last one wrote."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rag_jax.evaluation.report import write_report
from rag_jax.pipeline.runner import Shard, run_stages
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.hosts import is_first


def run_session(
    session: Any,
    workdir: Path,
    *,
    shard: Shard | None,
    model: str,
    methods: Sequence[str],
    summarize: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    columns: Sequence[str],
    make_tables: Callable[[Path, Mapping[str, Any]], Mapping[str, Any]] = lambda *made: {},
) -> dict[str, Any]:
    """Runs every stage that isn't made yet, or a shard of them, and writes the report.

    Args:
        session: with `config`, `mesh` and `stages()`, of which the stage "evaluate" writes for
            each method `<method>.jsonl`, a record a question; TREC runs there are copied into the
            work folder.
        shard: as for `run_stages`.
        model: the name that the report has.
        summarize: gives a method's numbers from its records.
        columns: as for `write_report`.
        make_tables: gives further tables from the folder of all stages and the methods' records.

    Returns:
        The report as written; on all processes but the first nothing.

    Raises:
        RagJaxError: whatever of the settings, the data, the models or the disk the user can mend.
    """
    config = session.config
    with jax.set_mesh(session.mesh):
        records = run_stages(session.stages(), workdir, config=config, shard=shard)
    if not is_first():
        return {}
    stages = Path(workdir) / "stages"
    predictions = {name: read_jsonl(stages / "evaluate" / f"{name}.jsonl") for name in methods}
    for path in sorted((stages / "evaluate").glob("*.trec")):
        shutil.copy(path, workdir)
    return write_report(
        workdir,
        system=config.system,
        config=config,
        model=model,
        dataset=f"{config.data.path or 'gazetteer'}, {config.evaluate_on} questions",
        methods={name: summarize(rows) for name, rows in predictions.items()},
        columns=columns,
        stages=records,
        predictions=predictions,
        tables=make_tables(stages, predictions),
    )
