"""Raw data of the report's pictures: saved by a run as .npz, drawn when the report is built."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidarssl.errors import DataError
from lidarssl.report import pictures
from lidarssl.report.calibration import CalibrationOverlay, OverlapPrediction
from lidarssl.report.class_prototypes import ClassPrototypes
from lidarssl.report.distillation import DistilledFeatures
from lidarssl.report.figure_data import FigureData, Key, Panel, class_key, to_array
from lidarssl.report.image_segmentation import ConditionPrediction, ImagePrediction
from lidarssl.report.occupancy import OccupancySlices
from lidarssl.report.pictures import Array, View
from lidarssl.report.retrieval import RetrievedScans
from lidarssl.report.scores import percent

MAX_BYTES = 512 * 1024**2
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class LidarOnImage(FigureData):
    """Points over an image, coloured by range, up to that of nine points in ten.

    Attributes:
        image: (H, W, 3) or (3, H, W).
        row, col: (M,) pixels.
        range: (M,) m.
    """

    kind = "lidar_on_image"
    image: Array
    row: Array
    col: Array
    range: Array

    def panels(self) -> tuple[Panel, ...]:
        shown = np.minimum(to_array(self.range), self._far())
        return (Panel("", pictures.lidar_on_image(self.image, self.row, self.col, shown)),)

    def key(self) -> Key:
        return Key(ramp=("near", f"{self._far():.0f} m or more", pictures.RANGE_COLORS))

    def _far(self) -> float:
        """Few points are far away: to the last of them, most would share one colour."""
        distance = to_array(self.range)
        return float(np.percentile(distance, 90)) if distance.size else 0.0


@dataclass(frozen=True)
class SuperpixelOverlay(FigureData):
    """An image and the borders of its superpixels, (H, W) ids."""

    kind = "superpixels"
    image: Array
    superpixels: Array

    def panels(self) -> tuple[Panel, ...]:
        return (Panel("", pictures.superpixel_overlay(self.image, self.superpixels)),)


@dataclass(frozen=True)
class CameraLabels(FigureData):
    """An image tinted by the class of each pixel.

    Attributes:
        labels: (H, W) class ids, 0 = ignored.
        colors: (C, 3) RGB 0..255, ``names`` (C,), both with the ignored class first.
    """

    kind = "camera_labels"
    image: Array
    labels: Array
    colors: Array
    names: tuple[str, ...]

    def panels(self) -> tuple[Panel, ...]:
        return (Panel("", pictures.camera_labels(self.image, self.labels, self.colors)),)

    def key(self) -> Key:
        return class_key(self.names, self.colors, to_array(self.labels))


@dataclass(frozen=True)
class BevPrediction(FigureData):
    """A scan three times: truth, prediction and mistakes.

    Attributes:
        points: (N, 3) m.
        prediction, truth: (N,) class ids, 0 = ignored.
        colors: (C, 3) RGB 0..255, ``names`` (C,), both with the ignored class first.
    """

    kind = "bev_prediction"
    points: Array
    prediction: Array
    truth: Array
    colors: Array
    names: tuple[str, ...]

    def panels(self) -> tuple[Panel, ...]:
        truth, predicted = to_array(self.truth), to_array(self.prediction)
        # A prediction where there is no truth cannot be judged; it would only distract.
        shown = np.where(truth == 0, 0, predicted)
        labelled = truth != 0
        wrong = float((predicted != truth)[labelled].mean()) if labelled.any() else 0.0
        return (
            Panel("truth", pictures.bev_classes(self.points, truth, self.colors)),
            Panel("prediction", pictures.bev_classes(self.points, shown, self.colors)),
            Panel(
                f"mistakes in red: {percent(wrong)} of the labelled points",
                pictures.bev_error(self.points, predicted, truth),
            ),
        )

    def key(self) -> Key:
        seen = np.concatenate([to_array(self.truth), to_array(self.prediction)])
        return class_key(self.names, self.colors, seen)


@dataclass(frozen=True)
class FeaturePca(FigureData):
    """A scan coloured by the three main directions of its features, points (N, 3) and (N, C)."""

    kind = "feature_pca"
    points: Array
    features: Array

    def panels(self) -> tuple[Panel, ...]:
        return (Panel("", pictures.feature_pca_bev(self.points, self.features)),)


@dataclass(frozen=True)
class Similarity(FigureData):
    """Cosine similarity of every point to one; also on an image, when pixels are given.

    Attributes:
        points: (N, 3) m.
        features: (N, C).
        query: index of the chosen point.
        image: (H, W, 3) or (3, H, W), or None.
        point, row, col: (M,) points that fall into the image, and where; or None.
    """

    kind = "similarity"
    points: Array
    features: Array
    query: int
    image: Array | None = None
    point: Array | None = None
    row: Array | None = None
    col: Array | None = None

    def panels(self) -> tuple[Panel, ...]:
        query = int(self.query)
        scan = Panel("", pictures.similarity_bev(self.points, self.features, query))
        if self.image is None or self.point is None or self.row is None or self.col is None:
            return (scan,)
        point, row, col = (to_array(one) for one in (self.point, self.row, self.col))
        similarity = pictures.cosine_to(self.features, query)[point]
        seen = np.flatnonzero(point == query)
        ring = (float(row[seen[0]]), float(col[seen[0]])) if len(seen) else None
        on_image = pictures.similarity_on_image(self.image, row, col, similarity, ring)
        return (Panel("from above", scan.png), Panel("in the camera", on_image))

    def key(self) -> Key:
        return Key(ramp=("unlike", "like the ringed point", pictures.SIMILARITY_COLORS))


@dataclass(frozen=True)
class BevScalar(FigureData):
    """A scan coloured by any scalar, e.g. intensity or height, from its 1st to 99th percentile.

    A few points far below the ground or high above would leave one colour for all the others.

    Attributes:
        points: (N, 3) m.
        value: (N,).
        name: what the value is, with its unit.
        extent: half the side of the square, m; None fits the points.
    """

    kind = "bev"
    points: Array
    value: Array
    name: str
    extent: float | None = None

    def panels(self) -> tuple[Panel, ...]:
        shown = np.clip(to_array(self.value).astype(np.float64), *self._ends())
        return (Panel("", pictures.bev(self.points, shown, View(self.extent))),)

    def key(self) -> Key:
        low, high = (f"{end:.3g}".replace("-", "\N{MINUS SIGN}") for end in self._ends())
        return Key(ramp=(f"{self.name}: {low} or less", f"{high} or more", pictures.RANGE_COLORS))

    def _ends(self) -> tuple[float, float]:
        values = to_array(self.value).astype(np.float64)
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
        return float(low), float(high)


KINDS: tuple[type[FigureData], ...] = (
    LidarOnImage,
    SuperpixelOverlay,
    CameraLabels,
    BevPrediction,
    FeaturePca,
    Similarity,
    BevScalar,
    OccupancySlices,
    DistilledFeatures,
    ClassPrototypes,
    CalibrationOverlay,
    OverlapPrediction,
    ImagePrediction,
    ConditionPrediction,
    RetrievedScans,
)


def load(path: Path) -> FigureData:
    """Read a figure that ``FigureData.save`` wrote.

    Raises:
        DataError: not such a file, an unknown kind, a missing or an unknown array.
    """
    arrays = _read_arrays(path)
    kind = str(arrays.pop("kind", ""))
    cls = next((one for one in KINDS if one.kind == kind), None)
    if cls is None:
        known = ", ".join(one.kind for one in KINDS)
        raise DataError(f"unknown figure {kind!r}; known are {known}", path=path, field="kind")
    allowed = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for name in arrays:
        if name not in allowed:
            raise DataError(f"unknown array for a {kind}", path=path, field=name)
    for name, field in allowed.items():
        if name not in arrays and "None" not in str(field.type):
            raise DataError(f"missing array for a {kind}", path=path, field=name)
    return cls(**{name: _from_array(value) for name, value in arrays.items()})


@dataclass(frozen=True)
class Drawing:
    """A figure ready to show."""

    panels: tuple[Panel, ...]
    key: Key
    stacked: bool = False
    wide: bool = False
    above: bool = False


def draw(path: Path) -> Drawing:
    """Read a figure and draw it.

    Raises:
        DataError: as ``load``, or its arrays do not fit together.
    """
    figure = load(path)
    try:
        return Drawing(figure.panels(), figure.key(), figure.stacked, figure.wide, figure.above)
    except DataError as error:
        raise DataError(error.problem, path=path, field=error.field, remedy=error.remedy) from error
    except (ValueError, IndexError, TypeError, OverflowError, AttributeError) as error:
        raise DataError(
            f"the arrays of this {figure.kind} do not fit together ({error})",
            path=path,
            remedy="save the figure again",
        ) from error


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise DataError(f"unpacks to more than {MAX_BYTES >> 20} MiB", path=path)
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except FileNotFoundError as error:
        raise DataError("file not found", path=path) from error
    except _UNREADABLE as error:
        raise DataError(
            f"not a readable .npz file ({error})", path=path, remedy="save the figure again"
        ) from error


def _from_array(value: NDArray[Any]) -> Any:
    if value.dtype.kind == "U":
        return str(value) if value.ndim == 0 else tuple(str(item) for item in value)
    return value.item() if value.ndim == 0 else value
