"""Passages and questions about them, from the built-in world or a folder in a common format.

A folder holds files of JSON lines, JSON arrays or tables, as they are or as gzip. What is in a file
is found out from its first record, or the format of the questions is set with `config.data.format`;
each format's module has its fields. `beir` and `tfds` are folders of their own kind; in all others
any files hold passages (plain, DPR's, FlashRAG's or KILT's) and any hold questions:

- where names end in `passages` or `questions`, as in `train_questions.jsonl`, they say so, and no
  other file's questions are read;
- `train`, `dev`, `valid`, `validation`, `val` or `test`, as a word of the name, is the split of a
  file's questions, "test" where there is none;
- the passages of all files make one corpus. Where there are none, those that come with the
  questions do, their titles the ids.

`dpr.write_results`, `kilt.write_predictions`, `flashrag.write_questions` and
`flashrag.write_passages` write what the same modules read; TREC's runs are in
`rag_jax.evaluation.rankings`.

A bad line is told with its file and number; `config.data.bad_lines` of them are skipped.
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
