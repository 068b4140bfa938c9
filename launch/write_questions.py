"""The script of `rag_jax.commands.write_questions`; --help says how it is used."""

import sys

from rag_jax.commands.main import run_module

if __name__ == "__main__":
    sys.exit(run_module("write_questions"))
