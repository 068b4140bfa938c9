"""Encodes the passages of files and builds an index over them.

    python launch/build_index.py FILE... [--encoder=all-minilm-l6-v2]
        [--backend=scann|exact|faiss_flat|faiss_hnsw|faiss_ivfpq|faiss_ivfrabitq]
        [--storage=float32|float16|int8] [--max_length=256] [--bad_lines=0] [--workdir=DIR]
        [--executor=ray [--ray_address=auto] [--workers=N] [--worker_resources='{"TPU": 4}']]

The files are JSON lines with `id`, `text` and optionally `title`, or passages in BEIR's, DPR's,
FlashRAG's or KILT's format, plain or compressed with gzip, bzip2, xz or Zstandard; or documents. A
bad line is reported with its number, and --bad_lines of them are skipped. The index is written to
DIR/stages/index/index, and the passages, in the order of the index's rows, to
DIR/stages/passages/passages.jsonl; DIR is runs/index unless --workdir names another folder. The
same command again continues where the last one stopped; with other files or settings it redoes only
what depends on them. --executor=ray has workers encode the passages, as in launch/train.py.

Ends with the size, the time, the bytes and, for an approximate index, the share of the exact ten
best passages that it finds for 256 of the passages. docs/library/retrieval.md says when to use
which --backend; --storage is for --backend=exact.
"""

import argparse
from typing import Any, get_args, get_type_hints

from rag_jax.config import IndexConfig
from rag_jax.pipeline import command, executors
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.paths import expand_path
from rag_jax.runtime.terminal import write_text


def read(arguments: list[str]) -> dict[str, Any]:
    """What the command line says by name, with the workers that it asks for; runs nothing.

    Raises:
        RagJaxError: a flag has a value that it cannot have.
    """
    parser = argparse.ArgumentParser(prog="launch/build_index.py", add_help=False)
    parser.add_argument("files", nargs="+", metavar="FILE", type=expand_path)
    parser.add_argument("--encoder", default="all-minilm-l6-v2")
    kinds = get_type_hints(IndexConfig)
    parser.add_argument("--backend", default="scann", choices=get_args(kinds["backend"]))
    parser.add_argument("--storage", default="float32", choices=get_args(kinds["storage"]))
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--bad_lines", type=int, default=0)
    parser.add_argument("--workdir", default="runs/index")
    for name in executors.FLAGS:
        parser.add_argument(f"--{name}")
    settings = vars(parser.parse_args(arguments))
    for name, least in {"max_length": 3, "bad_lines": 0}.items():
        if settings[name] < least:
            raise RagJaxError(f"--{name}={settings[name]}: must be at least {least}")
    workers = executors.read_executor({name: settings.pop(name) for name in executors.FLAGS})
    return settings | {"workdir": command.read_path(settings, "workdir"), "workers": workers}


def main(arguments: list[str]) -> None:
    """Builds the index that the command line describes."""
    settings = read(arguments)
    # Imported here because it takes a second; see `command`.
    from rag_jax.systems.index.pipeline import build_index

    command.keep_programs()
    files = list(map(str, settings.pop("files")))
    with executors.open_executor(settings.pop("workers")) as executor:
        facts = build_index(files, **settings, executor=executor)
    size, seconds = facts["passages"], facts["encode_seconds"]
    kind = ", ".join(facts[name] for name in ("backend", "storage") if name in facts)
    recall = f", recall@10 {facts['recall']:.4f}" if "recall" in facts else ""
    write_text(
        f"{facts['folder']}: {size:,} passages by {facts['width']} ({kind}), encoded "
        f"in {seconds:.1f} s, {size / seconds:.0f} a second, indexed in "
        f"{facts['build_seconds']:.2f} s, {facts['bytes'] / 1e6:.1f} MB, "
        f"{facts['bytes'] / size:.0f} bytes a passage{recall}"
    )


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__)
