"""The script of `rag_jax.commands.evaluate`; --help says how it is used."""

import sys

from rag_jax.commands.evaluate import run

if __name__ == "__main__":
    sys.exit(run())
