"""What the tests of every system share about the room on the disk that a run needs."""

import jax

ARRAYS = (".npy", ".npz", ".safetensors")


def measure_arrays(folder):
    """Bytes of a stage's arrays: all files of saved trees, and files of arrays."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix in ARRAYS or {"params", "adapters"} & {*path.parts})
    )


def check_rooms(session, stages, workdir):
    """Every stage's estimate is at least what it left on the disk, and at most three times that.

    Returns:
        The stages that have an estimate.
    """
    session.open_corpus(workdir / "stages" / "corpus")
    estimated = []
    with jax.set_mesh(session.mesh):
        for stage in stages:
            keeps, passing = stage.room()
            written = measure_arrays(workdir / "stages" / stage.name)
            if keeps:
                assert written <= keeps <= 3 * written, (stage.name, written, keeps)
                assert passing >= 0
                estimated.append(stage.name)
            else:
                assert written < 1 << 14, (stage.name, written)
    return estimated
