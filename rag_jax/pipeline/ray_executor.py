"""Workers as Ray actors: pieces of maps made by several processes, on one machine or a cluster.

The driver hands every worker one piece at a time. A worker that is lost costs the piece that it was
making: another worker makes it, and a new worker starts as soon as Ray has a place for one. Workers
beyond the places that there are wait for one, so that machines may join during a run. Results are
files in the work folder and never travel through Ray.
"""

import collections
import contextlib
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rag_jax.pipeline import ray_cluster
from rag_jax.pipeline.maps import MakeAll, ResumableMap
from rag_jax.pipeline.ray_cluster import RaySettings, show_resources
from rag_jax.pipeline.stage import Stage
from rag_jax.pipeline.workers import MapTask, Opener, Worker, describe_map, wait_for
from rag_jax.runtime import signals
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log
from rag_jax.runtime.terminal import write_text

_LOOK = 1.0  # seconds between two looks for a signal
_QUIET = 60.0  # seconds without any worker after which a line says so
_TRIES = 2  # times that one piece may fail
_LOSSES = 5  # workers that may be lost one after another without a piece being made


@contextlib.contextmanager
def open_ray(settings: RaySettings) -> Iterator["RayExecutor"]:
    """The workers that a command asks for; they end with the block. See `ray_cluster.connect`."""
    with ray_cluster.connect(settings) as count:
        yield RayExecutor(count, settings.resources)


class Actor(Worker):
    """A worker that also says where it runs."""

    def open(self, opener: Opener, task: MapTask) -> dict[str, Any]:
        """As `Worker.open`, with the machine's name and the identifier of Ray's node."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        described = super().open(opener, task)
        return {"host": socket.gethostname(), "node": node, "described": described}


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it.

    Attributes:
        job: what it was last asked to open.
        batch: what it was asked to make; None while it opens.
        answer: the reference of what it was asked for; None if it was asked for nothing.
        host, node: where it runs; empty until it has opened something.
    """

    actor: Any
    job: "_Job | None" = None
    batch: range | None = None
    answer: Any = None
    host: str = "a machine that has not answered"
    node: str = ""


@dataclass(eq=False)
class _Job:
    """A map that is being made.

    Attributes:
        described: what every worker must find as the driver does.
        waiting: the batches that no worker has.
        failed: the number of times that each batch has failed.
        losses: the number of workers lost since a piece was made last.
        heard: when a worker was last heard of, by the monotonic clock.
    """

    opener: Opener
    task: MapTask
    pieces: Mapping[range, Path]
    described: Mapping[str, Any]
    waiting: collections.deque[range]
    failed: collections.Counter = field(default_factory=collections.Counter)
    losses: int = 0
    heard: float = field(default_factory=time.monotonic)


class RayExecutor:
    """Keeps a number of workers, which open a run's models once, and has them make pieces.

    Args:
        count: number of workers.
        resources: what each takes, by Ray's names.
    """

    def __init__(self, count: int, resources: Mapping[str, float]):
        self._count, self._resources = count, dict(resources)
        self._members: list[_Member] = []

    def divide(
        self, opener: Opener, stage: Stage, mapped: ResumableMap, stages_folder: Path
    ) -> MakeAll:
        """Has workers make the pieces of a map.

        While the pieces are made, these errors are raised:

        Raises:
            RagJaxError: a worker differs from the driver (see `describe_map`) or meets a fault of
                the settings, the data, the models or the disk; a piece has failed twice; or
                workers are lost one after another.
        """
        return partial(self._make_all, opener, stage, mapped, stages_folder)

    def _make_all(
        self,
        opener: Opener,
        stage: Stage,
        mapped: ResumableMap,
        stages_folder: Path,
        batches: Sequence[range],
        make: Callable[[range], None],
    ) -> Iterator[range]:
        del make
        task, described = MapTask.of(stage, mapped, stages_folder), describe_map(stage, mapped)
        waiting, left = collections.deque(batches), set(batches)
        job = _Job(opener, task, mapped.pieces, described, waiting)
        while left:
            signals.check()
            self._assign(job)
            for member in self._wait(job):
                batch = self._take(member, job)
                if batch is not None:
                    left.remove(batch)
                    yield batch

    def _assign(self, job: _Job) -> None:
        """Starts workers in the place of lost ones, and asks idle ones for the next thing."""
        while len(self._members) < self._count:
            self._members.append(_Member(self._start_actor()))
        for member in self._members:
            if member.answer is not None:
                continue
            if member.job is not job:
                member.job, member.batch = job, None
                member.answer = member.actor.open.remote(job.opener, job.task)
            elif job.waiting:
                member.batch = batch = job.waiting.popleft()
                member.answer = member.actor.make.remote(batch.start, batch.stop)

    def _start_actor(self) -> Any:
        import ray

        need = dict(self._resources)
        options = {"num_cpus": need.pop("CPU", 0), "num_gpus": need.pop("GPU", 0)}
        # As many threads as the driver's libraries use: Ray would have one a processor taken.
        threads = {"env_vars": {"OMP_NUM_THREADS": ray_cluster.count_threads()}}
        options |= {"resources": need, "runtime_env": threads, "scheduling_strategy": "SPREAD"}
        return ray.remote(Actor).options(**options).remote()

    def _wait(self, job: _Job) -> list[_Member]:
        """The workers that have answered; none after a moment without an answer."""
        import ray

        asked = {m.answer: m for m in self._members if m.answer is not None}
        done, _ = ray.wait(list(asked), num_returns=1, timeout=_LOOK)
        now = time.monotonic()
        if done:
            job.heard = now
        elif now - job.heard > _QUIET and not any(member.node for member in self._members):
            job.heard = now
            free = show_resources(ray.available_resources())
            log(
                f"stage {job.task.stage}: no worker has begun yet; one takes "
                f"{show_resources(self._resources)}, and the cluster has {free} free"
            )
        return [asked[answer] for answer in done]

    def _take(self, member: _Member, job: _Job) -> range | None:
        """Takes a worker's answer; gives the batch whose piece it made, if it made one."""
        import ray

        answer, member.answer, current = member.answer, None, member.job is job
        try:
            result = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            if current:
                _meet_error(member, job, error)
            return None  # or others made the map while this worker opened it
        except ray.exceptions.RayError as error:
            said = " ".join(str(error).split())
            self._lose(member, job, said.partition("The actor is dead because ")[2] or said)
            return None
        if member.batch is None:
            member.host, member.node = result["host"], result["node"]
            if current:
                _compare(member, job, result["described"])
            return None
        if not current:
            return None
        wait_for(job.pieces[member.batch])
        job.losses = 0
        return member.batch

    def _lose(self, member: _Member, job: _Job, reason: str) -> None:
        """Parts with a worker; raises a RagJaxError if another one would be lost too."""
        import ray

        self._members.remove(member)
        ray.kill(member.actor)
        reason = _shorten(reason)
        log(f"stage {job.task.stage}: lost a worker on {member.host}: {reason}")
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        at_work = member.job is job and member.batch is not None
        if member.node and member.node not in alive:  # with its machine, whatever it was making
            if at_work:
                job.waiting.appendleft(member.batch)
            return
        if at_work:
            _note_failure(member, job, reason)
        job.losses += 1
        if job.losses == _LOSSES:
            raise RagJaxError(
                f"stage {job.task.stage}: {_LOSSES} workers were lost one after another before "
                f"they made a piece, the last on {member.host}: {reason}"
            )


def _meet_error(member: _Member, job: _Job, error: Any) -> None:
    """Notes an error that a worker raised, so that its piece is tried again.

    Raises:
        RagJaxError: a fault that the user can repair; a piece that has failed before; or a map that
            the worker could not open.
    """
    cause, where = error.cause, f"stage {job.task.stage}: a worker on {member.host}"
    if isinstance(cause, RagJaxError):
        raise RagJaxError(f"{where}: {cause}") from None
    write_text(re.sub(r"\x1b\[\d+m", "", str(error)), sys.stderr)  # without Ray's colours
    said = _shorten(f"{type(cause).__name__}: {cause}")
    if member.batch is None:
        raise RagJaxError(f"{where} cannot open {job.task.file}: {said}") from None
    _note_failure(member, job, said)


def _note_failure(member: _Member, job: _Job, reason: str) -> None:
    """Has a piece tried again; raises a RagJaxError if it has failed before."""
    job.waiting.appendleft(member.batch)
    job.failed[member.batch] += 1
    if job.failed[member.batch] == _TRIES:
        raise RagJaxError(
            f"stage {job.task.stage}: the piece {job.pieces[member.batch].name} failed {_TRIES} "
            f"times, last on {member.host}: {reason}"
        )


def _shorten(text: str) -> str:
    return text if len(text) < 500 else f"{text[:500]}..."


def _compare(member: _Member, job: _Job, found: Mapping[str, Any]) -> None:
    """Raises a RagJaxError if a worker differs from the driver."""
    for name, wanted in job.described.items():
        if found[name] != wanted:
            raise RagJaxError(
                f"stage {job.task.stage}: a worker on {member.host} is refused: {name} is "
                f"{str(found[name])[:12]} there and {str(wanted)[:12]} here; give all machines the "
                "same code, files and work folder"
            )
