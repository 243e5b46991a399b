"""Which tiles the Triton kernels use: timed once per kind of layer, and kept in a file.

``triton.autotune`` cannot be used: the tables a kernel reads depend on the rows of its tile.
Timings are noise in the last digits, and other tiles add in another order. So where torch is
told to use deterministic algorithms nothing is timed and the first tile that fits is used, in
every run the same.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lidarssl.errors import require
from lidarssl.replacing import replacing

LARGEST_FILE = 1 << 20
"""Bytes; a larger file is not ours."""
_LEAST = 16  # what a matrix product of every version of Triton and every type accepts


@dataclass(frozen=True)
class Tile:
    """Sizes of the block of results of one program, all powers of two, at least 16.

    Attributes:
        rows, columns: of the results.
        inner: terms added per step.
        warps, stages: of the pipeline on a GPU.
        parts: of the weights, with an order of rows each.
    """

    rows: int
    columns: int
    inner: int
    warps: int = 4
    stages: int = 3
    parts: int = 1


@dataclass(frozen=True)
class Task:
    """What a tile is chosen for.

    Attributes:
        kind: "sums" (rows x columns = output rows x output channels, inner = input channels) or
            "gradient" (input channels x output channels, inner = pairs).
        weights: K.
        c_in, c_out: channels.
        length: output rows or pairs.
        dtype: of the features.
        precision: of float32 products.
    """

    kind: str
    weights: int
    c_in: int
    c_out: int
    length: int
    dtype: torch.dtype
    precision: str

    @property
    def key(self) -> str:
        """Tasks of one key share a tile: lengths are rounded up to a power of two."""
        dtype = str(self.dtype).removeprefix("torch.")
        rounded = _power_of_two(self.length)
        sizes = f"{self.weights} {self.c_in} {self.c_out} {rounded}"
        return f"{self.kind} {sizes} {dtype} {self.precision}"


_TILES = {
    "sums": (
        Tile(64, 64, 32),
        Tile(64, 64, 32, stages=4),
        Tile(32, 64, 32),
        Tile(64, 32, 32),
        Tile(64, 64, 64),
        Tile(64, 128, 32),
        Tile(128, 64, 32),
        Tile(128, 64, 64, warps=8),
        Tile(128, 128, 32, warps=8),
    ),
    "gradient": (
        Tile(64, 64, 32),
        Tile(32, 32, 64),
        Tile(64, 32, 64),
        Tile(64, 64, 64),
        Tile(64, 128, 32),
        Tile(128, 128, 32, warps=8),
    ),
}
_PARTS, _PART, _WIDE = 3, 9, 128
"""Parts, weights of a part at least, and the channels from which they are expected to pay."""
_OTHER = 4  # tiles that are also tried with the other number of parts
_FLOAT64 = (Tile(32, 32, 16, stages=2),)
# Python costs more than arithmetic there: few large steps. Gradients step along rows of pairs.
_INTERPRETED = {"sums": Tile(1024, 512, 512, parts=_PARTS), "gradient": Tile(512, 512, 1024)}


def candidates(task: Task) -> list[Tile]:
    """Tiles worth a try, the default first: none is wider than its layer."""
    tiles = _FLOAT64 if task.dtype == torch.float64 else _TILES[task.kind]
    first, other = (_PARTS, 1) if min(task.c_in, task.c_out) >= _WIDE else (1, _PARTS)
    with_parts = [dataclasses.replace(tile, parts=first) for tile in tiles]
    with_parts += [dataclasses.replace(tile, parts=other) for tile in tiles[:_OTHER]]
    return list(dict.fromkeys(_clamped(tile, task) for tile in with_parts))


def chosen_tile(
    task: Task, device: torch.device, run: Callable[[Tile], object], interpreted: bool
) -> Tile:
    """The tile of a task.

    Args:
        task: what is computed.
        device: where.
        run: does it by a tile.
        interpreted: whether there is nothing to time.
    """
    if interpreted:
        return _clamped(_INTERPRETED[task.kind], task)
    tiles = candidates(task)
    if len(tiles) == 1 or torch.are_deterministic_algorithms_enabled():
        return tiles[0]
    return _kept_tiles(device).tile(task, tiles, run)


def cache_file() -> Path:
    """Where chosen tiles are kept: ``lidarssl/triton_tiles.json`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return folder / "lidarssl" / "triton_tiles.json"


def device_name(device: torch.device) -> str:
    """What timings hold for: a kind of GPU and a version of Triton."""
    version = require("triton", "gpu").__version__
    return f"{torch.cuda.get_device_name(device)}, triton {version}"


class KeptTiles:
    """Chosen tiles of one kind of device, in memory and in a file that all devices share.

    Args:
        device: its name.
        path: the file. One that is damaged or cannot be written costs a warning and the time
            to choose again.
        measure: milliseconds of a call; None = Triton's own.
    """

    def __init__(
        self,
        device: str,
        path: Path,
        measure: Callable[[Callable[[], object]], float] | None = None,
    ) -> None:
        self.device, self.path, self.measure = device, path, measure or _milliseconds
        self.known: dict[str, Any] = _read(path).get(device, {})

    def tile(self, task: Task, tiles: list[Tile], run: Callable[[Tile], object]) -> Tile:
        """The fastest of ``tiles``, timed if that is not known."""
        for tile in tiles:
            if self.known.get(task.key) == list(dataclasses.astuple(tile)):
                return tile
        times = [self.measure(functools.partial(run, tile)) for tile in tiles]
        best = tiles[times.index(min(times))]
        self.known[task.key] = list(dataclasses.astuple(best))
        self._write()
        return best

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = _read(self.path)  # other processes and devices write it too
            self.known = {**kept.get(self.device, {}), **self.known}
            text = json.dumps({**kept, self.device: self.known}, indent=1)
            with replacing(self.path) as partial:
                partial.write_text(text + "\n")
        except OSError as error:
            warnings.warn(f"{self.path}: chosen tiles are not kept ({error})")


@functools.cache
def _kept_tiles(device: torch.device) -> KeptTiles:
    return KeptTiles(device_name(device), cache_file())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The tiles of every device; nothing of a file that is missing or damaged."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE} bytes")
        kept = json.loads(content)
        if not isinstance(kept, dict) or not all(isinstance(v, dict) for v in kept.values()):
            raise ValueError("not a table of tables")
        return kept
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{path}: ignored, tiles are chosen again ({error})")
        return {}


def _milliseconds(call: Callable[[], object]) -> float:
    """Median time on the GPU; infinite where it has not the memory on chip."""
    triton = require("triton", "gpu")
    testing = require("triton.testing", "gpu")
    try:
        return float(testing.do_bench(call, warmup=5, rep=20, return_mode="median"))
    except triton.OutOfResources:
        return float("inf")


def _clamped(tile: Tile, task: Task) -> Tile:
    rows, columns, inner = tile.rows, tile.columns, tile.inner
    wide_in, wide_out = _power_of_two(task.c_in), _power_of_two(task.c_out)
    columns = min(columns, wide_out)
    parts = 1
    if task.kind == "sums":
        inner = min(inner, wide_in)
        parts = min(tile.parts, -(-task.weights // _PART))
    else:
        rows = min(rows, wide_in)
    return dataclasses.replace(tile, rows=rows, columns=columns, inner=inner, parts=parts)


def _power_of_two(size: int) -> int:
    return max(_LEAST, 1 << (size - 1).bit_length() if size > 1 else 1)
