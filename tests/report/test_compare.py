from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lidarssl.errors import ConfigError, DataError
from lidarssl.report.build import build_report
from lidarssl.report.compare import build_comparison


def test_runs_stand_side_by_side_with_links_to_their_reports(
    complete_run: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_run()
    build_report(other)
    html = build_comparison([complete_run, other], tmp_path / "compare.html").read_text()
    assert html.count("Pretraining helped.") == 2
    assert html.count('class="heading"') == 2
    assert 'href="run/report.html"' in html
    assert html.count("<a ") == 1, "a run without a report has no link"
    assert "The test sets differ: 40 held-out frames of 40 scenes, 8 classes / 4 frames." in html
    assert "versions of torch differ" not in html


def test_an_empty_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    html = build_comparison([tmp_path / "empty"], tmp_path / "compare.html").read_text()
    assert "empty: results.json: file not found" in html


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        build_comparison([], tmp_path / "compare.html")
    with pytest.raises(DataError):
        build_comparison([tmp_path / "none"], tmp_path / "compare.html")
