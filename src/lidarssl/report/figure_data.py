"""The contract of a figure: arrays that a run saves, drawn when the report is built."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lidarssl.report.palette import visible


@dataclass(frozen=True)
class Panel:
    """One drawn picture; ``title`` is empty for the only panel of a figure."""

    title: str
    png: bytes


@dataclass(frozen=True)
class Key:
    """How to read the colours of a figure.

    Attributes:
        classes: (name, RGB 0..255) pairs.
        ramp: (low text, high text, matplotlib colour map), or None.
    """

    classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    ramp: tuple[str, str, str] | None = None


class FigureData:
    """Base of the figures: arrays in, panels out.

    Subclasses are dataclasses of arrays (tensors are accepted), strings, tuples of strings,
    integers and None; ``kind`` names them in the file. ``stacked`` puts several panels one below
    the other, for images that are compared; ``wide`` gives each the whole width of the page;
    ``above`` tells that a scan is seen from above.
    """

    kind: ClassVar[str]
    stacked: ClassVar[bool] = False
    wide: ClassVar[bool] = False
    above: ClassVar[bool] = True

    def panels(self) -> tuple[Panel, ...]:
        """Draw the figure."""
        raise AssertionError("abstract")

    def key(self) -> Key:
        """How to read its colours."""
        return Key()

    def save(self, path: Path) -> None:
        """Write the arrays to ``path`` (.npz, compressed, no pickle)."""
        arrays: dict[str, Any] = {"kind": np.array(self.kind)}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                arrays[field.name] = to_array(value)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)


def to_array(value: Any) -> NDArray[Any]:
    # By attribute: a report is written without importing torch.
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def class_key(names: tuple[str, ...], colors: NDArray[Any], seen: NDArray[Any]) -> Key:
    """The classes that occur, without the ignored one."""
    palette = np.round(255 * visible(to_array(colors))).astype(int).tolist()
    return Key(
        classes=tuple(
            (names[index], (palette[index][0], palette[index][1], palette[index][2]))
            for index in np.unique(seen).tolist()
            if 0 < index < min(len(names), len(palette))
        )
    )
