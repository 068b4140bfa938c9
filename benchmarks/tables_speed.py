"""The tables of speed, faults and plans, from `results`; see `tables.py`."""

import itertools
import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import scale
from tables_systems import drop_empty, read_bench, read_run

RESULTS = Path(__file__).parent / "results"

Rows = list[list[str]]

_NO_TRAININGS = "index", "retrieve", "labels", "reference"  # of the stages of a plan


def format_seconds(value: float) -> str:
    """Seconds with three significant digits, in ms below a tenth."""
    return f"{1000 * value:.3g} ms" if value < 0.1 else f"{value:.3g} s"


def list_main_run() -> Rows:
    """The seconds of SR-RAG's run on one machine, in an earlier version and in this one."""
    runs = [read_run(name) for name in ("srrag_before", "srrag")]
    stages = dict.fromkeys(itertools.chain.from_iterable(run["seconds"] for run in runs))
    rows = [["stage", "before", "now"]]
    for stage in stages:
        seconds = (run["seconds"].get(stage) for run in runs)
        rows.append([stage, *("" if value is None else f"{value:.1f}" for value in seconds)])
    totals = (f"**{sum(run['seconds'].values()):.0f}**" for run in runs)
    rows.append(["**all**", *totals])
    rows.append(["compiling", *(f"{run['compile_seconds']:.0f}" for run in runs)])
    memory = (f"{run['peak_memory_bytes'] / 1e9:.1f} GB" for run in runs)
    return [*rows, ["memory", *memory]]


def list_speed(bench: str, others: Mapping[str, str]) -> Rows:
    """Our time, the others', the ratios of wall time and of CPU time, and our first call.

    Args:
        others: headings by the side's name in the results.
    """
    ratios = [f"{side}, ratio (CPU)" for side in others.values()]
    rows = [["", "ours", *others.values(), *ratios, "first call"]]
    for result in read_bench(bench):
        wall, cpu = result.get("wall_seconds", {}), result.get("cpu_seconds", {})
        if "ours" not in wall:
            continue
        first = result["compile_seconds"]
        first = first["ours"] if isinstance(first, dict) else first
        rows.append(
            [
                result["name"],
                format_seconds(wall["ours"]),
                *(format_seconds(wall[side]) if side in wall else "" for side in others),
                *(
                    f"{wall[side] / wall['ours']:.2f} ({cpu[side] / cpu['ours']:.2f})"
                    if side in wall
                    else ""
                    for side in others
                ),
                format_seconds(first),
            ]
        )
    return drop_empty(rows)


def list_srrag_speed() -> Rows:
    """Seconds a question of the one pass, of separate calls, and of always retrieving."""
    rows = [["", "one pass", "other", "s a question", "s a question", "ratio"]]
    for result in read_bench("srrag"):
        wall, count = result.get("wall_seconds", {}), result.get("questions", 1)
        kind = "16 questions together" if "together" in result["name"] else "one at a time"
        if "ours" in wall:
            pairs = [("separate calls", "ours", "separate"), ("transformers", "ours", "pytorch")]
        else:
            waits = [name.removeprefix("srrag, ") for name in wall if name.startswith("srrag")]
            pairs = [
                (f"always retrieving, a search of {w}", f"srrag, {w}", f"always, {w}")
                for w in waits
            ]
        for other, ours, theirs in pairs:
            times = [wall[ours] / count, wall[theirs] / count]
            ratio = f"{wall[theirs] / wall[ours]:.2f}"
            rows.append([kind, "SR-RAG", other, *(f"{t:.3f}" for t in times), ratio])
    return rows


def list_index_speed() -> Rows:
    """ScaNN, the exact index and FAISS."""
    rows = [["", "ScaNN", "exact", "FAISS", "FAISS / ScaNN", "FAISS / exact"]]
    for result in read_bench("index"):
        wall = result["wall_seconds"]
        times = [format_seconds(wall[side]) for side in ("scann", "exact", "faiss")]
        ratios = [f"{wall['faiss'] / wall[side]:.2f}" for side in ("scann", "exact")]
        rows.append([result["name"], *times, *(["", ""] if "build" in result["name"] else ratios)])
        if "bytes_a_passage" in result:
            sizes = result["bytes_a_passage"]
            cells = [f"{sizes[side]:,.0f}" for side in ("scann", "exact", "faiss")]
            rows.append(["bytes a passage", *cells, "", ""])
    return rows


def list_index_sizes(corpus: str) -> Rows:
    """What an index takes, and what it finds with the settings of its size.

    Args:
        corpus: "real" or "jittered".
    """
    rows = [["", "built in", "bytes a passage on disk", "in memory", "recall@10"]]
    (result,) = (r for r in read_bench("index_recall") if r["name"] == f"{corpus}, building")
    for name, seconds in result["build_seconds"].items():
        sizes = (result[place][name] for place in ("bytes_on_disk", "bytes_in_memory"))
        found = f"{result['recall'][name]:.4f}"
        rows.append([name, format_seconds(seconds), *(f"{size:,.0f}" for size in sizes), found])
    return rows


def list_index_recall(corpus: str) -> Rows:
    """Seconds and CPU seconds of each side at equal recall; corpora as for `list_index_sizes`."""
    rows: Rows = []
    for result in read_bench("index_recall"):
        name, wall, cpu = result["name"], result.get("wall_seconds"), result.get("cpu_seconds")
        if wall is None or not name.startswith(f"{corpus}, "):
            continue
        rows = rows or [["", *wall]]
        cells = [
            f"{format_seconds(wall[side])} (CPU {format_seconds(cpu[side])}), "
            f"{result['recalls'][side]:.3f}"
            for side in wall
        ]
        rows.append([name.removeprefix(f"{corpus}, "), *cells])
    return rows


def list_faults() -> Rows:
    """The injected faults of all systems."""
    titles = {"srrag": "SR-RAG", "prag": "Parametric RAG", "self_retrieval": "Self-Retrieval"}
    rows = [["system", "fault", "injected", "survived", "seconds lost, median", "most"]]
    found = json.loads((RESULTS / "faults_cpu.json").read_text("utf-8"))
    for system, title in titles.items():
        for fault in found[system]["faults"]:
            lost = fault["lost"]
            rows.append(
                [
                    title,
                    fault["name"].replace("|", "\\|"),
                    str(fault["injected"]),
                    str(fault["survived"]),
                    f"{statistics.median(lost):.1f}",
                    f"{max(lost):.1f}",
                ]
            )
    return rows


def _read_table(text: str) -> list[dict[str, str]]:
    """The lines of a table that `launch/plan.py` printed, by its headings.

    All columns but the first end with their headings; a cell may be empty.
    """
    head, _, *lines = text.splitlines()
    names = [(match[0], match.end()) for match in re.finditer(r"\S+(?: \S+)*", head)]
    records = []
    for line in lines:
        first = re.split(r" {2,}", line)[0]
        ends = [len(first), *(end for _, end in names[1:])]
        cells = [line[start:end].strip() for start, end in itertools.pairwise(ends)]
        records.append(dict(zip((name for name, _ in names), [first, *cells], strict=True)))
    return records


def _needs(record: dict[str, str]) -> float:
    """GiB of a device that a program takes."""
    parts = ("arguments GiB", "temporary GiB", "resident GiB")
    return sum(float(record[part]) for part in parts)


def list_plan() -> Rows:
    """The planned programs of SR-RAG with Llama-2-7B on a v5e 8x8."""
    _, programs, *_ = read_plan("srrag-llama2-7b-v5e-8x8").split("\n\n")
    rows = [["program", "GiB a device", "TFLOP", "GB moved", "GB sent", "runs", "at least"]]
    rows[0] += ["set by"]
    for record in _read_table(programs):
        rest = (record[name] for name in rows[0][2:])
        rows.append([record["program"], f"{_needs(record):.2f}", *rest])
    return rows


def read_plan(name: str) -> str:
    """What `launch/plan.py` printed of a preset, every program compiled."""
    return (RESULTS / "plans" / f"{name}.txt").read_text("utf-8")


def list_stage_plans() -> Rows:
    """The stages of every preset that was compiled whole."""
    rows = [["preset", "slice, data by model", "stage", "programs", "useful", "steps"]]
    rows[0] += ["hours at least", "GiB a device", "compiling"]
    for file in sorted((RESULTS / "plans").glob("*.txt")):
        head, _, stages, *_ = read_plan(file.stem).split("\n\n")
        preset, chip, size = re.fullmatch(r"(.+)-(v\w+)-(\w+)", file.stem).groups()
        data, model = re.search(r"mesh (\d+) data by (\d+) model", head).groups()
        for record in _read_table(stages):
            rows.append([preset, f"{chip}:{size}, {data} by {model}", *record.values()])
    return rows


def _read_steps(beginnings: tuple[str, ...]) -> list[dict[str, Any]]:
    found = json.loads((RESULTS / "plans" / "steps.json").read_text("utf-8"))
    return [case for name, case in found.items() if name.startswith(beginnings)]


def list_step_plans() -> Rows:
    """The planned gradients of Llama-2-7B, of `step_plan.py`."""
    rows = [["trained", "slice, data by model", "rows", "GiB a device", "TFLOP", "GB moved"]]
    rows[0] += ["GB sent", "at least", "set by", "computing", "best MFU"]
    for case in _read_steps(("lora", "full")):
        needed = case["arguments"] + case["temporaries"] + case["resident"]
        row = [
            {"lora": "adapters", "full": "all weights"}[case["mode"]],
            f"{case['slice']}, {case['devices'] // case['model']} by {case['model']}",
            f"{case['rows']} x {case['width']:,}",
            f"{needed / 2**30:.2f} ({needed / case['memory']:.0%})",
        ]
        if case["fits"]:
            row += [f"{case['flops'] / 1e12:.1f}", f"{case['moved'] / 1e9:.1f}"]
            row += [f"{case['sent'] / 1e9:.1f}", f"{1000 * case['seconds']:.0f} ms", case["bound"]]
            row += [f"{case['roofline']:.0%}", f"{case['mfu']:.0%}"]
        else:
            row += ["-", "-", "-", "-", "does not fit", "-", "-"]
        rows.append(row)
    return rows


def list_int8_plans() -> Rows:
    """The planned memory of Llama-3-8B's adapters over weights in int8, of `step_plan.py`."""
    rows = [["slice, data by model", "rows", "arguments", "temporaries", "GiB a device", "fits"]]
    for case in _read_steps(("int8",)):
        sizes = [case[part] / 2**30 for part in ("arguments", "temporaries", "resident")]
        share = sum(sizes) * 2**30 / case["memory"]
        rows.append(
            [
                f"{case['slice']}, {case['devices'] // case['model']} by {case['model']}",
                f"{case['rows']} x {case['width']:,}",
                *(f"{size:.2f}" for size in sizes[:2]),
                f"{sum(sizes):.2f} ({share:.0%})",
                "yes" if case["fits"] else "no",
            ]
        )
    return rows


def list_batches() -> Rows:
    """The trainings of every preset, as `launch/plan.py --batches` draws them."""
    rows = [["preset", "slice", "training", "steps", "programs", "useful"]]
    for file in sorted((RESULTS / "plans" / "batches").glob("*.txt")):
        head, stages, *_ = file.read_text("utf-8").split("\n\n")
        slice, data, model = re.match(r"(\S+): .* mesh (\d+) data by (\d+)", head).groups()
        where = "a CPU" if slice == "cpu" else f"{slice}, {data} data by {model} model"
        for line in stages.splitlines()[2:]:
            stage, steps, _, count, useful = re.split(r" {2,}", line)
            if stage not in _NO_TRAININGS:
                rows.append([file.stem, where, stage, steps, count, useful])
    return rows


def list_scale(number: int) -> Rows:
    """A table of `scale.py`, for 21 million passages and 50,000 questions."""
    head, rows = list(scale.list_tables(21_000_000, 50_000, 0.4))[number]
    return [head, *map(list, rows)]


def list_report() -> Rows:
    """What the page of a large run takes."""
    found = read_bench("report")
    times = [f"{key}_seconds" for key in ("make", "open", "filter")]
    head = ["questions", "methods", "MB", "made in", "open in", "filtered in"]
    counts = [f"{found['questions']:,}", str(found["methods"]), f"{found['bytes'] / 1e6:.1f}"]
    return [head, [*counts, *(format_seconds(found[name]) for name in times)]]


def list_serving() -> Rows:
    """A server's start, and what clients that ask at once get, in an earlier version and now."""
    start, load = zip(*map(read_bench, ("serve_before", "serve")), strict=True)
    rows = [["", "before", "now"]]
    for when, name in {"first": "first start", "again": "a later start"}.items():
        rows.append([name, *(format_seconds(found["seconds"][when]) for found in start)])
    for served in zip(*(found["loads"] for found in load), strict=True):
        clients = served[0]["clients"]
        asked = f"{clients} clients" if clients > 1 else "1 client"
        rates = (f"{found['answers_per_second']:.2f} a second" for found in served)
        waits = (format_seconds(found["median_seconds"]) for found in served)
        rows += [[f"{asked}: answers", *rates], [f"{asked}: median wait", *waits]]
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    "serving": list_serving,
    "speed_main_run": list_main_run,
    "speed_models": lambda: list_speed(
        "models",
        {
            "theirs": "PyTorch",
            "ours, one token a pass": "ours, a token a pass",
            "ours, to the longest": "ours, all rows to the end",
        },
    ),
    "speed_llama": lambda: list_speed("llama", {"theirs": "llama.cpp", "int8": "int8"}),
    "speed_rag": lambda: list_speed("rag", {"theirs": "transformers"}),
    "speed_trie": lambda: list_speed(
        "trie", {"dicts": "transformers", "normaliser": "the exponentials alone"}
    ),
    "speed_lora": lambda: list_speed(
        "lora", {"theirs_lean": "PEFT in one batch", "theirs": "PEFT"}
    ),
    "speed_srrag": list_srrag_speed,
    "speed_dpo": lambda: list_speed("dpo", {"trl": "TRL, cached", "trl_uncached": "TRL"}),
    "speed_encode": lambda: list_speed(
        "encode", {side: side for side in ("sentence-transformers", "ONNX Runtime", "OpenVINO")}
    ),
    "speed_words": lambda: list_speed("words", {"ours, NumPy": "without numba", "bm25s": "bm25s"}),
    "speed_index": list_index_speed,
    "index_sizes": lambda: list_index_sizes("real"),
    "index_sizes_jittered": lambda: list_index_sizes("jittered"),
    "index_recall": lambda: list_index_recall("real"),
    "index_recall_jittered": lambda: list_index_recall("jittered"),
    "report": list_report,
    "faults": list_faults,
    "plan": list_plan,
    "plan_stages": list_stage_plans,
    "plan_steps": list_step_plans,
    "plan_int8": list_int8_plans,
    "batches": list_batches,
    "scale_kept": lambda: list_scale(0),
    "scale_computed": lambda: list_scale(1),
    "scale_host": lambda: list_scale(2),
}
