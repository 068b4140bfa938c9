"""Several seeds of one run: what they share, and the numbers over all of them."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from pages import read_page

from rag_jax.evaluation.pairs import compare_pairs
from rag_jax.pipeline.runner import ReportSpec, run_stages
from rag_jax.pipeline.seeds import run_seeds, summarize_seeds
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, to_json, write_json, write_jsonl

METHODS = {"ours": "evaluate", "other": "evaluate"}
SPEC = ReportSpec("model", METHODS, ("n", "accuracy"), dict, "ours", {"accuracy": "correct"})


def make_records(scores):
    return [{"id": str(i), "correct": float(score)} for i, score in enumerate(scores)]


def make_report(seed, ours, other):
    scores = {"ours": ours, "other": other}
    methods = {
        m: {"n": len(s), "accuracy": float(np.mean(s)), "x": None} for m, s in scores.items()
    }
    paired = {"reference": "ours", "rows": {"other": {"accuracy": compare_pairs(other, ours)}}}
    about = {"system": "s", "config": {"seed": seed}, "model": "model", "dataset": "d"}
    shown = {"columns": SPEC.columns, "scores": SPEC.scores, "figures": {}, "tables": {}}
    made = {"stages": [], "environment": {}}
    return {**about, "methods": methods, "paired": paired, **shown, **made}


def test_the_numbers_over_seeds_are_those_of_a_slow_computation():
    rng = np.random.default_rng(0)
    ours, other = rng.integers(0, 2, (2, 3, 40))
    reports = [make_report(s, ours[s], other[s]) for s in range(3)]
    predictions = [
        {"ours": make_records(ours[s]), "other": make_records(other[s])} for s in range(3)
    ]
    found = summarize_seeds([5, 6, 7], reports, predictions, SPEC)
    assert found["seeds"] == [5, 6, 7]
    for name, scores in {"ours": ours, "other": other}.items():
        means = [sum(scores[s]) / 40 for s in range(3)]
        mean = sum(means) / 3
        assert found["methods"][name] == pytest.approx({"n": 40, "accuracy": mean})
        deviation = (sum((m - mean) ** 2 for m in means) / 2) ** 0.5
        assert found["deviation"][name] == pytest.approx({"n": 0, "accuracy": deviation})
    reports[1]["methods"]["ours"]["late"] = 1.0  # a number that not every seed has
    assert summarize_seeds([5, 6, 7], reports, predictions, SPEC) == found
    reports[0]["methods"]["ours"]["late"] = 1.0
    assert summarize_seeds([5, 6, 7], reports, predictions, SPEC) == found
    pair = found["paired"]["rows"]["other"]["accuracy"]
    averages = [
        [sum(scores[s][i] for s in range(3)) / 3 for i in range(40)] for scores in (other, ours)
    ]
    wanted = compare_pairs(np.array(averages[0]), np.array(averages[1]))
    # One question three times is one question: the interval is over 40, not over 120.
    assert {name: pair[name] for name in wanted} == wanted and pair["n"] == 40
    assert pair["seeds"] == pytest.approx([np.mean(other[s]) - np.mean(ours[s]) for s in range(3)])


def test_other_questions_are_refused():
    reports = [make_report(s, [1, 0], [0, 0]) for s in range(2)]
    one = {name: make_records([1, 0]) for name in METHODS}
    two = {name: make_records([1, 0])[::-1] for name in METHODS}
    with pytest.raises(RagJaxError, match="the seeds answered other questions"):
        summarize_seeds([0, 1], reports, [one, two], SPEC)


def test_what_does_not_depend_on_the_seed_is_made_once(tmp_path, capsys):
    ran = []

    def run(config, workdir, *, reuse):
        def make(context):
            ran.append((config.seed, context.name))
            (context.folder / "below").mkdir(exist_ok=True)
            write_json(context.folder / "below" / "out", [config.seed])

        stages = [
            Stage("shared", make, {"x": 1}),
            Stage("also", make, {"x": 2}, needs=("shared",)),
            Stage("train", make, {"seed": config.seed}, needs=("shared",)),
            Stage("evaluate", make, needs=("train", "also")),
        ]
        run_stages(stages, workdir, reuse=reuse)
        scores = {"ours": [1, config.seed % 2], "other": [0, 1]}
        for name, values in scores.items():
            path = workdir / "predictions" / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            write_jsonl(path, make_records(values))
        return make_report(config.seed, *scores.values())

    config = ConfigDict({"seed": 4})
    stages = ["shared", "also", "train", "evaluate"]
    report = run_seeds(run, lambda config: SPEC, config, tmp_path, 3)
    assert ran == [
        *((4, name) for name in stages),
        *((seed, name) for seed in (5, 6) for name in ("train", "evaluate")),
    ]
    assert read_json(tmp_path / "seeds" / "report.json") == json.loads(to_json(report))
    assert report["methods"]["ours"]["accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    page = read_page(tmp_path / "seeds" / "report.html")
    assert [run["label"] for run in page["runs"]] == ["seed 4", "seed 5", "seed 6"]
    assert list(page["tables"])[:2] == ["mean over seeds 4 to 6", "deviation over the seeds"]
    scores = [run["methods"]["ours"]["numbers"]["correct"] for run in page["runs"]]
    assert scores == [[1, 0], [1, 1], [1, 0]]
    assert "mean over seeds 4 to 6" in capsys.readouterr().out
    shared = tmp_path / "seeds" / "5" / "stages" / "shared"
    assert read_json(shared / "below" / "out") == [4]
    # The same command again makes nothing, and a damaged copy is taken anew.
    ran.clear()
    run_seeds(run, lambda config: SPEC, config, tmp_path, 3)
    assert not ran
    (shared / "below" / "out").unlink()
    run_seeds(run, lambda config: SPEC, config, tmp_path, 3)
    assert not ran and read_json(shared / "below" / "out") == [4]
    assert config.seed == 4


def test_seeds_beyond_the_largest_are_told_before_the_first_run(tmp_path):
    run = lambda *_, **__: pytest.fail("nothing is to run")  # noqa: E731
    config = ConfigDict({"seed": 2**32 - 2})
    for count, last in ((3, 2**32), (10**12, 2**32 - 3 + 10**12)):
        with pytest.raises(RagJaxError, match=f"--seeds={count}: the last seed, {last}, is above"):
            run_seeds(run, lambda config: SPEC, config, tmp_path, count)
