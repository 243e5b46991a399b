"""One reference case on disk: manifest, arrays, weights by the fill rule, tolerances."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDENS = Path(os.environ.get("LIDARSSL_GOLDENS", REPOSITORY.parent / "shared" / "goldens"))
"""Where the reference outputs are."""


@dataclass
class Case:
    """A folder with ``manifest.json`` and ``io.npz``."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> Case:
        return cls(folder, json.loads((folder / "manifest.json").read_text()))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "io.npz", allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    @cached_property
    def fill(self) -> ModuleType:
        """The weight rule: ``fill.py`` beside the cases, one folder up, or with the goldens."""
        for root in (self.folder.parent, self.folder.parent.parent, GOLDENS):
            if (root / "fill.py").is_file():
                spec = importlib.util.spec_from_file_location("goldens_fill", root / "fill.py")
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
        raise FileNotFoundError(f"no fill.py beside {self.folder}")

    @property
    def args(self) -> dict[str, Any]:
        return self.manifest.get("args", {})

    @property
    def reference(self) -> str:
        return self.manifest.get("reference", "")

    @property
    def array_names(self) -> set[str]:
        """What the manifest lists of ``io.npz``; empty where it only describes it in words."""
        listed = self.manifest.get("arrays", {})
        return set(listed) if isinstance(listed, dict) else set()

    def weights(self) -> dict[str, np.ndarray]:
        """Reference state dict by the fill rule, then the manifest's overrides (``fill*x``)."""
        filled = {key: self.fill.value(key, shape) for key, shape, _ in self.manifest["state_dict"]}
        for pattern, rule in self.manifest.get("overrides", {}).items():
            if not str(rule).startswith("fill*"):
                raise ValueError(f"{self.folder.name}: override rule {rule!r} is not known")
            factor = float(str(rule).removeprefix("fill*"))
            for key in filled:
                if fnmatch.fnmatch(key, pattern):
                    filled[key] = (filled[key] * factor).astype(filled[key].dtype)
        return filled


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """|actual - expected| / |expected| in float64."""
    difference = np.linalg.norm(np.asarray(actual, np.float64) - np.asarray(expected, np.float64))
    return float(difference / max(np.linalg.norm(np.asarray(expected, np.float64)), 1e-30))
