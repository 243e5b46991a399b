"""What superpixels are made with, and the command that makes them.

The file ``superpixels.json`` beside the files of an offline pass holds it; folders made elsewhere
(SLidR's) may lack it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lidarssl.datasets.files import read_json
from lidarssl.errors import ConfigError, DataError

SETTINGS_FILE = "superpixels.json"


@dataclass(frozen=True)
class SlicSettings:
    """Parameters of SLIC (Achanta et al., 2012); the defaults are SLidR's.

    Attributes:
        segments: number of segments asked for; about a quarter fewer come back.
        compactness: weight of distance in the image against distance in colour.
        sigma: px of the full image, width of the Gaussian smoothing beforehand.
        scale: 0.25 segments the image at a quarter of its height and width and enlarges the
            result by nearest neighbour: ~16 times faster.
    """

    segments: int = 150
    compactness: float = 6.0
    sigma: float = 3.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.segments >= 1 and self.compactness > 0 and self.sigma >= 0):
            raise ConfigError(
                f"SLIC cannot run with {self.segments} segments, compactness {self.compactness} "
                f"and sigma {self.sigma}",
                field="superpixels",
                remedy="give 1 segment or more, compactness above 0 and sigma of 0 or more",
            )
        if not 0 < self.scale <= 1:
            raise ConfigError(
                f"scale {self.scale} is not in (0, 1]", field="superpixels.scale", remedy="try 0.25"
            )

    def command(self, folder: str | Path = "DIR") -> str:
        """What makes such superpixels, up to the options of the dataset."""
        options = " ".join(f"--{name} {value}" for name, value in asdict(self).items())
        return f"lidarssl prepare superpixels DATASET --output {folder} {options}"


def read_settings(folder: Path) -> SlicSettings | None:
    """What the files of a folder were made with; None where it does not tell.

    Raises:
        DataError: the file that tells is damaged.
    """
    path = folder / SETTINGS_FILE
    return parse_settings(read_json(path, limit=65536), path) if path.is_file() else None


def parse_settings(value: Any, path: str | Path) -> SlicSettings:
    """Settings from a table by name that nobody has vouched for.

    Raises:
        DataError: it is none.
    """
    names = [field.name for field in fields(SlicSettings)]
    with suppress(TypeError, ConfigError):
        if set(value) == set(names):
            return SlicSettings(**value)
    raise DataError(
        "does not hold the settings of superpixels",
        path=path,
        field=", ".join(names),
        remedy="make the superpixels again with `lidarssl prepare superpixels --overwrite`",
    )


def check_settings(
    stored: SlicSettings | None, asked: SlicSettings, where: str | Path, then: str = ""
) -> None:
    """Compare what superpixels were made with, where that is known, with what a recipe asks for.

    Args:
        stored: None = not known.
        asked: of the recipe.
        where: they are kept.
        then: what to do with others after they are made.

    Raises:
        ConfigError: they differ.
    """
    if stored is None or stored == asked:
        return
    theirs, ours = asdict(stored), asdict(asked)
    differs = [name for name in ours if theirs[name] != ours[name]]
    told = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in differs)
    options = " ".join(f"--method.superpixels.{name} {theirs[name]}" for name in differs)
    raise ConfigError(
        f"these superpixels were made with other settings: {told}",
        path=where,
        field=", ".join(f"superpixels.{name}" for name in differs),
        remedy=f"train with `{options}`, or make others elsewhere with `{asked.command()}`{then}",
    )
