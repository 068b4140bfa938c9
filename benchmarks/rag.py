"""RAG's decoding in this library against Hugging Face's on PyTorch: the same weights, one process.

    pip install -e '.[bench]' && python benchmarks/rag.py [--runs=7] [--out=FILE]

RAG-Sequence Thorough and RAG-Token write 16 tokens with 4 beams for 1 and for 4 questions, each
with 5 passages of 128 tokens, on a BART of BART-base's size. Weights and passages are random. The
weights are three times as large as BART's own initialisation makes them: with small weights every
token is nearly as likely as the next, and rounding would choose between beams. The outputs of the
decoder's attention are scaled down: otherwise they would drown the last token, and one token would
be written again and again.

Sequences and scores are compared before anything is timed. The two sides then take turns, and the
table has the medians. A ratio above one means that this library is faster. Takes a quarter of an
hour on two CPU cores.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

# PyTorch's worker threads would otherwise keep spinning while it is JAX's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench
import jax
import numpy as np
import torch
import transformers

from rag_jax.decoding import BeamConfig
from rag_jax.models.io.bart_configs import describe_bart
from rag_jax.models.io.tensors import StoredTensor
from rag_jax.models.io.weights import build_params
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.runtime.hosts import fetch
from rag_jax.systems.rag import steps

CONFIG = BartConfig(
    hidden_size=768, encoder_layers=6, decoder_layers=6, encoder_heads=12, decoder_heads=12,
    encoder_ffn_size=3072, decoder_ffn_size=3072, forced_eos_id=None,
)  # fmt: skip
SPREAD = 0.06  # standard deviation of the weights; BART's own is 0.02
BATCHES, DOCS, WIDTH = (1, 4), 5, 128
BEAMS, TOKENS = 4, 16
# No answer ends before its last token, so that both sides write the same number of tokens.
SETTINGS = {
    "max_tokens": TOKENS,
    "stop_ids": (CONFIG.eos_id,),
    "config": BeamConfig(num_beams=BEAMS, min_tokens=TOKENS),
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
    """Runs every case and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    theirs = load_theirs()
    params = copy_weights(theirs["token"].generator)
    ways = {"thorough": (Thorough, theirs["sequence"]), "token": (Token, theirs["token"])}
    cases = {
        f"{name}, {batch} questions": partial(compare, way, params, model, batch)
        for batch in BATCHES
        for name, (way, model) in ways.items()
    }
    bench.run_cases(arguments, cases, ("jax", "torch", "transformers"), describe=describe)


def load_theirs() -> dict[str, Any]:
    """Their two models with one generator between them, and random weights."""
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    config = transformers.BartConfig(**describe_bart(CONFIG), init_std=SPREAD)
    generator = transformers.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in generator.model.decoder.layers:
            layer.self_attn.out_proj.weight.mul_(0.3)
            layer.encoder_attn.out_proj.weight.mul_(0.1)
    # The question encoder is never called, because passages and their scores are given.
    encoder = transformers.DPRConfig(
        vocab_size=1, hidden_size=1, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1
    )
    both = transformers.RagConfig.from_question_encoder_generator_configs(
        encoder, config, n_docs=DOCS, do_deduplication=True, is_encoder_decoder=True,
        bos_token_id=CONFIG.bos_id, pad_token_id=CONFIG.pad_id, eos_token_id=CONFIG.eos_id,
        decoder_start_token_id=CONFIG.start_id,
    )  # fmt: skip
    parts = {"question_encoder": transformers.DPRQuestionEncoder(encoder), "generator": generator}
    return {
        "sequence": transformers.RagSequenceForGeneration(both, **parts).eval(),
        "token": transformers.RagTokenForGeneration(both, **parts).eval(),
    }


def copy_weights(generator: Any) -> Any:
    """The generator's weights as our parameters."""
    state = generator.state_dict().items()
    tensors = {n: StoredTensor(tuple(t.shape), lambda t=t: t.numpy()) for n, t in state}
    return build_params(CONFIG, tensors)


def make_inputs(batch: int) -> Inputs:
    """Random passages and scores for `batch` questions."""
    rng = np.random.default_rng(batch)
    # Without the first ids, which are control tokens, and without padding, which theirs would read.
    tokens = rng.integers(5, CONFIG.vocab_size, (batch * DOCS, WIDTH)).astype(np.int32)
    scores = rng.normal(0, 1, (batch, DOCS)).astype(np.float32)
    return Inputs(tokens, np.ones(tokens.shape, bool), scores)


class Case:
    """One way of decoding, on both sides."""

    def __init__(self, params: Any, model: Any, inputs: Inputs):
        self.params, self.model, self.inputs = params, model, inputs

    def theirs(self) -> np.ndarray:
        """The answers' tokens `[B * W, 1 + T]`, after the start token."""
        return self.run(self.model.generate, self.inputs, **THEIR_SETTINGS).numpy()

    def run(self, function: Callable[..., Any], inputs: Inputs, **settings: Any) -> Any:
        """Calls one of their functions on passages."""
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
        """Our answers and their scores."""
        tokens, mask, scores = self.inputs
        model = Bart(CONFIG), self.params
        cache, hidden = steps.read(*model, tokens, mask)
        candidates = steps.propose(*model, cache, hidden, scores, **SETTINGS)
        logprobs = steps.score(*model, cache, hidden, *candidates, chunk=BEAMS)
        texts, marginals = fetch((candidates.tokens, steps.mix(scores, logprobs)))
        best = np.argsort(-marginals, axis=1, kind="stable")[:, :BEAMS]
        texts = np.take_along_axis(texts, best[..., None], axis=1)[..., :TOKENS]
        return texts, np.take_along_axis(marginals, best, axis=1)

    def theirs_scored(self) -> Answers:
        """Their answers and, computed again, the scores by which they are ranked."""
        written = self.theirs().reshape(-1, BEAMS, 1 + TOKENS)
        marginals = []
        for b, answers in enumerate(written):
            passages = slice(b * DOCS, (b + 1) * DOCS)
            inputs = Inputs(
                np.tile(self.inputs.tokens[passages], (BEAMS, 1)),
                np.tile(self.inputs.mask[passages], (BEAMS, 1)),
                np.tile(self.inputs.scores[b], (BEAMS, 1)),
            )
            losses = self.run(self.model, inputs, labels=torch.asarray(answers), n_docs=DOCS).loss
            marginals.append(-losses.numpy())
        return written[..., 1:], np.stack(marginals)


class Token(Case):
    """RAG-Token: beams over the mixture of the passages' next-token distributions."""

    def ours(self) -> Answers:
        """Our answers and their scores."""
        tokens, mask, scores = self.inputs
        model = Bart(CONFIG), self.params
        cache, hidden = steps.read(*model, tokens, mask)
        beams = fetch(steps.write_token(*model, cache, hidden, scores, **SETTINGS))
        return beams.tokens, beams.scores

    def theirs_scored(self) -> Answers:
        """Their answers and scores."""
        settings = {**THEIR_SETTINGS, "return_dict_in_generate": True, "output_scores": True}
        written = self.run(self.model.generate, self.inputs, **settings)
        scores = written.sequences_scores.numpy().reshape(-1, BEAMS)
        return written.sequences.numpy()[:, 1:].reshape(*scores.shape, TOKENS), scores


def compare(way: type[Case], params: Any, model: Any, batch: int) -> bench.Compared:
    """Both sides, and the number of passages that each side's encoder reads."""
    case = way(params, model, make_inputs(batch))
    rows = {"ours": count_rows(case), "theirs": count_their_rows(case)}
    passages = len(case.inputs.tokens)
    bench.require(rows["ours"] == passages, f"{rows['ours']} rows read, not {passages} passages")
    compiling = bench.time_call(case.ours)
    (texts, scores), (their_texts, their_scores) = case.ours(), case.theirs_scored()
    bench.require(np.array_equal(texts, their_texts), "other sequences")
    difference = float(np.abs(scores - their_scores).max())
    bench.require(difference < 1e-4, f"scores differ by {difference}")
    facts = {"compile_seconds": compiling, "difference": difference, "encoder_rows": rows}
    return {"ours": case.ours, "theirs": case.theirs}, facts


def count_rows(case: Case) -> int:
    """The number of rows that our encoder reads, counted while it runs."""
    rows, encode = [], Bart.encode
    jax.clear_caches()  # drops programs that do not count

    def counted(self, tokens, mask=None):
        jax.debug.callback(lambda: rows.append(len(tokens)))
        return encode(self, tokens, mask)

    with patch.object(Bart, "encode", counted):
        case.ours()
        jax.effects_barrier()
    jax.clear_caches()  # drops programs that count
    return sum(rows)


def count_their_rows(case: Case) -> int:
    """The number of rows that their encoder reads."""
    rows = []
    count = lambda *call: rows.append(call[-1].last_hidden_state.shape[0])  # noqa: E731
    hook = case.model.generator.get_encoder().register_forward_hook(count)
    case.theirs()
    hook.remove()
    return sum(rows)


def describe(result: dict[str, Any], peak: float | None) -> str:
    """A line of the table."""
    return f"{bench.describe_sides(result, peak)}  encoder rows {result['encoder_rows']}"


if __name__ == "__main__":
    main()
