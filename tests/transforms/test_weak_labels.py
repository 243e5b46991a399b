"""Weak labels: files against what Pillow reads, lookups against a loop, and folders that lie."""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Frame
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.weak_labels import (
    IGNORED,
    ORDERS,
    SETTINGS_FILE,
    WeakLabels,
    WeakLabelSettings,
    class_order,
    read_settings,
    read_weak_labels,
    save_weak_labels,
    weak_label_path,
)
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame

ABC = WeakLabelSettings(("a", "b", "c"))
SIZE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weak_labels")


@settings(max_examples=60, deadline=None)
@given(*map(st.integers, (1, 1, 1, 0), (30, 30, 255, 2**31)), st.booleans())
def test_round_trip(
    folder: Path, height: int, width: int, classes: int, seed: int, tagged: bool
) -> None:
    path = folder / "round_trip.png"
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes + 1, (height, width), generator=generator)
    labeller = {"class": "Any"} if tagged else None
    known = WeakLabelSettings(tuple(f"class {k}" for k in range(classes)), labeller=labeller)
    save_weak_labels(path, labels, known.digest)
    found = read_weak_labels(path, (height, width), known)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), labels)
    assert path.read_bytes()[24:26] == b"\x08\x00"  # 8 bits, one channel
    values = np.asarray(Image.open(path)).astype(int)
    assert np.array_equal(values, np.where(labels == 0, IGNORED, labels.numpy() - 1))


def test_shipped_orders_are_those_of_the_authors() -> None:
    seem, grounded = class_order("seem"), class_order("grounded_sam")
    assert (len(seem.classes), seem.ignored) == (17, None)
    assert (len(grounded.classes), grounded.ignored) == (14, None)
    assert [seem.classes[v] for v in (0, 4, 8, 10, 16)] == [
        "barrier", "truck", "pedestrian", "road", "background",
    ]  # fmt: skip
    assert [grounded.classes[v] for v in (0, 4, 6, 9, 13)] == [
        "background", "car", "pedestrian", "road", "building",
    ]  # fmt: skip
    assert set(grounded.classes) < set(seem.classes)
    assert ORDERS == ("grounded_sam", "seem")


def write_folder(folder: Path, frame: Frame, known: WeakLabelSettings = ABC) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / SETTINGS_FILE).write_text(known.text)
    generator, written = torch.Generator().manual_seed(3), {}
    for camera in frame.cameras:
        written[camera.token] = torch.randint(0, len(known.classes) + 1, SIZE, generator=generator)
        save_weak_labels(weak_label_path(folder, camera), written[camera.token], known.digest)
    return written


def matched(seed: int = 5) -> Frame:
    return MatchPixels()(make_frame(seed=seed), np.random.default_rng(0))


def test_every_match_gets_the_label_of_its_pixel(tmp_path: Path) -> None:
    frame = matched()
    labels = write_folder(tmp_path, frame)
    transform = WeakLabels(tmp_path)
    found = apply_purely(transform, frame).matches
    assert transform.classes == ("a", "b", "c")
    assert found is not None
    assert found.label is not None
    assert found.label.dtype == torch.int64
    assert len(found) > 500
    expected = [
        int(labels[frame.cameras[image].token][row, col])
        for image, row, col in zip(
            found.image.tolist(), found.row.tolist(), found.col.tolist(), strict=True
        )
    ]
    assert found.label.tolist() == expected
    assert set(expected) == {0, 1, 2, 3}


def test_cameras_without_matches_are_not_read(tmp_path: Path) -> None:
    frame = matched()
    write_folder(tmp_path, frame)
    weak_label_path(tmp_path, frame.cameras[1]).unlink()
    with pytest.raises(DataError, match="prepare weak-labels"):
        WeakLabels(tmp_path)(frame, np.random.default_rng(0))
    assert frame.matches is not None
    others = replace(frame, matches=frame.matches[frame.matches.image != 1])
    assert apply_purely(WeakLabels(tmp_path), others).matches.label is not None
    none = replace(frame, matches=frame.matches[frame.matches.image > 9])
    assert apply_purely(WeakLabels(tmp_path), none).matches.label.tolist() == []
    with pytest.raises(ConfigError, match="MatchPixels"):
        WeakLabels(tmp_path)(make_frame(), np.random.default_rng(0))


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).convert(mode or "L").save(out, format="PNG")
    return out.getvalue()


def four_bits() -> bytes:
    """4 x 6 pixels of 4 bits, which Pillow would stretch to eight."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4)

    head = (6).to_bytes(4, "big") + (4).to_bytes(4, "big") + bytes([4, 0, 0, 0, 0])
    rows = zlib.compress(bytes(4 * (1 + 3)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png(np.zeros((4, 6, 3), np.uint8), "RGB"), "mode 'RGB'"),
        (png(np.zeros((4, 6), np.uint8), "P"), "mode 'P'"),
        (png(np.zeros((4, 6), np.uint8), "1"), "mode '1'"),
        (png(np.zeros((6, 4), np.uint8)), "expected single-channel 8-bit 4 x 6"),
        (png(np.full((4, 6), 3, np.uint8)), "value 3, which is none of the 3 classes"),
        (png(np.full((4, 6), 254, np.uint8)), "value 254"),
        (four_bits(), "of 4 bits"),
        (b"", "do not decode"),
        (png(np.zeros((4, 6), np.uint8))[:-30], "do not decode"),
        (b"GIF89a" + bytes(40), "do not decode"),
    ],
)
def test_files_that_cannot_be_used(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_weak_labels(path, (4, 6), ABC)
    assert caught.value.path == path
    assert caught.value.remedy


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files_end_in_a_data_error(folder: Path, changes: Any) -> None:
    path = folder / "damaged.png"
    save_weak_labels(path, torch.arange(24).reshape(4, 6) % 4)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    try:
        labels = read_weak_labels(path, (4, 6), ABC)
    except DataError:
        return
    assert labels.shape == (4, 6)
    assert int(labels.max()) <= 3


def test_files_of_another_labeller_are_refused(tmp_path: Path) -> None:
    one, other = (replace(ABC, labeller={"class": name}) for name in ("One", "Other"))
    path, labels = tmp_path / "a.png", torch.ones((4, 6), dtype=torch.int64)
    save_weak_labels(path, labels, one.digest)
    assert read_weak_labels(path, (4, 6), one).eq(1).all()
    with pytest.raises(DataError, match="another labeller"):
        read_weak_labels(path, (4, 6), other)
    save_weak_labels(path, labels)  # made by hand: it says nothing
    assert read_weak_labels(path, (4, 6), other).eq(1).all()


@pytest.mark.parametrize("labels", [[[256]], [[-1, 0]], [[]]])
def test_labels_that_no_byte_holds(labels: list, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not in 0\.\.255"):
        save_weak_labels(tmp_path / "a.png", torch.tensor(labels, dtype=torch.int64))
    assert list(tmp_path.iterdir()) == []


def test_tokens_cannot_leave_the_folder(tmp_path: Path) -> None:
    camera = make_frame(1).cameras[0]
    for token in ("../secret", "a/b", "", ".hidden", "a\\b"):
        with pytest.raises(DataError, match="token"):
            weak_label_path(tmp_path, replace(camera, token=token))


GOOD = {"format": 1, "classes": ["a", "b"], "ignored": 255, "labeller": None}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": 2}, "format"),
        ({"classes": []}, "classes"),
        ({"classes": "ab"}, "classes"),
        ({"classes": ["a", 1]}, "classes"),
        ({"classes": ["a", "a"]}, "classes"),
        ({"classes": ["a", "new\nline"]}, "classes"),
        ({"classes": [str(k) for k in range(256)]}, "classes"),
        ({"ignored": 256}, "ignored"),
        ({"ignored": -1}, "ignored"),
        ({"ignored": True}, "ignored"),
        ({"ignored": "255"}, "ignored"),
        ({"labeller": "SEEM"}, "labeller"),
    ],
)
def test_class_lists_that_cannot_be_used(change: dict, field: str, tmp_path: Path) -> None:
    path = tmp_path / SETTINGS_FILE
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(DataError) as caught:
        WeakLabels(tmp_path)
    assert (caught.value.path, caught.value.field) == (path, field)
    assert caught.value.remedy
    path.write_text(json.dumps(GOOD))
    assert read_settings(path) == WeakLabelSettings(("a", "b"))


def test_folders_that_do_not_say_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there") as caught:
        WeakLabels(tmp_path / "nowhere")
    assert caught.value.field == "folder"
    assert "lidarssl prepare weak-labels" in str(caught.value)
    with pytest.raises(ConfigError, match="class order, grounded_sam or seem") as caught:
        WeakLabels(tmp_path)
    assert caught.value.field == "classes"
    assert WeakLabels(tmp_path, "seem").classes[3] == "car"
    with pytest.raises(ConfigError, match="did you mean 'seem'"):
        WeakLabels(tmp_path, "sem")
    own = tmp_path / "own.json"
    own.write_text(json.dumps(GOOD | {"ignored": 0}))
    assert WeakLabels(tmp_path, own).settings.label_of_value == {0: 0, 1: 2}


def test_both_class_lists_have_to_agree(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(class_order("seem").text)
    assert len(WeakLabels(tmp_path, "seem").classes) == 17
    for order in ("grounded_sam", tmp_path / "own.json"):
        ignoring = replace(class_order("seem"), ignored=16)
        (tmp_path / "own.json").write_text(ignoring.text)
        with pytest.raises(ConfigError, match="not those of"):
            WeakLabels(tmp_path, order)


def test_background_can_be_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(np.array([[16, 3]], np.uint8)))
    assert read_weak_labels(path, (1, 2), class_order("seem")).tolist() == [[17, 4]]
    ignoring = replace(class_order("seem"), ignored=16)
    assert read_weak_labels(path, (1, 2), ignoring).tolist() == [[0, 4]]
