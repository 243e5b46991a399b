"""The offline pass: complete, resumable after a kill, indifferent to workers and shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.prepare import superpixels as room
from lidarssl.prepare.superpixels import prepare_superpixels, save_superpixels
from lidarssl.transforms.superpixel_files import read_superpixels
from lidarssl.transforms.superpixels import SlicSettings, Superpixels, slic
from toys import MemoryDataset

OPTIONS = {"segments": 10, "sigma": 1.0, "progress": False}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("front_*")}


def test_every_image_gets_its_file(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=3)
    summary = prepare_superpixels(dataset, "train", tmp_path, **OPTIONS)
    assert (summary.frames, summary.written, summary.kept) == (3, 3, 0)
    transform = Superpixels(10, 6.0, 1.0, folder=tmp_path)
    for frame_id in dataset.frames("train"):
        frame = transform(dataset.load(frame_id), None)
        expected = slic(frame.cameras[0].image, SlicSettings(10, 6.0, 1.0))
        assert torch.equal(frame.cameras[0].superpixels, expected)
    assert "3 images segmented" in str(summary)


def test_workers_and_shards_change_nothing(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=5)
    alone, together = tmp_path / "alone", tmp_path / "together"
    prepare_superpixels(dataset, "train", alone, **OPTIONS)
    counts = [
        prepare_superpixels(dataset, "train", together, workers=2, shard=(i, 3), **OPTIONS).written
        for i in range(3)
    ]
    assert counts == [2, 2, 1]
    assert contents(alone) == contents(together)


def test_whole_files_are_kept_and_corrupt_ones_replaced(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=4)
    prepare_superpixels(dataset, "train", tmp_path, **OPTIONS)
    whole, before = contents(tmp_path), times(tmp_path)
    corrupt = tmp_path / "front_0002.runs"
    corrupt.write_bytes(whole[corrupt.name][:40])
    wrong_size = tmp_path / "front_0001.runs"
    save_superpixels(wrong_size, torch.zeros((3, 3), dtype=torch.int64))
    again = prepare_superpixels(dataset, "train", tmp_path, **OPTIONS)
    assert (again.written, again.kept) == (2, 2)
    assert contents(tmp_path) == whole
    untouched = {"front_0000.runs", "front_0003.runs"}
    assert {name for name, at in times(tmp_path).items() if before[name] == at} == untouched
    forced = prepare_superpixels(dataset, "train", tmp_path, overwrite=True, **OPTIONS)
    assert (forced.written, forced.kept) == (4, 0)
    assert contents(tmp_path) == whole


def test_images_whose_files_are_whole_are_not_decoded(tmp_path: Path) -> None:
    class Counting(MemoryDataset):
        decoded = 0

        def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
            self.decoded += Field.UNDECODED not in fields
            return super().load(frame, fields)

    dataset = Counting(frames=3)
    prepare_superpixels(dataset, "train", tmp_path, **OPTIONS)
    dataset.decoded = 0
    assert prepare_superpixels(dataset, "train", tmp_path, **OPTIONS).kept == 3
    assert dataset.decoded == 1  # the first, to estimate


def test_whole_files_keep_their_format_until_they_are_made_again(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=4)
    prepare_superpixels(dataset, "train", tmp_path, form="png", **OPTIONS)
    (tmp_path / "front_0001.png").write_bytes(b"")
    (tmp_path / "front_0003.png").unlink()
    again = prepare_superpixels(dataset, "train", tmp_path, **OPTIONS)
    assert (again.written, again.kept) == (2, 2)
    names = ["front_0000.png", "front_0001.runs", "front_0002.png", "front_0003.runs"]
    assert sorted(times(tmp_path)) == names
    transform = Superpixels(10, 6.0, 1.0, folder=tmp_path)
    for frame_id in dataset.frames("train"):
        camera = transform(dataset.load(frame_id), None).cameras[0]
        assert torch.equal(camera.superpixels, slic(camera.image, SlicSettings(10, 6.0, 1.0)))
    for form in ("png", "runs"):
        prepare_superpixels(dataset, "train", tmp_path, form=form, overwrite=True, **OPTIONS)
        assert {Path(name).suffix for name in times(tmp_path)} == {f".{form}"}


def test_a_killed_pass_is_finished_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    program = textwrap.dedent(
        f"""
        import time
        from lidarssl.prepare import superpixels as room
        from toys import MemoryDataset
        segment, done = room.slic, []
        def slowly(image, settings):
            done.append(0)
            if len(done) > 4:
                time.sleep(60)
            return segment(image, settings)
        room.slic = slowly
        room.prepare_superpixels(MemoryDataset(frames=6), "train", {str(folder)!r},
                                 segments=10, sigma=1.0, progress=False)
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.runs"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = times(folder)
    assert len(made) == 3
    summary = prepare_superpixels(MemoryDataset(frames=6), "train", folder, **OPTIONS)
    assert (summary.written, summary.kept) == (3, 3)
    assert {name: times(folder)[name] for name in made} == made
    reference = tmp_path / "reference"
    prepare_superpixels(MemoryDataset(frames=6), "train", reference, **OPTIONS)
    assert contents(folder) == contents(reference)


def test_nothing_half_written_under_a_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_space(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "replace", out_of_space)
    with pytest.raises(OSError, match="space"):
        save_superpixels(tmp_path / "a.png", torch.zeros((3, 3), dtype=torch.int64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_frames_raise_or_are_counted(tmp_path: Path, workers: int) -> None:
    dataset = MemoryDataset(frames=4, bad=(1, 2))
    with pytest.raises(DataError, match=r"0001\.bin"):
        prepare_superpixels(dataset, "train", tmp_path, workers=workers, **OPTIONS)
    summary = prepare_superpixels(
        dataset, "train", tmp_path, workers=workers, on_error="skip", **OPTIONS
    )
    assert len(summary.failures) == 2
    assert summary.written + summary.kept == 2
    assert "0001.bin" in str(summary)


def test_missing_scikit_image_is_never_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ConfigError("this needs scikit-image")

    monkeypatch.setattr(room, "slic", missing)
    with pytest.raises(ConfigError, match="scikit-image"):
        prepare_superpixels(MemoryDataset(), "train", tmp_path, on_error="skip", **OPTIONS)


def test_sixteen_bits_when_eight_do_not_hold_the_ids(tmp_path: Path) -> None:
    for largest, depth in ((255, 8), (256, 16), (65535, 16)):
        ids = torch.tensor([[0, largest], [1, 2]])
        path = tmp_path / f"{largest}.png"
        save_superpixels(path, ids)
        assert torch.equal(read_superpixels(path, (2, 2)), ids)
        assert path.read_bytes()[24] == depth
    for bad in (65536, -1):
        with pytest.raises(DataError, match="65535"):
            save_superpixels(tmp_path / "bad.png", torch.tensor([[0, bad]]))


def test_estimate_comes_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = OPTIONS | {"progress": True}
    prepare_superpixels(MemoryDataset(frames=3), "train", tmp_path, **options)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 images, 0 there already" in captured.err
    assert captured.err.index("3 images") < captured.err.index("frame")


def test_other_settings_need_another_folder(tmp_path: Path) -> None:
    prepare_superpixels(MemoryDataset(frames=1), "train", tmp_path, **OPTIONS)
    other = OPTIONS | {"segments": 20}
    with pytest.raises(ConfigError, match="made with other settings: segments"):
        prepare_superpixels(MemoryDataset(frames=1), "train", tmp_path, **other)
    prepare_superpixels(MemoryDataset(frames=1), "train", tmp_path, overwrite=True, **other)


class Blind(MemoryDataset):
    def provides(self, split: str) -> Field:
        return Field.SEMANTIC

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        raise AssertionError("nothing should be loaded")


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images"):
        prepare_superpixels(Blind(), "train", tmp_path, **OPTIONS)
    for shard in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match="shard"):
            prepare_superpixels(MemoryDataset(), "train", tmp_path, shard=shard, **OPTIONS)
    with pytest.raises(ConfigError, match="on_error"):
        prepare_superpixels(MemoryDataset(), "train", tmp_path, on_error="ignore", **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_more_shards_than_frames(tmp_path: Path) -> None:
    summary = prepare_superpixels(
        MemoryDataset(frames=1), "train", tmp_path, shard=(3, 4), workers=2, **OPTIONS
    )
    assert (summary.frames, summary.written) == (0, 0)
