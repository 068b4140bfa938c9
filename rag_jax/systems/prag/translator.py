"""The parameter translator: a document's adapter from one hidden state, without training (DyPRAG).

For the factors of every adapted kernel of layer `l` (Tan et al. 2025, arXiv 2503.23895),

    vec(A) = relu([s; l] W_down) W_up,

and likewise B with weights of its own, where `s` is the hidden state of the document's last token.
All parameters are one plain tree: for each kind of kernel, such as `ffn.gate.kernel`, the weights
of all layers stacked. The layout of `vec` is the released code's: `A` row by row as PEFT keeps it,
`[r, in]`, and B as `[out, r]`.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rag_jax import lora
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import cast

_INIT = 1e-7  # standard deviation of the first weights, the released code's
_LAYER = re.compile(r"layers_(\d+)")


class Kernel(NamedTuple):
    """An adapted kernel: its path, and the sizes of its factors.

    Attributes:
        inputs, rank, outputs: A is `[inputs, rank]` and B `[rank, *outputs]`.
    """

    path: tuple[str, ...]
    inputs: int
    rank: int
    outputs: tuple[int, ...]

    @property
    def layer(self) -> int:
        """The number of its layer; 0 without one."""
        numbers = (match[1] for name in self.path if (match := _LAYER.fullmatch(name)))
        return int(next(numbers, 0))

    @property
    def kind(self) -> str:
        """The path without the layer."""
        return ".".join(name for name in self.path if not _LAYER.fullmatch(name))


def list_adapted(adapter: PyTree) -> tuple[Kernel, ...]:
    """The kernels of an adapter, or of the description of one."""
    kernels = []
    for path, factors in lora.list_kernels(adapter):
        (inputs, rank), (_, *outputs) = factors["a"].shape, factors["b"].shape
        kernels.append(Kernel(path, inputs, rank, tuple(outputs)))
    return tuple(kernels)


def _group(kernels: Sequence[Kernel]) -> dict[str, list[Kernel]]:
    groups: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.kind].append(kernel)
    return groups


def init_translator(
    key: Key[Array, ""],
    kernels: Sequence[Kernel],
    *,
    state_size: int,
    hidden: int,
    init: float = _INIT,
) -> PyTree[Float[Array, "..."]]:
    """New parameters, `W_up` close to zero, so that the first adapters change nothing.

    Args:
        state_size: features E of a document's state.
        hidden: width H between `W_down` `[L, E + 1, H]` and `W_up` `[L, H, size of the factor]`.
        init: standard deviation of `W_down`. Where AdamW's first steps are much larger and the
            states alike, all columns that are active become the same and the others stay inactive:
            the factors that are made of different documents are then multiples of each other.
    """
    params: dict[str, Any] = {}
    for kind, members in _group(kernels).items():
        first = members[0]
        sizes = {"a": first.inputs * first.rank, "b": first.rank * math.prod(first.outputs)}
        params[kind] = {}
        for side, size in sizes.items():
            shapes = {"down": (len(members), state_size + 1, hidden)}
            shapes["up"] = (len(members), hidden, size)
            params[kind][side] = {}
            for name, shape in shapes.items():
                key, draw = jax.random.split(key)
                scale = init if name == "down" else _INIT
                params[kind][side][name] = scale * jax.random.normal(draw, shape, jnp.float32)
    return params


def translate(
    params: PyTree[Array], state: Float[Array, "E"], *, kernels: Sequence[Kernel]
) -> PyTree[Array]:
    """A document's adapter from its state; `jax.vmap` over `state` makes a bank."""
    adapter: dict[str, Any] = {}
    for kind, members in _group(kernels).items():
        layers = jnp.asarray([kernel.layer for kernel in members], jnp.float32)
        states = jnp.broadcast_to(state.astype(jnp.float32), (len(members), len(state)))
        inputs = jnp.concatenate([states, layers[:, None]], axis=1)  # [L, E + 1]
        flat = {
            side: jnp.einsum(
                "lh,lho->lo",
                jax.nn.relu(jnp.einsum("le,leh->lh", inputs, weights["down"])),
                weights["up"],
            )
            for side, weights in params[kind].items()
        }
        for n, kernel in enumerate(members):
            node = adapter
            for name in kernel.path[:-1]:
                node = node.setdefault(name, {})
            a = flat["a"][n].reshape(kernel.rank, kernel.inputs).T
            b = flat["b"][n].reshape(-1, kernel.rank).T
            b = b.reshape(kernel.rank, *kernel.outputs)
            node[kernel.path[-1]] = {"a": a, "b": b}
    return adapter


class Weights(NamedTuple):
    """Weights of the loss's three terms; `TranslatorConfig` has the released code's."""

    language: float
    divergence: float
    distance: float


def make_translation_loss(
    model: Decoder, kernels: Sequence[Kernel], *, scale: float, weights: Weights
) -> LossFunction:
    """The loss of the translator on documents that have a trained adapter (DyPRAG, eq. 5 to 8).

    The sum over the examples, each times its `weight`, of

    - the language model's loss with the made adapter, the mean over the example's tokens;
    - the divergence from the predictions with the trained adapter to those with the made one, the
      sum over the example's positions;
    - the distance of the two adapters' weights: for every factor the mean square of the
      differences, summed over factors.

    Args:
        scale: of every adapter, made or trained; see `lora.compute_scale`.

    The arrays are `states` `[B, E]`, `tokens` and `mask` `[B, T]`, `weight` `[B]`, 0 for an example
    that fills up the batch, and `adapters`, a bank `[B, ...]` of the trained ones.
    """

    def loss(
        params: PyTree, frozen: PyTree, arrays: Mapping[str, Any]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        def predict(adapter: PyTree, tokens: Int[Array, "T"], mask: Bool[Array, "T"]) -> Array:
            dtype = frozen["embed"]["embedding"].dtype
            applied = lora.apply(frozen, cast(adapter, dtype), scale=scale)
            logits = model.apply({"params": applied}, tokens[None], mask=mask[None])[0]
            return logits.astype(jnp.float32)

        def one(
            state: Float[Array, "E"],
            tokens: Int[Array, "T"],
            mask: Bool[Array, "T"],
            trained: PyTree,
        ) -> tuple[Array, Array, Array]:
            made = translate(params, state, kernels=kernels)
            logits = predict(made, tokens, mask)
            wanted = jax.lax.stop_gradient(predict(trained, tokens, mask))
            logprobs = token_logprobs(logits[:-1], tokens[1:])
            language = -(logprobs * mask[1:]).sum() / jnp.maximum(mask[1:].sum(), 1)
            own, other = jax.nn.log_softmax(logits), jax.nn.log_softmax(wanted)
            apart = (jnp.exp(other) * (other - own)).sum(axis=-1)
            squares = jax.tree.map(lambda x, y: jnp.square(x - y).mean(), made, trained)
            return language, (apart * mask).sum(), sum(jax.tree.leaves(squares))

        inputs = (arrays[name] for name in ("states", "tokens", "mask", "adapters"))
        terms = [(arrays["weight"] * term).sum() for term in jax.vmap(one)(*inputs)]
        named = dict(zip(Weights._fields, terms, strict=True))
        return sum(weight * named[name] for name, weight in weights._asdict().items()), named

    return loss
