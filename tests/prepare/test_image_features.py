"""The offline pass: the encoder's own features, resumable after a kill, indifferent to shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lidarssl.batching import collate
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.images.base import ImageEncoder
from lidarssl.images.resnet import ResNet
from lidarssl.images.unet import SmallUNet
from lidarssl.images.vit import ViT, ViTArchitecture
from lidarssl.prepare import image_features as room
from lidarssl.prepare.image_features import (
    fingerprint,
    prepare_image_features,
    save_features,
    settings_of,
)
from lidarssl.transforms.image_features import StoredFeatures, read_features, read_settings
from lidarssl.transforms.paired import MatchPixels, ResizeWhole
from toys import MemoryDataset

SHAPE = ViTArchitecture("dinov3", 32, 8, width=16, depth=1, heads=2, registers=2)
SIZE = (24, 40)
RNG = np.random.default_rng(0)


def teacher(seed: int = 0, **options: Any) -> ViT:
    torch.manual_seed(seed)
    return ViT(SHAPE, **options)


@pytest.fixture
def encoder() -> ImageEncoder:
    return teacher(final_norm=False)


def prepare(
    folder: Path, encoder: ImageEncoder, dataset: MemoryDataset | None = None, **options: Any
) -> room.Summary:
    options = {"progress": False, "antialias": False} | options
    dataset = dataset or MemoryDataset(frames=3)
    return prepare_image_features(dataset, "train", folder, encoder, *SIZE, **options)


def stored(folder: Path, dataset: MemoryDataset) -> dict[str, Tensor]:
    transform = StoredFeatures(folder)
    frames = [dataset.load(one, Field.IMAGES) for one in dataset.frames("train")]
    frames = [ResizeWhole(SIZE)(MatchPixels(allow_none=True)(one, RNG), RNG) for one in frames]
    cameras = [camera for one in frames for camera in transform(one, RNG).cameras]
    return {camera.token: camera.features for camera in cameras if camera.features is not None}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: teacher(final_norm=False),
        lambda: ViT(ViTArchitecture("dinov2", 28, 7, width=16, depth=1, heads=2)),
        lambda: SmallUNet(out_channels=8),
        lambda: ResNet(18),
    ],
)
def test_a_batch_of_stored_features_is_what_the_encoder_makes_of_its_images(
    make: Callable[[], ImageEncoder], antialias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    encoder, dataset = make(), MemoryDataset(frames=3, cameras=2)
    summary = prepare(tmp_path, encoder, dataset, antialias=antialias, batch_size=4)
    assert (summary.frames, summary.written, summary.kept) == (3, 6, 0)
    steps = (MatchPixels(), ResizeWhole(SIZE, antialias=antialias), StoredFeatures(tmp_path))
    frames = []
    for frame_id in dataset.frames("train"):
        frame = dataset.load(frame_id)
        for step in steps:
            frame = step(frame, RNG)
        frames.append(frame)
    batch = collate(frames)
    assert batch.images is not None
    assert batch.image_features is not None
    assert batch.image_features.dtype == torch.float16
    with torch.no_grad():
        expected = encoder(batch.images)
    torch.testing.assert_close(batch.image_features.float(), expected, rtol=2**-10, atol=1e-4)
    assert batch.to("cpu").image_features.shape == expected.shape


def test_float32_is_exact(encoder: ImageEncoder, tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=2)
    prepare(tmp_path, encoder, dataset, dtype="float32", batch_size=1)
    for frame_id in dataset.frames("train"):
        frame = ResizeWhole(SIZE)(MatchPixels()(dataset.load(frame_id), RNG), RNG)
        features = StoredFeatures(tmp_path)(frame, RNG).cameras[0].features
        assert frame.cameras[0].image is not None
        assert torch.equal(features, encoder(frame.cameras[0].image[None])[0])


def test_workers_and_shards_change_nothing(encoder: ImageEncoder, tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=5, cameras=2)
    alone, together = tmp_path / "alone", tmp_path / "together"
    prepare(alone, encoder, dataset)
    counts = [
        prepare(together, encoder, dataset, workers=2, shard=(i, 3)).written for i in range(3)
    ]
    assert counts == [4, 4, 2]
    assert sorted(os.listdir(alone)) == sorted(os.listdir(together))
    one, other = stored(alone, dataset), stored(together, dataset)
    assert len(one) == 10
    for token, features in one.items():
        torch.testing.assert_close(features, other[token], rtol=2**-9, atol=1e-4)


def test_whole_files_are_kept_and_others_replaced(encoder: ImageEncoder, tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=6)
    prepare(tmp_path, encoder, dataset)
    whole, before = stored(tmp_path, dataset), times(tmp_path)
    truncated, missing, of_others = (tmp_path / f"front_000{i}.safetensors" for i in (1, 2, 4))
    truncated.write_bytes(truncated.read_bytes()[:90])
    missing.unlink()
    other = settings_of(teacher(1), *SIZE, antialias=False)
    save_features(of_others, torch.zeros(other.shape), other)
    again = prepare(tmp_path, encoder, dataset)
    assert (again.written, again.kept) == (3, 3)
    for token, features in stored(tmp_path, dataset).items():
        torch.testing.assert_close(features, whole[token], rtol=2**-9, atol=1e-4)
    untouched = {f"front_000{i}.safetensors" for i in (0, 3, 5)}
    assert {name for name, at in times(tmp_path).items() if before[name] == at} == untouched
    forced = prepare(tmp_path, encoder, dataset, overwrite=True)
    assert (forced.written, forced.kept) == (6, 0)


def test_a_killed_pass_is_finished_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    program = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from prepare.test_image_features import prepare, room, teacher
        from toys import MemoryDataset
        save, done = room.save_features, []
        def slowly(path, features, settings):
            if len(done) == 5:
                time.sleep(60)
            done.append(path)
            save(path, features, settings)
        room.save_features = slowly
        prepare(Path({str(folder)!r}), teacher(), MemoryDataset(frames=9), batch_size=2, workers=1)
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 60
    while len(times(folder)) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made, dataset = times(folder), MemoryDataset(frames=9)
    assert len(made) == 5
    summary = prepare(folder, teacher(), dataset)
    assert (summary.written, summary.kept) == (4, 5)
    assert {name: times(folder)[name] for name in made} == made
    reference = tmp_path / "reference"
    prepare(reference, teacher(), dataset)
    assert {path.name for path in folder.iterdir()} == {path.name for path in reference.iterdir()}
    expected = stored(reference, dataset)
    for token, features in stored(folder, dataset).items():
        torch.testing.assert_close(features, expected[token], rtol=2**-9, atol=1e-4)


def test_nothing_half_written_under_a_final_name(
    encoder: ImageEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_space(*_: object) -> None:
        raise OSError("no space left on device")

    settings = settings_of(encoder, *SIZE)
    monkeypatch.setattr(Path, "replace", out_of_space)
    with pytest.raises(OSError, match="space"):
        save_features(tmp_path / "a.safetensors", torch.zeros(settings.shape), settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"height": 32}, "height"),
        ({"antialias": True}, "antialias"),
        ({"dtype": "float32"}, "dtype"),
        ({"arguments": {"final_norm": True}}, "encoder"),
        ({"encoder": 1}, "weights"),
    ],
)
def test_other_settings_need_another_folder(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    options = {"arguments": {"final_norm": False, "weights": "a"}, "antialias": False}
    options |= {"height": SIZE[0], "width": SIZE[1], "progress": False, "encoder": 0}

    def run(**options: Any) -> room.Summary:
        encoder = teacher(options.pop("encoder"))
        return prepare_image_features(
            MemoryDataset(frames=1), "train", tmp_path, encoder=encoder, **options
        )

    run(**options)
    assert run(**options | {"arguments": {"final_norm": False, "weights": "b"}}).kept == 1
    with pytest.raises(ConfigError, match="made with other settings") as caught:
        run(**options | change)
    assert named in str(caught.value.field)
    assert run(**options | change | {"overwrite": True}).written == 1
    with pytest.raises(ConfigError, match="made with other settings"):
        run(**options)


def test_weights_are_known_by_what_they_are() -> None:
    assert fingerprint(teacher(0)) == fingerprint(teacher(0))
    changed = teacher(0)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    known = {fingerprint(one) for one in (teacher(0), teacher(1), changed)}
    assert len(known | {fingerprint(teacher(0, final_norm=False))}) == 4


def test_settings_tell_what_was_run(encoder: ImageEncoder, tmp_path: Path) -> None:
    arguments = {"architecture": "dinov3_vits16", "frozen": True, "weights": "file"}
    prepare(tmp_path, encoder, arguments=arguments)
    content = json.loads((tmp_path / "image_features.json").read_text())
    assert content["encoder"] == {"class": "ViT", "architecture": "dinov3_vits16"}
    assert (content["channels"], content["rows"], content["columns"]) == (16, 3, 5)
    assert (content["height"], content["width"], content["stride"]) == (24, 40, 8)
    assert content["dtype"] == "float16"
    assert (
        read_settings(tmp_path).digest
        == settings_of(encoder, *SIZE, {"architecture": "dinov3_vits16"}, antialias=False).digest
    )


class Loud(ImageEncoder):
    """Features beyond the range of float16 wherever an image is bright."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.out_channels, self.stride, self.frozen = channels, 8, True

    def forward(self, images: Tensor) -> Tensor:
        means = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8)
        return (means * 1e6).repeat(1, 2, 1, 1)


def test_features_beyond_the_range_are_refused_or_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float16") as caught:
        prepare(tmp_path, Loud())
    assert "float32" in str(caught.value.remedy)
    assert not times(tmp_path)
    assert len(prepare(tmp_path, Loud(), on_error="skip").failures) == 3
    assert prepare(tmp_path / "wide", Loud(), dtype="float32").written == 3


def test_an_encoder_that_breaks_its_promise_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Loud makes maps"):
        prepare(tmp_path, Loud(channels=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_frames_raise_or_are_counted(
    encoder: ImageEncoder, tmp_path: Path, workers: int
) -> None:
    dataset = MemoryDataset(frames=4, bad=(1, 2))
    with pytest.raises(DataError, match=r"0001\.bin"):
        prepare(tmp_path, encoder, dataset, workers=workers)
    summary = prepare(tmp_path, encoder, dataset, workers=workers, on_error="skip")
    assert len(summary.failures) == 2
    assert summary.written + summary.kept == 2
    assert "0001.bin" in str(summary)


def test_estimate_comes_before_the_work(
    encoder: ImageEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, encoder, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 images, 0 there already" in captured.err
    assert captured.err.index("GiB are free") < captured.err.index("frame")


class Blind(MemoryDataset):
    def provides(self, split: str) -> Field:
        return Field.SEMANTIC

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        raise AssertionError("nothing should be loaded")


def test_requests_that_make_no_sense(encoder: ImageEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images"):
        prepare(tmp_path, encoder, Blind())
    for bad in (
        {"shard": (1, 1)}, {"on_error": "ignore"}, {"batch_size": 0}, {"dtype": "bfloat16"},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="|".join(["shard", "ignore", "batches", "bfloat"])):
            prepare(tmp_path, encoder, **bad)
    with pytest.raises(ConfigError, match="height"):
        prepare_image_features(MemoryDataset(), "train", tmp_path, encoder, 0, 8)
    assert not list(tmp_path.iterdir())


def test_more_shards_than_frames(encoder: ImageEncoder, tmp_path: Path) -> None:
    summary = prepare(tmp_path, encoder, MemoryDataset(frames=1), shard=(3, 4), workers=2)
    assert (summary.frames, summary.written) == (0, 0)


def test_files_are_read_by_their_settings(encoder: ImageEncoder, tmp_path: Path) -> None:
    settings = settings_of(encoder, *SIZE)
    features = torch.randn(settings.shape).half()
    save_features(tmp_path / "a.safetensors", features, settings)
    assert torch.equal(read_features(tmp_path / "a.safetensors", settings), features)
