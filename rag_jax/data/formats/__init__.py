"""Readers of passages and questions, from the built-in world or a folder in a common format.

A folder contains files of JSON lines, JSON arrays or tables, plain or compressed with gzip. The
format of a file is detected from the first record, or `config.data.format` sets the format of the
questions; the docstring of each format's module lists the fields. `beir` and `tfds` are formats of
a whole folder. In all other folders, any file may contain passages (plain, DPR's, FlashRAG's or
KILT's) and any file may contain questions:

- A name that ends in `passages` or `questions`, such as `train_questions.jsonl`, determines the
  content. If a name ends in `questions`, questions are read only from files with such names.
- `train`, `dev`, `valid`, `validation`, `val` or `test`, as a word of the file name, is the split
  of the questions; "test" if the name contains none of these words.
- The passages of all files form one corpus. Without passage files, the corpus consists of the
  passages that come with the questions, with their titles as ids.

`dpr.write_results`, `kilt.write_predictions`, `flashrag.write_questions` and
`flashrag.write_passages` write the formats that the same modules read. TREC runs are in
`rag_jax.evaluation.rankings`.

Bad lines are reported with file and line number; up to `config.data.bad_lines` bad lines are
skipped.
"""

from rag_jax.data.formats.lines import BadLines
from rag_jax.data.formats.passages import read_passages, stream_passages
from rag_jax.data.formats.read import copy_collection, describe_source, read_collection

__all__ = [
    "BadLines",
    "copy_collection",
    "describe_source",
    "read_collection",
    "read_passages",
    "stream_passages",
]
