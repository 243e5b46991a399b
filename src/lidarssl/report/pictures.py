"""Pictures of points, pixels and features, each as PNG bytes.

Every function takes tensors or arrays and draws on matplotlib's Agg canvas directly: no global
figure, no display. Bird's-eye views have x (forward) up and y (left) to the left.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lidarssl.errors import DataError
from lidarssl.report.palette import class_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

ArrayLike: TypeAlias = "Tensor | NDArray[Any] | Sequence[Any]"
Ring: TypeAlias = tuple[float, float] | None
Array = NDArray[Any]

BACKGROUND = "#10151c"
_RING, _LABEL = "#5d6b7c", "#a9b5c2"
_DPI = 100
RANGE_COLORS = "turbo"
SIMILARITY_COLORS = "coolwarm"
DARKEST = {RANGE_COLORS: 0.1}
"""Where a colour map starts, so that low values stay visible on the dark ground."""
CORRECT, WRONG, IGNORED = "#54626f", "#ff5a4f", "#262e38"


@dataclass(frozen=True)
class View:
    """How a bird's-eye view is framed.

    Attributes:
        extent: half the side of the square, m; None fits the points (at most 50 m).
        pixels: side of the picture.
        priority: (N,) points of higher value are drawn over others; None = height, as seen from
            above.
        labels_ahead: write the distances of the rings ahead of the sensor instead of behind it.
    """

    extent: float | None = None
    pixels: int = 720
    priority: Array | None = None
    labels_ahead: bool = False


def lidar_on_image(
    image: ArrayLike, row: ArrayLike, col: ArrayLike, value: ArrayLike,
    dim: float = 0.8, ring: Ring = None,
) -> bytes:  # fmt: skip
    """Points over the image they fall into, coloured by a scalar such as range.

    Args:
        image: (H, W, 3) or (3, H, W) RGB, uint8 or float in [0, 1].
        row, col: (M,) pixel, integer at pixel centres.
        value: (M,) scalar, blue low to red high; or (M, 3) RGB in [0, 1].
        dim: brightness of the image, 0..1.
        ring: (row, col) of a pixel to mark.
    """
    picture = _rgb(image) * dim
    rows, cols, values = _array(row), _array(col), _array(value)
    _check_length("col", cols, len(rows))
    _check_length("value", values, len(rows))
    figure, axes, scale = _image_axes(picture)
    # Never so small that a reader cannot see the point: large images are shown reduced.
    points = max(1.5 * scale, 4.0, picture.shape[1] / 320) * 72 / _DPI
    colors = values if values.ndim == 2 else _colormap(values, RANGE_COLORS)
    axes.scatter(cols, rows, c=np.clip(colors, 0, 1), s=points**2, linewidths=0)
    if ring is not None:
        _mark(axes, ring[1], ring[0])
    return _png(figure)


def superpixel_overlay(image: ArrayLike, superpixels: ArrayLike) -> bytes:
    """The image with the borders of its superpixels; image as above, superpixels (H, W) ids."""
    picture = _rgb(image)
    segments = _array(superpixels)
    _check_size("superpixels", segments, picture)
    scale = _image_scale(picture)
    large = _enlarge(picture, scale)
    ids = np.kron(segments, np.ones((scale, scale), dtype=segments.dtype))
    border = np.zeros(ids.shape, dtype=bool)
    border[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    border[1:] |= ids[1:] != ids[:-1]
    border[:, :-1] |= border[:, 1:]
    border[:-1] |= border[1:]
    large[border] = 0.25 * large[border] + 0.75 * np.array([1.0, 0.86, 0.2])
    return _image_png(large)


def camera_labels(
    image: ArrayLike, labels: ArrayLike, colors: ArrayLike, strength: float = 0.6
) -> bytes:
    """The image tinted by the class of each pixel.

    Args:
        image: as above.
        labels: (H, W) class ids; 0 = ignored, left untinted.
        colors: (C, 3) RGB 0..255 of each class.
    """
    picture = _rgb(image)
    ids = _array(labels)
    _check_size("labels", ids, picture)
    tint = class_colors(ids, _array(colors))
    weight = np.where(ids > 0, strength, 0.0)[..., None]
    return _image_png(_enlarge(picture * (1 - weight) + tint * weight, _image_scale(picture)))


def bev(points: ArrayLike, color: ArrayLike, view: View | None = None) -> bytes:
    """Bird's-eye view of a scan.

    Args:
        points: (N, 3) m, lidar frame.
        color: (N,) scalar, blue low to red high, or (N, 3) RGB in [0, 1].
    """
    values = _array(color)
    figure, _ = _bev_axes(points, values, RANGE_COLORS, view or View())
    return _png(figure)


def bev_classes(
    points: ArrayLike, labels: ArrayLike, colors: ArrayLike, view: View | None = None
) -> bytes:
    """Bird's-eye view coloured by class; ignored points (class 0) are dark.

    Args:
        points: (N, 3) m.
        labels: (N,) class ids.
        colors: (C, 3) RGB 0..255.
    """
    ids = _array(labels)
    color = class_colors(ids, _array(colors))
    color[ids == 0] = _hex(IGNORED)
    return bev(points, color, view)


def bev_error(
    points: ArrayLike, prediction: ArrayLike, truth: ArrayLike, view: View | None = None
) -> bytes:
    """Bird's-eye view of the mistakes: wrong points red, right ones grey, ignored ones dark."""
    predicted, true = _array(prediction), _array(truth)
    _check_length("truth", true, len(predicted))
    color = np.where((predicted == true)[:, None], _hex(CORRECT), _hex(WRONG))
    color[true == 0] = _hex(IGNORED)
    wrong = (predicted != true) & (true != 0)
    return bev(points, color, replace(view or View(), priority=wrong))


def bev_cells(
    colors: ArrayLike, extent: float, points: ArrayLike, pixels: int = View.pixels
) -> bytes:
    """Bird's-eye view of square cells, points over them as fine dots.

    Args:
        colors: (X, Y, 3) RGB in [0, 1] of the cells from -extent to extent; NaN = nothing there.
        extent: half the side of the square, m.
        points: (N, 2 or 3) m.
    """
    cells = _array(colors)
    if cells.ndim != 3 or cells.shape[2] != 3 or 0 in cells.shape:
        raise DataError(f"has shape {cells.shape}, not (X, Y, 3)", field="colors")
    figure, axes = _figure(pixels, pixels)
    # Columns run from left to right, rows from top to bottom: against y, against x.
    shown = np.where(np.isnan(cells), _hex(BACKGROUND), cells)[::-1, ::-1]
    sides = (-extent, extent, -extent, extent)
    axes.imshow(shown, extent=sides, interpolation="nearest", aspect="auto")
    _rings(axes, extent)
    xyz = _array(points)
    axes.scatter(-xyz[:, 1], xyz[:, 0], color="white", s=1.2, linewidths=0, zorder=3)
    axes.set_xlim(-extent, extent)
    axes.set_ylim(-extent, extent)
    axes.scatter([0], [0], marker="^", s=60, color="white", linewidths=0, zorder=4)
    return _png(figure)


def feature_pca_bev(points: ArrayLike, features: ArrayLike, view: View | None = None) -> bytes:
    """Bird's-eye view coloured by the three main directions of the features, (N, C)."""
    return bev(points, pca_rgb(features), view)


def similarity_bev(
    points: ArrayLike, features: ArrayLike, query: int, view: View | None = None
) -> bytes:
    """Cosine similarity of every point to one, blue low to red high, the query in a white ring.

    Points without features (NaN) are dark.

    Source: the correlation maps of ScaLR, scaled per scan.

    Args:
        points: (N, 3) m.
        features: (N, C).
        query: index of the chosen point.
    """
    similarity = cosine_to(features, query)
    x, y = _array(points)[query, :2]
    # The ring would hide a label behind the sensor.
    view = replace(view or View(), priority=np.nan_to_num(similarity, nan=-2), labels_ahead=x < 0)
    figure, axes = _bev_axes(points, similarity, SIMILARITY_COLORS, view)
    _mark(axes, -y, x)
    return _png(figure)


def similarity_on_image(
    image: ArrayLike, row: ArrayLike, col: ArrayLike, similarity: ArrayLike, ring: Ring = None
) -> bytes:
    """The same similarity where the points fall into an image, over a dimmed image."""
    values = _array(similarity)
    grey = _rgb(image).mean(2, keepdims=True).repeat(3, 2)
    colors = _colormap(values, SIMILARITY_COLORS)[:, :3]
    return lidar_on_image(grey, row, col, colors, dim=0.45, ring=ring)


def cosine_to(features: ArrayLike, query: int) -> Array:
    """(N,) cosine of the features (N, C) with those of point ``query``.

    0 for a zero feature, NaN for one with NaN.

    Raises:
        DataError: there is no such point.
    """
    rows = _array(features).astype(np.float64)
    if not 0 <= query < len(rows):
        raise DataError(f"point {query} of {len(rows)} does not exist", field="query")
    norms = np.linalg.norm(rows, axis=1)
    dots = rows @ rows[query]
    return dots / np.maximum(norms * norms[query], 1e-12)


def pca_rgb(features: ArrayLike) -> Array:
    """(N, 3) in [0, 1]: the three main components of the features (N, C).

    Each is scaled to its 2nd..98th percentile; the sign of a component is fixed by its largest
    loading, so that equal features give equal colours. Rows with NaN are dark.
    """
    every = _array(features).astype(np.float64)
    known = np.isfinite(every).all(1)
    rows, colors = every[known], np.tile(_hex(IGNORED), (len(every), 1))
    if len(rows) == 0:
        return colors
    centred = rows - rows.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    main = vectors[:, ::-1][:, :3]
    main = main * np.sign(main[np.abs(main).argmax(0), np.arange(main.shape[1])])
    rgb = np.full((len(rows), 3), 0.5)
    rgb[:, : main.shape[1]] = np.stack([_spread(column) for column in (centred @ main).T], 1)
    # Points must stay visible on the dark ground.
    colors[known] = 0.15 + 0.85 * rgb
    return colors


def _spread(values: Array) -> Array:
    low, high = np.percentile(values, [2, 98])
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _bev_axes(points: ArrayLike, values: Array, colormap: str, view: View) -> tuple[Figure, Axes]:
    xyz = _array(points).astype(np.float64).reshape(-1, 3)
    _check_length("color", values, len(xyz))
    priority = xyz[:, 2] if view.priority is None else view.priority
    _check_length("priority", priority, len(xyz))
    finite = np.isfinite(xyz).all(1)
    xyz, values = xyz[finite], values[finite]
    reach = float(np.percentile(np.abs(xyz[:, :2]).max(1), 97)) if len(xyz) else 10.0
    extent = view.extent or min(max(reach, 5.0), 50.0)
    figure, axes = _figure(view.pixels, view.pixels)
    axes.set_xlim(-extent, extent)
    axes.set_ylim(-extent, extent)
    _rings(axes, extent, view.labels_ahead)
    color = values if values.ndim == 2 else _colormap(values, colormap)
    order = np.argsort(priority[finite], kind="stable")
    inside = int((np.abs(xyz[:, :2]) < extent).all(1).sum())
    side = min(max(0.55 * view.pixels / math.sqrt(max(inside, 1)), 2.2), 7.0) * 72 / _DPI
    axes.scatter(
        -xyz[order, 1], xyz[order, 0], c=np.clip(color[order], 0, 1), s=side**2, linewidths=0
    )
    axes.scatter([0], [0], marker="^", s=60, color="white", linewidths=0, zorder=4)
    return figure, axes


def _rings(axes: Axes, extent: float, labels_ahead: bool = False) -> None:
    from matplotlib.patches import Circle

    step = next(s for s in (2, 5, 10, 20, 50, 100, 1000) if extent / s <= 5 or s == 1000)
    for radius in range(step, int(extent * 1.4), step):
        axes.add_patch(Circle((0, 0), radius, fill=False, color=_RING, lw=0.8, alpha=0.55))
        if radius < extent * 0.97:
            axes.text(
                0,
                radius if labels_ahead else -radius,
                f"{radius} m",
                color=_LABEL,
                fontsize=11,
                ha="center",
                va="center",
                bbox={"facecolor": BACKGROUND, "alpha": 0.7, "linewidth": 0, "pad": 1.5},
                zorder=4,
            )


def _figure(width: int, height: int) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def _image_axes(picture: Array) -> tuple[Figure, Axes, float]:
    height, width = picture.shape[:2]
    scale = _image_scale(picture)
    figure, axes = _figure(width * scale, height * scale)
    axes.imshow(np.clip(picture, 0, 1), interpolation="nearest", aspect="auto")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    return figure, axes, scale


def _image_scale(picture: Array) -> int:
    """Whole factor that brings a small image near 900 pixels of width."""
    return max(1, round(900 / picture.shape[1]))


def _enlarge(picture: Array, scale: int) -> Array:
    return picture.repeat(scale, 0).repeat(scale, 1)


def _image_png(picture: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.scatter([x], [y], s=170, facecolors="none", edgecolors="white", linewidths=1.8, zorder=5)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _colormap(values: Array, name: str) -> Array:
    import matplotlib

    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    scaled = (np.where(finite, values, low) - low) / max(high - low, 1e-12)
    start = DARKEST.get(name, 0.0)
    colors = np.asarray(matplotlib.colormaps[name](start + (1 - start) * scaled))
    colors[~finite, :3] = _hex(IGNORED)
    return colors


def _rgb(image: ArrayLike) -> Array:
    pixels = _array(image)
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(f"has shape {pixels.shape}, not (H, W, 3)", field="image")
    return pixels / 255.0 if pixels.dtype == np.uint8 else pixels.astype(np.float64)


def _hex(color: str) -> Array:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0


def _array(value: ArrayLike) -> Array:
    # By attribute: a report is written without importing torch.
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _check_length(name: str, values: Array, count: int) -> None:
    if len(values) != count:
        raise DataError(f"has {len(values)} rows for {count} points", field=name)


def _check_size(name: str, values: Array, picture: Array) -> None:
    if values.shape != picture.shape[:2]:
        raise DataError(f"has shape {values.shape}, image {picture.shape[:2]}", field=name)
