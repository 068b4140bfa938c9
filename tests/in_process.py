"""An executor whose workers are in this process, for tests without Ray."""

from rag_jax.pipeline.workers import MapTask, Worker, describe_map


class InProcess:
    """An executor that has `count` workers make pieces, the last batches first."""

    def __init__(self, count=2):
        self.workers, self.tasks = [Worker() for _ in range(count)], []

    def divide(self, opener, stage, mapped, stages_folder):
        def make_all(batches, make):
            task, described = MapTask.of(stage, mapped, stages_folder), describe_map(stage, mapped)
            self.tasks.append(task)
            before = list_times(stages_folder)
            for worker in self.workers:
                assert worker.open(opener, task) == described
            # Whatever the stage's function writes before the map, opening writes nothing.
            assert list_times(stages_folder) == before
            for number, batch in enumerate(reversed(batches)):
                self.workers[number % len(self.workers)].make(batch.start, batch.stop)
                yield batch

        return make_all


def list_times(folder):
    """The time of the last change of everything in a folder."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
