"""What many documents cost: passes over them and pieces in memory; results are as they were."""

from types import SimpleNamespace

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models.io.load import load_tokenizer
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems import embeddings
from rag_jax.systems.prag import infer, train
from rag_jax.systems.prag.answers import answer_sorted
from rag_jax.systems.prag.config import AugmentConfig, DocumentsConfig, EncodeConfig
from rag_jax.systems.prag.data import (
    Augmented,
    Format,
    Groups,
    Pair,
    count_examples,
    make_examples,
    repeat_examples,
)
from rag_jax.systems.prag.evaluate import draw_others, run_retrieval
from rag_jax.systems.prag.infer import sort_prompts

IDS = st.integers(0, 9).map(str)


class Counted(list):
    """A list that counts passes over it, and refuses to be searched."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()

    def index(self, *_):
        raise AssertionError("searched from the start")


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(
    st.lists(IDS, unique=True), st.lists(st.tuples(st.lists(IDS, max_size=4), st.sets(IDS)))
)
def test_other_documents_are_drawn_as_from_a_list_of_all_others(encoded, asked):
    questions = [
        Question(str(i), "", (), dict.fromkeys(own, 1)) for i, (_, own) in enumerate(asked)
    ]
    found, counted = [own for own, _ in asked], Counted(encoded)
    wanted = []
    for i, (question, own) in enumerate(zip(questions, found, strict=True)):
        others = [id for id in encoded if id not in own and id not in question.relevant]
        order = np.random.default_rng((7, i)).permutation(len(others))
        wanted.append([others[j] for j in order[: len(own)]])
    assert draw_others(questions, found, counted, seed=7) == wanted
    assert counted.passes == 1


def test_a_group_finds_its_widths_without_a_search(monkeypatch):
    shapes = []

    def make_step(loss, optimizer):
        def step(state, frozen, arrays):
            shapes.append(arrays["tokens"].shape)
            return state, {"loss": jnp.zeros(2)}

        return step

    monkeypatch.setattr(train, "make_bank_step", make_step)
    groups = Groups(2, Counted([3, 0, 1, 2]), [[8, 16], [24, 8]], 0.0)
    base = type("Base", (), {"params": {}})
    given = base, None, EncodeConfig(), groups, [[[1], [1, 2]]] * 4, {"a": np.zeros(3, np.float32)}
    run = train.make_group_trainer(*given)
    run([1, 2])
    run([3, 0])
    assert shapes == [(2, 24), (2, 8), (2, 8), (2, 16)]


def test_dense_retrieval_embeds_in_pieces_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(embeddings, "PIECE", 4)
    monkeypatch.setattr(embeddings, "plan_widths", lambda *_, **__: [8])
    passages = [Passage(str(i), "", "text") for i in range(10)]
    sizes = []

    def encode(encoder, part, widths):
        if len(sizes) == 2:
            raise KeyboardInterrupt
        sizes.append(len(part))
        return np.asarray([[float(passage.id), 1.0] for passage in part], np.float32)

    def make_search(passages, embed, keep_words):
        encoder = SimpleNamespace(fingerprint="e", params={}, model="")
        table = embed(encoder=encoder, passages=passages)
        return lambda asked: [[(int(table[:, 0].argmax()), 9.0)] for _ in asked]

    folder = tmp_path / "stages" / "retrieve"
    folder.mkdir(parents=True)
    context = StageContext(Stage("retrieve", lambda context: None), folder.parent)
    given = {"passages": passages, "questions": [Question("q", "?", (), {})]}
    given |= {"make_search": make_search, "encoding": EncoderConfig()}
    given |= {"reranking": None, "retrieve": DocumentsConfig()}
    with pytest.raises(KeyboardInterrupt):
        run_retrieval(context, encode_passages=encode, **given)
    sizes.append(None)
    run_retrieval(context, encode_passages=encode, **given)
    assert sizes == [4, 4, None, 2]
    assert read_jsonl(folder / "found.jsonl") == [{"id": "q", "passages": ["9"]}]
    assert [path.name for path in folder.iterdir()] == ["found.jsonl"]


def test_examples_take_four_bytes_a_token_and_are_shared(llama_folder):
    format = Format(load_tokenizer(llama_folder), chat=False, max_text=50)
    passages = [Passage(str(i), "Riga", "Riga is a town. " * (i + 1)) for i in range(3)]
    augmented = [Augmented((), (Pair("Where?", "Latvia"),))] * 3
    augment = AugmentConfig()
    examples = train.list_examples(format, passages, augmented, augment)
    for passage, texts, own in zip(passages, augmented, examples, strict=True):
        made = make_examples(format, passage, texts, questions=augment.questions)
        wanted = repeat_examples(made, count_examples(augment))
        assert [tokens.tolist() for tokens in own] == wanted
        assert all(tokens.itemsize == 4 for tokens in own)
        assert len({id(tokens) for tokens in own}) == len(made) < len(own)


@hypothesis.given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 8))
def test_every_batch_of_sorted_prompts_has_a_width(lengths, batch_size):
    prompts = [[0] * length for length in lengths]
    order, widths = sort_prompts(prompts, batch_size=batch_size)
    assert [lengths[i] for i in order] == sorted(lengths) and len({*order}) == len(lengths)
    assert widths == sorted({*widths}) and not any(width % 32 for width in widths)
    assert max(lengths) <= widths[-1] < max(lengths) + 32


def test_a_program_is_compiled_where_padding_costs_more(monkeypatch):
    """Two batches of 4 at 32 and 320 tokens: one width is 1,152 tokens of padding."""
    prompts = [[0] * length for length in [30] * 4 + [310] * 4]
    for worth, widths in ((1100, [32, 320]), (1200, [320])):
        monkeypatch.setattr(infer, "PROGRAM_TOKENS", worth)
        assert sort_prompts(prompts, batch_size=4) == ([*range(8)], widths)
    monkeypatch.setattr(infer, "count_program_tokens", lambda setting, on_cpu: 10_000_000)
    assert sort_prompts(prompts, batch_size=4)[1] == [320]


def test_answers_of_sorted_prompts_are_in_the_order_of_the_questions(tmp_path):
    lengths, read = [40, 5, 300, 7, 5, 90], []
    prompts = [[i] * length for i, length in enumerate(lengths)]

    class Engine:
        def __init__(self, widths):
            self.widths = widths

        def answer(self, batch, store, merged):
            assert store == "store" and max(map(len, batch)) <= max(self.widths)
            read.append([prompt[0] for prompt in batch])
            assert merged == [[f"d{i}"] for i in read[-1]]
            texts = [str(prompt[0]) for prompt in batch]
            return infer.Answers(texts, list(map(len, batch)), [0.0] * len(batch), {}, 0.0, 0)

    facts = [{"adapters": [f"d{i}"], "place": i} for i in range(len(prompts))]
    (tmp_path / "answer").mkdir()
    context = StageContext(Stage("answer", lambda _: None), tmp_path)
    options = {"make_engine": Engine, "batch_size": 4}
    records = answer_sorted(context, "parametric", prompts, facts, "store", **options)
    assert [record["prediction"] for record in records] == list("012345")
    assert [record["place"] for record in records] == [*range(6)]
    assert [record["generated_tokens"] for record in records] == lengths
    assert read == [[1, 4, 3, 0], [5, 2]]
    # What is kept is in the order in which it was made, and is not made again.
    assert answer_sorted(context, "parametric", prompts, facts, "store", **options) == records
    assert len(read) == 2
