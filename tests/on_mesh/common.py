"""What the cases share: the tiny decoder, what it writes, and results on one device."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tiny import make_decoder, make_rows
from tqdm import tqdm

from rag_jax import lora
from rag_jax.config import MeshConfig, TrainConfig, TuningConfig
from rag_jax.data.batches import BatchPlan
from rag_jax.decoding import Sampling, generate
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import DECODER_RULES, make_mesh, shard_params, shardings_of
from rag_jax.training.fit import Batch, fit
from rag_jax.training.rows import Row, pack_rows, target_logprobs
from rag_jax.training.trainable import make_trainable

SIZES = [(8, 1), (4, 2), (1, 8)]


def assert_close(found, wanted, tolerance=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=tolerance, atol=tolerance),
        found,
        jax.tree.map(np.asarray, wanted),
    )


def off_mesh(function, *arguments, **settings):
    """What a function gives on the first device alone, computed once."""
    key = (function, repr((arguments, settings)))
    if key not in _known:
        with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
            _known[key] = jax.tree.map(np.asarray, function(*arguments, **settings))
    return _known[key]


_known = {}


def make_model(mesh, **changes):
    """The tiny decoder, on one device where `mesh` is None."""
    model, params = make_decoder(**{"num_layers": 1, **changes})
    return model, params if mesh is None else shard_params(params, mesh, DECODER_RULES)


def no_bar(*_, **__):
    """A `progress` that shows nothing."""
    return contextlib.nullcontext(tqdm(disable=True))


ROWS = [
    Row(str(i), tokens, {"answer": (len(tokens) - 3, len(tokens))})
    for i, tokens in enumerate(make_rows(np.random.default_rng(0).integers(9, 17, 24)))
]
FIT_STEPS = 6


def fit_rows(folder, mesh=None, *, mode="lora", stop=None, progress=no_bar):
    """Trains the tiny decoder for six steps by the driver, to the end or until step `stop`.

    Returns:
        The log and the trained arrays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, params = make_model(mesh)
    trainable = make_trainable(
        TuningConfig(mode=mode, rank=2),
        params,
        rules=DECODER_RULES,
        mesh=mesh or make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1]),
        seed=0,
        dtype=jnp.float32,
    )
    settings = TrainConfig(epochs=2, batch_size=8, microbatch_tokens=128, checkpoint_every=2)
    plan = BatchPlan([0] * len(ROWS), batch_size=settings.batch_size, seed=0)

    def loss(trained, frozen, batch):
        logprobs = target_logprobs(model, trainable.merge(trained, frozen), batch)
        return -(batch["answer"] * logprobs).sum(), {"targets": (batch["answer"] > 0).sum()}

    def pack(step, chosen):
        if step == stop:
            raise KeyboardInterrupt
        rows = [[ROWS[i]] for i in chosen]
        sizes = {"width": 16, "targets": 16, "batch": 8, "scale": 1 / 8, "reduction": "mean"}
        return Batch([("rows", pack_rows(rows, terms=("answer",), **sizes))], 0.0)

    fit(
        plan,
        pack,
        {"rows": loss},
        trainable,
        settings,
        folder,
        progress,
        ids=[row.id for row in ROWS],
    )
    trained = trainable.load(folder / "params")
    assert shardings_of(trained) == shardings_of(trainable.start())
    return read_jsonl(folder / "log.jsonl"), trained


def make_bank(params, size):
    """Adapters on every kernel, none like another."""
    draw = partial(lora.init_bank, jax.random.key(0), targets=".*/kernel", rank=2, size=size)
    bank = jax.eval_shape(draw, params)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype("f"), bank)


def write(mesh=None, *, sampling, prefix, adapted=False, **changes):
    """Two lots of texts, the second of which compiles nothing."""
    model, params = make_model(mesh, **changes)
    adapters = make_bank(make_model(None)[1], 7) if adapted else None
    texts = []
    for seed in range(2):
        prompts = make_rows([3, 9, 4, 5, 12, 2, 7], seed=seed)
        before = compile_seconds()
        texts += generate(
            model,
            params,
            prompts,
            prefix=prefix,
            adapters=adapters,
            max_tokens=7,
            stop_ids=(3,),
            batch_size=16,
            sampling=sampling,
        )
    assert compile_seconds() == before
    return texts


GREEDY = {"sampling": Sampling(), "prefix": (5, 6, 7)}
SAMPLED = {"sampling": Sampling(temperature=0.7, top_k=9), "prefix": ()}
ADAPTED = {"sampling": Sampling(), "prefix": (), "adapted": True}
