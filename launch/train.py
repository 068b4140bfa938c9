"""The script of `rag_jax.commands.train`; --help says how it is used."""

import sys

from rag_jax.commands.train import run

if __name__ == "__main__":
    sys.exit(run())
