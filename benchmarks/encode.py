"""Encoding of passages against what is run on CPUs: sentence-transformers, ONNX Runtime, OpenVINO.

    pip install -e '.[bench]'
    python benchmarks/encode.py FILE [--encoder NAME ...] [--passages=256] [--runs=7] [--out=FILE]

FILE has a JSON object with `title` and `text` on each line; in the committed results it is the
corpus of SciFact. All sides begin with the texts of some of its passages and end with their
embeddings, which are compared before anything is timed; the sides then take turns. The passages are
eights of neighbours in the order of length, evenly spaced, because batches of a corpus sorted by
length, as all sides have them, are such neighbours. This library pads to the widths that it plans
for the whole file, as building an index does. ONNX Runtime and OpenVINO have the graph that
`torch.onnx` writes of the same weights, with their tokenizer's, batches and pooling as
sentence-transformers has them. Each of those three gets the better of two batch sizes, by a first
turn. Takes ten minutes on two CPU cores with MiniLM.
"""

import os

# Worker threads of one side would otherwise keep spinning while it is another's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import bench
import numpy as np
import onnxruntime
import openvino
import torch
from sentence_transformers import SentenceTransformer

from rag_jax.data.passages import Passage
from rag_jax.models import load
from rag_jax.models.io.hub import resolve
from rag_jax.retrieval import encode_texts
from rag_jax.retrieval.encode import plan_widths
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.paths import expand_path

PACKAGES = ("jax", "torch", "sentence-transformers", "onnxruntime", "openvino")
BATCHES = 8, 32  # rows; the second is the default of sentence-transformers
TOLERANCE = 1e-3
Graph = Callable[[np.ndarray, np.ndarray], np.ndarray]
Encode = Callable[[int], np.ndarray]


class States(torch.nn.Module):
    """The transformer alone, from tokens and their mask to states."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The states of the last layer, `[B, T, D]`."""
        return self.model(input_ids=tokens, attention_mask=mask).last_hidden_state


def main() -> None:
    """Compares the sides, and writes the report."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("file", type=expand_path)
    defaults = {"nargs": "+", "default": ["all-minilm-l6-v2"]}
    parser.add_argument("--encoder", **defaults, help="names or folders")
    parser.add_argument("--passages", type=int, default=256)
    arguments = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(os.cpu_count())
    records = list(read_jsonl(arguments.file))
    passages = [Passage("", "", f"{record['title']} {record['text']}") for record in records]
    cases = {
        Path(name).name: partial(compare, name, passages, arguments.passages)
        for name in arguments.encoder
    }
    bench.run_cases(arguments, cases, PACKAGES, passages=arguments.passages)


def compare(name: str, passages: Sequence[Passage], count: int) -> bench.Compared:
    """The sides, and what they give for `count` of the passages, a multiple of a batch."""
    encoder, theirs = load(name), SentenceTransformer(str(resolve(name)), device="cpu")
    width = theirs.max_seq_length
    widths = plan_widths(encoder, passages, width)
    by_length = sorted((passage.text for passage in passages), key=len)
    size, parts = min(BATCHES), count // min(BATCHES)
    middles = (np.arange(parts) + 0.5) / parts * (len(passages) - size)
    texts = [text for i in middles.astype(int) for text in by_length[i : i + size]]
    ours = partial(encode_texts, encoder, texts, role="document", max_length=width, widths=widths)
    facts: dict[str, Any] = {"compile_seconds": bench.time_call(ours), "widths": widths}
    wanted = ours()
    facts["tokens"] = sum(len(row) for row in theirs.tokenizer(texts, truncation=True).input_ids)
    sides: bench.Sides = {"ours": ours}
    for side, encode in make_others(theirs, texts).items():
        found = {batch: encode(batch) for batch in BATCHES}
        facts[f"difference {side}"] = max(float(abs(f - wanted).max()) for f in found.values())
        bench.require(facts[f"difference {side}"] < TOLERANCE, f"{side} has other embeddings")
        seconds = {batch: bench.time_call(partial(encode, batch)) for batch in BATCHES}
        facts[f"batch {side}"] = min(seconds, key=seconds.__getitem__)
        sides[side] = partial(encode, facts[f"batch {side}"])
    return sides, facts


def make_others(theirs: SentenceTransformer, texts: Sequence[str]) -> dict[str, Encode]:
    """The other sides, each from a batch size to the embeddings."""

    def encode(batch: int) -> np.ndarray:
        return theirs.encode_document(list(texts), batch_size=batch, show_progress_bar=False)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(theirs[0].auto_model, path)
        graphs = {"ONNX Runtime": open_onnx(path), "OpenVINO": open_openvino(path)}
    others = {name: partial(encode_graph, graph, theirs, texts) for name, graph in graphs.items()}
    return {"sentence-transformers": encode, **others}


def export(model: torch.nn.Module, path: Path) -> None:
    """Writes the transformer's graph, for any number of rows and tokens."""
    tokens, mask = torch.ones((2, 2, 8), dtype=torch.int64).unbind()
    mask[0, -1] = 0  # as a mask without padding would be left out of the graph
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        States(model).eval(),
        (tokens, mask.clone()),
        path,
        input_names=["tokens", "mask"],
        dynamic_shapes=(sizes, sizes),
        dynamo=True,
        verbose=False,
    )


def open_onnx(path: Path) -> Graph:
    """The graph run by ONNX Runtime with all of its optimisations, which are its default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda tokens, mask: session.run(None, {"tokens": tokens, "mask": mask})[0]


def open_openvino(path: Path) -> Graph:
    """The graph compiled by OpenVINO for float32, as the other sides compute."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": os.cpu_count()}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda tokens, mask: compiled({"tokens": tokens, "mask": mask})[0]


def encode_graph(
    graph: Graph, theirs: SentenceTransformer, texts: Sequence[str], batch: int
) -> np.ndarray:
    """Embeddings in the order of the texts, the longest first, as sentence-transformers does."""
    prompt = theirs.prompts.get("document", "")
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    embeddings: list[Any] = [None] * len(texts)
    for start in range(0, len(texts), batch):
        chosen = order[start : start + batch]
        read = theirs.preprocess([prompt + texts[i] for i in chosen])
        states = graph(read["input_ids"].numpy(), read["attention_mask"].numpy())
        features = {**read, "token_embeddings": torch.from_numpy(np.array(states))}
        with torch.no_grad():
            for module in list(theirs)[1:]:
                features = module(features)
        for i, row in zip(chosen, features["sentence_embedding"].numpy(), strict=True):
            embeddings[i] = row
    return np.stack(embeddings)


if __name__ == "__main__":
    main()
