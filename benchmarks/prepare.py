"""What the documentation's runs train on and ask: parts of published datasets, drawn and cut.

Each function reads a dataset's folder, as its authors publish it, and writes the folder of a run.
"""

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rag_jax.evaluation.answers import match
from rag_jax.runtime.files import read_jsonl, write_jsonl

ROUTING = ("popqa", "triviaqa", "arc_challenge", "pubhealth")


def split_popqa(source: Path, folder: Path) -> None:
    """PopQA's questions on subjects with a passage and a known popularity, split by subject.

    No subject is both trained on and asked about.
    """
    passages = read_jsonl(source / "passages.jsonl")
    questions = read_jsonl(source / "questions.jsonl")
    titles = {passage["title"] for passage in passages}
    asked = [q for q in questions if q["s_pop"] is not None and q["s_wiki_title"] in titles]
    subjects = sorted({q["s_wiki_title"] for q in asked})
    random.Random(0).shuffle(subjects)
    parts = {"train": subjects[:400], "dev": subjects[400:600], "test": subjects[600:]}
    write(folder / "passages.jsonl", passages)
    for name, part in parts.items():
        chosen = [q for q in asked if q["s_wiki_title"] in part]
        write(folder / f"{name}_questions.jsonl", chosen)


def cut_squad(source: Path, folder: Path) -> None:
    """Ten articles of SQuAD's development set, with 1,000, 115 and 300 of their questions."""
    passages = read_jsonl(source / "dev_passages.jsonl")
    questions = read_jsonl(source / "dev_questions.jsonl")
    titles = list(dict.fromkeys(passage["title"] for passage in passages))[:10]
    asked = [question for question in questions if question["title"] in titles]
    random.Random(0).shuffle(asked)
    write(folder / "passages.jsonl", [p for p in passages if p["title"] in titles])
    write(folder / "train_questions.jsonl", asked[:1000])
    write(folder / "dev_questions.jsonl", asked[1000:1115])
    write(folder / "test_questions.jsonl", asked[1115:1415])


def open_squad(source: Path, folder: Path) -> None:
    """All of SQuAD's passages, with 400, 500 and 2,000 questions, no article in two parts.

    To train on and for choices those of its training articles, to ask those of its development set.
    """
    files = ("dev", "train")  # as the whole folder is read, so that embeddings are of the same
    passages = [p for name in files for p in read_jsonl(source / f"{name}_passages.jsonl")]
    other, asked = (read_jsonl(source / f"{name}_questions.jsonl") for name in files)
    titles = sorted({question["title"] for question in asked})
    chosen = set(random.Random(0).sample(titles, 40))
    parts = {
        "train": ([q for q in asked if q["title"] not in chosen], 400),
        "dev": ([q for q in asked if q["title"] in chosen], 500),
        "test": (other, 2000),
    }
    write(folder / "passages.jsonl", passages)
    for name, (questions, size) in parts.items():
        write(folder / f"{name}_questions.jsonl", random.Random(0).sample(questions, size))


def thin(path: Path, size: int) -> None:
    """Keeps so many of a file's records at most, drawn and in random order."""
    records = read_jsonl(path)
    write(path, random.Random(0).sample(records, min(size, len(records))))


def keep_squad(source: Path, folder: Path) -> None:
    """SQuAD's development passages, with 300 of their questions to ask and 60 for choices."""
    asked = random.Random(0).sample(read_jsonl(source / "dev_questions.jsonl"), 360)
    write(folder / "passages.jsonl", read_jsonl(source / "dev_passages.jsonl"))
    write(folder / "test_questions.jsonl", asked[:300])
    write(folder / "dev_questions.jsonl", asked[300:])


def cut_popqa(source: Path, folder: Path) -> None:
    """A hundred and sixty questions of PopQA, of as many subjects, and a corpus of 300 passages.

    40 questions to train on, 40 for choices and 80 to ask, each with a passage of its subject that
    holds an answer. The corpus has all passages of these subjects and others, drawn at random, all
    of them cut to their first 64 words.
    """
    passages = read_jsonl(source / "passages.jsonl")
    for passage in passages:
        passage["text"] = " ".join(passage["text"].split()[:64])
    by_title: dict[str, list[dict[str, Any]]] = {}
    for passage in passages:
        by_title.setdefault(passage["title"], []).append(passage)
    asked = {}
    for question in read_jsonl(source / "questions.jsonl"):
        if question["s_pop"] is None:
            continue
        title = question["s_wiki_title"]
        relevant = {
            str(passage["id"]): 1
            for passage in by_title.get(title, ())
            if match(passage["text"], question["answers"])
        }
        if relevant:
            about = {"type": question["prop"], "popularity": question["s_pop"]}
            asked.setdefault(title, []).append(
                {
                    "id": f"popqa-{question['idx']}",
                    "question": question["question"],
                    "golden_answers": question["answers"],
                    "metadata": {**about, "relevant": relevant},
                }
            )
    drawn = random.Random(0)
    titles = drawn.sample(sorted(asked), 160)
    chosen = [drawn.choice(asked[title]) for title in titles]
    own = [passage for title in titles for passage in by_title.pop(title)]
    others = [passage for passage in passages if passage["title"] in by_title]
    own += drawn.sample(others, 300 - len(own))
    write(folder / "passages.jsonl", drawn.sample(own, len(own)))
    parts = {"train": chosen[:40], "dev": chosen[40:80], "test": chosen[80:]}
    for name, part in parts.items():
        write(folder / f"{name}_questions.jsonl", part)


def mix_routing(source: Path, folder: Path) -> None:
    """The datasets of `ROUTING`: at most 300 questions, 60 and 530 of each.

    To train on, for choices and to ask, in random order. Of PopQA's subjects each is in one part;
    of ARC's and PubHealth's questions those that come with a passage are taken.
    """
    sizes = {"train": 300, "dev": 60, "test": 530}
    split_popqa(source / "popqa", folder / "popqa")
    for part, size in sizes.items():
        thin(folder / "popqa" / f"{part}_questions.jsonl", size)
    files = {
        "triviaqa": "questions_with_passages_1000.jsonl",
        "arc_challenge": "test.jsonl",
        "pubhealth": "test_part1.jsonl",
    }
    for name, file in files.items():
        all_records = read_jsonl(source / name / file)
        records = [r for r in all_records if r.get("ctxs") or r.get("ctx_text")]
        left = iter(random.Random(0).sample(records, len(records)))
        for part, size in sizes.items():
            write(folder / name / f"{part}_questions.jsonl", [*islice(left, size)])
    passages = read_jsonl(source / "triviaqa" / "passages.jsonl")
    write(folder / "triviaqa" / "passages.jsonl", passages)


def mix_sources(source: Path, folder: Path) -> None:
    """PopQA and SQuAD's development articles, with 80, 50 and 150 questions of each.

    Of PopQA's subjects and of the articles each is in one part.
    """
    split_popqa(source / "popqa", folder / "popqa")
    asked = read_jsonl(source / "squad" / "dev_questions.jsonl")
    titles = sorted({question["title"] for question in asked})
    random.Random(0).shuffle(titles)
    parts = {"train": titles[:16], "dev": titles[16:24], "test": titles[24:]}
    for name, part in parts.items():
        chosen = [question for question in asked if question["title"] in part]
        write(folder / "squad" / f"{name}_questions.jsonl", chosen)
    write(folder / "squad" / "passages.jsonl", read_jsonl(source / "squad" / "dev_passages.jsonl"))
    for name, size in {"train": 80, "dev": 50, "test": 150}.items():
        for dataset in ("popqa", "squad"):
            thin(folder / dataset / f"{name}_questions.jsonl", size)


def write(path: Path, records: Sequence[Any]) -> None:
    """Writes JSON lines, and the folder that they are in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, records)
