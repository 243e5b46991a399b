from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.unet import SmallUNet, SmallUNetShape, read_shape


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def trained(images: torch.Tensor) -> SmallUNet:
    torch.manual_seed(0)
    network = SmallUNet(num_classes=13, frozen=False)
    network.logits(images)  # moves the batch norm statistics off their start
    return network


def test_size_is_that_of_a_laptop() -> None:
    count = sum(parameter.numel() for parameter in SmallUNet(num_classes=13).parameters())
    assert 0.92e6 < count < 0.97e6


def test_logits_classify_the_raw_features(trained: SmallUNet, images: torch.Tensor) -> None:
    trained.eval()
    logits = trained.logits(images)
    assert logits.shape == (2, 13, 16, 24)
    assert trained.classifier is not None
    by_hand = torch.einsum(
        "kc,ichw->ikhw", trained.classifier.weight[:, :, 0, 0], trained(images).relu()
    )
    by_hand = by_hand + trained.classifier.bias.view(-1, 1, 1)
    torch.testing.assert_close(logits, by_hand, rtol=1e-4, atol=1e-4)
    trained.fit_feature_statistics([images])
    torch.testing.assert_close(trained.logits(images), logits)


def test_it_learns_a_colour(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = SmallUNet(num_classes=2, frozen=False)
    labels = (images[:, 0, ::2, ::2] > images[:, 1, ::2, ::2]).long()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(network.logits(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_features_are_standardised_over_all_batches(
    trained: SmallUNet, images: torch.Tensor
) -> None:
    trained.train()
    trained.fit_feature_statistics([images[:1], images[1:]])
    assert trained.training
    trained.freeze()
    channels = trained(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(64), rtol=0, atol=1e-4)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(64), rtol=1e-3, atol=0)


def test_a_dead_channel_stays_at_zero(trained: SmallUNet, images: torch.Tensor) -> None:
    with torch.no_grad():
        trained.head[-1].weight[5] = 0
    trained.fit_feature_statistics([images])
    dead = trained.eval()(images)[:, 5]
    torch.testing.assert_close(dead, torch.zeros_like(dead), rtol=0, atol=1e-5)


def test_statistics_of_no_image_are_refused(trained: SmallUNet) -> None:
    with pytest.raises(DataError, match="no image"):
        trained.fit_feature_statistics([])


def test_saved_and_loaded_is_the_same_encoder(
    trained: SmallUNet, images: torch.Tensor, tmp_path: Path
) -> None:
    trained.fit_feature_statistics([images])
    trained.to(memory_format=torch.channels_last).freeze()
    path = tmp_path / "teacher.safetensors"
    trained.save(path)
    again = SmallUNet(num_classes=13, weights=path)
    torch.testing.assert_close(again(images), trained(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again.logits(images), trained.logits(images), rtol=1e-4, atol=1e-4)
    without_classifier = SmallUNet(weights=path)
    assert torch.equal(without_classifier(images), again(images))
    with pytest.raises(ConfigError, match="num_classes"):
        without_classifier.logits(images)


@pytest.mark.parametrize("asked", [{"num_classes": 12}, {"out_channels": 32}])
def test_another_architecture_is_refused(
    trained: SmallUNet, tmp_path: Path, asked: dict[str, int]
) -> None:
    trained.save(tmp_path / "teacher.safetensors")
    with pytest.raises(ConfigError, match=r"teacher\.safetensors") as caught:
        SmallUNet(weights=tmp_path / "teacher.safetensors", **asked)
    assert f"{next(iter(asked))}={next(iter(asked.values()))}" in str(caught.value)


@pytest.mark.parametrize(
    "header", [None, {}, {"lidarssl.SmallUNet": "["}, {"lidarssl.SmallUNet": '{"out_channels": 1}'}]
)
def test_files_of_others_are_refused(
    trained: SmallUNet, tmp_path: Path, header: dict[str, str] | None
) -> None:
    trained.save(tmp_path / "ours.safetensors")
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "theirs.safetensors", header)
    with pytest.raises(DataError, match="not written by SmallUNet"):
        SmallUNet(weights=tmp_path / "theirs.safetensors")


def test_a_file_that_lost_a_tensor_names_it(trained: SmallUNet, tmp_path: Path) -> None:
    header = {"lidarssl.SmallUNet": '{"out_channels": 64, "num_classes": 13}'}
    state = {k: v.contiguous() for k, v in trained.state_dict().items() if k != "head.0.weight"}
    save_file(state, tmp_path / "short.safetensors", header)
    with pytest.raises(DataError, match=r"1 missing: head\.0\.weight"):
        SmallUNet(weights=tmp_path / "short.safetensors")


def test_names_of_the_classes_travel_with_the_weights(trained: SmallUNet, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    trained.save(path)
    assert read_shape(path) == SmallUNetShape(64, 13)
    trained.classes = tuple(f"class {k}" for k in range(13))
    trained.save(path)
    assert read_shape(path).classes == trained.classes
    again = SmallUNet(num_classes=13, weights=path)
    assert again.classes == trained.classes
    assert SmallUNet(weights=path).classes == ()  # without a classifier
    again.save(path)
    assert read_shape(path).classes == trained.classes
    # Files that were written before there were names.
    save_file(load_file(path), path, {"lidarssl.SmallUNet": OLD})
    assert read_shape(path) == SmallUNetShape(64, 13)
    assert SmallUNet(num_classes=13, weights=path).classes == ()


OLD = '{"out_channels": 64, "num_classes": 13}'


@pytest.mark.parametrize("names", ['["a"]', '"abc"', "[1, 2, 3]", "5"])
def test_names_of_other_classes_are_refused(trained: SmallUNet, tmp_path: Path, names: str) -> None:
    header = {"lidarssl.SmallUNet": f'{{"out_channels": 64, "num_classes": 3, "classes": {names}}}'}
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", header)
    with pytest.raises(DataError, match="not written by SmallUNet"):
        read_shape(tmp_path / "a.safetensors")


def test_labels_are_the_best_class_but_the_ignored(
    trained: SmallUNet, images: torch.Tensor
) -> None:
    trained.eval()
    with torch.no_grad():
        trained.classifier.bias[0] = 100.0  # would always win
        logits = trained.logits(images)
    full = torch.nn.functional.interpolate(logits, (32, 48), mode="bilinear")[:, 1:]
    assert torch.equal(trained.labels(images), full.argmax(1) + 1)
    probability = full.softmax(1).amax(1)
    middle = float(probability.median())
    clear = (probability - middle).abs() > 1e-6
    labels = trained.labels(images, threshold=middle)
    assert torch.equal((labels == 0)[clear], (probability < middle)[clear])
    assert 0.3 < float((labels == 0).float().mean()) < 0.7
