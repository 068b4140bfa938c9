"""Wrong kinds of inputs to the functions of the library pages: one line that names the argument."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder

from rag_jax import losses
from rag_jax.data.passages import Passage
from rag_jax.decoding import (
    Sampling,
    Trie,
    append,
    beam_search,
    decode,
    encode_source,
    fork,
    generate,
    init_cache,
    prefill,
    read_prompts,
    score_continuation,
    score_text,
    search_beams,
    search_trie,
    stream,
    trie_search,
)
from rag_jax.lora import core
from rag_jax.lora.store import AdapterStore
from rag_jax.models import load, save
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import Bert, BertConfig
from rag_jax.models.nn.pooling import MEAN, pool_states
from rag_jax.models.vocabulary import grow_vocabulary, put_tokens, take_tokens
from rag_jax.retrieval import (
    BM25,
    Index,
    embed,
    encode_texts,
    fingerprint_corpus,
    list_texts,
    make_text,
)
from rag_jax.retrieval.contrastive import embed_in_chunks
from rag_jax.retrieval.pairs import list_pairs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag.label import choose_source
from rag_jax.systems.srrag.policy import decide, scale_keys

GOLDEN = "tests/golden"
# `conftest.py` has the signatures of `lora.core` checked; these are the file's own checks.
spec = importlib.util.spec_from_file_location("plain_core", core.__file__)
lora = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lora)

DECODER, PARAMS = make_decoder()  # 31 ids
BERT = Bert(BertConfig(31, 8, 8, 1, 2, 2, 1e-5, 16))
BART = Bart(BartConfig(31, 8, 1, 1, 2, 2, 8, 8, 16))
ONE, TOKENS, MASK = [[1, 2, 3]], jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool)
FLOATS = np.ones((2, 3))
BERT_PARAMS = jax.eval_shape(BERT.init, jax.random.key(0), TOKENS)["params"]
BART_PARAMS = jax.eval_shape(BART.init, jax.random.key(0), TOKENS, TOKENS)["params"]
CACHE = init_cache(DECODER, 2)
HIDDEN = jnp.ones((2, 16))
TRIE = Trie.from_sequences([[1, 2], [3]], end_id=30)
ARRAYS = TRIE.place()
STARTS = jnp.zeros(2, jnp.int32)
X, Y = jnp.ones((2, 3)), jnp.ones((2, 4))
INDEX = Index.build(np.eye(3, dtype=np.float32), backend="exact", encoder="e")
WORDS = BM25.build(["one word", "another"])
ADAPTER = {"w": {"kernel": {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}}}
KERNELS = {"w": {"kernel": jnp.ones((3, 4))}}
LIMITS = {"max_tokens": 4, "stop_ids": [0]}


def prompt(prompts, model=DECODER, params=PARAMS, **changes):
    return generate(model, params, prompts, **{**LIMITS, **changes})


def read(tokens, mask=MASK, **changes):
    return append(DECODER, PARAMS, CACHE, tokens, mask, **changes)


CASES = {
    # Prompts, of which each is a list of ids.
    "a string": (lambda: prompt("abc"), "^prompts: 'abc' .str., not a list of lists of token"),
    "strings": (lambda: prompt(["a", "b"]), "^prompts: entry 0: 'a' .str., not token ids; use"),
    "a flat list": (lambda: prompt([1, 2, 3]), "^prompts: entry 0: 1 .int., not a list of token"),
    "a flat array": (lambda: prompt(np.arange(3)), "^prompts: entry 0: .*0.*, not a list of token"),
    "too deep a list": (lambda: prompt([[[1, 2], [3]]]), "^prompts: entry 0: a list of lists"),
    "float ids": (lambda: prompt([np.ones(2)]), "^prompts: entry 0: .*1.0.* among its token ids"),
    "words among ids": (lambda: prompt([[1], [1, "a"]]), "^prompts: entry 1: 'a' .str. among"),
    "an id too high": (lambda: prompt([[1], [2, 31]]), "^prompts: entry 1: the id 31, but the mod"),
    "an id below 0": (lambda: prompt([[-1]]), "^prompts: entry 0: the id -1, but .* are 0 to 30$"),
    "an empty prompt": (lambda: prompt([[1], []]), "^prompts: prompt 1 is empty; give at least"),
    "one number": (lambda: prompt(3), "^prompts: 3 .int., not a list of lists of token ids$"),
    "a prefix of text": (lambda: prompt(ONE, prefix="abc"), "^prefix: 'abc' .str., not token ids"),
    "a prefix out of range": (lambda: prompt(ONE, prefix=[99]), "^prefix: the id 99, but the mod"),
    "one stop id": (lambda: prompt(ONE, stop_ids=0), "^stop_ids: 0 .int., not a list of token ids"),
    "a stop token": (lambda: prompt(ONE, stop_ids=["</s>"]), "^stop_ids: '</s>' .str. among its"),
    "half a token": (
        lambda: prompt(ONE, max_tokens=2.5),
        "^generate: max_tokens is a float, expected int$",
    ),
    "half a row": (
        lambda: prompt(ONE, batch_size=0.5),
        "^generate: batch_size is a float, expected int$",
    ),
    "a batch of none": (lambda: prompt(ONE, batch_size=0), "^batch_size=0: must be a multiple of"),
    "adapters for others": (
        lambda: prompt(ONE, adapters={"w": jnp.ones((2, 3))}),
        "^adapters: 2 for 1 prompts; give one for each$",
    ),
    "an encoder": (
        lambda: prompt(ONE, BERT, BERT_PARAMS),
        "^generate: model is a Bert, expected",
    ),
    "all of a model": (lambda: prompt(ONE, params=DECODER), "^generate: params is a Decoder, expe"),
    "a dict as sampling": (
        lambda: prompt(ONE, sampling={}),
        "^generate: sampling is a dict, exp",
    ),
    "beams: strings": (
        lambda: beam_search(DECODER, PARAMS, ["a"], **LIMITS),
        "^prompts: entry 0: 'a' .str., not token ids; use the tokenizer's encode$",
    ),
    "beams: an encoder": (
        lambda: beam_search(BERT, BERT_PARAMS, ONE, **LIMITS),
        "^beam_search: model is a Bert, expected Decoder or Bart$",
    ),
    "beams: a number": (
        lambda: beam_search(DECODER, PARAMS, ONE, config=4, **LIMITS),
        "^beam_search: config is a int, expected BeamConfig$",
    ),
    "trie: an id too high": (
        lambda: trie_search(DECODER, PARAMS, [[77]], TRIE),
        "^prompts: entry 0: the id 77, but the model's ids are 0 to 30$",
    ),
    "trie: its arrays": (
        lambda: trie_search(DECODER, PARAMS, ONE, ARRAYS),
        "^trie_search: trie is a TrieArrays, expected Trie$",
    ),
    "trie: sequences of text": (
        lambda: Trie.from_sequences(["ab"], end_id=0),
        "^sequences: sequence 0 must hold integers",
    ),
    "prefill: a batch": (lambda: prefill(DECODER, PARAMS, ONE), "^tokens: a list of lists, not a"),
    "prefill: none": (lambda: prefill(BERT, BERT_PARAMS, [1]), "^prefill: model is a Bert, expect"),
    "an encoder-decoder's context": (
        lambda: prompt([[1] * 17], BART, BART_PARAMS),
        "^prompts: prompt 0 has 17 tokens, but the encoder has positions for only 16; shorten",
    ),
    # Functions of arrays.
    "append: floats": (lambda: read(FLOATS), r"^append: tokens is float64\[2, 3\], expected integ"),
    "append: a list": (lambda: read(ONE), r"^append: tokens is a list, expected integers \[B, T\]"),
    "append: flat": (lambda: read(TOKENS[0]), r"^append: tokens is int32\[3\], expected integers"),
    "append: no mask": (lambda: read(TOKENS, None), r"^append: mask is None, expected booleans"),
    "append: another mask": (lambda: read(TOKENS, MASK[:1]), r"^append: mask is bool\[1, 3\], exp"),
    "append: other rows": (
        lambda: read(TOKENS[:1], MASK[:1]),
        "^tokens of 1 rows after a cache of 2 rows",
    ),
    "append: no cache": (
        lambda: append(DECODER, PARAMS, None, TOKENS, MASK),
        "^append: cache is None, expected Cache$",
    ),
    "init_cache: an encoder": (lambda: init_cache(BERT, 2), "^init_cache: model is a Bert, expect"),
    "init_cache: no source": (lambda: init_cache(BART, 2), "^rows of an encoder-decoder need a so"),
    "init_cache: other rows": (
        lambda: init_cache(DECODER, 3, prefix=CACHE),
        "^rows=3: must be a multiple of the prefix's 2 rows$",
    ),
    "init_cache: none": (lambda: init_cache(DECODER, 0), "^rows=0: must be a multiple of"),
    "fork: no cache": (lambda: fork(DECODER, HIDDEN, 2), r"^fork: cache is float32\[2, 16\], expe"),
    "fork: no times": (
        lambda: fork(DECODER, CACHE, 0),
        "^rows=0: must be a multiple of",
    ),
    "encode_source: a decoder": (
        lambda: encode_source(DECODER, PARAMS, TOKENS, MASK),
        "^encode_source: model is a Decoder, expected Bart$",
    ),
    "read_prompts: floats": (
        lambda: read_prompts(DECODER, PARAMS, FLOATS, MASK),
        r"^read_prompts: tokens is float64\[2, 3\], expected integers \[B, T\]$",
    ),
    "decode: other rows": (
        lambda: decode(DECODER, PARAMS, CACHE, HIDDEN[:1], **LIMITS),
        "^tokens of 1 rows after a cache of 2 rows",
    ),
    "decode: no keys": (
        lambda: decode(DECODER, PARAMS, CACHE, HIDDEN, sampling=Sampling(0.7), **LIMITS),
        "^keys: temperature 0.7 needs a random key a row$",
    ),
    "stream: a flat mask": (
        lambda: next(stream(DECODER, PARAMS, CACHE, TOKENS, MASK[0], max_tokens=2, stop_ids=(0,))),
        r"^stream: mask is bool\[3\], expected booleans \[B, T\], beside tokens int32\[2, 3\]$",
    ),
    "score_text: other targets": (
        lambda: score_text(DECODER, PARAMS, CACHE, TOKENS, MASK, TOKENS, TOKENS[:, :2], X),
        r"^score_text: targets is int32\[2, 2\], expected integers \[B, P\], beside",
    ),
    "score_continuation: floats": (
        lambda: score_continuation(DECODER, PARAMS, CACHE, FLOATS, MASK),
        r"^score_continuation: tokens is float64\[2, 3\], expected integers \[B, T\]$",
    ),
    "search_beams: an encoder": (
        lambda: search_beams(BERT, BERT_PARAMS, CACHE, HIDDEN, **LIMITS),
        "^search_beams: model is a Bert, expected Decoder or Bart$",
    ),
    "search_trie: the trie": (
        lambda: search_trie(DECODER, PARAMS, CACHE, HIDDEN, TRIE, STARTS, max_tokens=2),
        "^search_trie: trie is a Trie, expected TrieArrays$",
    ),
    "search_trie: other starts": (
        lambda: search_trie(DECODER, PARAMS, CACHE, HIDDEN, ARRAYS, STARTS[:1], max_tokens=2),
        r"^search_trie: starts is int32\[1\], expected integers \[B\], beside hidden float32",
    ),
    # Models.
    "decode: the variables": (
        lambda: prompt(ONE, params={"params": PARAMS}),
        r"^generate: params are variables of Flax, expected the tree in them: \[\"params\"\]$",
    ),
    "decoder: floats": (lambda: run(DECODER, PARAMS, FLOATS), "^Decoder.__call__: tokens is f"),
    "decoder: a list": (lambda: run(DECODER, PARAMS, ONE), "^Decoder.__call__: tokens is a list"),
    "decoder: flat": (lambda: run(DECODER, PARAMS, TOKENS[0]), r"^Decoder.__call__: tokens is int"),
    "decoder: an id too high": (
        lambda: run(DECODER, PARAMS, TOKENS * 31),
        "^tokens: the id 31, but the model's ids are 0 to 30",
    ),
    "decoder: another mask": (
        lambda: run(DECODER, PARAMS, TOKENS, MASK[:, :2]),
        r"^Decoder.__call__: mask is bool\[2, 2\], expected booleans \[B, T\] or None, beside",
    ),
    "encoder: an id below 0": (lambda: run(BERT, BERT_PARAMS, -TOKENS), "^tokens: the id -1, but"),
    "encoder: too long": (
        lambda: run(BERT, BERT_PARAMS, jnp.ones((1, 17), jnp.int32)),
        "^17 tokens in a row, but only 16 positions; shorten the texts",
    ),
    "encoder-decoder: other rows": (
        lambda: run(BART, BART_PARAMS, TOKENS, TOKENS[:1]),
        r"^Bart.__call__: decoder_tokens is int32\[1, 3\], expected integers \[B, T\], beside",
    ),
    "save: the module": (
        lambda: save(DECODER, "folder"),
        "^save: pretrained is a Decoder, exp",
    ),
    "load: a number": (lambda: load(3), "os.PathLike object"),
    "take: a string": (lambda: take_tokens(PARAMS, "ab"), "^ids: 'ab' .str., not token ids; use"),
    "take: out of range": (lambda: take_tokens(PARAMS, [31]), "^ids: the id 31, but the model's"),
    "put: floats": (lambda: put_tokens(PARAMS, {}, [0.5]), "^ids: 0.5 .float. among its token ids"),
    # Retrieval.
    "embed: a decoder": (
        lambda: embed(DECODER, PARAMS, TOKENS, MASK),
        "^embed: model is a Dec",
    ),
    "embed: another mask": (
        lambda: embed(BERT, BERT_PARAMS, TOKENS, MASK[:1]),
        r"^embed: mask is bool\[1, 3\], expected booleans \[B, T\] or integers \[B, T\], beside t",
    ),
    "embed_in_chunks: other lengths": (
        lambda: embed_in_chunks(BERT, BERT_PARAMS, TOKENS, STARTS[:1], rows=1, widths=[1]),
        r"^embed_in_chunks: lengths is int32\[1\], expected integers \[B\], beside tokens int32",
    ),
    "pool_states: flat": (
        lambda: pool_states(X, MASK, MEAN, {}),
        r"^pool_states: hidden is float32\[2, 3\], exp",
    ),
    "encode_texts: a module": (
        lambda: encode_texts(BERT, ["a"]),
        "^encode_texts: encoder is",
    ),
    "index: text": (lambda: index([["a", "b"]]), "^embeddings are no matrix of numbers: encode te"),
    "index: ragged": (lambda: index([[1.0], [1.0, 2.0]]), "^embeddings are no matrix of numbers"),
    "index: flat": (lambda: index(np.ones(3)), r"^embeddings have shape \(3,\): expected \[rows"),
    "index: empty": (
        lambda: index(np.ones((0, 3))),
        r"^embeddings have shape \(0, 3\): the",
    ),
    "index: ids of one": (lambda: index(np.ones((2, 3)), ids=["a"]), "^ids are 1 for 2 embed"),
    "search: text": (lambda: INDEX.search(["a"], k=1), "^queries are no matrix of numbers"),
    "search: flat": (
        lambda: INDEX.search(np.ones(3), k=1),
        r"^queries have shape \(3,\): exp",
    ),
    "search: half a row": (lambda: INDEX.search(np.ones((1, 3)), k=1.5), "^k is 1.5: it must be"),
    "search: all and more": (
        lambda: INDEX.search(np.ones((1, 3)), k=4),
        "^k is 4: it must be",
    ),
    "words: a string": (lambda: WORDS.search("one", k=1), "^questions is one string: pass a list"),
    "words: numbers": (lambda: WORDS.search([1], k=1), "^questions: entry 0 is neither a string"),
    "words: half a row": (lambda: WORDS.search(["one"], k=0.5), "^k is 0.5: it must be from 1 to"),
    "words: empty": (lambda: BM25.build([]), "^texts are empty: the corpus has no passage$"),
    "corpus: texts": (lambda: fingerprint_corpus(["a"]), "^'a' is no Passage"),
    "make_text: a text": (lambda: make_text("a"), "^'a' is no Passage"),
    "list_texts: a string": (
        lambda: list_texts("abc"),
        "^'a' is no Passage",
    ),
    "list_pairs: other rows": (
        lambda: list_pairs([], [[0]], [Passage("0", "", "a")]),
        "^negatives: 1 rows for 0 questions$",
    ),
    # Losses.
    "loss: lists": (
        lambda: losses.token_logprobs([[1.0]], [0]),
        "^token_logprobs: logits is a",
    ),
    "loss: float targets": (
        lambda: losses.token_logprobs(X, jnp.ones(2)),
        r"^token_logprobs: targets is float32\[2\], expected integers \[\*batch\]$",
    ),
    "loss: other rows": (
        lambda: losses.token_logprobs(X, STARTS[:1]),
        r"^token_logprobs: targets is int32\[1\], expected integers \[\*batch\], beside logits",
    ),
    "loss: one more weight": (
        lambda: losses.span_cross_entropy(X, Y),
        r"^span_cross_entropy: weights is float32\[2, 4\], expected floats \[B, P\], beside",
    ),
    "loss: one pair": (
        lambda: losses.dpo_loss(X[0], X[0], X[0], X[0, :1], beta=1.0),
        r"^dpo_loss: reference_rejected is float32\[1\], expected floats \[B\], beside policy_c",
    ),
    "loss: another width": (
        lambda: losses.in_batch_contrastive(X, Y, STARTS),
        r"^in_batch_contrastive: passages is float32\[2, 4\], expected floats \[P, E\], beside",
    ),
    "loss: a float mask": (
        lambda: losses.in_batch_contrastive(X, X, STARTS, masked=jnp.ones((2, 2))),
        r"^in_batch_contrastive: masked is float32\[2, 2\], expected booleans \[B, P\] or None$",
    ),
    "loss: other documents": (
        lambda: losses.rag_sequence_nll(X, jnp.ones((2, 4, 5)), jnp.ones((2, 5), bool)),
        r"^rag_sequence_nll: token_logprobs is float32\[2, 4, 5\], expected floats \[B, K, T\]",
    ),
    "loss: another length": (
        lambda: losses.rag_token_nll(X, jnp.ones((2, 3, 5)), MASK),
        r"^rag_token_nll: mask is bool\[2, 3\], expected booleans \[B, T\], beside doc_scores",
    ),
    "loss: a flat mixture": (
        lambda: losses.mix_documents(X[0], Y),
        r"^mix_documents: doc_scores is float32\[3\], expected floats \[B, K\], beside logprobs",
    ),
    # Adapters.
    "lora: no rank": (lambda: init(rank=0), "^rank=0: must be an integer, at least 1$"),
    "lora: half a rank": (lambda: init(rank=1.5), "^rank=1.5: must be an integer, at least 1$"),
    "lora: a scale of none": (
        lambda: lora.compute_scale(2.0, 0),
        "^rank=0: must be an int",
    ),
    "lora: a list to stack": (lambda: lora.stack([ADAPTER, [1]]), "^adapters: entry 1: a list, ex"),
    "lora: float rows": (
        lambda: lora.select(ADAPTER, FLOATS),
        r"^indices: float32\[2, 3\], exp",
    ),
    "lora: a string": (
        lambda: lora.merge("ab", scale=1.0),
        "^adapters: a str, expected the dicts of",
    ),
    "lora: kernels": (lambda: lora.fold(KERNELS, KERNELS, scale=1.0), "^adapter: w: kernel: a "),
    "lora: a list": (
        lambda: lora.apply(KERNELS, [ADAPTER], scale=1.0),
        "^adapter: a list, expec",
    ),
    "lora: none": (
        lambda: lora.fold(KERNELS, None, scale=1.0),
        "^adapter: a NoneType, expected",
    ),
    "lora: another kernel": (
        lambda: lora.fold({"w": {"kernel": Y}}, ADAPTER, scale=1.0),
        r"^w/kernel: an adapter of \(3, 2\) and \(2, 4\) does not fit a kernel of \(2, 4\)$",
    ),
    # Names.
    "routing: another rule": (
        lambda: choose_source(np.ones((2, 3)), "median"),
        "^choose_source: rule is 'median' .str., expected 'top_half_majority' or 'mean' or ",
    ),
    "routing: another decision": (
        lambda: decide(np.ones((1, 2)), None, ["verbalise", "search"], decision="argmax"),
        "^decide: decision is 'argmax' .str., expected 'threshold' or 'argmax_product'$",
    ),
    "routing: another metric": (
        lambda: scale_keys(X, "euclidean"),
        "^scale_keys: metric is 'euclidean' .str., expected 'cosine' or 'dot'$",
    ),
}


def run(model, params, *arrays):
    return model.apply({"params": params}, *arrays)


def index(embeddings, **options):
    return Index.build(embeddings, backend="exact", encoder="e", **options)


def init(**options):
    return lora.init(jax.random.key(0), KERNELS, targets=".*", **options)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_kind_is_one_line(name):
    call, message = CASES[name]
    with pytest.raises((RagJaxError, TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value).split("\n--------------------\n")[0]  # JAX's own remark


@pytest.fixture(scope="module")
def folders():
    return {name: load(f"{GOLDEN}/{name}") for name in ("llama3", "bert")}


def test_models_with_a_tokenizer(folders, tmp_path):
    decoder, encoder = folders["llama3"], folders["bert"]
    adapter = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), ADAPTER)
    store = AdapterStore(tmp_path / "store", adapter, base="b", settings={})
    cases = {
        "^encoder: a Decoder embeds no texts": lambda: encode_texts(decoder, ["a"]),
        "^texts is one string: pass a list": lambda: encode_texts(encoder, "abc", max_length=16),
        "^text 1 is neither a string": lambda: encode_texts(encoder, ["a", 3], max_length=16),
        "^new tokens: the model must be a decoder": lambda: grow_vocabulary(encoder, ["<x>"]),
        "^names='abc': one string; give a list": lambda: grow_vocabulary(decoder, "abc"),
        "^multiple=0: must be at least 1": lambda: grow_vocabulary(decoder, ["<x>"], multiple=0),
        "^text is a list, expected a str": lambda: decoder.tokenizer.encode(["a"]),
        "^text is a int, expected a str": lambda: decoder.tokenizer.encode_prompt(3),
        "^ids: 'ab' .str., not token ids": lambda: decoder.tokenizer.decode("ab"),
        "^ids: 1.5 .float. among its token": lambda: decoder.tokenizer.decode([1.5]),
        "^ids: a list of lists": lambda: decoder.tokenizer.decode([[1, 2]]),
        "^passages='ab': one string": lambda: store.load("ab"),
        "^passages='a': one string; give": lambda: store.save("a", adapter),
    }
    for message, call in cases.items():
        with pytest.raises((RagJaxError, TypeError, ValueError), match=message):
            call()


def test_empty_batches_give_nothing(folders):
    assert prompt([]) == beam_search(DECODER, PARAMS, [], **LIMITS) == []
    assert trie_search(DECODER, PARAMS, [], TRIE) == []
    assert encode_texts(folders["bert"], [], max_length=16).shape[0] == 0
    assert INDEX.search(np.ones((0, 3)), k=1)[0].shape == (0, 1)
    assert WORDS.search([], k=1) == ([], [])
    assert lora.stack([]) == {}
    assert list_texts([]) == []


def test_arrays_and_tuples_of_ids_are_prompts():
    """As lists are."""
    plain = prompt([[1, 2, 3], [4, 5, 6]], max_tokens=2)
    assert prompt(np.asarray([[1, 2, 3], [4, 5, 6]]), max_tokens=2) == plain
    assert prompt((jnp.asarray([1, 2, 3]), range(4, 7)), max_tokens=2) == plain
    assert prompt([[2, 3]], prefix=np.asarray([1]), max_tokens=2) == plain[:1]


def test_a_checked_function_compiles_and_maps():
    compiled = jax.jit(losses.token_logprobs)
    assert compiled(X, STARTS).shape == (2,)
    with pytest.raises(TypeError, match="^token_logprobs: targets is float32"):
        compiled(X, X[:, 0])
    mapped = jax.vmap(losses.span_cross_entropy)(jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4)))
    assert mapped.shape == (3, 2)
    with pytest.raises(TypeError, match="missing .*argument: 'weights'"):
        losses.span_cross_entropy(X)


def test_an_object_of_another_project_may_stand_in_for_ours():
    """A model with the interface of a decoder, as of an encoder in `tests/retrieval`."""

    class Foreign:
        config = DECODER.config
        apply = staticmethod(DECODER.apply)

    assert generate(Foreign(), PARAMS, ONE, **LIMITS) == prompt(ONE)


def test_a_traced_function_may_close_over_its_tokens():
    loss = lambda params: run(DECODER, params, TOKENS).mean()  # noqa: E731
    assert jax.eval_shape(jax.grad(loss), PARAMS).keys() == PARAMS.keys()
