"""Equality with the reference implementations, for every case of a folder.

``pytest tests/parity --goldens DIR`` runs any folder of cases. Each file in ``kinds/`` holds one
kind: ``recognises(case)`` looks at the manifest (never at the case's name), ``check(case)``
asserts equality. A recognised case that cannot be run fails; others are skipped as not covered.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import parity.kinds
from parity.case import Case

KINDS: tuple[ModuleType, ...] = tuple(
    importlib.import_module(f"parity.kinds.{module.name}")
    for module in pkgutil.iter_modules(parity.kinds.__path__)
)


def case_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(manifest.parent for manifest in root.rglob("manifest.json"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "folder" in metafunc.fixturenames:
        folders = case_folders(metafunc.config.getoption("--goldens"))
        metafunc.parametrize("folder", folders, ids=[folder.name for folder in folders])


def test_equals_reference(folder: Path) -> None:
    case = Case.read(folder)
    kinds = [kind for kind in KINDS if kind.recognises(case)]
    if not kinds:
        pytest.skip(f"not covered: no kind recognises {case.manifest.get('cls') or case.reference}")
    assert len(kinds) == 1, f"several kinds recognise {folder}: {[k.__name__ for k in kinds]}"
    kinds[0].check(case)


def test_goldens_are_there(goldens_root: Path) -> None:
    assert case_folders(goldens_root), f"no case under {goldens_root}"
