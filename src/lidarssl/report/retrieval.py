"""Whether images and scans find each other: the record of a run, its table, its picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lidarssl.errors import DataError
from lidarssl.report import strict_json
from lidarssl.report.figure_data import FigureData, Key, Panel, to_array
from lidarssl.report.markup import Html, element, join
from lidarssl.report.pictures import BACKGROUND, DARKEST, RANGE_COLORS, Array
from lidarssl.report.tables import scrollable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RETRIEVAL_FILE = "retrieval.json"

_TILE, _HEAD, _GAP, _DPI = 300, 34, 12, 100
"""Pixels: side of a tile, height of the line above it, space between two; and their density."""
_TEXT, _RIGHT, _FRAME = "#e6ebf0", "#5fe08a", "#2b3541"


@dataclass(frozen=True)
class Recalls:
    """Of one direction.

    Attributes:
        recall: for each k of the record, in [0, 1].
        median_rank, mean_reciprocal_rank: of the partner.
    """

    recall: tuple[float, ...]
    median_rank: float
    mean_reciprocal_rank: float


@dataclass(frozen=True)
class BothWays:
    """Retrieval in both directions, and of a random order of the candidates."""

    image_to_lidar: Recalls
    lidar_to_image: Recalls
    chance: tuple[float, ...]


@dataclass(frozen=True)
class RetrievalRecord:
    """``retrieval.json`` of a run; the attributes are explained in ``lidarssl.metrics.retrieval``.

    Attributes:
        split: dataset and split, e.g. "synthetic/val".
        frames: that were embedded: the candidates of every query.
        available: frames of the split.
        ks: ranks at which recall is taken.
        exact: only the partner is a hit.
        within: frames before and after the partner that are hits too in ``near``.
        near: None where no frame has such a neighbour.
        uniformity_image, uniformity_lidar: None for a single frame.
    """

    split: str
    frames: int
    available: int
    ks: tuple[int, ...]
    exact: BothWays
    within: int
    near: BothWays | None
    alignment: float
    uniformity_image: float | None
    uniformity_lidar: float | None
    modality_gap: float

    def __post_init__(self) -> None:
        for name, ways in (("exact", self.exact), ("near", self.near)):
            for values in () if ways is None else _recalls(ways):
                if len(values) != len(self.ks) or not all(0 <= value <= 1 for value in values):
                    raise DataError(
                        f"must have a recall from 0 to 1 for each of {len(self.ks)} ranks",
                        field=name,
                    )

    def save(self, run: Path) -> None:
        """Write ``retrieval.json`` into the run folder."""
        strict_json.write(run / RETRIEVAL_FILE, self)

    @classmethod
    def load(cls, run: Path) -> RetrievalRecord:
        """Read ``retrieval.json`` of a run folder.

        Raises:
            DataError: missing or not exactly this schema; names path and field.
        """
        return strict_json.read(run / RETRIEVAL_FILE, cls)


def _recalls(ways: BothWays) -> tuple[tuple[float, ...], ...]:
    return ways.image_to_lidar.recall, ways.lidar_to_image.recall, ways.chance


def retrieval_content(record: RetrievalRecord) -> Html:
    """The table of a record and what its numbers mean."""
    heads = [f"recall@{k}" for k in record.ks] + ["median rank", "mean of 1/rank"]
    head = element("tr", element("th", ""), *(element("th", name, scope="col") for name in heads))
    bodies = [_body(record.exact, None if record.near is None else "its partner alone")]
    if record.near is not None:
        title = f"its partner, or a frame at most {record.within} before or after it in its drive"
        bodies.append(_body(record.near, title))
    whole = record.frames == record.available
    among = f"{record.frames}" if whole else f"{record.frames} of {record.available}"
    return join(
        element(
            "p",
            f"Held-out images and scans of {record.split}, each sought among those of {among} "
            "frames by the cosine of their embeddings. Recall@k: share whose partner is among the "
            "first k; it falls with the number of frames, so compare it with chance, and with "
            "other runs on the same frames only.",
        ),
        scrollable(element("table", element("thead", head), *bodies)),
        _geometry(record),
    )


def _body(ways: BothWays, title: str | None) -> Html:
    rows = [
        _row("image finds its scan", ways.image_to_lidar),
        _row("scan finds its image", ways.lidar_to_image),
        _row("chance", ways.chance),
    ]
    if title is not None:
        columns = len(ways.chance) + 3
        heading = element("th", f"A hit is {title}", colspan=columns, scope="rowgroup")
        rows.insert(0, element("tr", heading, class_="heading"))
    return element("tbody", *rows)


def _row(name: str, found: Recalls | tuple[float, ...]) -> Html:
    recalls = found.recall if isinstance(found, Recalls) else found
    cells = [f"{100 * value:.1f}\N{NO-BREAK SPACE}%" for value in recalls]
    if isinstance(found, Recalls):
        cells += [f"{found.median_rank:g}", f"{found.mean_reciprocal_rank:.3f}"]
    else:
        cells += ["", ""]
    return element("tr", element("th", name, scope="row"), *(element("td", cell) for cell in cells))


def _geometry(record: RetrievalRecord) -> Html:
    both = (record.uniformity_image, record.uniformity_lidar)
    image, lidar = (
        "unknown" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
        for value in both
    )
    facts = (
        (
            "alignment",
            f"{record.alignment:.2f}: mean squared distance of partners, from 0 (equal) to 4; "
            "2 where they have nothing in common.",
        ),
        (
            "uniformity",
            f"{image} of images, {lidar} of scans: 0 where all are equal, "
            "about \N{MINUS SIGN}4 where they spread evenly.",
        ),
        (
            "modality gap",
            f"{record.modality_gap:.2f}: distance between the mean image and the mean scan, "
            "0 to 2.",
        ),
    )
    items = [element("div", element("dt", name), element("dd", text)) for name, text in facts]
    return element("dl", *items)


@dataclass(frozen=True)
class RetrievedScans(FigureData):
    """Images, the scan of each, and the scans that are most similar to it, seen from above.

    Attributes:
        image: (Q, H, W, 3) or (Q, 3, H, W).
        rank: (Q,) of the scan that belongs to the image.
        shown: (Q, 1 + B) number of the scan that belongs to it, then of the best, best first.
        similarity: (Q, 1 + B) cosine of each.
        points: (P, 3) m of all scans, x where the camera looks.
        scan: (P,) number of the scan of each point.
        frames: (Q,) names of the queries.
        candidates: number of scans that were searched.
    """

    kind = "retrieved_scans"
    stacked = True
    wide = True
    image: Array
    rank: Array
    shown: Array
    similarity: Array
    points: Array
    scan: Array
    frames: tuple[str, ...]
    candidates: int

    def panels(self) -> tuple[Panel, ...]:
        images, ranks = to_array(self.image), to_array(self.rank)
        shown, similarity = to_array(self.shown), to_array(self.similarity)
        if shown.shape != similarity.shape or not (
            len(images) == len(ranks) == len(shown) == len(self.frames)
        ):
            raise DataError("queries differ in number", field="shown")
        return tuple(
            Panel(
                f"{name}: its scan has rank {rank:g} of {self.candidates}",
                self._strip(image, numbers, cosines),
            )
            for name, image, rank, numbers, cosines in zip(
                self.frames, images, ranks.tolist(), shown, similarity.tolist(), strict=True
            )
        )

    def key(self) -> Key:
        return Key(ramp=("low", "high points", RANGE_COLORS))

    def _strip(self, image: Array, numbers: Array, similarity: list[float]) -> bytes:
        """The image, its scan and the best, side by side."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        tiles, height = 1 + len(numbers), _HEAD + _TILE + _GAP
        width = tiles * (_TILE + _GAP) + _GAP
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=BACKGROUND)
        FigureCanvasAgg(figure)
        axes = [
            figure.add_axes(
                ((_GAP + i * (_TILE + _GAP)) / width, _GAP / height, _TILE / width, _TILE / height)
            )
            for i in range(tiles)
        ]
        _show_image(axes[0], image)
        points, scan = to_array(self.points).astype(np.float64), to_array(self.scan)
        scans = [points[scan == number] for number in numbers.tolist()]
        box = _box(np.concatenate(scans))
        for place, (axis, one) in enumerate(zip(axes[1:], scans, strict=True)):
            right = bool(numbers[place] == numbers[0])
            name = "its scan" if place == 0 else f"no. {place}"
            _show_scan(axis, one, box, right=right and place > 0)
            axis.set_title(f"{name}: {similarity[place]:.2f}", color=_TEXT, fontsize=13, pad=6)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor=BACKGROUND)
        return buffer.getvalue()


def _show_image(axes: Axes, image: Array) -> None:
    pixels = np.transpose(image, (1, 2, 0)) if image.shape[0] == 3 else image
    axes.imshow(pixels if pixels.dtype == np.uint8 else np.clip(pixels, 0, 1))
    axes.set_title("image", color=_TEXT, fontsize=13, pad=6)
    _border(axes, _FRAME, 1)
    axes.set_facecolor(BACKGROUND)


def _show_scan(axes: Axes, points: Array, box: tuple[float, float, float], right: bool) -> None:
    """Bird's-eye view, forward up, left to the left; a frame around the right one.

    Args:
        box: x and y of the middle and half the side, m.
    """
    x, y, half = box
    colors = _height_colors(points[:, 2])
    order = np.argsort(points[:, 2], kind="stable")
    axes.scatter(-points[order, 1], points[order, 0], c=colors[order], s=3.0, linewidths=0)
    axes.scatter([0], [0], marker="^", s=40, color="white", linewidths=0, zorder=4)
    axes.set_xlim(-y - half, -y + half)
    axes.set_ylim(x - half, x + half)
    axes.set_facecolor(BACKGROUND)
    _border(axes, _RIGHT if right else _FRAME, 4 if right else 1)


def _height_colors(height: Array) -> Array:
    """(N, 4) of heights (N,), from the 1st to the 99th percentile."""
    import matplotlib

    low, high = np.percentile(height, [1, 99]) if len(height) else (0.0, 1.0)
    share = np.clip((height - low) / max(high - low, 1e-6), 0, 1)
    start = DARKEST[RANGE_COLORS]
    colors: Array = np.asarray(matplotlib.colormaps[RANGE_COLORS](start + (1 - start) * share))
    return colors


def _border(axes: Axes, color: str, width: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(width)


def _box(points: Array) -> tuple[float, float, float]:
    """Middle and half the side of the square that holds the sensor and nearly all points."""
    if not len(points):
        return 0.0, 0.0, 10.0
    near, far = np.percentile(points[:, :2], [2, 98], axis=0)
    low, high = np.minimum(near, 0), np.maximum(far, 0)
    middle = (low + high) / 2
    return float(middle[0]), float(middle[1]), float(max((high - low).max() / 2 * 1.08, 2.0))
