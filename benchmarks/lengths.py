"""Measures the lengths of a corpus's texts, from which `launch/plan.py` draws its batches.

    python benchmarks/lengths.py --passages FILE ... --questions FILE ... --out=FILE

Passages are files of any format that `rag_jax.data.formats` streams; questions are JSON lines with
`question` and `answers`, of which the first counts. Tokens are those of SmolLM2-135M-Instruct and,
for what an encoder reads, of all-MiniLM-L6-v2. The committed `rag_jax/planning/lengths.json` is of
3,460 passages of Wikipedia that were retrieved for questions of TriviaQA, each of a hundred words
as DPR cuts them, of 1,000 of TriviaQA's questions, and of every 22nd of SQuAD's 87,599. Takes ten
seconds.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.models import load_tokenizer
from rag_jax.retrieval.texts import TextReading, list_texts, tokenize_with
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.self_retrieval.data import split_sentences

QUANTILES = 201
MOST = 4096  # texts of a file that are measured
LONGEST = 512  # tokens that an encoder reads


def main() -> None:
    """Measures every kind of text and writes the quantiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", nargs="+", required=True)
    parser.add_argument("--questions", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    decoder, encoder = map(load_tokenizer, ("smollm2-135m-instruct", "all-minilm-l6-v2"))
    passages = [p for f in arguments.passages for p in thin(read_passages(f))]
    asked = [record for f in arguments.questions for record in thin(read_jsonl(f))]
    sentences = [s for passage in passages for s in split_sentences(passage.text)]
    questions = [record["question"] for record in asked]

    def count(texts: Sequence[str]) -> list[int]:
        return [len(decoder.encode(f" {text}")) for text in texts]

    def count_read(texts: Sequence) -> list[int]:
        return [len(row) for row in tokenize_with(TextReading(encoder), texts, LONGEST)]

    tokens = {
        "question": count(questions),
        "answer": count([record["answers"][0] for record in asked]),
        "title": count([passage.title for passage in passages]),
        "passage": count([passage.text for passage in passages]),
        "sentence": count(sentences),
        "query": count_read(questions),
        "text": count_read(list_texts(passages)),
    }
    about = f"{len(passages)} passages and {len(asked)} questions, by benchmarks/lengths.py"
    lines = [f'    "{kind}": {json.dumps(find_quantiles(of))}' for kind, of in tokens.items()]
    body = ",\n".join(lines)
    text = f'{{\n  "about": {json.dumps(about)},\n  "tokens": {{\n{body}\n  }}\n}}\n'
    arguments.out.write_text(text, "utf-8")


def read_passages(path: str) -> list:
    """The passages of a file."""
    return list(stream_passages([path], BadLines(0, "--bad_lines")))


def thin(records: Sequence) -> Iterator:
    """Evenly spaced records, at most `MOST`."""
    return iter(records[:: -(-len(records) // MOST)])


def find_quantiles(lengths: Sequence[int]) -> list[float]:
    """Evenly spaced quantiles, the least and the largest included."""
    return np.quantile(lengths, np.linspace(0, 1, QUANTILES)).round(1).tolist()


if __name__ == "__main__":
    main()
