"""Settings shared by all systems: fields of frozen dataclasses, each with its range in its type.

The number types (`Count`, `Fraction`, ...), `build` and `to_config_dict` are defined in
`rag_jax.runtime.settings`.
"""

import os
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.paths import expand_path
from rag_jax.runtime.settings import (
    Count,
    CountOrZero,
    Fraction,
    MeshConfig,
    NonNegative,
    Positive,
    Range,
    Seed,
    build,
    choose_preset,
    describe_unknown,
    to_config_dict,
)

__all__ = [
    "ConstantTrainConfig",
    "ContrastiveConfig",
    "Count",
    "CountOrZero",
    "DataConfig",
    "EncoderConfig",
    "Fraction",
    "IndexConfig",
    "MeshConfig",
    "ModelConfig",
    "NonNegative",
    "Positive",
    "Range",
    "ReaderConfig",
    "Seed",
    "TrackerName",
    "TrainConfig",
    "TuningConfig",
    "WorldConfig",
    "build",
    "choose_preset",
    "describe_unknown",
    "to_config_dict",
]

# Where the curves of a run go besides its own files; see `docs/guides/track.md`.
TrackerName = Literal["none", "tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class ModelConfig:
    """The language model.

    Attributes:
        name: a model that `rag_jax.models.load` knows by name, or a folder with its files. The
            default is small enough to train on two CPU cores.
        dtype: type of weights and activations. Trained parameters are kept in float32 in any case,
            because small updates vanish in the 16-bit types.
        int8: whether the layers' kernels are held in int8, with a scale for each column. They take
            half the memory of bfloat16, and adapters alone can be trained (`tuning.mode`).
    """

    name: str = "smollm2-135m-instruct"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    int8: bool = False


@dataclass(frozen=True)
class ReaderConfig(ModelConfig):
    """The language model that reads passages.

    Attributes:
        max_text: maximum number of tokens of a passage's text; longer texts are cut.
    """

    max_text: Count = 256


@dataclass(frozen=True)
class EncoderConfig:
    """The sentence encoder of the index.

    Attributes:
        name: an encoder that `rag_jax.models.load` knows by name, or a folder with its files.
        max_length: maximum number of tokens of a text, special tokens included; the rest is cut.
        batch_size: number of texts of 16 tokens in a batch. Longer texts have fewer rows, so every
            batch has about as many tokens. 64 texts are 1,024 tokens, where a CPU is fastest.
        program_tokens: number of tokens that could be encoded while one program compiles, for the
            choice of widths. None for 5,000 on CPU (0.6 s of two cores) and 10 million elsewhere.
        query_prompt: what stands before a question; None for what the encoder's files say.
        passage_prompt: what stands before a passage; None for what the encoder's files say.
        dimensions: number of features of an embedding that are kept, for an encoder whose first
            ones serve alone (Matryoshka); None for all.
    """

    name: str = "all-minilm-l6-v2"
    max_length: Annotated[int, Range(3)] = 128
    batch_size: Count = 64
    program_tokens: CountOrZero | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    dimensions: Count | None = None


@dataclass(frozen=True)
class WorldConfig:
    """The built-in encyclopedia: passages about countries and cities, and questions about them.

    Attributes:
        cities: number of cities with articles, all in the countries with articles.
        countries: number of countries with articles, the most populous first; 0 for all.
        revision: 0, or 1 for the same world after some countries changed their capital or currency.
        talk_pages: maximum number of talk pages per place. A talk page asks a question and answers
            none, so the passage nearest to a question is of no help.
    """

    cities: Count = 1200
    countries: CountOrZero = 0
    train: Count = 160
    dev: CountOrZero = 200
    test: Count = 300
    seed: Seed = 0
    revision: CountOrZero = 0
    talk_pages: CountOrZero = 0


@dataclass(frozen=True)
class DataConfig:
    """The source of passages and questions: the built-in world, or a folder of files.

    Attributes:
        path: folder in one of the formats of `rag_jax/data/formats`, or a dataset of the Hugging
            Face hub; several with a colon between them are a mixture (see
            `rag_jax.data.formats.mixture`); None for the built-in world.
        format: format of the questions. "auto" infers the format from the first record of a file.
        held_out: number of training questions that become the "dev" split of a folder without one.
        seed: of the choice of the held-out questions, and of the questions that are trained on and
            evaluated where there are more than the settings ask for. Runs with several seeds
            (`config.seed`) share these questions.
        longtail: whether to keep only the dev and test questions in PopQA's long tail.
        bad_lines: maximum number of malformed lines that are skipped, each with a warning. One more
            ends the run.
        passage_words: the most words of a passage that is cut from a document.
    """

    path: str | None = None
    format: Literal[
        "auto",
        "world",
        "arc",
        "asqa",
        "beir",
        "cwq",
        "dpr",
        "fever",
        "flashrag",
        "jsonl",
        "kilt",
        "msmarco",
        "multihop",
        "popqa",
        "pubhealth",
        "ragas",
        "squad",
        "strategyqa",
        "tfds",
        "triviaqa",
        "webquestions",
    ] = "auto"
    held_out: CountOrZero = 0
    seed: Seed = 0
    longtail: bool = False
    bad_lines: CountOrZero = 0
    passage_words: Count = 100

    def __post_init__(self) -> None:
        """Expands home folders in `path`; raises a RagJaxError if there is none."""
        if self.path is not None and "~" in self.path:
            paths = [str(expand_path(path)) for path in self.path.split(os.pathsep)]
            object.__setattr__(self, "path", os.pathsep.join(paths))

    def check(self, path: str) -> None:
        """Raises a RagJaxError if a setting does not fit the source."""
        if self.path is not None and not self.path.strip():
            raise RagJaxError(f"{path}.path={self.path!r}: is blank; name a folder, or give None")
        if self.path is None and self.format not in ("auto", "world"):
            raise RagJaxError(f"{path}.format={self.format!r}: set {path}.path to the data folder")
        if self.path is not None and self.format == "world":
            raise RagJaxError(
                f"{path}.format='world': the world is built in; leave {path}.path unset"
            )
        if self.path is None and self.held_out:
            raise RagJaxError(
                f"{path}.held_out={self.held_out}: the built-in world has a dev split; set it to 0"
            )
        if self.path is None and self.longtail:
            raise RagJaxError(f"{path}.longtail=True: set {path}.path to a folder with PopQA")


@dataclass(frozen=True)
class IndexConfig:
    """The search over the passages' embeddings.

    Attributes:
        backend: "scann" for ScaNN, which is approximate for large corpora and exists for Linux on
            x86-64 only, "exact" for a matrix product on the devices, or one of FAISS's, of which
            "faiss_flat" is exact. See `rag_jax.retrieval.Index`.
        storage: how the embeddings are kept. Only "exact" has others than "float32".
    """

    backend: Literal[
        "scann", "exact", "faiss_flat", "faiss_hnsw", "faiss_ivfpq", "faiss_ivfrabitq"
    ] = "scann"
    storage: Literal["float32", "float16", "int8"] = "float32"

    def check(self, path: str) -> None:
        """Raises a RagJaxError if the backend cannot keep embeddings so."""
        if self.storage != "float32" and self.backend != "exact":
            raise RagJaxError(
                f"{path}.storage={self.storage!r}: {path}.backend={self.backend!r} keeps float32; "
                f"set {path}.backend='exact', or leave {path}.storage unset"
            )

    def describe(self) -> dict[str, str]:
        """What a stage's artefacts depend on.

        Without the default storage, which was the only one when older work folders were made.
        """
        stored = {} if self.storage == "float32" else {"storage": self.storage}
        return {"backend": self.backend, **stored}


@dataclass(frozen=True)
class ConstantTrainConfig:
    """One training stage: AdamW at a constant rate, without clipping.

    Attributes:
        epochs: number of passes over the examples; 0 skips the training.
        batch_size: maximum number of examples per step.
        weight_decay: AdamW's weight decay. Vectors (norm scales, biases) are not decayed.
        microbatch_tokens: maximum number of tokens, padding included, of one gradient computation,
            unless a single row has more. Gradients are summed over the microbatches of a step,
            which bounds the memory and changes the result by rounding only.
        program_tokens: number of tokens that could be trained on while one program compiles; fewer
            programs are compiled the larger it is. None for 1,600 on CPU, measured on two cores,
            and 10 million elsewhere.
        checkpoint_every: number of steps between two checkpoints.
    """

    epochs: CountOrZero = 1
    batch_size: Count = 4
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    microbatch_tokens: Count = 128
    program_tokens: CountOrZero | None = None
    checkpoint_every: Count = 10


@dataclass(frozen=True)
class TrainConfig(ConstantTrainConfig):
    """One training stage: AdamW with a linear warm-up and a linear decay to zero.

    Attributes:
        learning_rate: peak, after the warm-up.
        warmup_fraction: share of the steps that warm up. At least one step does.
        clip_norm: gradients with a larger global norm are scaled down to this norm.
    """

    warmup_fraction: Fraction = 0.1
    clip_norm: Positive = 1.0


@dataclass(frozen=True)
class TuningConfig:
    """The trained part of a language model: all weights, or LoRA adapters on some kernels.

    Attributes:
        mode: "full" trains all weights, "lora" adapters only (Hu et al. 2021). Adapters need far
            less memory for gradients and optimiser moments.
        alpha: an adapter's product is multiplied by `alpha / rank`. Unused with "full".
        targets: regular expression for the paths of the adapted kernels. The default matches all
            projections of a layer. Unused with "full".
        remat: activations that the backward pass computes again, to save memory: "none"; "full"
            for all within a layer, or "dots" for all but the results of its projections.
        scan_layers: whether training loops over the layers' stacked weights: one layer is compiled,
            however many there are, and the weights are copied once a pass.
    """

    mode: Literal["full", "lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0
    targets: str = r"attention/(query|key|value|output)|ffn/(gate|up|down)"
    remat: Literal["none", "full", "dots"] = "none"
    scan_layers: bool = False

    @property
    def scale(self) -> float | None:
        """Factor on an adapter's product, `alpha / rank`; None if all weights are trained."""
        return None if self.mode == "full" else self.alpha / self.rank

    def check(self, path: str) -> None:
        """Raises a RagJaxError if `targets` is no regular expression."""
        try:
            re.compile(self.targets)
        except re.error as error:
            message = f"{path}.targets={self.targets!r}: not a regular expression: {error}"
            raise RagJaxError(message) from error


@dataclass(frozen=True)
class ContrastiveConfig(TrainConfig):
    """Training of a retriever with in-batch negatives.

    Every question comes with its gold passage and its mined negatives. All passages of the batch
    are negatives of the other questions, so larger batches have better negatives.

    Attributes:
        microbatch_tokens: maximum number of tokens that an encoder reads at once. Unlike in
            `TrainConfig`, the loss still spans the whole batch.
        negatives: number of mined negatives per question.
        scale: factor on the scores in the softmax: 20 is usual for cosines, 1 for dot products.
        scan_layers: whether to loop over the stacked weights of BERT's layers, so that one is
            compiled for each width: for TPUs, where a list of them compiles for very long.
    """

    batch_size: Count = 32
    learning_rate: Positive = 5e-5
    clip_norm: Positive = 2.0
    microbatch_tokens: Count = 2048
    negatives: CountOrZero = 1
    scale: Positive = 20.0
    scan_layers: bool = False

    def check(self, path: str) -> None:
        """Raises a RagJaxError if a question's passage would be told apart from no other."""
        if self.batch_size == 1 and not self.negatives:
            raise RagJaxError(
                f"{path}.batch_size=1 and {path}.negatives=0: a question has no passage to tell "
                "its own from; set one of them higher"
            )
