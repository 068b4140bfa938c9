"""A real Chromium without a window, and pages in it that may ask for nothing."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from browser.made_run import list_questions, write_run
from rag_jax.commands import report

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")  # its event loop would be in the way of other files' tests
def chromium():
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    why = "Playwright is not installed (the extra browser)"
    playwright = pytest.importorskip("playwright.sync_api", reason=why)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens a file at a place of it; at the end nothing was asked for, and nothing went wrong."""
    opened = []

    def open_page(path, place="", *, width=1280, theme="light"):
        size = {"width": width, "height": 900}
        page = chromium.new_page(viewport=size, color_scheme=theme, reduced_motion="reduce")
        page.set_default_timeout(5000)
        seen = SimpleNamespace(page=page, requests=[], faults=[])
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.faults.append(message.text))
        page.on("pageerror", lambda error: seen.faults.append(str(error)))
        page.on("dialog", lambda dialog: seen.faults.append(dialog.message))
        page.goto(f"{Path(path).as_uri()}#{place}")
        opened.append((path, seen))
        return page

    yield open_page
    for path, seen in opened:
        assert seen.page.evaluate("window.hit") is None  # no text of the data ran as code
        seen.page.close()
        assert seen.faults == []
        assert [url.partition("#")[0] for url in seen.requests] == [Path(path).as_uri()]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A run, its page, and each method's records."""
    folder = tmp_path_factory.mktemp("made") / "first"
    records = write_run(folder)
    return SimpleNamespace(folder=folder, page=folder / "report.html", records=records)


@pytest.fixture(scope="session")
def pair(made, tmp_path_factory):
    """Two runs side by side, of which the second has other questions too."""
    folder = tmp_path_factory.mktemp("pair") / "second"
    asked = list_questions(count=40, first=100)
    records = write_run(folder, seed=1, questions=asked, methods=("routed",))
    out = folder.parent / "both.html"
    report.main([str(made.folder), str(folder), f"--out={out}"])
    return SimpleNamespace(page=out, records=[made.records, records])
