"""The stages of the translator: its documents, its training, and the adapters that it makes."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.config import TuningConfig
from rag_jax.data.batches import BatchPlan, pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.decoding.prompts import read_prompts
from rag_jax.lora.store import AdapterStore
from rag_jax.models import Pretrained
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_jsonl
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import count_data_rows, shard_batch
from rag_jax.systems.prag.augment import list_augmented, list_documents
from rag_jax.systems.prag.config import AugmentConfig, TranslatorConfig
from rag_jax.systems.prag.data import Format, Variant, make_examples
from rag_jax.systems.prag.translator import (
    Kernel,
    Weights,
    init_translator,
    make_translation_loss,
    translate,
)
from rag_jax.training.fit import PARAMS, Batch, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable, set_passes

# Stages, with the names that `augment` and `train` know them by.
DOCUMENTS, AUGMENT, ENCODE = "translator_documents", "translator_augment", "translator_encode"
TRAIN, TRANSLATE = "translator", "translate"
EVALUATE_TRANSLATED = "evaluate_translated"
OTHERS = {"found": DOCUMENTS, "made": AUGMENT}

_RULES = ((".*", PartitionSpec()),)  # the translator is small: a copy on every device
WIDTH = 64  # documents and examples are padded to a multiple of this number of tokens


def choose_documents(
    context: StageContext, *, passages: Sequence[Passage], translator: TranslatorConfig, seed: int
) -> None:
    """Draws the documents to train on, from those that no evaluated question finds.

    Writes `found.jsonl` in the form of the retrieval's.

    Raises:
        RagJaxError: the corpus has no other document.
    """
    found = {
        id for r in read_jsonl(context.path("retrieve", "found.jsonl")) for id in r["passages"]
    }
    others = [i for i, passage in enumerate(passages) if passage.id not in found]
    if not others:
        raise RagJaxError(
            f"config.translator.documents={translator.documents}: the questions find every "
            "passage, and none is left to train the translator on; evaluate fewer questions "
            "(config.questions), or set 0"
        )
    drawn = np.random.default_rng(seed).permutation(others)[: translator.documents]
    if len(drawn) < translator.documents:
        log(f"the translator is trained on {len(drawn)} documents: there are no more")
    ids = [passages[row].id for row in sorted(drawn.tolist())]
    write_jsonl(context.folder / "found.jsonl", [{"id": id, "passages": [id]} for id in ids])


@partial(jax.jit, static_argnames="model")
def read_states(
    model: Decoder, params: PyTree, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B E"]:
    """The hidden state of each document's last token, as the model's head reads it."""
    return read_prompts(model, params, tokens, mask)[1].astype(jnp.float32)


@partial(jax.jit, static_argnames="kernels")
def translate_batch(
    params: PyTree, states: Float[Array, "B E"], *, kernels: tuple[Kernel, ...]
) -> PyTree[Array]:
    """The adapters of a batch of documents, a bank `[B, ...]`."""
    return jax.vmap(partial(translate, params, kernels=kernels))(states)


class Translator:
    """Makes adapters of documents; with the parts of an `AdapterStore` that answering needs.

    Args:
        params: of the translator; None before its training.
        passages: that can be translated.
        batch_size: number of documents that are read together.
    """

    def __init__(
        self,
        base: Pretrained,
        format: Format,
        kernels: tuple[Kernel, ...],
        params: PyTree | None,
        passages: Sequence[Passage] = (),
        batch_size: int = 16,
    ):
        self._base, self._format, self.kernels, self.params = base, format, kernels, params
        self._passages, self.batch_size = passages, batch_size

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {passage.id: row for row, passage in enumerate(self._passages)}

    def encode(self, passage: Passage) -> list[int]:
        """A document as the translator reads it: its title and the text that is read of it."""
        text = self._format.cut_text(passage.text)
        return self._base.tokenizer.encode_prompt(": ".join(filter(None, [passage.title, text])))

    def read_all(self, passages: Sequence[Passage]) -> Float[np.ndarray, "N E"]:
        """The states of documents, batch by batch."""
        starts, size = range(0, len(passages), self.batch_size), self.batch_size
        return np.concatenate([self.read(passages[start : start + size]) for start in starts])

    def read(self, passages: Sequence[Passage]) -> Float[np.ndarray, "N E"]:
        """The states of documents, at most a batch of them."""
        rows = list(map(self.encode, passages))
        width = round_up(max(map(len, rows)), WIDTH)
        arrays = shard_batch(pad_rows(rows, width, pad_id=0, batch=self.batch_size))
        return fetch(read_states(self._base.model, self._base.params, *arrays))[: len(rows)]

    def translate(self, passages: Sequence[Passage], rows: int | None = None) -> PyTree[Array]:
        """The adapters of documents, a bank `[rows, ...]`, by default of as many as documents."""
        states = self.read_all(passages)
        if rows is not None:
            states = np.pad(states, [(0, rows - len(states)), (0, 0)])
        return translate_batch(self.params, jnp.asarray(states), kernels=self.kernels)

    # As an `AdapterStore`.

    def __contains__(self, passage: str) -> bool:
        """Whether there is a passage of this id."""
        return passage in self._rows

    def load(
        self, passages: Sequence[str], *, rows: int | None = None
    ) -> tuple[PyTree, dict[str, str]]:
        """The adapters of passages, made now; see `AdapterStore.load`. None is lost."""
        return self.translate([self._passages[self._rows[id]] for id in passages], rows), {}


def make_training(
    base: Pretrained,
    kernels: tuple[Kernel, ...],
    *,
    tuning: TuningConfig,
    translator: TranslatorConfig,
    mesh: Mesh,
    seed: int,
) -> tuple[LossFunction, Trainable]:
    """The translator's loss, and what is trained."""
    weights = Weights(translator.language, translator.divergence, translator.distance)
    model = set_passes(base.model, tuning)
    loss = make_translation_loss(model, kernels, scale=tuning.scale, weights=weights)
    sizes = {"state_size": base.config.hidden_size, "hidden": translator.hidden}
    sizes["init"] = translator.init
    trainable = Trainable(
        base=base.params,
        frozen=base.params,
        init=lambda _: init_translator(jax.random.key(seed), kernels, **sizes),
        merge=lambda params, _: params,
        rules=_RULES,
        mesh=mesh,
    )
    return loss, trainable


def count_together(width: int, settings: TranslatorConfig) -> int:
    """The number of documents of one gradient computation, whose examples have `width` tokens."""
    least = count_data_rows()
    most = settings.microbatch_tokens // width // least * least
    return min(settings.batch_size, max(most, least))


def run_translator(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    base: Pretrained,
    tuning: TuningConfig,
    format: Format,
    augment: AugmentConfig,
    translator: TranslatorConfig,
    make_translator: Callable[..., Translator],
    open_store: Callable[..., AdapterStore],
    variants: Mapping[str, Variant],
    mesh: Mesh,
    seed: int,
) -> None:
    """Trains the translator on documents that have adapters.

    In an epoch every document is trained on once, by one of its examples: the first in the first
    epoch, and so on. Documents are read once before.
    """
    documents, augmented = list_augmented(context, passages, **OTHERS)
    store = open_store(context.path(ENCODE, "adapters"), variants["encode"])
    kept = [i for i, document in enumerate(documents) if document.id in store]
    documents, augmented = [documents[i] for i in kept], [augmented[i] for i in kept]
    made = make_translator()
    size = made.batch_size
    states = context.map("states.npy", documents, made.read, batch_size=size, unit="documents")
    examples = [
        make_examples(format, document, texts, questions=augment.questions)
        for document, texts in zip(documents, augmented, strict=True)
    ]
    plan = BatchPlan([0] * len(documents), batch_size=translator.batch_size, seed=seed)

    def pack(step: int, chosen: list[int]) -> Batch:
        epoch = step // plan.num_steps_per_epoch
        rows = {i: examples[i][epoch % len(examples[i])] for i in chosen}
        width, read = round_up(max(map(len, rows.values())), WIDTH), sum(map(len, rows.values()))
        size, microbatches = count_together(width, translator), []
        for part in (chosen[start : start + size] for start in range(0, len(chosen), size)):
            tokens, mask = pad_rows([rows[i] for i in part], width, pad_id=0, batch=size)
            adapters, lost = store.load([documents[i].id for i in part], rows=size)
            if lost:
                raise RagJaxError(next(iter(lost.values())))
            filler = size - len(part)
            arrays = {
                "states": np.pad(np.asarray(states[part]), [(0, filler), (0, 0)]),
                "tokens": tokens,
                "mask": mask,
                "weight": np.pad(np.full(len(part), 1 / len(chosen), np.float32), (0, filler)),
                "adapters": fetch(adapters),
            }
            microbatches.append(("documents", arrays))
        # The made adapter forward and back, and the trained one forward.
        return Batch(microbatches, 3 * base.config.count_flops(read, read))

    options = {"tuning": tuning, "translator": translator, "mesh": mesh, "seed": seed}
    loss, trainable = make_training(base, made.kernels, **options)
    files = {"folder": context.folder, "progress": context.progress}
    ids = [document.id for document in documents]
    fit(plan, pack, {"documents": loss}, trainable, translator, **files, ids=ids)


def run_translation(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    make_translator: Callable[..., Translator],
    open_translated: Callable[[Path], AdapterStore],
) -> None:
    """Makes and stores the adapters of all documents that the evaluated questions find."""
    documents = list_documents(context.path("retrieve", "found.jsonl"), passages)
    made, store = make_translator(context.path(TRAIN, PARAMS)), open_translated(context.folder)

    def run(batch: Sequence[Passage]) -> list[dict[str, Any]]:
        bank = fetch(made.translate(batch, made.batch_size))
        store.save([p.id for p in batch], jax.tree.map(lambda leaf: leaf[: len(batch)], bank))
        return [{"id": passage.id} for passage in batch]

    size = made.batch_size
    context.map("translated.jsonl", documents, run, batch_size=size, unit="documents (translated)")
