"""The report in a real browser: it renders, nothing complains, and it fits a phone."""

import html
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from evaluation.run_folder import build_run, recipe_of

from distill.evaluation.report import write_report

pytestmark = pytest.mark.services

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--no-first-run", "--enable-logging=stderr", "--v=0",
]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page: the DOM once loaded, its console's lines, every path it asked for."""

    dom: str
    console: list[str]
    asked: list[str]


def open_page(page: Path, scratch: Path) -> Seen:
    """Open `page` in headless Chromium, from a server of its own on loopback."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert browser, "no Chromium: run tests/services/install"
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=page.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{page.name}"
        home = scratch / "home"
        home.mkdir()
        done = subprocess.run(
            [browser, *FLAGS, f"--user-data-dir={home}", "--window-size=1280,900", "--dump-dom", address],
            capture_output=True, text=True, timeout=120, check=True,
            env=os.environ | {"HOME": str(home)},
        )  # fmt: skip
        server.shutdown()
    return Seen(done.stdout, re.findall(r"^.*CONSOLE.*$", done.stderr, flags=re.M), asked)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "results" / "demo"
    recipe = recipe_of(["sft", "polish"])
    build_run(folder, recipe, wrong=lambda word: f"{word * 9}<script>console.error('escaped?')</script>")
    write_report(folder, recipe, folder / "report.html")
    return folder / "report.html"


def test_the_report_renders_asks_for_nothing_else_and_nothing_complains(report: Path, tmp_path: Path) -> None:
    seen = open_page(report, tmp_path)
    assert seen.console == []
    assert seen.asked == ["/report.html"]
    for heading in ("Scores", "Answers", "Data", "Completions", "Training", "Compatibility", "Provenance"):
        assert f"<h2>{heading}</h2>" in seen.dom
    assert seen.dom.count('<svg class="plot"') == 5
    assert "Gap recovered" in seen.dom


def test_a_complaint_would_be_heard(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!DOCTYPE html><img src='gone.png'><script>console.error('ouch')</script>")
    seen = open_page(page, tmp_path)
    assert any("ouch" in line for line in seen.console)
    assert "/gone.png" in seen.asked


def test_the_report_fits_a_phone(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "phone.html"
    page.write_text(
        f"""<!DOCTYPE html><meta charset="utf-8"><iframe width="400" height="800" style="border: 0"
        srcdoc="{html.escape(report.read_text(encoding="utf-8"))}"></iframe>
        <script>addEventListener("load", () => {{
          const inner = document.querySelector("iframe").contentDocument.documentElement;
          document.body.dataset.width = inner.scrollWidth;
        }})</script>""",
        encoding="utf-8",
    )
    seen = open_page(page, tmp_path)
    assert seen.console == []
    assert 'data-width="400"' in seen.dom
