"""The report of `lidarssl calibrate` as a page and as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lidarssl.metrics.registration import (
    MAX_ROTATION,
    MAX_TRANSLATION,
    Spread,
)
from lidarssl.report import figures
from lidarssl.report.axes import Area, frame, linear, path, svg
from lidarssl.report.build import HTML_FILE, write_page, write_panels
from lidarssl.report.calibration_record import (
    CalibrationRecord,
    Extrinsics,
    ImageRecord,
    JointRecord,
    PoseError,
)
from lidarssl.report.embed import PictureBudget
from lidarssl.report.figures import Drawing
from lidarssl.report.markup import Html, element, join
from lidarssl.report.page import document, picture
from lidarssl.report.schema import PictureRecord
from lidarssl.report.scores import percent
from lidarssl.report.tables import scrollable
from lidarssl.wording import counted

MOST_ROWS = 300
"""Images in the table of a page; ``calibration.json`` has all."""

MOST_LINES = 12
"""Images in the table of the terminal."""

_NAME = 24
_NOTHING = "\N{EN DASH}"
_DEFINITION = (
    f"Success: translation error below {MAX_TRANSLATION:g} m and rotation error below "
    f"{MAX_ROTATION:g} degrees. The rotation error is the angle of the rotation between found and "
    "true; the literature (DeepI2P, CorrI2P) takes the sum of its absolute Euler angles instead, "
    "and counts with the pose of the displaced scan, whose origin lies elsewhere."
)
Row = tuple[str, ...]


def summary_rows(record: CalibrationRecord) -> list[Row]:
    """What is said over all images: (name, initial pose, recovered)."""
    before, after, moved = record.before, record.after, record.displaced
    return [
        ("rotation error, median", _degrees(before.rotation), _degrees(after.rotation)),
        ("mean \N{PLUS-MINUS SIGN} std", *_means(before.rotation, after.rotation, "°")),
        ("translation error, median", _metres(before.translation), _metres(after.translation)),
        ("mean \N{PLUS-MINUS SIGN} std", *_means(before.translation, after.translation, " m")),
        ("success", _share(before.success), _share(after.success)),
        ("without a pose", str(before.failed), str(after.failed)),
        ("as in the literature", "", ""),
        ("sum of Euler angles, median", _degrees(before.euler), _degrees(moved.euler)),
        ("translation error, median", _metres(before.translation), _metres(moved.translation)),
        ("success", _share(before.euler_success), _share(moved.euler_success)),
    ]


def image_rows(images: Sequence[ImageRecord]) -> list[Row]:
    """Of each image: frame, camera, errors before and after, inliers, matches."""
    return [
        (
            image.frame, image.camera, *_errors(image.before), *_errors(image.after),
            f"{image.inliers}/{image.points}", _share(image.inlier_ratios[1]),
        )
        for image in images
    ]  # fmt: skip


IMAGE_HEADS = (
    "frame", "camera", "initial °", "initial m", "found °", "found m", "inliers",
    "within 2 cells",
)  # fmt: skip


def as_text(record: CalibrationRecord) -> str:
    """What the terminal shows."""
    shown = record.images[:MOST_LINES]
    parts = [
        f"{record.dataset}/{record.split}: {counted(len(record.images), 'image')} of "
        f"{counted(record.frames, 'frame')}; initial pose {record.initial}; solver {record.solver}",
        _aligned([IMAGE_HEADS, *map(_shortened, image_rows(shown))], left=2),
        *_more(len(record.images) - len(shown)),
        _aligned([("", "initial pose", "recovered"), *summary_rows(record)], left=1),
        *(_joint_text(joint) for joint in record.joint),
        *_single_text(record),
        *record.notes,
    ]
    return "\n\n".join(parts).replace("\N{NO-BREAK SPACE}", " ")


def _shortened(row: Row) -> Row:
    """With the end of the frame's name: tokens may have 32 letters, and a terminal 80."""
    name = row[0]
    return (name if len(name) <= _NAME else f"...{name[3 - _NAME :]}", *row[1:])


def _more(count: int) -> list[str]:
    return [f"... and {counted(count, 'more image')}"] if count else []


def _single_text(record: CalibrationRecord) -> list[str]:
    """The poses themselves, where they are few."""
    if record.joint or len(record.images) > MOST_LINES:
        return []
    return [
        f"{image.frame} {image.camera}: camera_from_lidar\n{_pose_text(image.found)}"
        for image in record.images
        if image.found is not None
    ]


def _joint_text(joint: JointRecord) -> str:
    head = f"{joint.camera}, one pose from {counted(joint.frames, 'frame')}"
    if joint.found is None:
        return f"{head}: none found"
    off = f"{_degrees(joint.after.rotation)} and {_metres(joint.after.translation)} off (median)"
    return f"{head}, {off}: camera_from_lidar\n{_pose_text(joint.found)}"


def _pose_text(pose: Extrinsics) -> str:
    rows = [tuple(f"{value:.6f}" for value in row) for row in pose.matrix]
    return "\n".join(
        [
            _aligned(rows, left=0),
            "translation (m)          " + " ".join(f"{value:.4f}" for value in pose.translation),
            "quaternion (w, x, y, z)  " + " ".join(f"{value:.6f}" for value in pose.quaternion),
        ]
    )


def _aligned(rows: Sequence[Row], left: int) -> str:
    """A table of text whose first ``left`` columns are flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_report(
    record: CalibrationRecord, pictures: Sequence[PictureRecord], folder: Path
) -> Path:
    """Write ``report.html`` and the pictures as PNG into a folder.

    Args:
        record: what it tells.
        pictures: saved in ``folder``.
        folder: of the report.

    Returns:
        Path of the page.
    """
    drawn = [(one, figures.draw(folder / one.file)) for one in pictures]
    for one, drawing in drawn:
        write_panels(folder / one.file, drawing)
    return write_page(folder / HTML_FILE, calibration_page(record, drawn))


def calibration_page(
    record: CalibrationRecord, pictures: Sequence[tuple[PictureRecord, Drawing]]
) -> str:
    """The whole report, self-contained."""
    facts = [
        f"{counted(record.frames, 'frame')} of {record.dataset}/{record.split}",
        f"solver {record.solver}",
        f"seed {record.seed}",
    ]
    return document(
        f"Calibration of {record.dataset}",
        element(
            "header",
            element("p", "lidarssl calibrate", class_="eyebrow"),
            element("h1", f"Lidar and cameras of {record.dataset}"),
            element("p", *(element("span", fact) for fact in facts), class_="facts"),
        ),
        _hero(record),
        _section("Over all images", _table(("", "initial pose", "recovered"), summary_rows(record)),
                 element("p", _DEFINITION, class_="small")),
        _section("One pose of each camera", *map(_joint, record.joint)) if record.joint else None,
        _section("What it looks like", *_pictures(pictures)) if pictures else None,
        _section("How many are how near", _curves(record)),
        _section("Image by image", *_images(record)),
        _section("Do it again", element("code", record.command, class_="command")),
        element("footer", f"Made by lidarssl calibrate with the network of {record.run}."),
    )  # fmt: skip


def _section(title: str, *content: Html) -> Html:
    return element("section", element("h2", title), *content)


def _hero(record: CalibrationRecord) -> Html:
    after, before = record.after, record.before
    good = _share(after.success)
    numbers = (
        f"Median error {_degrees(after.rotation)} and {_metres(after.translation)}, of initial "
        f"poses that are {_degrees(before.rotation)} and {_metres(before.translation)} off. "
        f"Initial pose {record.initial}."
    )
    notes = [element("li", note) for note in record.notes]
    return element(
        "section",
        element("p", f"{good} of {counted(after.count, 'image')} calibrated", class_="verdict"),
        element("p", numbers, class_="numbers"),
        element("ul", *notes, class_="remarks") if notes else None,
        class_="hero",
    )


def _joint(joint: JointRecord) -> Html:
    title = element("h3", f"{joint.camera}, from {counted(joint.frames, 'frame')}")
    if joint.found is None:
        return join(title, element("p", "No pose was found: too few matches agree with one."))
    inliers = f"{joint.inliers} of {joint.points} matches agree with it. "
    off = f"{_degrees(joint.after.rotation)} and {_metres(joint.after.translation)}"
    text = f"{inliers}Median error against the calibration of each frame: {off}."
    return join(title, element("pre", _pose_text(joint.found)), element("p", text, class_="small"))


def _pictures(drawn: Sequence[tuple[PictureRecord, Drawing]]) -> list[Html]:
    budget = PictureBudget(sum(len(drawing.panels) for _, drawing in drawn))
    shown = [picture(record, drawing, budget) for record, drawing in drawn]
    note = "Seen from above: forward is up, rings are distances from the sensor (triangle)."
    return [element("p", note, class_="small"), element("div", *shown, class_="gallery")]


def _curves(record: CalibrationRecord) -> Html:
    before, after = record.curves_before, record.curves_after
    charts = [
        _chart("translation error below, m", after.translation_steps, {
            "s0": after.translation, "random": before.translation}),
        _chart("rotation error below, degrees", after.rotation_steps, {
            "s0": after.rotation, "s1": after.euler, "random": before.rotation}),
    ]  # fmt: skip
    names = {"s0": "recovered", "s1": "recovered, sum of Euler angles", "random": "initial pose"}
    items = [element("li", element("i"), name, class_=kind) for kind, name in names.items()]
    return join(
        element("ul", *items, class_="legend"),
        element("div", *(element("figure", chart) for chart in charts), class_="columns"),
    )


def _chart(title: str, steps: Sequence[float], shares: dict[str, Sequence[float]]) -> Html:
    area = Area()
    x = linear(steps[0], steps[-1], area.left + 4, area.x_end - 6)
    y = linear(0, 100, area.y_end, area.top)
    ticks = [(x(step), f"{step:g}") for step in steps[:: max(1, len(steps) // 6)]]
    lines = [
        element(
            "path",
            d=path([(x(s), y(100 * share)) for s, share in zip(steps, values, strict=True)]),
            class_="line",
        )
        for values in shares.values()
    ]
    drawn = [element("g", line, class_=kind) for kind, line in zip(shares, lines, strict=True)]
    grid = frame(area, y, (0, 25, 50, 75, 100), ticks, title)
    return svg(area, f"Share of images (per cent) with {title}", grid, *drawn)


def _images(record: CalibrationRecord) -> list[Html]:
    rows = image_rows(record.images[:MOST_ROWS])
    left = len(record.images) - len(rows)
    more = [element("p", f"{left} more are in calibration.json.", class_="small")] if left else []
    note = (
        "Inliers: matches within the threshold of the recovered pose, of those it was sought with; "
        "of a search, points that fit better than chance where it puts them. "
        "Within 2 cells: share of the latter that are so near to where the point truly is."
    )
    return [_table(IMAGE_HEADS, rows), *more, element("p", note, class_="small")]


def _table(heads: Row, rows: Sequence[Row]) -> Html:
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in heads)))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", one) for one in row[1:]))
        for row in rows
    ]
    return scrollable(element("table", head, element("tbody", *body)))


def _errors(error: PoseError | None) -> tuple[str, str]:
    return (_NOTHING, "failed") if error is None else (
        f"{error.rotation:.2f}", f"{error.translation:.2f}",
    )  # fmt: skip


def _degrees(spread: Spread) -> str:
    return _NOTHING if spread.median is None else f"{spread.median:.2f}°"


def _metres(spread: Spread) -> str:
    return _NOTHING if spread.median is None else f"{spread.median:.2f} m"


def _means(before: Spread, after: Spread, unit: str) -> tuple[str, str]:
    one, other = (
        _NOTHING
        if spread.mean is None
        else f"{spread.mean:.2f} \N{PLUS-MINUS SIGN} {spread.std:.2f}{unit}"
        for spread in (before, after)
    )
    return one, other


def _share(value: float | None) -> str:
    return _NOTHING if value is None else percent(value)
