"""Systems' plain prompts begin as the tokenizer begins texts, and end where the model ends."""

import json
import shutil

import pytest
from chats import make_byte_level, write_folder

from rag_jax.data.passages import Passage
from rag_jax.decoding.sample import Sampling
from rag_jax.evaluation.texts import drop_thoughts
from rag_jax.models import load
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.systems.asking import decode_texts
from rag_jax.systems.prag.data import Format as PragFormat
from rag_jax.systems.rag.data import Format as RagFormat
from rag_jax.systems.self_retrieval.data import Format as SelfRetrievalFormat
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Format as SrragFormat
from rag_jax.systems.srrag.data import (
    encode_answer_prompt,
    encode_document_prompt,
    special_tokens,
)
from rag_jax.systems.stages import continue_prompts

SOURCES = SRRAGConfig().sources
PASSAGE = Passage("1", "Oslo", "Oslo lies in Norway.")


def make_tokenizer(*, bos):
    tokenizer = Tokenizer(make_byte_level(bos=bos), bos="<s>", eos="</s>", stop_ids=[9])
    return tokenizer.add_special_tokens(special_tokens(SOURCES))


def list_prompts(tokenizer):
    rag = RagFormat(tokenizer, "prompt", 200)
    prag = PragFormat(tokenizer, chat=False, max_text=50)
    self_retrieval = SelfRetrievalFormat(tokenizer, True, "phrase", 50)
    srrag = SrragFormat(tokenizer, SOURCES, 50)
    return {
        "rag": rag.encode_input("Where is Oslo?", ("Oslo", PASSAGE.text))[0],
        "rag, without a passage": rag.encode_input("Where is Oslo?", None)[0],
        "prag": prag.encode_prompt("Where is Oslo?", [PASSAGE]),
        "prag, a document": prag.encode_passages([PASSAGE]),
        "self_retrieval": self_retrieval.encode_question("Where is Oslo?"),
        "srrag": srrag.encode_question("Where is Oslo?"),
    }


def test_prompts_have_a_first_token_where_the_tokenizer_adds_one():
    plain, begun = (list_prompts(make_tokenizer(bos=bos)) for bos in (False, True))
    start = make_tokenizer(bos=True).bos_id
    assert begun == {name: [start, *ids] for name, ids in plain.items()}


def test_no_system_asks_a_model_to_think(tmp_path):
    """Answers have a few tokens, which thoughts would take."""
    template = (
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path / "x", make_byte_level(), template))
    prag = PragFormat(tokenizer, chat=True, max_text=50)
    prompts = [
        RagFormat(tokenizer, "chat", 200).encode_input("Where is Oslo?", ("Oslo", "It."))[0],
        prag.encode_prompt("Where is Oslo?", [PASSAGE]),
        prag.encode_passages([PASSAGE]),
        encode_document_prompt(tokenizer, "Where is Oslo?", [("Where?", "There.")]),
        encode_answer_prompt(tokenizer, "Where is Oslo?", "It lies in Norway."),
    ]
    for prompt in prompts:
        assert "<think></think>" in tokenizer.decode(prompt)


def test_what_a_model_thought_is_no_text_of_it(llama_folder):
    base = load(llama_folder)
    written = ["<think>Is it Paris?</think>\n Lyon.", " <think>Is it", "Lyon. ", "so</think>Lyon"]
    tokens = list(map(base.tokenizer.encode, written))
    wanted = [drop_thoughts(base.tokenizer.decode(row)).strip() for row in tokens]
    assert decode_texts(base, tokens) == wanted
    assert list(map(drop_thoughts, written)) == ["\n Lyon.", "", "Lyon. ", "Lyon"]


def test_writing_stops_at_every_end_token():
    tokenizer = make_tokenizer(bos=True)
    end, knowledge = tokenizer.eos_id, tokenizer.token_id("<EOK>")
    assert RagFormat(tokenizer, "prompt", 200).stop_ids == (end, 9)
    assert PragFormat(tokenizer, chat=False, max_text=50).stop_ids == (end, 9)
    assert SrragFormat(tokenizer, SOURCES, 50).stop_ids == (knowledge, end, 9)


def test_batches_of_a_stage_do_not_repeat_draws(llama_folder):
    """Each prompt stands first in its batch, and is drawn after the same text."""
    base = load(llama_folder)
    prompts = [base.tokenizer.encode(f"{name} What is it?") for name in ("Riga", "Lyon")]
    drawn = []
    for prompt in prompts:
        sampling = Sampling(temperature=100.0)  # the noise alone decides
        options = {"max_tokens": 12, "sampling": sampling, "seed": 3}
        drawn.append([continue_prompts(base, [prompt], **options)[0] for _ in range(2)])
    assert drawn[0][0] == drawn[0][1] and drawn[1][0] == drawn[1][1]
    assert drawn[0][0] != drawn[1][0]


@pytest.mark.parametrize("at", [1, 3])
def test_what_a_model_writes_by_itself_stops_too(at, llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    base = load(folder)
    prompt = base.tokenizer.encode("What is the capital of France?")
    written = continue_prompts(base, [prompt], max_tokens=6)[0]
    ends = {"eos_token_id": [base.tokenizer.eos_id, written[at]]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    again = continue_prompts(load(folder), [prompt], max_tokens=6)[0]
    assert again == written[: written.index(written[at])]
