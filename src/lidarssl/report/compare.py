"""Several runs side by side in one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lidarssl.errors import ConfigError
from lidarssl.report import tables
from lidarssl.report.build import HTML_FILE, write_page
from lidarssl.report.headline import headline
from lidarssl.report.markup import Html, element
from lidarssl.report.page import document, problems_box
from lidarssl.report.run_folder import RunFolder, read_run
from lidarssl.report.scores import ScoreTable


def build_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs: verdicts, scores, and what differs besides the method.

    Args:
        runs: run folders.
        out: the HTML file to write.

    Raises:
        ConfigError: no run is given.
        DataError: a run is not a folder.
    """
    if not runs:
        raise ConfigError("no run to compare", remedy="give at least one run folder")
    folders = [read_run(run, pictures=False) for run in runs]
    scored = [(f, ScoreTable(f.results.efficiency if f.results else ())) for f in folders]
    verdicts = [_verdict_row(folder, table, out) for folder, table in scored]
    groups = [(_title(folder), table) for folder, table in scored if table.columns]
    problems = [f"{f.path.name}: {problem}" for f in folders for problem in f.problems]
    page = document(
        "Runs side by side",
        element(
            "header",
            element("p", "lidarssl report", class_="eyebrow"),
            element("h1", "Runs side by side"),
        ),
        problems_box([*_differences(folders), *problems]),
        element("section", element("dl", *verdicts)),
        element("section", element("h2", "Scores"), tables.efficiency_table(groups), _note(folders))
        if groups
        else None,
    )
    return write_page(out, page)


def _title(folder: RunFolder) -> str:
    return f"{folder.name}: {folder.record.title}" if folder.record else folder.name


def _verdict_row(folder: RunFolder, table: ScoreTable, out: Path) -> Html:
    said = headline(table)
    report = folder.path / HTML_FILE
    link = None
    if report.is_file():
        href = Path(os.path.relpath(report, out.parent)).as_posix()
        link = element("a", "report", href=href)
    return element(
        "div",
        element("dt", folder.name),
        element("dd", element("b", said.verdict), element("div", said.numbers), link),
    )


def _note(folders: Sequence[RunFolder]) -> Html:
    metrics = dict.fromkeys(
        f"{f.results.metric}, on {f.results.evaluated_on}" for f in folders if f.results
    )
    text = f"{'; '.join(metrics)}. Mean ± sample standard deviation over seeds; the difference is "
    return element("p", text + "to the random init of the same run.", class_="small")


def _differences(folders: Sequence[RunFolder]) -> list[str]:
    """What makes the scores of the runs hard to compare, one sentence each."""
    results = [folder.results for folder in folders if folder.results]
    records = [folder.record for folder in folders if folder.record]
    facts = {
        "The test sets differ": [one.evaluated_on for one in results],
        "The metrics differ": [one.metric for one in results],
        "The versions of lidarssl differ": [one.version for one in records],
        "The versions of torch differ": [one.versions.get("torch", "unknown") for one in records],
    }
    return [
        f"{sentence}: {' / '.join(dict.fromkeys(values))}."
        for sentence, values in facts.items()
        if len(set(values)) > 1
    ]
