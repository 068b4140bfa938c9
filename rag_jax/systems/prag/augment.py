"""What is made of a document before it is encoded: rewrites, and questions with their answers.

The model is asked in plain text, after an example, and its answers must stand in the passage. What
is no good is tried again, a bounded number of times, with other random draws. Rules make less of a
document, but nothing wrong: they turn sentences round and leave words out.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rag_jax.data.passages import Passage
from rag_jax.data.sentences import list_sentences
from rag_jax.decoding import Sampling, generate
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.pipeline.stage import StageContext, log
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.prag.data import Augmented

if TYPE_CHECKING:
    from rag_jax.systems.prag.pipeline import Session

_REWRITE = (
    "Restate the passage in other words. Keep every name, place, number and term as it is, and "
    "what is said of it. Write the new passage alone."
)
_ASK = (
    "Write {count} different questions that the passage answers. Each answer is a few words that "
    "stand in the passage. Write two lines for each, 'Question: ...' and 'Answer: ...'."
)
# One example: what small models copy is its form.
_SAMPLE = (
    "The Eiffel Tower: The Eiffel Tower is an iron tower in Paris, built by the company of Gustave "
    "Eiffel from 1887 to 1889. It is 330 metres tall."
)
_SAMPLE_REWRITE = (
    "In Paris stands the Eiffel Tower, a tower of iron that is 330 metres tall. The company of "
    "Gustave Eiffel built it between 1887 and 1889."
)
_SAMPLE_PAIRS = (
    ("In which city is the Eiffel Tower?", "Paris"),
    ("Whose company built the Eiffel Tower?", "Gustave Eiffel"),
    ("How tall is the Eiffel Tower?", "330 metres"),
    ("What is the Eiffel Tower made of?", "iron"),
    ("When was the Eiffel Tower finished?", "1889"),
)
_PAIR = re.compile(
    r"^[\W\d]*question\s*\d*\s*[:.)]\s*(?P<question>\S.*?)\s*$\s*"
    r"^[\W\d]*answer\s*\d*\s*[:.)]\s*(?P<answer>\S.*?)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_KEPT = 0.7  # share of a passage's names and numbers that its rewrite has to have
# A name, maybe of several words, or a number. Letters that are none of ASCII's small ones may
# be capitals.
_WORD = r"[^\W\d_a-z][\w'-]*"
_VALUE = re.compile(rf"\b{_WORD}(?:\s+(?:(?:of|the|de|la)\s+)?{_WORD})*|\b\d[\d,.]*\d\b")
# "the capital of ... is ...", "its main languages are ...".
_NOUN = r"(?:(?!of\b)[a-z]+\s+){0,2}(?!of\b)[a-z]+"
_NAMED = re.compile(
    rf"\b(?:the|its|their|his|her)\s+({_NOUN})(?:\s+of\s+([^,;.]+?))?"
    r"\s+(is|are|was|were)\s+(?:the\s+)?((?:[^\s,;.()]+\s*){1,5})(?=[,;.()]|$)",
    re.IGNORECASE,
)


def parse_pairs(text: str, passage: Passage) -> list[tuple[str, str]]:
    """The questions and answers that a model wrote: those whose answer the passage has.

    A question that gives its answer away, or asks what another one asks, is left out.
    """
    pairs: dict[str, tuple[str, str]] = {}
    source = f"{passage.title}: {passage.text}"
    for found in _PAIR.finditer(text):
        question, answer = found["question"], found["answer"].rstrip(".")
        if match(source, [answer]) and not match(question, [answer]):
            pairs.setdefault(normalize_answer(question), (question, answer))
    return list(pairs.values())


def is_rewrite(text: str, passage: Passage) -> bool:
    """Whether a text says the same in other words, as far as names and numbers tell."""
    values = {found[0] for found in _VALUE.finditer(passage.text)}
    kept = sum(bool(match(text, [value])) for value in values)
    same = normalize_answer(text) == normalize_answer(passage.text)
    return bool(text.strip()) and not same and kept >= _KEPT * len(values)


def rewrite_by_rules(passage: Passage) -> str:
    """The sentences in reverse order; of a single one, the sentence as something that is said."""
    sentences = list_sentences(passage.text)
    if len(sentences) > 1:
        return " ".join(reversed(sentences))
    return f"This is said of {passage.title or 'it'}: {sentences[0]}"


def ask_by_rules(passage: Passage, *, count: int) -> list[tuple[str, str]]:
    """Questions about what a passage says, at most `count`: by their grammar, then by gaps.

    Of "its capital is Oslo" the question is what the capital is; of any other sentence, what has
    been left out: a name, a number or, where there are none, the last word. A question never holds
    its answer, and no answer is the title.
    """
    title = passage.title or "it"
    sentences = list_sentences(passage.text)
    named = [
        (f"What {verb} the {noun} of {of or title}?", value.strip())
        for sentence in sentences
        for noun, of, verb, value in _NAMED.findall(sentence)
    ]
    gaps = []
    for sentence in sentences:
        # A sentence's first word has a capital whatever it is.
        values = [m for m in _VALUE.finditer(sentence) if m.start() and m[0] not in title]
        values = values or list(re.finditer(r"\w+(?=\W*$)", sentence))
        for value in values:
            gap = f"{sentence[: value.start()]}___{sentence[value.end() :]}"
            gaps.append((f"Which words are missing about {title}? {gap}", value[0]))
    pairs: dict[str, tuple[str, str]] = {}
    for question, answer in named + gaps:
        if normalize_answer(answer) and not match(question, [answer]):
            pairs.setdefault(answer, (question, answer))
    return list(pairs.values())[:count]


def run_augmentation(session: "Session", context: StageContext) -> None:
    """Augments every document that is to be encoded; says which are left out, and why."""
    c = session.config.augment
    passages = session.list_documents(context)
    form = session.form

    def augment(batch: Sequence[Passage]) -> list[dict[str, Any]]:
        good = [passage for passage in batch if passage.text.strip()]
        cut = [Passage(p.id, p.title, form.cut_text(p.text)) for p in good]
        made = dict(zip((p.id for p in good), _AUGMENTERS[c.by](session, cut), strict=True))
        return [describe(passage, made.get(passage.id)) for passage in batch]

    def describe(passage: Passage, made: Augmented | None) -> dict[str, Any]:
        error = None
        if made is None:
            error = "its text is empty"
        elif len(made.rewrites) < c.rewrites or (c.questions and not made.pairs):
            what = "questions" if len(made.rewrites) == c.rewrites else "rewrites"
            error = f"no usable {what}"
        return {
            "id": passage.id,
            "rewrites": made.rewrites if made else (),
            "pairs": made.pairs if made else (),
            "cut": form.is_cut(passage.text),
            "error": error,
        }

    records = context.map_batches(
        "augmented.jsonl", passages, augment, batch_size=c.batch_size, unit="documents"
    )
    for record in records:
        if record["error"]:
            log(f"passage {record['id']!r} is left out: {record['error']}")
    cut = sum(record["cut"] for record in records)
    if cut:
        log(f"{cut} passages were cut to {form.max_text} tokens (config.model.max_text)")


def read_augmented(context: StageContext) -> dict[str, Augmented]:
    """What was made of each document that is not left out, by id."""
    return {
        record["id"]: Augmented(tuple(record["rewrites"]), tuple(map(tuple, record["pairs"])))
        for record in read_jsonl(context.path("augment", "augmented.jsonl"))
        if not record["error"]
    }


def _augment_by_rules(session: "Session", passages: Sequence[Passage]) -> list[Augmented]:
    c = session.config.augment
    return [
        Augmented(
            (rewrite_by_rules(passage),) * c.rewrites,
            tuple(ask_by_rules(passage, count=c.questions)),
        )
        for passage in passages
    ]


def _augment_by_model(session: "Session", passages: Sequence[Passage]) -> list[Augmented]:
    """Asks until every document has enough, or the tries are used up."""
    c = session.config.augment
    rewrites: dict[str, list[str]] = {passage.id: [] for passage in passages}
    pairs: dict[str, dict[str, tuple[str, str]]] = {passage.id: {} for passage in passages}
    for attempt in range(1 + c.retries):
        short = [p for p in passages if len(rewrites[p.id]) < c.rewrites]
        for passage, text in zip(
            short, _write(session, short, _REWRITE, _SAMPLE_REWRITE, seed=2 * attempt), strict=True
        ):
            text = " ".join(text.split())
            if is_rewrite(text, passage) and text not in rewrites[passage.id]:
                rewrites[passage.id].append(text)
        short = [p for p in passages if len(pairs[p.id]) < c.questions]
        sample = "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in _SAMPLE_PAIRS[: c.questions])
        ask = _ASK.format(count=c.questions)
        written = _write(session, short, ask, sample, seed=2 * attempt + 1)
        for passage, text in zip(short, written, strict=True):
            for question, answer in parse_pairs(text, passage):
                pairs[passage.id].setdefault(question, (question, answer))
        if not c.temperature:  # the same would come again
            break
    return [
        Augmented(tuple(rewrites[p.id]), tuple(pairs[p.id].values())[: c.questions])
        for p in passages
    ]


def _write(
    session: "Session", passages: Sequence[Passage], instruction: str, sample: str, *, seed: int
) -> list[str]:
    """What the model answers to an instruction about each passage, after one example."""
    c, tokenizer = session.config.augment, session.base.tokenizer
    turns = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": _SAMPLE},
        {"role": "assistant", "content": sample},
    ]
    prompts = [
        tokenizer.encode_chat([*turns, {"role": "user", "content": f"{p.title}: {p.text}"}])
        for p in passages
    ]
    written = generate(
        session.base.model,
        session.base.params,
        prompts,
        max_tokens=c.max_tokens,
        stop_ids=(tokenizer.eos_id,),
        batch_size=c.batch_size,
        sampling=Sampling(temperature=c.temperature, top_k=c.top_k),
        seed=session.config.seed + seed,
    )
    return [tokenizer.decode(tokens).strip() for tokens in written]


_AUGMENTERS = {"rules": _augment_by_rules, "model": _augment_by_model}
