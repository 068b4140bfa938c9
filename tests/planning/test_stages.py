"""A planned run by its stages: what is added up."""

import json
from pathlib import Path

import pytest

from rag_jax.planning.batches import Drawn, Shape, StageBatches
from rag_jax.planning.planner import Cost, Program
from rag_jax.planning.stages import SECONDS, HostWork, format_host, format_stages
from rag_jax.runtime.chips import Chip

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CHIP = Chip(flops=1e9, bandwidth=1e9, memory=2**31, links=1e9)


def make_program(name, seconds, runs, **changes):
    sizes = {"arguments": 0.0, "temporaries": 2.0**30, "resident": 0.0, "seconds": 30.0}
    return Program(name, **sizes | changes, cost=Cost(flops=1e9 * seconds), runs=runs)


def test_hours_memory_and_compiling_are_added_up():
    programs = [
        make_program("gradients", 2.0, {"train": 1800}),
        make_program("update", 0.5, {"train": 3600}, temporaries=2.0**31),
        make_program("one token", 9.0, {}),
        make_program("embed", 1.0, {"train": 3600, "index": 7200}),
    ]
    batches = StageBatches("train", 3600, 400, 0.876, {Shape("rows", 4, 8): 1800})
    lines = format_stages(programs, Drawn(None, {"train": batches}), CHIP).splitlines()
    rows = [line.split() for line in lines[2:]]
    assert rows == [
        ["train", "3", "88%", "3,600", "2.5", "2.00", "1.5", "min"],
        ["index", "1", "2", "1.00", "0.0", "min"],
        ["all", "3", "4.5", "2.00", "1.5", "min"],
    ]


def test_what_the_host_does():
    work = [HostWork("negatives", "BM25: build", 21_000_000)]
    assert format_host(work).splitlines()[-1].split()[-4:] == [
        "build",
        "0.00036",
        "21,000,000",
        "2.1",
    ]


def test_the_hosts_seconds_are_those_that_were_measured():
    items, trie = (
        json.loads((RESULTS / f"{name}_cpu.json").read_text("utf-8"))["results"]
        for name in ("items", "trie")
    )
    corpus, index, adapters = items["corpus"], items["index"], items["adapters"]
    measured = {
        "BM25: build": corpus["bm25"]["cpu_seconds_to_build"],
        "BM25: search": corpus["bm25"]["cpu_seconds_to_search"],
        "ScaNN: build": index["build_cpu_seconds"] / index["passages"],
        "ScaNN: search": index["search_cpu_seconds"]["64"] / 64 / index["passages"],
        "trie: build": trie[-1]["sizes"]["1000000"]["cpu_seconds"] / 1e6,
        "adapters: write": adapters["save_cpu_seconds"],
        "adapters: read": adapters["load_cpu_seconds"],
    }
    assert pytest.approx(measured, rel=1e-3) == SECONDS
