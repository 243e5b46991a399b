from __future__ import annotations

from pathlib import Path

import pytest

from lidarssl.datasets.layout import find_root
from lidarssl.errors import DataError


def test_the_right_level_is_suggested_from_above_and_from_below(tmp_path: Path) -> None:
    inside = tmp_path / "kitti" / "training" / "velodyne"
    inside.mkdir(parents=True)
    root = find_root(tmp_path / "kitti", ["training"], "")
    assert root == tmp_path / "kitti"
    for wrong in (tmp_path, inside):
        with pytest.raises(DataError) as caught:
            find_root(wrong, ["training"], "")
        assert caught.value.remedy == f"use root {tmp_path / 'kitti'}"
