"""How long the page of 5,000 questions takes to open, in Chromium without a window.

    pip install -e '.[bench,browser]' && apt-get install chromium
    python benchmarks/report.py [--runs=7] [--out=FILE]

The run is made up: the encyclopedia's questions, eight methods with a source, probabilities, a text
that was read and five passages each, and the passages' own texts. Seconds are from the opening of
the file to the list of questions on the screen, and from a filter to the list that it leaves.
"""

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import bench
import numpy as np

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import copy_collection
from rag_jax.data.questions import Collection, load_collection
from rag_jax.evaluation.page import write_page
from rag_jax.evaluation.run_data import collect_run

QUESTIONS, METHODS, READ = 5000, 8, 5
_WORLD = WorldConfig(cities=12000, train=100, dev=0, test=QUESTIONS)
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# From the start of the navigation to the end of loading or the first paint, whichever is later.
_OPENED = """() => Math.max(performance.getEntriesByType("navigation")[0].loadEventEnd,
    performance.getEntriesByName("first-contentful-paint")[0].startTime)"""
# From a changed filter to the frame after the one that shows the list.
_FILTER = """text => new Promise(resolve => {
    const start = performance.now(), field = document.getElementById("search");
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
})"""


def main() -> None:
    """Makes the page, opens it, and writes the report."""
    arguments = bench.make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        made = make_page(path)
        opened = open_page(path, arguments.runs)
    report = {"environment": bench.describe_machine(), "results": made | opened}
    print(json.dumps(report, indent=2))
    bench.write_report(arguments.out, **report)


def make_page(path: Path) -> dict[str, Any]:
    """Writes the page of a made-up run; its sizes, and the seconds that it took to make."""
    corpus = path.parent / "stages" / "corpus"
    corpus.mkdir(parents=True)
    copy_collection(corpus, DataConfig(), _WORLD, check=lambda collection: None)
    world = load_collection(corpus)
    predictions = {f"method_{n}": list_records(world, n) for n in range(METHODS)}
    report = {
        "system": "srrag",
        "model": "none",
        "dataset": "encyclopedia",
        "config": {"sources": [{"name": "Self"}, {"name": "Wiki"}]},
        "methods": {name: {"n": QUESTIONS, "accuracy": 0.5} for name in predictions},
        "columns": ["accuracy"],
        "scores": {"accuracy": "correct"},
        **{"figures": {}, "tables": {}, "stages": [], "environment": {}},
    }
    seconds = bench.time_call(
        lambda: write_page(path, "report", [collect_run(report, predictions, path.parent)])
    )
    sizes = {"questions": QUESTIONS, "methods": METHODS, "passages_read": READ}
    return {**sizes, "bytes": path.stat().st_size, "make_seconds": seconds}


def list_records(world: Collection, number: int) -> list[dict[str, Any]]:
    """The made-up predictions of a method."""
    rng = np.random.default_rng(number)
    questions, passages = world.questions["test"], world.passages
    found = rng.integers(len(passages), size=(len(questions), READ))
    share, right = rng.random(len(questions)), rng.random(len(questions)) < 0.5
    return [
        {
            "id": question.id,
            "question": question.question,
            "answers": list(question.answers),
            "prediction": question.answers[0] if right[i] else "I do not know that place.",
            "source": "Wiki" if share[i] > 0.5 else "Self",
            "probabilities": [1 - float(share[i]), float(share[i])],
            "votes": [0.5, 0.5],
            "knowledge": passages[int(found[i, 0])].text,
            "passages": [
                {"id": passages[row].id, "score": 1.0 - rank / 7}
                for rank, row in enumerate(found[i].tolist())
            ],
            "correct": float(right[i]),
            "seconds": 0.123,
            "prompt_tokens": 50,
        }
        for i, question in enumerate(questions)
    ]


def open_page(path: Path, runs: int) -> dict[str, Any]:
    """Opens the page several times; the medians of what it takes."""
    from playwright.sync_api import sync_playwright  # of the extra browser

    executable = next(filter(None, map(shutil.which, _CHROMIUM)))
    opened, filtered = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable)
        version = browser.version
        for _ in range(runs):
            page = browser.new_page()
            page.goto(f"{path.as_uri()}#view=questions")
            count = page.inner_text("#count")
            if count != f"{QUESTIONS:,} of {QUESTIONS:,} questions":
                raise ValueError(f"the page says {count!r}")
            opened.append(page.evaluate(_OPENED) / 1000)
            page.evaluate(_FILTER, "capital")  # the first search reads every text
            filtered.append(page.evaluate(_FILTER, "currency") / 1000)
            page.close()
        browser.close()
    return {
        "chromium": version,
        "open_seconds": statistics.median(opened),
        "filter_seconds": statistics.median(filtered),
        "all_open_seconds": opened,
        "all_filter_seconds": filtered,
    }


if __name__ == "__main__":
    main()
