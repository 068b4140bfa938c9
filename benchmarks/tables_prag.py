"""The tables of what Parametric RAG reaches, from `results`; see `tables.py`."""

from collections.abc import Callable

from tables_systems import (
    ENCYCLOPEDIA,
    HALF,
    RUNS,
    Rows,
    find_table,
    format_cell,
    format_pair,
    list_methods,
    list_pairs,
    read_bench,
    read_run,
)

PRAG = {
    "exact_match": "exact match",
    "f1": "F1",
    "match": "holds an answer",
    "prompt_tokens": "prompt tokens",
}
PRAG_NAMES = {
    "direct": "direct",
    "in_context": "in the context",
    "in_context_augmented": "in the context, with the augmentations",
    "parametric": "**in the parameters**",
    "both": "**both**",
    "random": "random documents' parameters",
}
# Beside the rows of any run.
PRAG_TRANSLATED = PRAG_NAMES | {
    "translated": "**made adapters**",
    "translated_both": "**made adapters, and the context**",
    "translated_random": "adapters made of random documents",
    "translated_random_both": "adapters made of random documents, and the context",
}
_MADE = ("translated", "translated_random", "translated_both", "translated_random_both")


def list_prag_coverage() -> Rows:
    """Exact match by whether the gold answer was trained into the documents' adapters."""
    rows = [["data", "questions", "method", "trained to say", "others"]]
    for data in (ENCYCLOPEDIA, "SQuAD", HALF):
        (_, *parts), *found = find_table(RUNS["prag"][data], "trained to say")
        counts = " / ".join(part[part.index("=") + 1 : -1] for part in parts)
        for name, *cells in found:
            rows.append([data, counts, PRAG_NAMES[name], *(f"{cell:.3f}" for cell in cells)])
    return rows


def list_prag_ablations() -> Rows:
    """What Parametric RAG's adapters are trained on and start from."""
    names = {
        "parametric": "rewrite and questions, random start",
        "without_rewrites": "without the rewrite",
        "without_questions": "without the questions",
        "warm_start": "from a start warmed up on other questions",
        "random": "random documents' parameters",
    }
    columns = {name: PRAG[name] for name in ("exact_match", "f1", "match")}
    runs = {ENCYCLOPEDIA: "prag_ablations", HALF: "prag_popqa"}
    return list_methods(runs, columns, names, score="exact_match")


def list_first_weights() -> Rows:
    """What a translator's first weights leave of the documents, on some that it never saw."""
    rows = [["first weights of `W_down`", "its directions", "active units"]]
    rows[0] += ["directions of the adapters", "loss: no adapter", "own", "another's"]
    rows[0].append("another's - own")
    for found in read_bench("translator"):
        losses, apart = found["losses"], found["other_minus_own"]
        low, high = apart["ci95"]
        shape = [f"{found['init']:g}", f"{found['directions_of_first_weights']:.1f}"]
        shape += [f"{found['units_ever_active']:.0%}", f"{found['directions_of_adapters']:.1f}"]
        tried = [f"{losses[name]:.2f}" for name in ("none", "own", "other")]
        rows.append([*shape, *tried, f"{apart['difference']:.3f} ({low:.3f} to {high:.3f})"])
    return rows


def list_made() -> Rows:
    """What a finished translator's adapters hold of documents that it saw and did not see."""
    found = read_bench("translator_squad")[0]
    tried = {
        "not seen, made adapters": found,
        "trained on, made adapters": found["seen"],
        "trained on, their trained adapters": found["seen, trained adapters"],
    }
    rows = [["documents", "loss: no adapter", "own", "another's", "another's - own"]]
    for name, own in tried.items():
        losses = [f"{own['losses'][kind]:.2f}" for kind in ("none", "own", "other")]
        rows.append([name, *losses, format_pair(own["other_minus_own"])])
    return rows


def list_adapter_costs() -> Rows:
    """What an adapter takes, made by the translator and trained on its document."""
    (found,) = read_bench("adapters")
    count, sizes = found["documents"], {"ours": 0, "trained": found["adapter_bytes"]}
    tokens = {"ours": found["read_tokens"], "trained": found["trained_tokens"]}
    rows = [["a document's adapter", "seconds", "CPU seconds", "tokens", "kept", "first call"]]
    for side, name in {"ours": "**made**", "trained": "trained"}.items():
        seconds = [f"{found[kind][side] / count:.2f}" for kind in ("wall_seconds", "cpu_seconds")]
        kept = f"{sizes[side] / 1e6:.1f} MB"
        first = f"{found['compile_seconds'][side]:.0f} s"
        rows.append([name, *seconds, f"{tokens[side] / count:.0f}", kept, first])
    return rows


def list_repeated() -> Rows:
    """What translators hold of documents in as many steps, by the number of documents."""
    rows = [["documents", "each is seen", "not seen: own", "another's", "another's - own"]]
    rows[0] += ["trained on: own", "another's", "another's - own"]
    finished, *others = read_bench("translator_squad")
    for found in sorted([*others, finished], key=lambda found: found["trained_on"]):
        times = found.get("steps", found["trained_on"]) // found["trained_on"]
        row = [str(found["trained_on"]), "once" if times == 1 else f"{times} times"]
        for own in (found, found["seen"]):
            row += [f"{own['losses'][kind]:.2f}" for kind in ("own", "other")]
            row.append(format_pair(own["other_minus_own"]))
        rows.append(row)
    return rows


def list_translators() -> Rows:
    """What made adapters reach, by the number of documents that the translator is trained on."""
    rows = [["data", "documents", *(PRAG_TRANSLATED[name] for name in _MADE)]]
    rows[0].append("own - random documents'")
    runs = {
        "prag_translator_100": (ENCYCLOPEDIA, 100),
        "prag_translator_300": (ENCYCLOPEDIA, 300),
        "prag_translator_squad": ("SQuAD", 999),
    }
    for name, (data, documents) in runs.items():
        run = read_run(name)
        pair = run["paired"]["rows"]["translated_random"]["exact_match"]
        cells = [format_cell("exact_match", run["methods"][n], "exact_match") for n in _MADE]
        rows.append([data, str(documents), *cells, format_pair(pair, sign=-1)])
    return rows


CONFLICT = {
    "in_context": "none",
    "both": "the document's",
    "random_both": "another document's",
    "translated_both": "made of the document",
    "translated_random_both": "made of another document",
}


def list_conflict() -> Rows:
    """Whom the model believes: an adapter, or another revision of its document in the prompt."""
    rows = [["adapter of the old facts", "answers by the adapter", "by the prompt"]]
    rows[0].append("by the prompt, against no adapter")
    for way, found in read_bench("conflict")["conflict"].items():
        old, new = found["adapter's answer"], found["prompt's answer"]
        cells = [CONFLICT[way], f"{old['share']:.3f}", f"{new['share']:.3f}", ""]
        if pair := new.get("against_in_context"):
            cells[-1] = format_pair(pair)
        rows.append(cells)
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    "first_weights": list_first_weights,
    "prag_pairs": lambda: list_pairs("prag", "exact_match", "match"),
    "prag": lambda: list_methods(RUNS["prag"], PRAG, PRAG_NAMES, score="exact_match"),
    "prag_translated": lambda: list_methods(
        {"": "prag_translator_300"}, PRAG, PRAG_TRANSLATED, score="exact_match"
    ),
    "prag_translated_pairs": lambda: list_pairs("prag_translator_300", "exact_match", "match"),
    "prag_translated_squad": lambda: list_methods(
        {"": "prag_translator_squad"}, PRAG, PRAG_TRANSLATED, score="exact_match"
    ),
    "prag_translated_squad_pairs": lambda: list_pairs(
        "prag_translator_squad", "exact_match", "match"
    ),
    "prag_conflict": list_conflict,
    "prag_translators": list_translators,
    "prag_made": list_made,
    "prag_repeated": list_repeated,
    "prag_adapter_costs": list_adapter_costs,
    "prag_coverage": list_prag_coverage,
    "prag_ablations": list_prag_ablations,
}
