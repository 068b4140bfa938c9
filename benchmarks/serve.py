"""A server of a finished run under load: its start, and answers to clients that ask at once.

    python benchmarks/serve.py RUN METHOD [--seconds=60] [--clients 1 2 8 32] [--out=FILE] -- FLAGS

Needs the extra `serve`. RUN is the run's work folder, METHOD the row of its report whose answers
the server gives, and FLAGS are those of `launch/serve.py` besides the work folder. The server
starts twice, first without any compiled program, and is then asked the run's own questions by
clients of which each sends the next question when it has its answer: a round that compiles what it
meets, and a round that is timed. Every answer is compared with the run's own.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from bench import describe_machine, split_arguments, write_report

from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.paths import expand_path


@contextlib.contextmanager
def serving(flags: Sequence[str], programs: str) -> Iterator[tuple[str, float]]:
    """A server's address and the seconds of its start; `programs` keeps what it compiles."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": programs}
    command = [sys.executable, "launch/serve.py", *flags, "--port=0"]
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if line.startswith("serving on "):
                    break
            else:
                raise SystemExit(f"{' '.join(command)}: the server ended before it served")
            seconds = time.perf_counter() - started
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield line.split()[-1], seconds
        finally:
            process.terminate()


def ask(address: str, model: str, question: str) -> tuple[str, float]:
    """The answer to a question, and the seconds until it came."""
    body = {"model": model, "messages": [{"role": "user", "content": question}]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(body).encode(), headers
    )
    start = time.perf_counter()
    with urllib.request.urlopen(request) as response:
        (choice,) = json.load(response)["choices"]
    return choice["message"]["content"], time.perf_counter() - start


def load(
    address: str, model: str, records: Sequence[dict[str, Any]], clients: int, seconds: float
) -> dict[str, Any]:
    """Has clients ask for some time, each one question after the other."""
    waits: list[float] = []
    differing: list[str] = []
    end = time.perf_counter() + seconds

    def run(first: int) -> None:
        for record in itertools.islice(itertools.cycle(records), first, None):
            if time.perf_counter() >= end:
                return
            answer, waited = ask(address, model, record["question"])
            waits.append(waited)
            if answer != record["prediction"]:
                differing.append(record["id"])

    threads = [
        threading.Thread(target=run, args=(client * len(records) // clients,))
        for client in range(clients)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "clients": clients,
        "answers": len(waits),
        "differing": len(differing),
        "answers_per_second": len(waits) / (time.perf_counter() - start),
        "median_seconds": statistics.median(waits),
        "longest_seconds": max(waits),
    }


def main() -> None:
    """Starts the server, asks, and writes the results."""
    own, flags = split_arguments()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=expand_path)
    parser.add_argument("method")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--out", type=expand_path, help="results file, JSON")
    arguments = parser.parse_args(own)
    records = list(read_jsonl(arguments.run / "predictions" / f"{arguments.method}.jsonl"))
    model = json.loads((arguments.run / "config.json").read_text())["system"]
    flags = [*flags, f"--workdir={arguments.run}"]
    with tempfile.TemporaryDirectory() as programs:
        with serving(flags, programs) as (_, first):
            pass
        with serving(flags, programs) as (address, second):
            loads = []
            for clients in arguments.clients:
                load(address, model, records, clients, arguments.seconds)
                loads.append(load(address, model, records, clients, arguments.seconds))
                print(loads[-1], flush=True)
    results = [
        {"name": "start", "seconds": {"first": first, "again": second}},
        {"name": "load", "loads": loads},
    ]
    machine = describe_machine(["jax", "starlette", "uvicorn"])
    facts = {"system": model, "method": arguments.method, "questions": len(records)}
    write_report(arguments.out, environment=machine, **facts, results=results)


if __name__ == "__main__":
    main()
