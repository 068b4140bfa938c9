"""Has a language model write questions about your documents, for a comparison or a training.

    python launch/write_questions.py --config=configs/questions.py --config.data.path=FOLDER
        [--config.field=value ...] [--workdir=DIR]

FOLDER holds documents (.txt, .md, .html, .pdf, .docx) or passages in any format; questions that it
holds are left aside. The model of --config.model.name writes questions with short answers about
passages that are drawn evenly from the documents. A question is kept if its answer stands in the
passage, if it can be understood alone, and if the model itself finds the answer with the passage
and does not without. All questions of a document go to one split.

DIR/data then has the passages and train_, dev_ and test_questions.jsonl, a question a line, to read
and to correct; DIR is runs/questions unless --workdir names another. It is a folder for every
command: --config.data.path=DIR/data. DIR/stages/split/left_out.jsonl has the other questions with
the reasons.

The same command again continues where the last one stopped, and leaves changed files alone.
"""

from typing import Any

from rag_jax.commands.describe import list_settings
from rag_jax.pipeline import command
from rag_jax.runtime.terminal import write_text

OPTIONS = {"workdir": "the work folder"}


def main(arguments: list[str]) -> None:
    """Writes the questions that the command line asks for."""
    values, options = command.read_command(arguments, OPTIONS)
    command.find_system(values, ("questions",))
    workdir = command.find_workdir(arguments, options)
    # Imported here because it takes a second; see `command`.
    from rag_jax.config import build
    from rag_jax.systems.questions.config import QuestionsConfig
    from rag_jax.systems.questions.pipeline import DATA, write_questions

    config = build(QuestionsConfig, values)
    command.keep_programs()
    counts = write_questions(config, workdir)
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    write_text(f"{workdir / DATA}: {sum(counts.values())} questions ({listed})")


def describe(values: Any) -> str:
    """Every setting of the questions.

    Raises:
        RagJaxError: the config is of no questions, or has a value that is not allowed.
    """
    from rag_jax.config import build
    from rag_jax.systems.questions.config import QuestionsConfig

    command.find_system(values, ("questions",))
    return "\n".join(list_settings(build(QuestionsConfig, values), "config"))


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe)
