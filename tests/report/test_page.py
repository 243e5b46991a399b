"""The page in a real browser: it must lay out, and ask for nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidarssl.report.build import build_report
from lidarssl.report.page import duration

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (42.4, "42 s"), (240, "4 min"), (250.4, "4 min 10 s"), (11100, "3 h 5 min")],
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser on PATH ({', '.join(BROWSERS)})")
    return found


@pytest.fixture(scope="module")
def page(complete_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("browser") / "demo"
    shutil.copytree(complete_run, run)
    return build_report(run)


def run_browser(browser: str, page: Path, tmp_path: Path, *arguments: str) -> str:
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        *arguments,
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_browser_reads_the_whole_page(browser: str, page: Path, tmp_path: Path) -> None:
    dom = run_browser(browser, page, tmp_path, "--dump-dom")
    assert "Pretraining helped." in dom
    assert dom.count("<img") == 11
    assert dom.count("<svg") == page.read_text(encoding="utf-8").count("<svg")
    assert dom.rstrip().endswith("</html>")


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_fills_its_width_with_ink(
    browser: str, page: Path, tmp_path: Path, width: int
) -> None:
    shot = tmp_path / "shot.png"
    run_browser(browser, page, tmp_path, f"--screenshot={shot}", f"--window-size={width},1600")
    pixels = np.asarray(Image.open(shot).convert("RGB"), float)
    assert pixels.shape[:2] == (1600, width)
    blue = (np.abs(pixels - (23, 105, 170)).max(-1) < 12).sum(1).max()
    assert blue > 0.3 * width, "the bar of the first method is drawn"
    margin = pixels[:, -10:].reshape(-1, 3)
    assert np.ptp(margin, axis=0).max() < 3, "nothing sticks out on the right"
