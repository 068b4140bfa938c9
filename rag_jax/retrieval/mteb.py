"""An encoder as MTEB evaluates it (Muennighoff et al. 2023, arXiv 2210.07316).

`mteb.evaluate(MtebEncoder("owner/name", encoder), tasks)` runs the benchmark's own tasks and
metrics. Texts are encoded as everywhere in this package: with the encoder's prompt for the role,
and a passage with a title as (title, text). The prompts that a task proposes are left out, because
they are not those that the encoder was trained with.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.retrieval.encode import encode_texts
from rag_jax.retrieval.texts import make_text
from rag_jax.runtime.errors import RagJaxError

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError as error:
    raise RagJaxError(f"mteb cannot be imported ({error}): pip install 'rag_jax[mteb]'") from error


class MtebEncoder(AbsEncoder):
    """Encoder of texts with the interface of MTEB; similarities are dot products, as in `Index`.

    Args:
        name: under which MTEB stores the results, as `owner/name`.
        max_length: maximum number of tokens of a text; see `encode_texts`.
    """

    def __init__(self, name: str, encoder: Pretrained, *, max_length: int = 128):
        self.model, self._max_length = encoder, max_length
        has_prompts = encoder.sentence is not None and bool(encoder.sentence.prompts)
        about = {
            "name": name,
            # MTEB keeps results by name and revision: other prompts or lengths are another one.
            "revision": f"{encoder.fingerprint[:16]}-{max_length}",
            "max_tokens": max_length,
            "embed_dim": encoder.model.embedding_size,
            "framework": ["JAX"],
            "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
            "use_instructions": has_prompts,
        }
        self.mteb_model_meta = ModelMeta.create_empty(about)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings of the texts of a task, in their order.

        Args:
            inputs: batches of texts by MTEB's names of their parts.
            task_metadata: of the task, for its name.
            hf_split: part of the task, which makes no difference.
            hf_subset: likewise.
            prompt_type: whether the texts are queries or documents; None in tasks without roles.
            **kwargs: `batch_size` is that of `encode_texts`; a progress bar is not shown.

        Raises:
            RagJaxError: if the task has no texts, or asks for embeddings other than float32, and as
                `encode_texts` does.
        """
        if kwargs.get("precision", "float32") != "float32":
            raise RagJaxError(f"precision={kwargs['precision']!r}: embeddings are float32 here")
        texts: list[str | tuple[str, str]] = []
        for batch in inputs:
            if "text" not in batch:
                raise RagJaxError(f"{task_metadata.name}: has no texts, but {', '.join(batch)}")
            texts += _list_texts(batch)
        options = {"batch_size": kwargs["batch_size"]} if "batch_size" in kwargs else {}
        role = None if prompt_type is None else prompt_type.value
        return encode_texts(self.model, texts, role=role, max_length=self._max_length, **options)


def _list_texts(batch: Mapping[str, Sequence[str]]) -> list[str | tuple[str, str]]:
    """Texts of a batch; `body` is the text of a passage without its title."""
    if not {"title", "body"} <= batch.keys():
        return list(batch["text"])
    pairs = zip(batch["title"], batch["body"], strict=True)
    return [make_text(Passage("", title, body)) for title, body in pairs]
