"""A decoder small enough for slow references, with weights large enough to matter."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from rag_jax.models.nn.decoder import Decoder, DecoderConfig
from rag_jax.systems.rag.data import Example, pack_examples

CONFIG = DecoderConfig(
    vocab_size=31,
    hidden_size=16,
    ffn_size=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=100.0,
    norm_eps=1e-5,
    tie_embeddings=False,
    max_length=128,
)


def make_decoder(seed=0, **changes):
    """A decoder with random weights: attention far from uniform, scales other than one."""
    model = Decoder(replace(CONFIG, **changes))
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        scaled = 1 + 0.2 * noise if leaf.ndim == 1 else 0.4 * noise
        return jnp.asarray(scaled, jnp.float32)

    return model, jax.tree_util.tree_map_with_path(draw, tree)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def turn(x, positions, theta):
    """Rotary embedding of `[T, H, d]`: features `i` and `i + d/2` are one complex number."""
    half = x.shape[-1] // 2
    speeds = theta ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * speeds)[
        :, None
    ]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def read_row(model, params, row):
    """Reads one row of tokens in NumPy, one head at a time, in float64.

    Returns:
        The residual stream after the embedding and each layer, the final hidden states `[T, D]`,
        and the logits `[T, V]`.
    """
    c = model.config
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c.norm_eps) * scale["scale"]

    x = params["embed"]["embedding"][list(row)]
    positions, streams = np.arange(len(row)), [x]
    for i, kind in enumerate(c.layer_kinds):
        p = params[f"layers_{i}"]
        h = norm(x, p["attention_norm"])
        query, key, value = (
            (h @ p["attention"][name]["kernel"]).reshape(len(row), -1, c.head_dim)
            for name in ("query", "key", "value")
        )
        if kind.rotates:
            query, key = turn(query, positions, c.rope_theta), turn(key, positions, c.rope_theta)
        distance = positions[:, None] - positions
        distance = np.abs(distance) if c.bidirectional else distance
        seen = (distance >= 0) & (distance < (c.window if kind.slides else len(row)))
        heads = []
        for head in range(c.num_heads):
            shared = head * c.num_kv_heads // c.num_heads
            scores = query[:, head] @ key[:, shared].T / np.sqrt(c.head_dim)
            scores = np.where(seen, scores, -np.inf)
            heads.append(softmax(scores) @ value[:, shared])
        x = x + np.concatenate(heads, axis=-1) @ p["attention"]["output"]["kernel"]
        h = norm(x, p["ffn_norm"])
        gate, up = (h @ p["ffn"][name]["kernel"] for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p["ffn"]["down"]["kernel"]
        streams.append(x)
    hidden = norm(x, params["final_norm"])
    head = params["embed"]["embedding"].T if c.tie_embeddings else params["head"]["kernel"]
    return streams, hidden, hidden @ head


def continue_row(model, params, row, *, max_tokens, stop_ids):
    """The likeliest next tokens, one full pass each.

    Returns:
        The tokens, and whether a stop token ended them.
    """
    written = []
    while True:
        token = int(read_row(model, params, [*row, *written])[2][-1].argmax())
        if token in stop_ids:
            return written, True
        if len(written) == max_tokens:
            return written, False
        written.append(token)


def make_rows(lengths, *, seed=0):
    """Random rows of tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]


def pack_questions(tokens, mask, targets, target_mask, *, start_ids=(), scale=1.0):
    """A `pack_examples` batch of padded arrays `[B * K, L]` and `[B, T]`, a sequence a question."""
    docs = len(tokens) // len(targets)
    inputs, answers = (
        [row[real].tolist() for row, real in zip(np.asarray(rows), np.asarray(keep), strict=True)]
        for rows, keep in ((tokens, mask), (targets, target_mask))
    )
    examples = [
        Example(inputs[i * docs : (i + 1) * docs], answer) for i, answer in enumerate(answers)
    ]
    sizes = [example.measure(start_ids) for example in examples]
    return pack_examples(
        [[example] for example in examples],
        start_ids=start_ids,
        width=max(size.tokens for size in sizes),
        written=max(1, *(size.targets for size in sizes)),
        items=1,
        answer=np.shape(targets)[1],
        batch=len(examples),
        scale=scale,
    )
