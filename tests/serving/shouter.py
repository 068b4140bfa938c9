"""A server in this process, over an engine that only shouts."""

import asyncio
import contextlib
import threading
import time

import numpy as np

from rag_jax.config import MeshConfig
from rag_jax.data.passages import Passage
from rag_jax.pipeline.citations import Citation
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import make_mesh
from rag_jax.systems.served import Answer, Embedded, Served

PASSAGES = [
    Passage("../a b?.pdf#3.2", "Atlantis", "Poseidonis is its capital."),
    Passage("b", "", "No."),
]
CITATIONS = [Citation(PASSAGES[0], 0.5), Citation(PASSAGES[1], None)]


class Shouter:
    """Answers in capitals, embeds texts by their length, and scores a passage's shared letters."""

    def __init__(self):
        self.batches, self.going = [], threading.Event()
        self.going.set()

    def answer(self, questions):
        self.batches.append(list(questions))
        assert self.going.wait(10)
        if "breaks" in questions:
            raise ValueError(f"a secret of {questions}")
        if "unread" in questions:
            raise RagJaxError(f"{questions[0]}.txt: cannot be read")
        return [Answer(q.upper(), CITATIONS, len(q.split()), 3, "cut" in q) for q in questions]

    def embed(self, texts, role):
        lengths = [float(len(text)) for text in texts]
        vectors = np.asarray([[n, role == "query"] for n in lengths], np.float32)
        return Embedded(vectors, [len(text.split()) for text in texts])

    def score(self, pairs):
        return np.asarray([len(set(a) & set(b)) - 2.0 for a, b in pairs], np.float32)

    def serve(self, **changes):
        parts = {"answer": self.answer, "embed": self.embed, "score": self.score} | changes
        return Served(batch_size=4, check=lambda q: len(q.split()), **parts)


@contextlib.contextmanager
def serving(served, *, name="rag", token=None, **limits):
    """The address of a server of `served`; it ends cleanly with the block."""
    from rag_jax.serving.app import make_app
    from rag_jax.serving.compute_thread import ComputeThread
    from rag_jax.serving.limits import Limits
    from rag_jax.serving.server import bind, make_server

    limits = Limits(**limits)
    computing = ComputeThread(served, make_mesh(MeshConfig()), tokens=limits.tokens)
    bound = bind("127.0.0.1", 0)
    server = make_server(make_app(name, served, computing, token=token, limits=limits))
    thread = threading.Thread(target=asyncio.run, args=(server.serve([bound]),))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
