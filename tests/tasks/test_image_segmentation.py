"""Image segmentation: any encoder, frozen parts stay frozen, every frame has its own counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl import checkpoints
from lidarssl.batching import collate
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, Camera, Frame, FrameId
from lidarssl.images.base import ImageEncoder
from lidarssl.images.frozen import FreezableEncoder
from lidarssl.images.mask_transformer import LinearPixelHead, MaskTransformerShape
from lidarssl.images.resnet import ResNet
from lidarssl.images.unet import SmallUNet
from lidarssl.images.vit import ViT, ViTArchitecture
from lidarssl.metrics.segmentation import iou_report
from lidarssl.tasks.image_augmentation import ImageAugmentation
from lidarssl.tasks.image_segmentation import ImageSegmentation, enlarge, evaluate_images
from lidarssl.tasks.sliding_window import SlidingWindow
from lidarssl.training.optimizer import Optimizer, parameter_groups
from lidarssl.transforms.base import Compose

CPU = torch.device("cpu")
TINY = MaskTransformerShape(layers=2, heads=2, width=16)
WHOLE = SlidingWindow(None)


class Cells(FreezableEncoder):
    """Mean colour of cells of 4 pixels, through a layer and a batch norm."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__(6, 4, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
        self.layer, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        if frozen:
            self.freeze()

    def features(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % 4, 0, -height % 4))
        return self.norm(self.layer(F.avg_pool2d(padded, 4)))


ENCODERS: dict[str, Callable[..., ImageEncoder]] = {
    "cells": Cells,
    "vit": lambda frozen: ViT(
        ViTArchitecture("dino", 32, 8, width=12, depth=1, heads=2), frozen=frozen
    ),
    "resnet": lambda frozen: ResNet(18, frozen=frozen),
    "unet": lambda frozen: SmallUNet(8, frozen=frozen),
}


def make(encoder: str = "cells", seed: int = 0, frozen: bool = False, **options: Any) -> Any:
    torch.manual_seed(seed)
    if options.get("head", "segmenter") == "segmenter":
        options.setdefault("mask_transformer", TINY)
    return ImageSegmentation(ENCODERS[encoder](frozen=frozen), 4, **options)


def frame(number: int, size: tuple[int, int] = (24, 40), cameras: int = 1) -> Frame:
    """Images of coloured blocks, red, green or blue of class 1, 2, 3; the left edge is ignored."""
    rng = torch.Generator().manual_seed(number)
    found = []
    for name in range(cameras):
        blocks = torch.randint(1, 4, (-(-size[0] // 8), -(-size[1] // 8)), generator=rng)
        labels = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[: size[0], : size[1]]
        image = F.one_hot(labels - 1, 3).movedim(-1, 0) * 0.8
        image = image + 0.2 * torch.rand(image.shape, generator=rng)
        labels = labels.clone()
        labels[:, :3] = 0
        unknown = torch.full((3, 3), torch.nan, dtype=torch.float64)
        eye = torch.eye(4, dtype=torch.float64)
        found.append(Camera(f"cam{name}", f"{number}_{name}", image, unknown, eye, labels=labels))
    empty = torch.empty(0, 3), torch.empty(0)
    return Frame(FrameId("blocks", "0", f"{number}"), *empty, cameras=tuple(found))


@pytest.fixture
def batch() -> Batch:
    return collate([frame(number) for number in range(3)])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("head", ["segmenter", "linear"])
@pytest.mark.parametrize("size", [(32, 64), (27, 45)])
def test_every_encoder_scores_every_pixel(encoder: str, head: str, size: tuple[int, int]) -> None:
    task = make(encoder, head=head).eval()
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        logits, cells = task.logits(images), task.head(task.encoder(images))
    assert logits.shape == (2, 3, *size)
    if size == (32, 64):
        expected = F.interpolate(cells, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(logits, expected)
    predicted = task.predict(images)
    assert predicted.shape == (2, *size)
    assert predicted.dtype == torch.int64
    assert 1 <= int(predicted.min()) <= int(predicted.max()) <= 3


def test_cells_lie_where_their_pixels_are() -> None:
    """A score at the centre of a cell is that of the cell, also where the last is cut."""
    scores = torch.randn(1, 2, 3, 4)
    found = enlarge(scores, 5, (13, 18))
    assert found.shape == (1, 2, 13, 18)
    torch.testing.assert_close(found[..., 2::5, 2::5], scores)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_finetuning_reaches_every_parameter(encoder: str, batch: Batch) -> None:
    task = make(encoder).train()
    task.training_step(batch, torch.Generator()).loss.backward()
    assert all(p.grad is not None for p in task.parameters())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_frozen_encoder_keeps_weights_statistics_and_mode(
    encoder: str, frozen: bool, batch: Batch
) -> None:
    task = make(encoder, frozen=frozen, freeze=True).train()
    before = {key: value.clone() for key, value in task.encoder.state_dict().items()}
    task.training_step(batch, torch.Generator()).loss.backward()
    assert not any(module.training for module in task.encoder.modules())
    assert task.head.training
    assert all(torch.equal(before[k], v) for k, v in task.encoder.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in task.encoder.parameters())
    assert all(p.grad is not None for p in task.head.parameters())


def test_an_encoder_that_is_frozen_and_should_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="frozen") as caught:
        make(frozen=True)
    assert caught.value.field == "task.encoder.frozen"
    assert "task.freeze" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_classes": 2}, "task.num_classes"),
        ({"head": "mlp"}, "task.head"),
        ({"head": "linear", "mask_transformer": TINY}, "task.mask_transformer"),
        ({"mask_transformer": MaskTransformerShape(heads=5)}, "mask_transformer.heads"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageSegmentation(Cells(), **{"num_classes": 4, **options})
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize("head", ["segmenter", "linear"])
@pytest.mark.parametrize("average", ["labelled", "all"])
def test_loss_and_accuracy_by_loops(head: str, average: str, batch: Batch) -> None:
    task = make(head=head, average=average).eval()
    output = task.training_step(batch, torch.Generator())
    assert batch.images is not None
    assert batch.image_labels is not None
    logits = task.logits(batch.images).detach().double().numpy()
    total, right, labelled = 0.0, 0, 0
    for image, row, column in np.ndindex(*batch.image_labels.shape):
        label = int(batch.image_labels[image, row, column])
        if label:
            scores = logits[image, :, row, column]
            total += np.log(np.exp(scores).sum()) - scores[label - 1]
            right += int(scores.argmax() + 1 == label)
            labelled += 1
    count = labelled if average == "labelled" else batch.image_labels.numel()
    assert labelled < batch.image_labels.numel()
    assert float(output.loss.detach()) == pytest.approx(total / count, rel=1e-5)
    assert float(output.terms["accuracy"]) == pytest.approx(right / labelled)


def test_crops_without_labels_teach_nothing(batch: Batch) -> None:
    assert batch.image_labels is not None
    task = make().train()
    batch = replace(batch, image_labels=torch.zeros_like(batch.image_labels))
    output = task.training_step(batch, torch.Generator())
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    assert float(output.terms["accuracy"]) == 0
    assert all((p.grad == 0).all() for p in task.parameters())


@pytest.mark.parametrize("head", ["segmenter", "linear"])
@pytest.mark.parametrize("freeze", [False, True])
def test_training_on_crops_learns_whole_images(head: str, freeze: bool) -> None:
    augmentation = ImageAugmentation((16, 16), cat_max_ratio=0.9, hue=0)
    task = make(head=head, freeze=freeze, augmentation=augmentation).train()
    trained = [p for p in task.parameters() if p.requires_grad]
    rate = {"segmenter": 0.003, "linear": 0.02}[head]
    optimizer, rng = torch.optim.Adam(trained, rate), np.random.default_rng(0)
    transform = Compose(task.transforms(training=True))
    for step in range(80):
        some = [transform(frame(4 * step + i), rng) for i in range(4)]
        optimizer.zero_grad()
        task.training_step(collate(some), torch.Generator()).loss.backward()
        optimizer.step()
    assert task.transforms(training=False) == []
    task.inference = SlidingWindow((16, 16), (8, 8))
    whole = [collate([frame(-1 - number)]) for number in range(4)]
    matrices = evaluate_images(task, whole, CPU, progress=False)
    assert matrices[:, 1:].sum((1, 2)).tolist() == [24 * 37] * 4
    assert iou_report(matrices.sum(0)).miou > 0.9


def test_training_crops_have_one_size_and_the_colour_of_the_encoder() -> None:
    task = make(augmentation=ImageAugmentation((40, 40), (0.5, 0.5), brightness=0, contrast=None,
                                               saturation=None, hue=0))  # fmt: skip
    transform, rng = Compose(task.transforms(training=True)), np.random.default_rng(0)
    some = [transform(one, rng) for one in (frame(0), frame(1, (30, 90), cameras=2))]
    batch = collate(some)
    assert batch.images is not None
    assert batch.image_labels is not None
    assert batch.images.shape == (3, 3, 40, 40)
    assert (batch.images[0, :, 12:] == 0.5).all()
    assert (batch.image_labels[0, 12:] == 0).all()
    assert (batch.image_labels[0, :, 20:] == 0).all()
    assert (batch.image_labels[0, :12, :20] > 0).any()


def test_evaluation_has_one_matrix_per_frame() -> None:
    """Frames of one, two and no camera, against counting pixel by pixel."""
    task = make().eval()
    frames = [frame(0), frame(1, cameras=2), frame(2, cameras=0), frame(3)]
    batches = [collate(frames[:3]), collate(frames[3:])]
    found = evaluate_images(task, batches, CPU, total=2, progress=False)
    expected = torch.zeros(4, 4, 4, dtype=torch.int64)
    for number, one in enumerate(frames):
        for camera in one.cameras:
            assert camera.image is not None
            assert camera.labels is not None
            predicted = task.predict(camera.image[None])[0]
            for truth, label in zip(camera.labels.flatten(), predicted.flatten(), strict=True):
                expected[number, truth, label] += 1
    assert torch.equal(found, expected)
    assert found[2].sum() == 0


class Perfect(ImageSegmentation):
    """Sees the class in the colour."""

    def predict(self, images: Tensor) -> Tensor:
        return images.argmax(1) + 1


def test_perfect_predictions_have_100_percent_though_classes_are_absent() -> None:
    task = Perfect(Cells(), 20, mask_transformer=TINY)
    matrices = evaluate_images(task, [collate([frame(0)])], CPU, progress=False)
    report = iou_report(matrices.sum(0), "nan")
    assert report.miou == 1
    assert report.iou.isnan().sum() == 17


def test_prediction_slides_over_the_resized_image() -> None:
    """The same as the windows of the resized image by hand."""
    task = make(inference=SlidingWindow((24, 24), (24, 16), height=24)).eval()
    assert frame(0).cameras[0].image is not None
    image = frame(0, (48, 80)).cameras[0].image[None]  # type: ignore[index]
    small = F.interpolate(image, (24, 40), mode="bilinear", align_corners=False)
    with torch.no_grad():
        first, second = task.logits(small[..., :24]), task.logits(small[..., 16:])
    middle = (first[..., 16:] + second[..., :8]) / 2
    joined = torch.cat([first[..., :16], middle, second[..., 8:]], -1)
    scores = F.interpolate(joined, (48, 80), mode="bilinear", align_corners=False)
    assert torch.equal(task.predict(image), scores.argmax(1) + 1)


def test_rate_of_the_head() -> None:
    task = make()
    groups = parameter_groups(task, Optimizer(lr=0.1, head_lr=0.7))
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[p] for p in task.encoder.parameters()} == {0.1}
    assert {rates[p] for p in task.head.parameters()} == {0.7}


def test_round_trip(tmp_path: Path, batch: Batch) -> None:
    path = tmp_path / "task.safetensors"
    task = make().train()
    task.training_step(batch, torch.Generator())
    checkpoints.save(path, task, checkpoints.Card({"class_path": "Cells"}))
    again, images = make(seed=1), torch.rand(1, 3, 20, 20)
    checkpoints.load_into(again, checkpoints.load(path).state)
    assert torch.equal(again.eval().logits(images), task.eval().logits(images))
    with pytest.raises(ConfigError):
        checkpoints.load_into(make(head="linear"), checkpoints.load(path).state)


def test_linear_head_is_chosen() -> None:
    assert isinstance(make(head="linear").head, LinearPixelHead)
    assert WHOLE.window is None


def test_frames_that_cannot_be_used_are_named(batch: Batch) -> None:
    task = make()
    assert batch.image_labels is not None
    for field in ("images", "labels"):
        column = {"images": "images", "labels": "image_labels"}[field]
        with pytest.raises(DataError, match="blocks/0/0") as caught:
            task.training_step(replace(batch, **{column: None}), torch.Generator())
        assert caught.value.field == field
    beyond = replace(batch, image_labels=batch.image_labels + 1)
    with pytest.raises(DataError, match="class 4 of 4") as caught:
        task.training_step(beyond, torch.Generator())
    assert caught.value.field == "labels"
    with pytest.raises(DataError, match="label"):
        evaluate_images(task, [beyond], CPU, progress=False)
    with pytest.raises(DataError, match="no frame to evaluate"):
        evaluate_images(task, [], CPU, progress=False)


def step_of(part: slice) -> dict[str, Tensor]:
    """Loss, accuracy and gradients after one step on some of four frames, the last unlabelled."""
    frames = [frame(number) for number in range(4)]
    for camera in frames[3].cameras:
        assert camera.labels is not None
        camera.labels.zero_()
    task = make("vit", mask_transformer=replace(TINY, drop_path=0.0)).double().train()
    batch = collate(frames[part])
    assert batch.images is not None
    batch.images = batch.images.double()
    output = task.training_step(batch, torch.Generator())
    output.loss.backward()
    gradients = {f"grad {name}": p.grad for name, p in task.named_parameters()}
    return {"loss": output.loss.detach(), **output.terms, **gradients}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    torch.save(step_of(slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Each has the loss and accuracy of the whole; gradients are averaged, as DDP does."""
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key, value in step_of(slice(4)).items():
        if key.startswith("grad"):
            torch.testing.assert_close((first[key] + second[key]) / 2, value, msg=key)
        else:
            torch.testing.assert_close(first[key], value)
            torch.testing.assert_close(second[key], value)
