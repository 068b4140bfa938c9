"""Readers of passages and questions, from the built-in world or a folder in a common format.

A folder contains files of JSON lines, JSON arrays, JSON objects or tables, with a name that ends in
`.jsonl`, `.ndjson`, `.json`, `.tsv` or `.csv`, plain or compressed with gzip, bzip2, xz or
Zstandard. The format of a file is detected from the first record, or `config.data.format` sets the
format of the questions; the docstring of each format's module lists the fields. `beir` and `tfds`
are formats of a whole folder. A dataset that Hugging Face's `datasets` saved, or one split of it,
stands for a file. In all other folders, any file may contain passages (plain, DPR's, FEVER's,
FlashRAG's or KILT's) and any file may contain questions:

- A name that ends in `passages` or `questions`, such as `train_questions.jsonl`, determines the
  content. If a name ends in `questions`, questions are read only from files with such names.
- A word of the file name is the split of the questions; `splits` lists the words. Without such a
  word, the split is "test". A name that is in doubt is an error, and so are two files that name a
  split in two ways, such as `dev` and `validation`.
- The passages of all files form one corpus. Without passage files, the corpus consists of the
  passages that come with the questions, with their titles as ids.

Every file is accounted for: after reading, a line per file says how many records were read, skipped
and left out, and why. A warning names each file and folder that is not read; a file that looks like
data, but that no reader takes, is an error, and so are empty files, pointers of Git LFS, links to
missing files and UTF-16. A warning tells when questions of one file are in another too.

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
