"""ScaLR: what the student sees, what it is compared with, and the memory that this takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.batching import collate
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Frame
from lidarssl.geometry.projection import project
from lidarssl.images.base import ImageEncoder
from lidarssl.images.unet import SmallUNet
from lidarssl.methods.scalr import Scalr, ViewAugmentation
from lidarssl.transforms.base import Compose, sample_generator
from methods.small import backbone, batch_of, encoder, waffleiron
from toys import MemoryDataset

SIZE = (32, 48)


class Painted(ImageEncoder):
    """A frozen teacher whose map tells cells apart; it counts its calls."""

    stride, frozen = 4, True

    def __init__(self, out_channels: int = 6) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        shape = (len(images), self.out_channels, images.shape[2] // 4, images.shape[3] // 4)
        return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def scalr(
    teacher: ImageEncoder | None = None, hidden: int | None = None, backbone: Any = None,
    mean_over: Any = "global", **view: Any,
) -> Scalr:  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        augmentation = ViewAugmentation(**{"image_size": SIZE} | view)
        return Scalr(
            backbone or waffleiron(), teacher or Painted(), hidden, augmentation, mean_over
        )


def frames(method: Scalr, count: int = 3, training: bool = True, **options: Any) -> list[Frame]:
    dataset = MemoryDataset(count, cameras=2, **options)
    transform = Compose(method.transforms(training))
    return [
        transform(dataset.load(frame, method.needs), sample_generator(0, 0, number))
        for number, frame in enumerate(dataset.frames("train"))
    ]


def step(method: Scalr, batch: Batch) -> Any:
    return method.training_step(batch, torch.Generator().manual_seed(0))


def whole_maps(method: Scalr, batch: Batch) -> Tensor:
    """The teacher's map enlarged as a whole, as the published code has it, at the matches."""
    assert batch.images is not None
    assert batch.matches is not None
    maps = method.image_encoder(batch.images).double()
    large = F.interpolate(maps, batch.images.shape[2:], mode="bilinear", align_corners=True)
    pairs = batch.matches
    return large[pairs.image, :, pairs.row, pairs.col]


@pytest.mark.parametrize("cameras", ["one", "all"])
def test_pixels_are_those_of_the_enlarged_map(cameras: str) -> None:
    method = scalr(cameras=cameras)
    batch = batch_of(method, frames(method))
    assert batch.matches is not None
    _, pixels = method.features_of_pairs(batch, batch.matches)
    torch.testing.assert_close(pixels.double(), whole_maps(method, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [None, 9])
def test_loss_is_the_mean_over_all_pairs(hidden: int | None) -> None:
    """By plain loops over the pairs: features of the student at points, unit vectors, norms."""
    method = scalr(hidden=hidden).eval()
    batch = batch_of(method, frames(method))
    assert batch.matches is not None
    with torch.no_grad():
        output = step(method, batch)
        features = method.head(method.backbone(batch.points).at_points()).double()
    distances = []
    for point, pixel in zip(batch.matches.point.tolist(), whole_maps(method, batch), strict=True):
        student, teacher = features[point], pixel
        cosine = float(student @ teacher / (student.norm() * teacher.norm()))
        distances.append((2 - 2 * cosine) ** 0.5)
    assert float(output.loss) == pytest.approx(np.mean(distances), rel=1e-5)
    assert output.terms["matches"] == len(distances)


def test_linear_head_and_perceptron() -> None:
    linear, deep = scalr(), scalr(hidden=9)
    assert [type(module) for module in linear.head] == [nn.Linear]
    assert [type(module) for module in deep.head] == [nn.Linear, nn.ReLU, nn.Linear]
    shapes = [tuple(p.shape) for p in deep.head.parameters()]
    assert shapes == [(9, 32), (9,), (6, 9), (6,)]
    assert linear.student is linear.backbone


def test_the_student_sees_visible_points_alone() -> None:
    for frame in frames(scalr(), points=400):
        assert frame.matches is not None
        assert len(frame.cameras) == 1
        assert 0 < len(frame) < 400
        assert sorted(frame.matches.point.tolist()) == [*range(len(frame))]
        (camera,) = frame.cameras
        assert camera.image is not None
        assert camera.image.shape == (3, *SIZE)
    for frame in frames(scalr(only_visible=False), points=400):
        assert frame.matches is not None
        assert len({*frame.matches.point.tolist()}) < len(frame)


@pytest.mark.parametrize("training", [True, False])
def test_pairs_stay_right_through_all_motions(training: bool) -> None:
    """Of the raw scan: the pixel below each projection, and the pixel below its new place."""
    method = scalr(cameras="all")
    dataset = MemoryDataset(3, cameras=2)
    for frame in frames(method, training=training):
        raw = dataset.load(frame.id)
        row_of = {value: row for row, value in enumerate(raw.intensity.tolist())}
        assert frame.matches is not None
        assert {*frame.matches.image.tolist()} == {0, 1}
        origin = torch.tensor([row_of[value] for value in frame.intensity.tolist()])
        for number, camera in enumerate(raw.cameras):
            mine = frame.matches[frame.matches.image == number]
            points = raw.points[origin[mine.point]]
            u, v = project(points, camera.camera_from_lidar, camera.intrinsics).uv.unbind(1)
            assert torch.equal(mine.row, v.floor().long() * SIZE[0] // 48)
            assert torch.equal(mine.col, u.floor().long() * SIZE[1] // 64)


def test_motions_are_for_training_and_by_name() -> None:
    def names(training: bool, **view: Any) -> list[str]:
        return [type(step).__name__ for step in scalr(**view).transforms(training)]

    assert names(True) == [
        "Thin", "MatchPixels", "OneCamera", "KeepMatched", "KeepNearest", "RotateZ",
        "FlipOne", "ScalePoints", "ResizeWhole", "CropBox",
    ]  # fmt: skip
    motions = {"RotateZ", "FlipOne", "ScalePoints"}
    assert [name for name in names(True) if name not in motions] == names(False)
    still = names(True, rotate=False, flip=0.0, scale=None, cameras="all", only_visible=False)
    assert not {*still} & (motions | {"OneCamera", "KeepMatched"})


def test_points_are_thinned_as_the_student_would_and_once() -> None:
    method = scalr(backbone=waffleiron(voxel_size=1.0))
    for frame in frames(method, points=400):
        assert frame.thinned_to == 1.0
        batch = batch_of(method, [frame])
        assert method.backbone(batch.points).features.shape[0] == len(frame)
    unlimited = scalr(backbone=backbone())
    names = {type(step).__name__ for step in unlimited.transforms(True)}
    assert not names & {"Thin", "CropBox"}


def test_no_more_points_than_asked_for() -> None:
    sizes = [len(frame) for frame in frames(scalr(max_points=40), points=400)]
    assert sizes == [40, 40, 40]


def mixed(method: Scalr) -> Batch:
    """Four frames of three datasets, one of which has no pair."""
    some = frames(method, 4)
    for number, name in enumerate(("road", "city", "road", "field")):
        some[number] = replace(some[number], id=replace(some[number].id, dataset=name))
    assert some[3].matches is not None
    some[3].matches = some[3].matches[torch.zeros(0, dtype=torch.int64)]
    return batch_of(method, some)


def test_terms_of_every_dataset_of_a_mixed_batch() -> None:
    method = scalr().eval()
    batch = mixed(method)
    assert batch.matches is not None
    output = step(method, batch)
    loss = float(output.loss.detach())
    assert output.terms.keys() == {
        "matches", "distance_road", "distance_city", "distance_field",
    }  # fmt: skip
    frame = batch.points.batch[batch.matches.point]
    counts = torch.bincount(frame, minlength=4)
    road, city = float(output.terms["distance_road"]), float(output.terms["distance_city"])
    total = float(road * (counts[0] + counts[2]) + city * counts[1])
    assert loss == pytest.approx(total / int(counts.sum()), rel=1e-5)
    assert output.terms["distance_field"] == 0
    assert batch.images is not None
    alone = collate(frames(method, 4)[1:2])
    alone.image_features = method.image_encoder(batch.images)[1:2]
    assert float(step(method, alone).loss.detach()) == pytest.approx(city, rel=1e-4)
    assert step(method, alone).terms.keys() == {"matches"}


class Largest(TorchDispatchMode):
    """Numbers of elements of the tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        storages = [
            leaf.untyped_storage() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)
        ]
        sizes = [storage.nbytes() // 4 for storage in storages]
        self.elements = max([self.elements, *sizes])
        return made


def largest_of_the_loss(size: tuple[int, int]) -> tuple[int, int]:
    """Elements of the largest tensor of forward and backward, and of the enlarged map.

    Of one map whatever the image: the teacher is not what is counted.
    """
    method = scalr(Painted(512), image_size=size)
    batch = batch_of(method, frames(method, 2))
    assert batch.matches is not None
    batch.matches = batch.matches[torch.arange(20)]
    assert batch.images is not None
    batch.image_features = torch.randn(len(batch.images), 512, 8, 12)
    with Largest() as counted:
        step(method, batch).loss.backward()
    return counted.elements, len(batch.images) * 512 * size[0] * size[1]


def test_memory_of_the_loss_does_not_depend_on_the_size_of_images() -> None:
    small, small_map = largest_of_the_loss((32, 48))
    large, large_map = largest_of_the_loss((256, 384))
    assert large == small
    assert large_map == 64 * small_map
    assert large < large_map / 100


def test_stored_features_take_the_place_of_the_teacher() -> None:
    method = scalr().eval()
    batch = batch_of(method, frames(method))
    expected = step(method, batch).loss
    assert batch.images is not None
    batch.image_features = method.image_encoder(batch.images)
    assert isinstance(method.image_encoder, Painted)
    calls = method.image_encoder.calls
    assert torch.equal(step(method, batch).loss, expected)
    assert method.image_encoder.calls == calls


def test_half_precision_is_compared_in_float32() -> None:
    method = scalr(hidden=9)
    batch = batch_of(method, frames(method))
    with torch.autocast("cpu", torch.bfloat16):
        output = step(method, batch)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    exact = step(scalr(hidden=9), batch)
    assert float(output.loss.detach()) == pytest.approx(float(exact.loss.detach()), rel=0.02)


def test_local_mean_is_the_same_in_one_process() -> None:
    losses = []
    for mean_over in ("global", "local"):
        method = scalr(mean_over=mean_over).eval()
        losses.append(step(method, batch_of(method, frames(method))).loss)
    assert torch.equal(losses[0], losses[1])


def test_a_teacher_that_trains_is_refused() -> None:
    with pytest.raises(ConfigError, match="not frozen") as caught:
        scalr(SmallUNet(out_channels=8, frozen=False))
    assert caught.value.field == "method.image_encoder.frozen"


def test_drop_path_is_for_the_student_in_training() -> None:
    """The method passes its mode on, and the encoder of the images stays as it is."""
    method = scalr(encoder(), backbone=waffleiron(drop_path=0.5)).train()
    assert isinstance(method.backbone, WaffleIron)
    batch = batch_of(method, frames(method))
    losses = set()
    for seed in range(6):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            losses.add(float(step(method, batch).loss))
    assert len(losses) > 3
    method.eval()
    with torch.no_grad():
        assert len({float(step(method, batch).loss) for _ in range(3)}) == 1
