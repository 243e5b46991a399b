"""What has nothing to compute imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "pytorch_lightning", "jsonargparse", "transformers", "scipy", "skimage")
PROGRAM = """
import sys
from lidarssl.cli import main
code = 0
try:
    code = main(sys.argv[1:])
except SystemExit as leave:
    code = leave.code
print("HEAVY", *(name for name in {heavy!r} if name in sys.modules))
sys.exit(code)
"""


def python(program: str, *words: object) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "line", ["--help", "pretrain --help", "recipes", "recipes slidr_minkunet_nuscenes"]
)
def test_nothing_heavy_is_imported(line: str) -> None:
    assert python(PROGRAM.format(heavy=HEAVY), *line.split()).splitlines()[-1].split() == ["HEAVY"]


TRAINERS = ("pytorch_lightning", "torchmetrics", "transformers", "tensorboard")


@pytest.mark.parametrize("module", ["recipes.schema", "datasets.inspect", "prepare.superpixels"])
def test_what_does_not_train_imports_no_trainer(module: str) -> None:
    program = f"import sys, lidarssl.{module}; print([n for n in {TRAINERS!r} if n in sys.modules])"
    assert python(program).strip() == "[]"


def test_a_report_is_written_without_torch(probed: Path) -> None:
    assert python(PROGRAM.format(heavy=HEAVY), "report", probed).split()[-1] == "HEAVY"


def test_the_package_itself_is_light() -> None:
    program = f"import sys, lidarssl; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert python(program).strip() == "[]"


def test_help_comes_at_once() -> None:
    """Generous: it takes 0.1 s; an import of torch would take 2 s and more."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        python("from lidarssl.cli import main; main(['--help'])")
        times.append(time.perf_counter() - start)
    assert min(times) < 1
