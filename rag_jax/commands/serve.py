"""Serves a finished work folder in the format of OpenAI's API.

    python launch/serve.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] [--corpus=PATH] [--host=127.0.0.1] [--port=8000] [--tokens=256]
        [--waiting=256] [--body=1048576]

The config and its changes are those that launch/train.py made the work folder with; nothing is
trained, and nothing is written into the folder. --workdir and --corpus are as for launch/ask.py.
Needs the extra `serve`.

The server answers POST /v1/chat/completions, /v1/embeddings and /v1/rerank, as far as the run has a
generator, an encoder and a reranker, and GET /v1/models and /health. The model's name is
config.system. Requests that come together are answered together, up to the run's batch size.

--host is this machine alone unless the environment variable RAG_JAX_TOKEN has a secret, which
clients send as their API key. --tokens is the largest number of tokens of a question with its
prompt, but for passages: for each of the lengths up to it programs are compiled before the start,
on a CPU those of a question alone.
--waiting is the number of requests that may wait; further ones get the status 429. --body is the
largest number of bytes of a request.
"""

import asyncio
import logging
import os
from typing import Any

from rag_jax.commands.describe import describe_config
from rag_jax.commands.finished import OPENING, FinishedRun, find_run
from rag_jax.pipeline import command
from rag_jax.runtime import signals
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import open_room

OPTIONS = {
    **OPENING,
    "host": "the address to serve on",
    "port": "the port to serve on; 0 for any",
    "tokens": "largest number of tokens of a question, with its prompt but for passages",
    "waiting": "largest number of requests that wait",
    "body": "largest number of bytes of a request",
}


def main(arguments: list[str]) -> None:
    """Serves the command line's run until a signal."""
    found, options = find_run(arguments, OPTIONS, "serve")
    try:
        from rag_jax.serving import access, server
        from rag_jax.serving.limits import Limits
    except ImportError as error:
        raise RagJaxError(f"{error.name} is not installed: pip install 'rag_jax[serve]'") from None
    given = {key: command.read_count(options, key) for key in ("tokens", "waiting", "body")}
    for key, value in given.items():
        if value == 0:
            raise RagJaxError(f"--{key}=0: must be at least 1")
    limits = Limits(**{key: value for key, value in given.items() if value is not None})
    # Without the line's end that a file of secrets has, which no header can hold.
    token = os.environ.get(access.VARIABLE, "").strip() or None
    host = options["host"] or "127.0.0.1"
    access.check_address(host, token)
    port = command.read_count(options, "port")
    bound = server.bind(host, 8000 if port is None else port)
    with bound:
        _serve(found, bound, token=token, limits=limits)


def _serve(found: FinishedRun, bound: Any, **options: Any) -> None:
    session = found.open_session()
    # Imported here because it takes a second; see `command`.
    import jax

    from rag_jax.serving.app import make_app
    from rag_jax.serving.compute_thread import ComputeThread
    from rag_jax.serving.server import serve

    with jax.set_mesh(session.mesh):
        room = open_room(found.system, "serve")
        served = room.open_run(session, found.workdir, found.corpus)
    # How many texts were cut is nothing to say of every request.
    for name in ("rag_jax.retrieval", "rag_jax.systems"):
        logging.getLogger(name).setLevel(logging.ERROR)
    thread = ComputeThread(served, session.mesh, tokens=options["limits"].tokens)
    asyncio.run(thread.warm_up())
    signals.begin_work()
    serve(make_app(found.system, served, thread, **options), bound)


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, interrupted="stopped", describe=describe_config)
