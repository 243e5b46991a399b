"""What is installed, what is missing, what to type."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from lidarssl import __version__

EXTRAS = {
    "images": ("transformers", "scikit-image"),
    "synthetic": ("trimesh", "embreex"),
    "viewer": ("rerun-sdk",),
    "export": ("onnx", "onnxruntime"),
}


@dataclass(frozen=True)
class Finding:
    """One line: ``good`` None is a remark, False needs the ``remedy``."""

    what: str
    value: str
    good: bool | None = None
    remedy: str = ""

    def __str__(self) -> str:
        mark = {True: "ok", False: "!!", None: "  "}[self.good]
        return f"[{mark}] {self.what:<22} {self.value}" + (
            f"\n     {'':<22} -> {self.remedy}" if self.remedy else ""
        )


@dataclass(frozen=True)
class Findings:
    """All lines; healthy when nothing that the core needs is broken."""

    lines: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        return all(line.good is not False for line in self.lines)

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def examine() -> Findings:
    """Look at the installation and the machine."""
    return Findings(
        (
            Finding("lidarssl", __version__),
            Finding("python", sys.version.split()[0], (3, 11) <= sys.version_info[:2] < (3, 14)),
            Finding("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
            *_torch(),
            *(_extra(name, packages) for name, packages in EXTRAS.items()),
            _sparse_convolution(),
            _disk(Path.cwd()),
        )
    )


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers, torch first."""
    names = ("torch", "pytorch-lightning", "numpy", "scipy", "scikit-image", "transformers")
    return {name: found for name in names if (found := _version(name))}


def device_name() -> str:
    """The device that training takes by default."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({torch.get_num_threads()} threads)"


def _torch() -> list[Finding]:
    lines = [
        Finding(
            "torch", torch.__version__, tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
        ),
        Finding("device", device_name()),
    ]
    if not torch.cuda.is_available() and torch.backends.mps.is_available():
        lines.append(Finding("mps", "available: --training.accelerator mps"))
    return lines


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    found = {package: _version(package) for package in packages}
    value = ", ".join(f"{package} {version or 'missing'}" for package, version in found.items())
    whole = all(found.values())
    return Finding(
        f"extra [{name}]", value, True if whole else None,
        "" if whole else f"pip install 'lidarssl[{name}]'",
    )  # fmt: skip


def _sparse_convolution() -> Finding:
    from lidarssl.backbones.minkunet import MinkUNet
    from lidarssl.frame import PointBatch

    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 4
    batch = PointBatch(points, torch.ones(500), torch.zeros(500, dtype=torch.int64), 1)
    try:
        features = MinkUNet()(batch).at_points()
        features.sum().backward()
    except RuntimeError as error:
        return Finding("sparse convolution", str(error), False, "report this with the lines above")
    return Finding("sparse convolution", "forward and backward work", True)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / 1024**3
    remedy = "" if free > 2 else "runs and prepared data need a few GiB"
    return Finding("free disk here", f"{free:.0f} GiB", free > 2, remedy)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
