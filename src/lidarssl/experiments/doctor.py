"""What is installed, what is missing, what to type.

For somebody whose installation fails: nothing here needs more than the standard library until a
check asks for it, and a check that fails is a finding, not the end.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lidarssl import __version__
from lidarssl.wording import counted

PYTHON = ((3, 11), (3, 14))
TORCH = (2, 10)
CORE = {
    "numpy": "numpy",
    "scipy": "scipy",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "pyyaml": "yaml",
    "jsonargparse": "jsonargparse",
    "pytorch-lightning": "pytorch_lightning",
    "torchmetrics": "torchmetrics",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
}
"""Packages that lidarssl cannot run without, with the module that each brings."""

EXTRAS = {
    "images": {"transformers": "transformers", "scikit-image": "skimage"},
    "synthetic": {"trimesh": "trimesh", "embreex": "embreex"},
    "viewer": {"rerun-sdk": "rerun"},
    "hub": {"huggingface_hub": "huggingface_hub"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
}
PURPOSES = {
    "images": "superpixels, published image encoders",
    "synthetic": "the demo, `data synthesize`",
    "viewer": "the live 3D viewer",
    "hub": "`lidarssl push` and `pull`",
    "onnx": "`lidarssl export onnx`",
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
        broken = sum(line.good is False for line in self.lines)
        end = "all that lidarssl needs works" if not broken else f"{broken} to mend: lines with !!"
        return "\n".join([*map(str, self.lines), end])


def examine(folder: Path | None = None) -> Findings:
    """Look at the installation and the machine.

    Args:
        folder: where runs would go; default: here.
    """
    folder = folder or Path.cwd()
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
        _identity,
        _torch,
        _core,
        _extras,
        _sparse_convolution,
        lambda: _disk(folder),
        _shared_memory,
    )
    return Findings(tuple(line for check in checks for line in _attempt(check)))


def versions() -> dict[str, str]:
    """Versions of the packages that decide numbers, torch first."""
    names = ("torch", "pytorch-lightning", "numpy", "scipy", "scikit-image", "transformers")
    return {name: found for name in names if (found := version_of(name))}


def device_name() -> str:
    """The device that training takes by default."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({counted(torch.get_num_threads(), 'thread')})"


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _attempt(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # a broken package may raise anything; the other checks go on
        name = getattr(check, "__name__", "check").strip("_").replace("_", " ")
        return [Finding(name, _first_line(error), False, "report this with the lines above")]


def _identity() -> Iterable[Finding]:
    yield Finding("lidarssl", f"{__version__} in {Path(__file__).parents[1]}")
    good = PYTHON[0] <= sys.version_info[:2] < PYTHON[1]
    wanted = f"use Python {PYTHON[0][0]}.{PYTHON[0][1]} to {PYTHON[1][0]}.{PYTHON[1][1] - 1}"
    yield Finding(
        "python", f"{sys.version.split()[0]}, {sys.executable}", good, "" if good else wanted
    )
    cores = counted(os.cpu_count() or 1, "core")
    yield Finding("machine", f"{platform.system()} {platform.machine()}, {cores}")


def crowding(workers: int, threads: int, cores: int) -> str | None:
    """What to say when loader processes and threads outnumber the cores of a CPU run.

    Waiting threads spin: one loader process beside two threads on two cores made a step four
    times slower.
    """
    if workers == 0 or threads == 1 or workers + threads <= cores:
        return None
    processes = counted(workers, "loader process", "loader processes")
    return (
        f"note: {processes} and {threads} threads share {counted(cores, 'core')} and slow each "
        f"other down; try --training.workers 0, or OMP_NUM_THREADS={max(1, cores - workers)}"
    )


def _torch() -> Iterable[Finding]:
    need = f"pip install --upgrade 'torch>={TORCH[0]}.{TORCH[1]}'"
    broken = import_problem("torch")
    if broken:
        yield Finding("torch", broken, False, need)
        return
    import torch

    numbers = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    new = numbers >= TORCH
    yield Finding("torch", torch.__version__, new, "" if new else need)
    yield Finding("device", device_name())
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        yield Finding(
            "cuda", "this machine has an NVIDIA GPU that torch does not see", None,
            f"torch is built for {torch.version.cuda or 'the CPU'}: install a build for your "
            "driver (see pytorch.org), or update the driver",
        )  # fmt: skip
    if torch.backends.mps.is_available():
        yield Finding("mps", "available: --training.accelerator mps")


def _core() -> Iterable[Finding]:
    good = []
    for package, module in CORE.items():
        broken = import_problem(module)
        if broken:
            yield Finding(package, broken, False, f"pip install --upgrade {package}")
        else:
            good.append(f"{package} {version_of(package)}")
    yield Finding("core packages", f"{len(good)} of {len(CORE)} work", len(good) == len(CORE))


def _extras() -> Iterable[Finding]:
    for name, packages in EXTRAS.items():
        problems = {package: import_problem(module) for package, module in packages.items()}
        value = ", ".join(
            f"{package} {problem or version_of(package)}" for package, problem in problems.items()
        )
        whole = not any(problems.values())
        yield Finding(
            f"extra [{name}]", f"{value} ({PURPOSES[name]})", True if whole else None,
            "" if whole else f"pip install 'lidarssl[{name}]'",
        )  # fmt: skip


def import_problem(module: str) -> str:
    """Why a module cannot be imported; empty when it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "missing" if error.name == module else f"broken: {_first_line(error)}"
    except Exception as error:  # importing a broken package may raise anything
        return f"broken: {_first_line(error)}"
    return ""


def _sparse_convolution() -> Iterable[Finding]:
    import torch

    from lidarssl.backbones.minkunet import MinkUNet
    from lidarssl.frame import PointBatch

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 4
    batch = PointBatch(points, torch.ones(500), torch.zeros(500, dtype=torch.int64), 1)
    for device in devices:
        features = MinkUNet().to(device)(batch.to(torch.device(device))).at_points()
        features.sum().backward()
    yield Finding("sparse convolution", f"forward and backward work on {', '.join(devices)}", True)


def _disk(folder: Path) -> Iterable[Finding]:
    writable = os.access(folder, os.W_OK)
    yield Finding(
        "this folder", f"{folder} can{'' if writable else 'not'} be written", writable,
        "" if writable else "work in another folder, or give --run and --output elsewhere",
    )  # fmt: skip
    free = shutil.disk_usage(folder).free / 1024**3
    remedy = "" if free > 2 else "runs and prepared data need a few GiB"
    yield Finding("free disk here", f"{free:.0f} GiB", free > 2, remedy)


def _shared_memory() -> Iterable[Finding]:
    """Loader processes hand batches over through /dev/shm, which containers make tiny."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    size = shutil.disk_usage(place).total / 1024**3
    remedy = "" if size >= 1 else "docker run --shm-size=8g, or --training.workers 0"
    yield Finding("shared memory", f"{size:.1f} GiB for loader processes", None, remedy)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
