"""``lidarssl report RUN``: from a run folder to ``report.html`` and ``report.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lidarssl.report import strict_json
from lidarssl.report.figures import Drawing
from lidarssl.report.headline import headline
from lidarssl.report.page import run_page
from lidarssl.report.run_folder import RunFolder, read_run
from lidarssl.report.scores import ScoreTable

HTML_FILE = "report.html"
JSON_FILE = "report.json"


def build_report(run: Path) -> Path:
    """Write the report of a run into its folder; nothing but that folder is read.

    What is missing or malformed is named in the page instead of failing.

    Returns:
        Path of ``report.html``; beside it ``report.json`` holds the same numbers for programs,
        and ``figures/`` the pictures as PNG.

    Raises:
        DataError: ``run`` is not a folder.
    """
    folder = read_run(run)
    for record, drawing in [*folder.drawings, *folder.shift_drawings]:
        write_panels(run / record.file, drawing)
    strict_json.write(run / JSON_FILE, summary(folder))
    return write_page(run / HTML_FILE, run_page(folder))


def write_panels(source: Path, drawing: Drawing) -> None:
    """The panels of a figure as PNG beside its raw data."""
    if source.suffix == ".npz":
        for index, panel in enumerate(drawing.panels):
            suffix = f"_{index}" if len(drawing.panels) > 1 else ""
            source.with_name(f"{source.stem}{suffix}.png").write_bytes(panel.png)


def write_page(path: Path, page: str) -> Path:
    """Write a page so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path


def summary(run: RunFolder) -> dict[str, Any]:
    """The numbers of the report as plain JSON values; scores in mIoU points (0..100)."""
    table = ScoreTable(run.results.efficiency if run.results else ())
    said = headline(table)
    scores = [
        {
            "method": method,
            "protocol": column.protocol,
            "fraction": column.fraction,
            "miou": score.mean,
            "spread": score.spread,
            "seeds": score.count,
            "failed": score.failed,
        }
        for column in table.columns
        for method in table.methods
        if (score := table.score(method, column))
    ]
    return {
        "run": run.name,
        "verdict": said.verdict,
        "numbers": said.numbers,
        "remarks": said.remarks,
        "metric": run.results.metric if run.results else None,
        "evaluated_on": run.results.evaluated_on if run.results else None,
        "scores": scores,
        "retrieval": run.retrieval,
        "pictures": [record.file for record, _ in [*run.drawings, *run.shift_drawings]],
        "problems": run.problems,
    }
