"""Where the reference outputs and the real sample data are, and the options of the test run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


def _root(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default)).resolve()


GOLDENS = _root("LIDARSSL_GOLDENS", "goldens")
DATA = _root("LIDARSSL_DATA", "data")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--goldens",
        type=Path,
        default=GOLDENS,
        help="folder of reference cases (default: LIDARSSL_GOLDENS, else ../shared/goldens)",
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ.get("LIDARSSL_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real sample data; the test is skipped where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real sample data at {DATA} (set LIDARSSL_DATA)")
    return DATA


@pytest.fixture(scope="session")
def goldens_root(request: pytest.FixtureRequest) -> Path:
    """Folder of reference outputs; the test is skipped where it is absent."""
    root: Path = request.config.getoption("--goldens")
    if not root.is_dir():
        pytest.skip(f"no reference outputs at {root} (set LIDARSSL_GOLDENS)")
    return root
