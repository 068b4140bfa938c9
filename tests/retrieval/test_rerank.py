"""Rerankers: heads against NumPy, the searcher against a loop, and what is refused."""

import logging
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tiny_encoders import BERT, change_json, lengthen, write_reranker, write_scored_decoder
from tokenizers.processors import TemplateProcessing

from rag_jax.data.passages import Passage
from rag_jax.models import load, load_reranker, save_reranker
from rag_jax.models.io.reranker import describe_head
from rag_jax.models.io.sizes import find_sizes
from rag_jax.retrieval import BM25, Reranked, make_text, rerank, score_pairs
from rag_jax.retrieval.rerank import tokenize_pairs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import YesNo

TEXTS = ["the river flows", "a mountain of snow and ice", "the river bank", "bread"]
PASSAGES = [Passage(str(i), "river" if i == 2 else "", text) for i, text in enumerate(TEXTS)]
GOLDEN = BERT.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Golden BERT with a head for scores."""
    return lengthen(write_reranker(tmp_path_factory.mktemp("reranker") / "bert"), 64)


@pytest.fixture(scope="module")
def reranker(folder):
    return load_reranker(folder)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "asked"])
def test_a_head_without_its_weights_is_the_loaded_one(folder, tmp_path, kind):
    if kind == "decoder":
        folder = write_scored_decoder(tmp_path / "qwen2")
    question = None
    if kind == "asked":
        folder, question = GOLDEN / "qwen2", YesNo(yes="y", no="n")
    loaded = load_reranker(folder, question=question)
    config, dtype = find_sizes(str(folder)), jnp.dtype("float32")
    head, params = describe_head(config, dtype, asked=question is not None)
    assert head == loaded.head

    def shape(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree["head"])

    assert shape(params) == shape(loaded.base.params)


def score_slowly(reranker, question, passage):
    """The score of one pair, without padding, by NumPy's head."""
    base, head = reranker.base, reranker.base.params["head"]
    row = base.tokenizer.encode_with_specials(question, pair=passage, max_length=64)
    types = np.zeros((1, len(row)), np.int32)
    types[0, row.index(row[-1]) + 1 :] = 1
    states = base.model.apply({"params": base.params}, np.asarray([row]), None, types)
    first = np.tanh(states[0, 0] @ head["dense"]["kernel"] + head["dense"]["bias"])
    return float((first @ head["out"]["kernel"] + head["out"]["bias"])[0])


def test_scores_are_those_of_each_pair_alone(reranker):
    pairs = [("where is the river", text) for text in TEXTS] + [("snow", TEXTS[1])]
    found = score_pairs(reranker, pairs, max_length=64)
    np.testing.assert_allclose(found, [score_slowly(reranker, *p) for p in pairs], atol=2e-5)
    scores, order = rerank(reranker, "where is the river", TEXTS, max_length=64)
    np.testing.assert_array_equal(order, np.argsort(-found[:4], kind="stable"))
    np.testing.assert_allclose(scores, found[:4][order], atol=2e-5)
    assert rerank(reranker, "anything", [])[0].shape == (0,)


def test_a_searchers_passages_are_ordered_anew(reranker):
    words = BM25.build(map(make_text, PASSAGES))
    searcher = Reranked(reranker, words, PASSAGES, depth=3, max_length=64)
    assert searcher.size == 4
    questions = ["river bank", "bread of the mountain", "nothing known"]
    scores, rows = searcher.search(questions, 2)
    _, found = words.search(questions, 3)
    for question, own, places, first in zip(questions, scores, rows, found, strict=True):
        texts = {r: f"{PASSAGES[r].title} {PASSAGES[r].text}".strip() for r in first.tolist()}
        slow = {r: score_slowly(reranker, question, text) for r, text in texts.items()}
        wanted = sorted(slow, key=lambda r: -slow[r])[:2]
        assert places.tolist() == wanted
        np.testing.assert_allclose(own, [slow[r] for r in wanted], atol=2e-5)
    # No more passages are read than `depth`, however many are asked for.
    everything = [" ".join(TEXTS)]
    assert len(words.search(everything, 4)[1][0]) == 4
    assert len(searcher.search(everything, 4)[1][0]) == 3
    with pytest.raises(RagJaxError, match="first is over 4 passages, not the 3 given"):
        Reranked(reranker, words, PASSAGES[:3])
    with pytest.raises(RagJaxError, match="depth is 0"):
        Reranked(reranker, words, PASSAGES, depth=0)


def test_what_is_no_pair_is_refused(reranker, caplog):
    for pairs, problem in [
        ([("", "text")], "pair 0: its question is blank"),
        ([("a", "b"), ("a", 1)], r"pair 1 is no \(question, passage\) pair"),
        (["ab"], "pair 0 is no"),
    ]:
        with pytest.raises(RagJaxError, match=problem):
            score_pairs(reranker, pairs, max_length=64)
    with caplog.at_level(logging.WARNING):
        score_pairs(reranker, [("river", "snow " * 90), ("a", "b")], max_length=32)
    assert "1 of 2 pairs were cut to 32 tokens" in caplog.text


def test_numbers_that_are_none_are_named(reranker):

    head = {**reranker.base.params["head"]}
    head["out"] = {"kernel": head["out"]["kernel"] * np.float32(3e38), "bias": head["out"]["bias"]}
    base = replace(reranker.base, params={**reranker.base.params, "head": head})
    with pytest.raises(RagJaxError, match="pair 0 has a score that is NaN or infinite"):
        score_pairs(replace(reranker, base=base), [("a", "b")], max_length=64)


def test_other_kinds_are_told(folder, tmp_path):
    with pytest.raises(RagJaxError, match="has a head for scores: load a reranker by"):
        load(folder)
    with pytest.raises(RagJaxError, match="a Bert with architectures .* is no reranker"):
        load_reranker(BERT)
    with pytest.raises(RagJaxError, match="only a language model can be asked"):
        load_reranker(BERT, question=YesNo())
    with pytest.raises(RagJaxError, match="the answer 'yes and no' has . tokens, not one"):
        load_reranker(GOLDEN / "llama_tied", question=YesNo("", "", "", yes="yes and no"))

    shutil.copytree(folder, tmp_path / "two")
    change_json(tmp_path / "two" / "config.json", id2label={"0": "a", "1": "b"})
    with pytest.raises(RagJaxError, match="2 labels: a reranker has one, the score"):
        load_reranker(tmp_path / "two")


def test_a_language_model_is_asked():
    asked = load_reranker(GOLDEN / "llama_tied", question=YesNo("", " ", "", yes="a", no="b"))
    plain = load(GOLDEN / "llama_tied")
    yes, no = (plain.tokenizer.encode(answer)[0] for answer in "ab")
    pairs = [("who", "she"), ("a longer question", "and its passage")]
    for score, pair in zip(score_pairs(asked, pairs, max_length=64), pairs, strict=True):
        row = plain.tokenizer.encode(" ".join(pair))
        logits = plain.model.apply({"params": plain.params}, np.asarray([row]))[0, -1]
        np.testing.assert_allclose(score, logits[yes] - logits[no], atol=2e-5)


class Wrong:
    size = 4

    def __init__(self, rows):
        self.rows = rows

    def search(self, questions, k):
        return [np.arange(len(self.rows), 0, -1, dtype=np.float32)], [np.asarray(self.rows)]


def test_what_a_searcher_finds_is_checked(reranker):
    for rows, problem in [
        ([0, -1], "found row"),
        ([2, 2], "a passage twice"),
        ([7], "found row 7"),
    ]:
        searcher = Reranked(reranker, Wrong(rows), PASSAGES, max_length=64)
        with pytest.raises(RagJaxError, match=problem):
            searcher.search(["river"], 2)
    searcher = Reranked(reranker, Wrong([3, 0]), PASSAGES, max_length=64)
    assert searcher.search([], 2) == ([], [])
    for k in (0, 5):
        with pytest.raises(RagJaxError, match="it must be from 1 to 4"):
            searcher.search(["river"], k)


def test_a_decoder_reads_one_text_after_the_other(tmp_path):
    scored = load_reranker(write_scored_decoder(tmp_path / "scored"))
    tokenizer = scored.base.tokenizer
    row = [*tokenizer.encode_prompt("who"), *tokenizer.encode("she did")]
    inputs = {"params": scored.base.params}, np.asarray([row])
    hidden = scored.base.model.apply(*inputs, method="hidden").hidden
    wanted = hidden[0, -1] @ scored.base.params["head"]["out"]["kernel"][:, 0]
    (found,) = score_pairs(scored, [("who", "she did")], max_length=24)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_tokenizer_that_tells_no_types(folder, tmp_path):
    """Its model reads two texts as of one type; a saved folder says which it was."""
    copied = shutil.copytree(folder, tmp_path / "copied")
    names = ["input_ids", "attention_mask"]
    change_json(copied / "tokenizer_config.json", model_input_names=names)
    reranker = load_reranker(copied)
    base, head = reranker.base, reranker.base.params["head"]
    row = base.tokenizer.encode_with_specials("river", pair="ice", max_length=64)
    states = base.model.apply({"params": base.params}, np.asarray([row]))
    first = np.tanh(states[0, 0] @ head["dense"]["kernel"] + head["dense"]["bias"])
    wanted = first @ head["out"]["kernel"] + head["out"]["bias"]
    found = score_pairs(reranker, [("river", "ice")])
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    typed = score_pairs(load_reranker(folder), [("river", "ice")])
    assert abs(typed - found) > 1e-3
    for n, (own, score) in enumerate(((reranker, found), (load_reranker(folder), typed))):
        save_reranker(own, tmp_path / str(n))
        again = score_pairs(load_reranker(tmp_path / str(n)), [("river", "ice")])
        np.testing.assert_allclose(again, score, atol=1e-6)


def test_what_a_decoders_tokenizer_puts_around_two_texts(tmp_path):
    folder = write_scored_decoder(tmp_path / "scored")
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    name = next(iter(core.get_added_tokens_decoder().values())).content
    id, frame = core.token_to_id(name), f"{name} $A {name}:1 $B:1 {name}:1"
    core.post_processor = TemplateProcessing(f"{name} $A", frame, special_tokens=[(name, id)])
    core.save(str(folder / "tokenizer.json"))
    # transformers would take the last token for padding, and score the one before it.
    change_json(folder / "config.json", pad_token_id=id)
    with pytest.raises(RagJaxError, match=f"config.json: pad_token_id={id} also ends every pair"):
        load_reranker(folder)
    change_json(folder / "config.json", pad_token_id=None)
    scored = load_reranker(folder)
    encode = scored.base.tokenizer.encode
    (row,) = tokenize_pairs(scored, [("who", "she did")], 24)
    assert row == [id, *encode("who"), id, *encode("she did"), id]
    assert row == core.encode("who", "she did").ids
    (row,) = tokenize_pairs(scored, [("who", "she did " * 20)], 12)
    whole = [id, *encode("who"), id, *encode("she did " * 20)]
    assert row == [*whole[:11], id]
    with pytest.raises(RagJaxError, match="max_length 4 has no room for a passage; raise it"):
        list(tokenize_pairs(scored, [("who", "she did")], 4))


def test_a_long_question_leaves_a_decoder_its_passage(tmp_path, caplog):
    scored = load_reranker(write_scored_decoder(tmp_path / "scored"))
    tokenizer, long, text = scored.base.tokenizer, "who is she " * 20, "he said it " * 20
    start, question = len(tokenizer.encode_prompt("")), tokenizer.encode_prompt(long)
    for pair, kept in [((long, text), 10), ((long, "a"), 19), (("who", text), start + 1)]:
        passage = tokenizer.encode(pair[1])
        wanted = [*tokenizer.encode_prompt(pair[0])[:kept], *passage][:20]
        assert list(tokenize_pairs(scored, [pair], 20)) == [wanted]
    assert len(question) > 20 and caplog.text.count("1 of 1 pairs were cut to 20 tokens") == 3
    caplog.clear()

    asked = YesNo("ask: ", " in ", " is it?", yes="a", no="b")
    reranker = load_reranker(GOLDEN / "llama_tied", question=asked)
    encode = reranker.base.tokenizer.encode
    end, frame = encode(asked.after), len(encode(f"{asked.before}{asked.between}"))
    room = 60 - len(end) - frame
    (row,) = tokenize_pairs(reranker, [(long, text)], 60)
    assert len(row) == 60 and row[-len(end) :] == end
    kept = reranker.base.tokenizer.shorten(long, room - room // 2)
    whole = encode(f"{asked.before}{kept}{asked.between}{text}")
    assert row == [*whole[: 60 - len(end)], *end]
    read = reranker.base.tokenizer.decode(row)
    assert "he said it" in read.partition(" in ")[2]
    assert "1 of 1 pairs were cut to 60 tokens" in caplog.text
    (short,) = tokenize_pairs(reranker, [("who", "she")], 60)
    assert short == [*encode("ask: who in she"), *end]
    with pytest.raises(RagJaxError, match=f"max_length {60 - room + 1} has no room for a passage"):
        list(tokenize_pairs(reranker, [(long, text)], 60 - room + 1))


def test_a_pair_is_cut_to_what_the_model_reads(tmp_path, caplog):
    reranker = load_reranker(write_reranker(tmp_path / "bert"))
    limit = reranker.base.config.max_length
    pairs = [("river", "snow " * 90)]
    found = score_pairs(reranker, pairs)
    np.testing.assert_array_equal(found, score_pairs(reranker, pairs, max_length=limit))
    assert f"1 of 1 pairs were cut to {limit} tokens" in caplog.text
    with pytest.raises(RagJaxError, match=f"max_length is {limit + 1}, but the encoder has"):
        score_pairs(reranker, pairs, max_length=limit + 1)
