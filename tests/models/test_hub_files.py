"""Models of the hub, from a server on this machine that answers as the hub does, or worse."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, file_download

from rag_jax.models.io import hub, hub_files
from rag_jax.runtime import downloads
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_tied"
COMMIT = "a" * 40
SENTENCE = {
    "modules.json": b"""[
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Dense", "path": "2_Dense_1024"},
        {"type": "sentence_transformers.cross_encoder.modules.LogitScore", "path": "3_Score[1]"}
    ]""",
    "sentence_roberta_config.json": b"{}",
    "1_Pooling/config.json": b"{}",
    "2_Dense_1024/config.json": b"{}",
    "2_Dense_1024/model.safetensors": b"{}",
    "2_Dense_4096/model.safetensors": b"much",
    "3_Score[1]/config.json": b"{}",
    "3_Score[1]/model.safetensors": b"much",
    "onnx/model.onnx": b"much",
    "README.md": b"# A model",
    "tf_model.h5": b"much",
    "a.Q4_0.gguf": b"much",
}


class Hub:
    """What the server has, what it claims, and which paths were asked for."""

    def __init__(self, files):
        self.files, self.sizes, self.asked = dict(files), {}, []
        self.refusal = None  # of everything: a status and the hub's name of the reason
        self.gated = False  # whether files are refused, and the list is not
        self.listing = None  # bytes in the place of the list
        self.endless = self.silent = False

    def list_files(self):
        return [(name, self.sizes.get(name, len(data))) for name, data in self.files.items()]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, data, headers=(), status=200):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **dict(headers)}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_GET(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(f"{self.command} {path}")
        if hub.refusal or (hub.gated and "/resolve/" in path):
            status, reason = hub.refusal or (403, "GatedRepo")
            return self.reply(b"{}", {"X-Error-Code": reason}, status)
        if "/tree/" in path:
            rows = [
                {"type": "file", "path": name, "size": size, "oid": name}
                for name, size in hub.list_files()
            ]
            return self.reply(json.dumps(rows).encode())
        if path.startswith("/api/"):
            rows = [{"rfilename": name, "size": size} for name, size in hub.list_files()]
            info = {"id": "someone/model", "sha": COMMIT, "siblings": rows}
            return self.reply(json.dumps(info).encode() if hub.listing is None else hub.listing)
        name = path.split(f"/resolve/{COMMIT}/")[-1]
        data = hub.files.get(name)
        if data is None:
            return self.reply(b"", {"X-Error-Code": "EntryNotFound"}, 404)
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT}
        large = name.endswith(".safetensors") and self.command == "GET"
        if large and hub.endless:
            self.reply(b"", headers | {"Content-Length": None})
            return self.send_without_end()
        if large and hub.silent:
            self.reply(data[:10], headers | {"Content-Length": len(data)})
            return threading.Event().wait(1)
        return self.reply(data, headers)

    do_HEAD = do_GET

    def send_without_end(self):
        try:
            for _ in range(10_000):
                self.wfile.write(bytes(1 << 16))
        except OSError:  # the client is gone, as it should be
            self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    files = {p.name: p.read_bytes() for p in GOLDEN.iterdir() if not p.name.startswith("golden")}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.hub = Hub(files | SENTENCE)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server.hub
    server.shutdown()
    server.server_close()


def list_names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


@pytest.mark.parametrize("is_sentence_encoder", [True, False])
def test_only_a_models_files_come(server, is_sentence_encoder):
    needed = {*server.files} - SENTENCE.keys()
    if is_sentence_encoder:
        needed |= {"modules.json", "1_Pooling/config.json", "3_Score[1]/config.json"}
        needed |= {"2_Dense_1024/config.json", "2_Dense_1024/model.safetensors"}
    else:
        del server.files["modules.json"]
    needed |= {"sentence_roberta_config.json"}
    folder = hub.resolve("someone/model")
    assert list_names(folder) == needed and folder.name == COMMIT
    assert all((folder / name).read_bytes() == server.files[name] for name in needed)


def test_what_a_tokenizer_reads_beside_its_own_file_comes_and_counts(server, tmp_path):
    del server.files["modules.json"]
    names = "added_tokens.json", "additional_chat_templates/tools.jinja"
    server.files |= dict.fromkeys(names, b"{}")
    folder = hub.resolve("someone/model")
    assert {*names} <= list_names(folder)
    server.refusal = 503, ""
    assert hub.resolve("someone/model") == folder  # out of the cache
    copies = []
    for left_out in (*names, None):
        copies.append(tmp_path / f"copy-{len(copies)}")
        shutil.copytree(folder, copies[-1])
        if left_out:
            (copies[-1] / left_out).unlink()
    assert len({hub.fingerprint(copy) for copy in copies}) == 3


def test_no_weights_come_of_a_model_that_is_not_supported(server):
    server.files["config.json"] = b'{"model_type": "mamba"}'
    with pytest.raises(RagJaxError, match="mamba"):
        hub.resolve("someone/model@v1.0")
    assert "GET /api/models/someone/model/revision/v1.0" in server.asked
    assert not [path for path in server.asked if path.endswith(".safetensors")]


def test_a_model_in_the_cache_needs_no_hub(server, monkeypatch):
    folder = hub.resolve("someone/model")
    server.refusal = 503, ""
    assert hub.resolve("someone/model") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.asked.clear()
    assert hub.resolve("someone/model") == folder and not server.asked
    with pytest.raises(RagJaxError, match="other/model is not a folder and cannot be downloaded"):
        hub.resolve("other/model")


def test_a_file_added_to_a_snapshot_of_the_hub(server):
    """The library's cache: links to the files that it fetched."""
    folder = hub.resolve("someone/model")
    (folder / "special_tokens_map.json").write_text("")
    with pytest.raises(RagJaxError, match=r"map\.json was not fetched with the model: remove it"):
        hub.resolve("someone/model")


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "GatedRepo"), "^someone/model is gated: accept its terms .* set HF_TOKEN"),
        ((404, "RevisionNotFound"), "^someone/model has no revision 'abc' on the Hugging Face hu"),
        ((401, "RepoNotFound"), "^someone/model is not on the Hugging Face hub, or is priv"),
        ((500, ""), "^someone/model@abc is not a folder and cannot be downloaded .*check the name"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(server, refusal, message):
    server.refusal = refusal
    with pytest.raises(RagJaxError, match=message):
        hub.resolve("someone/model@abc")


def test_a_model_whose_list_alone_is_public(server):
    server.gated = True
    with pytest.raises(RagJaxError, match="^someone/model is gated: accept its terms"):
        hub.resolve("someone/model")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("model.safetensors", 2 << 40, r"model\.safetensors has 2,199,023,255,552 bytes, more"),
        ("tokenizer.json", 1 << 30, r"json has 1,073,741,824 bytes, more .* limit of 268,435,456"),
        ("config.json", 1 << 30, r"config\.json has 1,073,741,824 bytes"),
        ("1_Pooling/config.json", 1 << 30, r"config\.json has 1,073,741,824 bytes"),
    ],
)
def test_a_model_that_is_too_large_is_not_downloaded(server, name, size, message):
    server.sizes[name] = size
    with pytest.raises(RagJaxError, match=f"^someone/model is not downloaded: .*{message}"):
        hub.resolve("someone/model")
    assert not [path for path in server.asked if path.endswith(name)]


def test_all_files_have_a_limit_together(server):
    server.files |= {f"model-{i}.safetensors": b"" for i in range(5)}
    server.sizes = {name: (1 << 38) + 1 for name in server.files if name.startswith("model-")}
    with pytest.raises(RagJaxError, match=r"its files have 1,374,.* limit of 1,099,511,627,776"):
        hub.resolve("someone/model")


@pytest.mark.parametrize("size", [None, -5, "many", 2.5, True, []])
def test_a_list_without_sizes(server, size):
    """Of another server than the hub's; its files may have as much as any."""
    server.sizes = dict.fromkeys(server.files, size)
    try:
        assert hub.resolve("someone/model").name == COMMIT
    except RagJaxError as error:  # the library's own list of a commit has sizes too
        assert "cannot be downloaded from the Hugging Face hub" in str(error)


@pytest.mark.parametrize(
    "listing", [b"", b"[]", b"{}", b"[" * 10**5, b'{"siblings": 5}', b'{"siblings": [{}]}', b"\xff"]
)
def test_a_list_that_is_none(server, listing):
    server.listing = listing
    with pytest.raises(RagJaxError, match=r"^someone/model is not .*cannot be downloaded"):
        hub.resolve("someone/model")


def test_a_download_without_an_end_stops(server, monkeypatch):
    """The library looks at a file's size when all of it is there."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.endless = True
    with pytest.raises(RagJaxError, match=r"was not downloaded \(more bytes come than it should"):
        hub.resolve("someone/model")
    cache = Path(constants.HF_HUB_CACHE)
    assert sum(path.lstat().st_size for path in cache.rglob("*")) < 1e6


def test_a_download_that_is_silent_stops(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    server.silent = True
    with pytest.raises(RagJaxError, match=r"cannot be downloaded .*timed out"):
        hub.resolve("someone/model")


def test_a_slow_download_stops(monkeypatch):
    """By a clock that the test turns."""
    now = [0.0]
    monkeypatch.setattr(downloads.time, "monotonic", lambda: now[0])
    bar = hub_files._make_bar(10**6)(unit="B", disable=True)
    files = hub_files._make_bar(10**6)(disable=True)
    for now[0] in (1.0, 59.0, 61.0):
        bar.update(30_000)
        files.update(1)
    now[0] = 120.0
    files.update(1)
    with pytest.raises(downloads.Endless, match="less than 1,000 bytes a second come"):
        bar.update(20_000)
