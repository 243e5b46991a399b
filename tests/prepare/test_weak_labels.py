"""The offline pass: complete, resumable after a kill, indifferent to workers and shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dataset_files import write_nuscenes
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.images.unet import SmallUNet
from lidarssl.prepare.camseg import import_camseg
from lidarssl.prepare.labellers.base import Labeller
from lidarssl.prepare.labellers.small_unet import SmallUNetLabeller
from lidarssl.prepare.passes import Summary, in_batches
from lidarssl.prepare.previews import class_colours
from lidarssl.prepare.weak_labels import prepare_weak_labels
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.weak_labels import WeakLabels, class_order, read_settings
from toys import MemoryDataset

CAMERAS = ("CAM_FRONT", "CAM_BACK")
RNG = np.random.default_rng(0)


class Brightness(Labeller):
    """Dark, medium and bright pixels, the darkest of all unpainted; fails after ``survives``."""

    def __init__(self, survives: int = 10**6, **arguments: Any) -> None:
        super().__init__(("dark", "medium", "bright"), arguments)
        self.survives, self.seen = survives, list[tuple[int, int, int]]()

    def label(self, images: Sequence[Tensor]) -> list[Tensor]:
        if len(self.seen) + len(images) > self.survives:
            raise KeyboardInterrupt
        self.seen += [(*image.shape[-2:], int(image.long().sum())) for image in images]
        return [self.of(image) for image in images]

    @staticmethod
    def of(image: Tensor) -> Tensor:
        mean = image.float().mean(0)
        return sum((mean > edge).long() for edge in (20, 80, 130))


def prepare(
    folder: Path,
    labeller: Labeller | None = None,
    dataset: MemoryDataset | None = None,
    **options: Any,
) -> Summary:
    options = {"progress": False, "preview_every": 0} | options
    dataset = dataset or MemoryDataset(frames=5)
    return prepare_weak_labels(dataset, "train", folder, labeller or Brightness(), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def test_every_image_gets_the_labels_of_its_pixels(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=3, cameras=2)
    summary = prepare(tmp_path, dataset=dataset, batch_size=4)
    assert (summary.frames, summary.written, summary.kept) == (3, 6, 0)
    assert "6 images labelled, 0 kept" in str(summary)
    transform = WeakLabels(tmp_path)
    assert transform.classes == ("dark", "medium", "bright")
    seen = set[int]()
    for frame_id in dataset.frames("train"):
        frame = transform(MatchPixels()(dataset.load(frame_id), RNG), RNG)
        matches = frame.matches
        assert matches is not None
        assert matches.label is not None
        for number, camera in enumerate(frame.cameras):
            mine, expected = matches[matches.image == number], Brightness.of(camera.image)
            assert mine.label.tolist() == expected[mine.row, mine.col].tolist()
            seen |= set(mine.label.tolist())
    assert seen >= {1, 2, 3}
    content = json.loads((tmp_path / "weak_labels.json").read_text())
    assert content["classes"] == ["dark", "medium", "bright"]
    assert content["ignored"] == 255
    assert content["labeller"]["class"] == "Brightness"


def test_workers_and_shards_change_nothing(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=5, cameras=2)
    alone, together = tmp_path / "alone", tmp_path / "together"
    prepare(alone, dataset=dataset)
    labellers = [Brightness() for _ in range(3)]
    counts = [
        prepare(together, labellers[i], dataset, workers=2, shard=(i, 3)).written for i in range(3)
    ]
    assert counts == [4, 4, 2]
    assert contents(alone) == contents(together)
    assert len(contents(alone)) == 11
    assert len({image for labeller in labellers for image in labeller.seen}) == 10


def test_a_killed_run_loses_and_repeats_nothing(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=5, cameras=2)
    killed, after = Brightness(survives=7), Brightness()
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, killed, dataset, batch_size=3)
    made = times(tmp_path)
    assert len(made) == len(killed.seen) == 6
    summary = prepare(tmp_path, after, dataset, batch_size=3)
    assert (summary.written, summary.kept) == (4, 6)
    assert {name: times(tmp_path)[name] for name in made} == made
    assert len(set(killed.seen + after.seen)) == len(killed.seen + after.seen) == 10
    third = Brightness()
    assert prepare(tmp_path, third, dataset).kept == 10
    assert third.seen == []
    prepare(tmp_path / "reference", dataset=dataset)
    reference = contents(tmp_path / "reference")
    assert contents(tmp_path) == reference


def test_whole_files_are_kept_and_others_replaced(tmp_path: Path) -> None:
    prepare(tmp_path)
    whole, before = contents(tmp_path), times(tmp_path)
    truncated, missing, small = (tmp_path / f"front_000{i}.png" for i in (1, 2, 4))
    truncated.write_bytes(truncated.read_bytes()[:60])
    missing.unlink()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(small)
    again = prepare(tmp_path)
    assert (again.written, again.kept) == (3, 2)
    assert contents(tmp_path) == whole
    untouched = {f"front_000{i}.png" for i in (0, 3)}
    assert {name for name, at in times(tmp_path).items() if before[name] == at} == untouched
    assert prepare(tmp_path, overwrite=True).written == 5


def test_another_labeller_needs_another_folder(tmp_path: Path) -> None:
    prepare(tmp_path)
    whole = contents(tmp_path)
    with pytest.raises(ConfigError, match="made with other settings") as caught:
        prepare(tmp_path, Brightness(edge=3))
    assert caught.value.field == "labeller.arguments"
    assert contents(tmp_path) == whole
    # What a killed --overwrite leaves of the first labeller is not taken for the second's.
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, Brightness(survives=2, edge=3), batch_size=2, overwrite=True)
    summary = prepare(tmp_path, Brightness(edge=3))
    assert (summary.written, summary.kept) == (3, 2)


class Sizes(MemoryDataset):
    """Every other image is half as large."""

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        loaded = super().load(frame, fields)
        step = 1 + int(frame.token) % 2
        cameras = (
            replace(camera, image=camera.image[:, ::step, ::step]) for camera in loaded.cameras
        )
        return replace(loaded, cameras=tuple(cameras))


def teacher(path: Path, classes: tuple[str, ...] = ("ignored", "x", "y", "z")) -> Path:
    torch.manual_seed(0)
    encoder = SmallUNet(num_classes=4)
    encoder.classes = classes
    encoder.save(path)
    return path


def test_images_of_different_sizes_in_one_batch(tmp_path: Path) -> None:
    labeller = SmallUNetLabeller(teacher(tmp_path / "teacher.safetensors"))
    assert labeller.classes == ("x", "y", "z")
    dataset = Sizes(frames=4)
    prepare(tmp_path / "weak", labeller, dataset, batch_size=4)
    encoder = SmallUNet(num_classes=4, weights=tmp_path / "teacher.safetensors").eval()
    for frame_id in dataset.frames("train"):
        (camera,) = dataset.load(frame_id, Field.IMAGES).cameras
        assert camera.image is not None
        with torch.no_grad():
            logits = encoder.logits(camera.image[None].float() / 255)
        size = camera.image.shape[-2:]
        full = torch.nn.functional.interpolate(logits, size, mode="bilinear")[0]
        expected = full[1:].argmax(0).numpy()
        found = np.asarray(Image.open(tmp_path / "weak" / f"{camera.token}.png"))
        assert found.shape == tuple(size)
        assert (found == expected).mean() > 0.999  # a batch rounds otherwise


def test_unsure_pixels_stay_unpainted(tmp_path: Path) -> None:
    path = teacher(tmp_path / "teacher.safetensors", ())
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    encoder = SmallUNet(num_classes=4, weights=path).eval()
    with torch.no_grad():
        logits = encoder.logits(image[None].float() / 255)
    full = torch.nn.functional.interpolate(logits, (32, 48), mode="bilinear")[0, 1:]
    probability, best = full.softmax(0).max(0)
    middle = float(probability.median())
    labeller = SmallUNetLabeller(path, threshold=middle)
    (labels,) = labeller.label([image])
    clear = (probability - middle).abs() > 1e-5
    expected = torch.where(probability >= middle, best + 1, 0)
    assert torch.equal(labels[clear], expected[clear])
    assert 0.3 < float((labels == 0).float().mean()) < 0.7
    assert labeller.classes == ("class_1", "class_2", "class_3")
    assert SmallUNetLabeller(path).label([image])[0].min() >= 1
    assert SmallUNetLabeller(path).description() != labeller.description()


def test_teachers_that_cannot_label(tmp_path: Path) -> None:
    path = teacher(tmp_path / "teacher.safetensors")
    with pytest.raises(ConfigError, match="2 names for 3 classes"):
        SmallUNetLabeller(path, ["a", "b"])
    assert SmallUNetLabeller(path, ["a", "b", "c"]).classes == ("a", "b", "c")
    with pytest.raises(ConfigError, match="no probability"):
        SmallUNetLabeller(path, threshold=1.5)
    SmallUNet().save(tmp_path / "plain.safetensors")
    with pytest.raises(ConfigError, match="no classifier"):
        SmallUNetLabeller(tmp_path / "plain.safetensors")


class Broken(Brightness):
    """Labels of another size, or beyond its classes."""

    def label(self, images: Sequence[Tensor]) -> list[Tensor]:
        if "size" in self.arguments:
            return [torch.ones(3, 3, dtype=torch.int64) for _ in images]
        return [torch.full(image.shape[-2:], 4) for image in images]


@pytest.mark.parametrize("wrong", ["size", "value"])
def test_a_labeller_that_breaks_its_contract_is_named(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Broken made labels"):
        prepare(tmp_path, Broken(**{wrong: True}))
    assert not times(tmp_path)


def test_previews(tmp_path: Path) -> None:
    prepare(tmp_path, preview_every=2)
    previews = sorted((tmp_path / "previews").iterdir())
    assert [path.name for path in previews] == [f"front_000{i}.png" for i in (0, 2, 4)]
    picture = np.asarray(Image.open(previews[0]).convert("RGB")).reshape(-1, 3).astype(int)
    for colour in class_colours(3)[1:]:  # those of the legend
        far = np.abs(picture - 255 * np.array(colour)).max(1)
        assert (far <= 1).sum() > 50
    assert prepare(tmp_path, preview_every=2).written == 0
    assert not (tmp_path / "no" / "previews").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_frames_raise_or_are_counted(tmp_path: Path, workers: int) -> None:
    dataset = MemoryDataset(frames=4, bad=(1, 2))
    with pytest.raises(DataError, match=r"0001\.bin"):
        prepare(tmp_path, dataset=dataset, workers=workers)
    summary = prepare(tmp_path, dataset=dataset, workers=workers, on_error="skip")
    assert (len(summary.failures), summary.written + summary.kept) == (2, 2)
    assert "0001.bin" in str(summary)


def test_estimates_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.index("5 images, 0 there already") < captured.err.index("s an image")


class Blind(MemoryDataset):
    def provides(self, split: str) -> Field:
        return Field.SEMANTIC


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images"):
        prepare(tmp_path, dataset=Blind())
    for bad in ({"shard": (1, 1)}, {"on_error": "ignore"}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match=r"shard|ignore|batches"):
            prepare(tmp_path, **bad)
    assert not list(tmp_path.iterdir())
    assert prepare(tmp_path, dataset=MemoryDataset(frames=1), shard=(3, 4)).frames == 0


def test_batches() -> None:
    assert list(in_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_batches([], 3)) == []


@pytest.fixture
def nuscenes(tmp_path: Path) -> NuScenes:
    return NuScenes(write_nuscenes(tmp_path / "nuscenes"), cameras=CAMERAS)


def write_camseg(dataset: NuScenes, folder: Path) -> dict[str, np.ndarray]:
    """An archive in the layout of OLIVINE's, with random labels; they return by camera token."""
    rng, values = np.random.default_rng(0), {}
    for frame in dataset.frames("mini_train"):
        readings = dataset.index.key_frames[frame.token].readings
        for camera in dataset.load(frame, Field.IMAGES).cameras:
            name = readings[camera.name].filename.replace("samples/", "").replace("jpg", "png")
            assert camera.image is not None
            values[camera.token] = rng.integers(0, 17, camera.image.shape[-2:]).astype(np.uint8)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[camera.token]).save(folder / name)
    return values


def camseg(dataset: Any, folder: Path, classes: str = "seem", **options: Any) -> Summary:
    archive = folder / "camseg"
    return import_camseg(
        dataset, "mini_train", folder / "weak", archive, classes, progress=False, **options
    )


def test_camseg_is_imported(nuscenes: NuScenes, tmp_path: Path) -> None:
    values = write_camseg(nuscenes, tmp_path / "camseg")
    counts = [camseg(nuscenes, tmp_path, workers=i, shard=(i, 2)).written for i in range(2)]
    assert sum(counts) == len(values) == 10
    assert "0 images imported, 10 kept" in str(camseg(nuscenes, tmp_path))
    assert read_settings(tmp_path / "weak" / "weak_labels.json") == class_order("seem")
    for token, expected in values.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "weak" / f"{token}.png")), expected)
    frame = MatchPixels()(nuscenes.load(nuscenes.frames("mini_train")[1], Field.IMAGES), RNG)
    found = WeakLabels(tmp_path / "weak")(frame, RNG).matches
    assert found is not None
    assert found.label is not None
    tokens = [frame.cameras[image].token for image in found.image.tolist()]
    pixels = zip(tokens, found.row.tolist(), found.col.tolist(), strict=True)
    assert found.label.tolist() == [1 + values[token][row, col] for token, row, col in pixels]
    assert len(found) > 10
    with pytest.raises(ConfigError, match="made with other settings: classes"):
        camseg(nuscenes, tmp_path, "grounded_sam")


def test_camseg_that_cannot_be_imported(nuscenes: NuScenes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        camseg(nuscenes, tmp_path)
    write_camseg(nuscenes, tmp_path / "camseg")
    with pytest.raises(ConfigError, match="labels of nuScenes, not of memory"):
        camseg(MemoryDataset(), tmp_path)
    with pytest.raises(ConfigError, match="seem"):
        camseg(nuscenes, tmp_path, "sem")
    assert not (tmp_path / "weak").exists()
    with pytest.raises(DataError, match="none of the 14 classes") as caught:
        camseg(nuscenes, tmp_path, "grounded_sam")
    assert caught.value.path == tmp_path / "camseg" / "CAM_FRONT" / "0.png"
    half = NuScenes(nuscenes.root, cameras=CAMERAS, image_scale=0.5)
    with pytest.raises(DataError, match="expected single-channel 8-bit"):
        camseg(half, tmp_path, overwrite=True)
    (tmp_path / "camseg" / "CAM_BACK" / "1.png").unlink()
    with pytest.raises(DataError, match=r"CAM_BACK/1\.png"):
        camseg(nuscenes, tmp_path, overwrite=True)
    summary = camseg(nuscenes, tmp_path, on_error="skip")
    assert (len(summary.failures), summary.written + summary.kept) == (1, 9)
