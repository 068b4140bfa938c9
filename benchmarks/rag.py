"""RAG's decoding in this library against Hugging Face's on PyTorch: the same weights, one process.

    pip install -e '.[bench]' && python benchmarks/rag.py [--runs=7] [--out=FILE]

RAG-Sequence Thorough and RAG-Token write 16 tokens with 4 beams for 1 and for 4 questions, each
with 5 passages of 128 tokens, on a BART of BART-base's size. Weights and passages are random. With
weights as small as BART's own initialisation makes them, every token is nearly as likely as the
next, and rounding would choose between beams: these are three times as large. What the decoder's
attention adds is made smaller, or the last token would be drowned by what all steps share, and one
token written again and again. Sequences and scores
are compared before anything is timed; then the two take turns, and the table has the medians. A
ratio above one means that this library is faster. Takes a quarter of an hour on two CPU cores.
"""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import numpy as np
import torch
import transformers
from tqdm import tqdm
from turns import take_turns, time_call

from rag_jax.decoding import BeamConfig
from rag_jax.models.io.bart_configs import describe_bart
from rag_jax.models.io.tensors import StoredTensor
from rag_jax.models.io.weights import build_params
from rag_jax.models.nn.bart import Bart, BartConfig
from rag_jax.runtime.hosts import fetch
from rag_jax.systems.rag import infer

CONFIG = BartConfig(
    hidden_size=768, encoder_layers=6, decoder_layers=6, encoder_heads=12, decoder_heads=12,
    encoder_ffn_size=3072, decoder_ffn_size=3072, forced_eos_id=None,
)  # fmt: skip
SPREAD = 0.06  # standard deviation of the weights; BART's own is 0.02
BATCHES, DOCS, WIDTH = (1, 4), 5, 128
BEAMS, TOKENS = 4, 16
# No answer ends before its last token, so that both sides write equally much.
SETTINGS = {
    "max_tokens": TOKENS,
    "stop_ids": (CONFIG.eos_id,),
    "search": BeamConfig(num_beams=BEAMS, min_tokens=TOKENS),
}
THEIR_SETTINGS = {
    "n_docs": DOCS, "num_beams": BEAMS, "num_return_sequences": BEAMS, "do_sample": False,
    "min_length": 1 + TOKENS, "max_length": 1 + TOKENS,
}  # fmt: skip

Answers = tuple[np.ndarray, np.ndarray]  # tokens `[B, W, T]` and scores `[B, W]`, best first


class Inputs(NamedTuple):
    """Passages with their questions, `[B * K, L]`, and the passages' scores, `[B, K]`."""

    tokens: np.ndarray
    mask: np.ndarray
    scores: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="timed turns of each side, at least 7")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs={arguments.runs}: must be at least 7")

    theirs = load_theirs()
    params = copy_weights(theirs["token"].generator)
    ways = {"thorough": (Thorough, theirs["sequence"]), "token": (Token, theirs["token"])}
    cases = [(name, batch) for batch in BATCHES for name in ways]
    results = []
    for name, batch in tqdm(cases, desc="benchmark", unit=" cases"):
        way, model = ways[name]
        case = way(params, model, make_inputs(batch))
        result = {"name": f"{name}, {batch} questions", **compare(case)}
        sides = {"ours": case.ours, "theirs": case.theirs}
        results.append(result | take_turns(sides, arguments.runs))
        tqdm.write(describe(results[-1]))
    report = {"environment": describe_machine(), "results": results}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def load_theirs() -> dict[str, Any]:
    """Their two models around one generator, with weights from one seed."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    config = transformers.BartConfig(**describe_bart(CONFIG), init_std=SPREAD)
    generator = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in generator.model.decoder.layers:
            layer.self_attn.out_proj.weight.mul_(0.3)
            layer.encoder_attn.out_proj.weight.mul_(0.1)
    # Nothing is asked of it, for passages and their scores are given.
    asker = transformers.DPRConfig(
        vocab_size=1, hidden_size=1, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1
    )
    both = transformers.RagConfig.from_question_encoder_generator_configs(
        asker, config, n_docs=DOCS, do_deduplication=True, is_encoder_decoder=True,
        bos_token_id=CONFIG.bos_id, pad_token_id=CONFIG.pad_id, eos_token_id=CONFIG.eos_id,
        decoder_start_token_id=CONFIG.start_id,
    )  # fmt: skip
    parts = {"question_encoder": transformers.DPRQuestionEncoder(asker), "generator": generator}
    return {
        "sequence": transformers.RagSequenceForGeneration(both, **parts).eval(),
        "token": transformers.RagTokenForGeneration(both, **parts).eval(),
    }


def copy_weights(generator: Any) -> Any:
    """The same weights as our parameters."""
    state = generator.state_dict().items()
    tensors = {n: StoredTensor(tuple(t.shape), lambda t=t: t.numpy()) for n, t in state}
    return build_params(CONFIG, tensors)


def make_inputs(batch: int) -> Inputs:
    rng = np.random.default_rng(batch)
    # None of the first ids, which are control tokens; and no padding, which theirs would read.
    tokens = rng.integers(5, CONFIG.vocab_size, (batch * DOCS, WIDTH)).astype(np.int32)
    scores = rng.normal(0, 1, (batch, DOCS)).astype(np.float32)
    return Inputs(tokens, np.ones(tokens.shape, bool), scores)


class Case:
    """One way of decoding, on either side."""

    def __init__(self, params: Any, model: Any, inputs: Inputs):
        self.params, self.model, self.inputs = params, model, inputs

    def theirs(self) -> np.ndarray:
        """The answers' tokens `[B * W, T]`, behind what they start with."""
        return self.ask(self.model.generate, self.inputs, **THEIR_SETTINGS).numpy()

    def ask(self, function: Callable[..., Any], inputs: Inputs, **settings: Any) -> Any:
        with torch.inference_mode():
            return function(
                context_input_ids=torch.asarray(inputs.tokens).long(),
                context_attention_mask=torch.asarray(inputs.mask).long(),
                doc_scores=torch.asarray(inputs.scores),
                **settings,
            )


class Thorough(Case):
    """RAG-Sequence: the beams of every passage, each distinct answer scored under all of them."""

    def ours(self) -> Answers:
        tokens, mask, scores = self.inputs
        model = Bart(CONFIG), self.params
        cache, hidden = infer.read(*model, tokens, mask)
        found = infer.propose(*model, cache, hidden, scores, **SETTINGS)
        logprobs = infer.score(*model, cache, hidden, *found, chunk=BEAMS)
        texts, marginals = fetch((found.tokens, infer.mix(scores, logprobs)))
        best = np.argsort(-marginals, axis=1, kind="stable")[:, :BEAMS]
        texts = np.take_along_axis(texts, best[..., None], axis=1)[..., :TOKENS]
        return texts, np.take_along_axis(marginals, best, axis=1)

    def theirs_scored(self) -> Answers:
        """Their answers, and once more the scores they are ranked by, which they don't give."""
        written = self.theirs().reshape(-1, BEAMS, 1 + TOKENS)
        marginals = []
        for b, answers in enumerate(written):
            passages = slice(b * DOCS, (b + 1) * DOCS)
            again = Inputs(
                np.tile(self.inputs.tokens[passages], (BEAMS, 1)),
                np.tile(self.inputs.mask[passages], (BEAMS, 1)),
                np.tile(self.inputs.scores[b], (BEAMS, 1)),
            )
            losses = self.ask(self.model, again, labels=torch.asarray(answers), n_docs=DOCS).loss
            marginals.append(-losses.numpy())
        return written[..., 1:], np.stack(marginals)


class Token(Case):
    """RAG-Token: beams over the mixture of the passages' next-token distributions."""

    def ours(self) -> Answers:
        tokens, mask, scores = self.inputs
        model = Bart(CONFIG), self.params
        cache, hidden = infer.read(*model, tokens, mask)
        found = fetch(infer.write_token(*model, cache, hidden, scores, **SETTINGS))
        return found.tokens, found.scores

    def theirs_scored(self) -> Answers:
        settings = {**THEIR_SETTINGS, "return_dict_in_generate": True, "output_scores": True}
        written = self.ask(self.model.generate, self.inputs, **settings)
        scores = written.sequences_scores.numpy().reshape(-1, BEAMS)
        return written.sequences.numpy()[:, 1:].reshape(*scores.shape, TOKENS), scores


def compare(case: Case) -> dict[str, Any]:
    """Makes sure that both sides give the same, and counts the passages their encoders read."""
    rows = {"ours": count_rows(case), "theirs": count_their_rows(case)}
    passages = len(case.inputs.tokens)
    require(rows["ours"] == passages, f"{rows['ours']} rows read, not {passages} passages")
    first = time_call(case.ours)
    (texts, scores), (their_texts, their_scores) = case.ours(), case.theirs_scored()
    require(np.array_equal(texts, their_texts), "other sequences")
    difference = float(np.abs(scores - their_scores).max())
    require(difference < 1e-4, f"scores differ by {difference}")
    return {"compile_seconds": first, "difference": difference, "encoder_rows": rows}


def count_rows(case: Case) -> int:
    """Rows that our encoder reads, counted while it runs."""
    rows, encode = [], Bart.encode
    jax.clear_caches()  # of programs that don't count

    def counted(self, tokens, mask=None):
        jax.debug.callback(lambda: rows.append(len(tokens)))
        return encode(self, tokens, mask)

    with patch.object(Bart, "encode", counted):
        case.ours()
        jax.effects_barrier()
    jax.clear_caches()  # of programs that count
    return sum(rows)


def count_their_rows(case: Case) -> int:
    rows = []
    count = lambda *call: rows.append(call[-1].last_hidden_state.shape[0])  # noqa: E731
    hook = case.model.generator.get_encoder().register_forward_hook(count)
    case.theirs()
    hook.remove()
    return sum(rows)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"error: the two sides do not agree: {message}")


def describe(result: dict[str, Any]) -> str:
    (ours, theirs), cpu = result["wall_seconds"].values(), result["cpu_seconds"]
    return (
        f"{result['name']:21s} ours {ours:7.3f} s (CPU {cpu['ours']:7.3f})  theirs {theirs:7.3f} s "
        f"(CPU {cpu['theirs']:7.3f})  ratio {theirs / ours:5.2f}  first call "
        f"{result['compile_seconds']:5.1f} s  encoder rows {result['encoder_rows']}"
    )


def describe_machine() -> dict[str, Any]:
    packages = ("jax", "torch", "transformers")
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
