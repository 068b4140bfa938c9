"""The cache of compiled programs: who may write it, and what becomes of damaged entries."""

import os
import subprocess
import sys
import textwrap

import jax
import pytest
from jax._src import compilation_cache

from rag_jax.runtime.programs import CheckedCache, keep_programs

PROGRAM = """
    import sys
    from pathlib import Path
    import jax
    from rag_jax.runtime.programs import keep_programs

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    keep_programs(Path(sys.argv[1]))
    print(jax.config.jax_compilation_cache_dir)
    print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((7, 7))))
"""


def compile_in(folder):
    """Compiles a program in a process of its own; gives what the process printed."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder)]
    options = {"capture_output": True, "text": True, "env": environment}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    where, result = done.stdout.split()
    assert result == "343.0"
    return where, done.stderr


def test_programs_are_kept_and_a_damaged_one_is_compiled_again(tmp_path):
    folder = tmp_path / "cache" / "programs"
    where, said = compile_in(folder)
    assert where == str(folder) and "compiled" not in said
    assert folder.stat().st_mode & 0o777 == 0o700
    entries = {path.name for path in folder.iterdir()}
    assert entries
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    _, said = compile_in(folder)
    assert said.count("a compiled program is damaged and will be compiled again") == len(entries)
    assert entries == {path.name for path in folder.iterdir()}


@pytest.fixture
def unset(monkeypatch):
    """JAX as it is where the user has set no cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compilation_cache, "get_file_cache", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("which", ["itself", "parent"])
def test_a_cache_that_others_can_write_is_not_used(tmp_path, unset, capsys, mode, which):
    folder = tmp_path / "cache" / "programs"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)
    folder.chmod(0o700)
    (folder if which == "itself" else folder.parent).chmod(mode)
    keep_programs(folder)
    assert jax.config.jax_compilation_cache_dir is None
    assert "others can write it" in capsys.readouterr().err


def test_a_link_is_not_followed(tmp_path, unset, capsys):
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "programs").symlink_to(tmp_path / "other")
    keep_programs(tmp_path / "programs")
    assert jax.config.jax_compilation_cache_dir is None
    assert "is not a folder" in capsys.readouterr().err


def test_the_users_own_setting_stays(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    keep_programs(tmp_path / "a" / "b")
    assert jax.config.jax_compilation_cache_dir == before is not None
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("damage", [b"", b"x", bytes(31), bytes(200)])
def test_an_entry_that_is_no_entry(tmp_path, damage):
    cache = CheckedCache(str(tmp_path), max_size=-1)
    assert cache.get("key") is None
    cache.put("key", b"program")
    assert cache.get("key") == b"program"
    cache.put("key", b"another")
    assert cache.get("key") == b"program"
    (tmp_path / "key-cache").write_bytes(damage)
    assert cache.get("key") is None
    assert not list(tmp_path.iterdir())
