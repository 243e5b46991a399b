"""The record of a retrieval, its table and its picture."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report.build import build_report
from lidarssl.report.retrieval import (
    BothWays,
    Recalls,
    RetrievalRecord,
    RetrievedScans,
    retrieval_content,
)

EXACT = BothWays(Recalls((0.25, 0.5), 5.5, 0.375), Recalls((0.2, 0.45), 6.0, 0.35), (0.01, 0.05))
RECORD = RetrievalRecord(
    split="synthetic/val", frames=100, available=100, ks=(1, 5), exact=EXACT, within=5, near=None,
    alignment=0.75, uniformity_image=-1.25, uniformity_lidar=None, modality_gap=0.5,
)  # fmt: skip
NEAR = replace(EXACT, chance=(0.08, 0.36))


def cells(record: RetrievalRecord) -> list[list[str]]:
    root = ElementTree.fromstring(f"<x>{retrieval_content(record)}</x>")
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


def test_the_table_has_both_ways_and_chance() -> None:
    assert [[text.replace("\N{NO-BREAK SPACE}", " ") for text in row] for row in cells(RECORD)] == [
        ["", "recall@1", "recall@5", "median rank", "mean of 1/rank"],
        ["image finds its scan", "25.0 %", "50.0 %", "5.5", "0.375"],
        ["scan finds its image", "20.0 %", "45.0 %", "6", "0.350"],
        ["chance", "1.0 %", "5.0 %", "", ""],
    ]


def test_neighbours_in_time_have_a_table_of_their_own() -> None:
    found = cells(replace(RECORD, near=NEAR))
    assert [row[0] for row in found if len(row) == 1] == [
        "A hit is its partner alone",
        "A hit is its partner, or a frame at most 5 before or after it in its drive",
    ]
    assert found[-1][:3] == ["chance", "8.0\N{NO-BREAK SPACE}%", "36.0\N{NO-BREAK SPACE}%"]


def test_the_text_says_how_many_and_what_is_unknown() -> None:
    text = retrieval_content(replace(RECORD, available=4000))
    assert "100 of 4000 frames" in text
    assert "\N{MINUS SIGN}1.25 of images, unknown of scans" in text


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = replace(RECORD, near=NEAR)
    record.save(tmp_path)
    assert RetrievalRecord.load(tmp_path) == record


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"frames": "many"}, "frames"),
        ({"ks": [1, 5, 10]}, "exact"),
        ({"near": {"recall": []}}, "near.image_to_lidar"),
        ({"more": 1}, "more"),
    ],
)
def test_a_malformed_record_is_named_and_the_page_stands(
    make_run: Callable[..., Path], change: dict[str, object], field: str
) -> None:
    run = make_run()
    RECORD.save(run)
    path = run / "retrieval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError) as caught:
        RetrievalRecord.load(run)
    assert caught.value.field == field
    page = build_report(run).read_text()
    assert f"retrieval.json: field {field}" in page
    assert "image finds its scan" not in page


def test_a_page_has_the_section_where_there_is_a_record(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert 'id="retrieval"' not in build_report(run).read_text()
    assert json.loads((run / "report.json").read_text())["retrieval"] is None
    RECORD.save(run)
    assert 'id="retrieval"' in build_report(run).read_text()
    assert json.loads((run / "report.json").read_text())["retrieval"]["alignment"] == 0.75


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def figure(shown: list[list[int]]) -> RetrievedScans:
    rng = np.random.default_rng(0)
    count, queries = 300, len(shown)
    points = rng.uniform((2, -8, -1), (20, 8, 2), (count, 3))
    return RetrievedScans(
        rng.integers(0, 255, (queries, 3, 20, 30), dtype=np.uint8),
        np.arange(1, queries + 1) + 0.5,
        np.array(shown),
        np.full((queries, len(shown[0])), 0.5),
        points,
        np.arange(count) % 3,
        tuple(f"frame {number}" for number in range(queries)),
        9,
    )


def green(png: bytes) -> np.ndarray:
    """Number of pixels of the frame of a right scan, in each fifth of the strip."""
    found = np.abs(pixels(png) - (0x5F, 0xE0, 0x8A)).max(-1) < 12
    return np.array([part.sum() for part in np.array_split(found, 5, axis=1)])


def test_the_right_scan_is_framed_where_it_was_found() -> None:
    found, missed = figure([[0, 1, 0, 2], [0, 1, 2, 1]]).panels()
    assert (green(found.png) > 500).tolist() == [False, False, False, True, False]
    assert green(missed.png).max() == 0
    assert found.title == "frame 0: its scan has rank 1.5 of 9"


def test_scans_that_are_empty_are_drawn() -> None:
    (panel,) = figure([[7, 8, 7, 9]]).panels()
    assert pixels(panel.png).shape[1] > 1000


def test_queries_that_differ_in_number_are_refused() -> None:
    with pytest.raises(DataError, match="differ in number"):
        replace(figure([[0, 1, 2, 0]]), frames=("one", "two")).panels()
