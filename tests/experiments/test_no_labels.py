"""Pretraining cannot have seen a label: it opens no label file, and gains nothing from one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dataset_files import write_semantic_kitti
from lidarssl import checkpoints
from lidarssl.cli import main

OPENED: list[str] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED is not None and event in ("open", "os.open", "mmap.__new__"):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_listen)


@contextmanager
def opened() -> Iterator[list[str]]:
    """Every file that this process opens meanwhile."""
    global OPENED
    OPENED = files = []
    try:
        yield files
    finally:
        OPENED = None


def pretrain(root: Path, run: Path, *options: str) -> dict[str, torch.Tensor]:
    words = [
        "pretrain", "also_minkunet_kitti_sample", "--dataset.root", str(root), "--run", str(run),
        "--quiet", "--training.steps", "3", "--training.batch_size", "1",
        "--method.sampling.min_range", "0", "--method.sampling.num_queries", "60", *options,
    ]  # fmt: skip
    assert main(words) == 0
    return dict(checkpoints.load(run / "student.safetensors").state)


def label_files(root: Path) -> list[Path]:
    found = sorted(root.rglob("*.label"))
    assert found
    return found


def test_no_label_file_is_opened(tmp_path: Path) -> None:
    root = write_semantic_kitti(tmp_path / "data")
    with opened() as files:
        pretrain(root, tmp_path / "run", "--method.sampling.rotate", "true")
    assert any(name.endswith(".bin") for name in files), "the audit saw no scan either"
    assert not [name for name in files if name.endswith(".label")]


def test_the_published_accident_does_open_them(tmp_path: Path) -> None:
    """The audit above would notice: with ``drop_unlabeled`` the labels are read."""
    root = write_semantic_kitti(tmp_path / "data")
    with opened() as files:
        pretrain(root, tmp_path / "run", "--method.sampling.drop_unlabeled", "true")
    assert [name for name in files if name.endswith(".label")]


@pytest.mark.parametrize("damage", ["other labels", "cut", "gone"])
def test_the_student_is_the_same_whatever_the_labels_are(tmp_path: Path, damage: str) -> None:
    root = write_semantic_kitti(tmp_path / "data")
    expected = pretrain(root, tmp_path / "before")
    for path in label_files(root):
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(b"\x63" * (path.stat().st_size if damage == "other labels" else 7))
    found = pretrain(root, tmp_path / "after")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
