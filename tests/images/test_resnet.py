from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.resnet import ResNet, torchvision_key, transformers_key

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# 3x3 dilations of SLidR's ResNet-50, per stage and block.
DILATIONS_50 = ((1, 1, 1), (1, 2, 2, 2), (2, 4, 4, 4, 4, 4), (4, 8, 8))


def torchvision_state(encoder: ResNet) -> dict[str, Tensor]:
    return {torchvision_key(key): value for key, value in encoder.model.state_dict().items()}


def randomised(depth: int, dilated: bool = False) -> ResNet:
    """An encoder whose batch norms are no identity."""
    generator = torch.Generator().manual_seed(depth)
    encoder = ResNet(depth=depth, dilated=dilated)  # type: ignore[arg-type]
    for name, value in encoder.model.state_dict().items():
        if "normalization" in name and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.25)
    return encoder


def reference(state: dict[str, Tensor], images: Tensor, depth: int, dilated: bool) -> Tensor:
    """ResNet v1.5 written down from the paper's table, on torchvision keys."""

    def norm(name: str, x: Tensor) -> Tensor:
        parts = (state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.conv2d(images, state["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(norm("bn1", x).relu(), 3, 2, 1)
    for stage in range(4):
        for block in range(BLOCKS[depth][stage]):
            at = f"layer{stage + 1}.{block}."
            stride = 2 if stage > 0 and block == 0 and not dilated else 1
            dilation = DILATIONS_50[stage][block] if dilated else 1
            strides = (stride, 1) if depth < 50 else (1, stride, 1)
            y = x
            for index, step in enumerate(strides, start=1):
                weight = state[f"{at}conv{index}.weight"]
                d = dilation if weight.shape[-1] == 3 else 1
                y = F.conv2d(y, weight, None, step, weight.shape[-1] // 2 * d, d)
                y = norm(f"{at}bn{index}", y)
                y = y.relu() if index < len(strides) else y
            if f"{at}downsample.0.weight" in state:
                x = norm(
                    f"{at}downsample.1",
                    F.conv2d(x, state[f"{at}downsample.0.weight"], None, stride),
                )
            x = (x + y).relu()
    return x


@pytest.mark.parametrize(("depth", "dilated"), [(18, False), (34, False), (50, False), (50, True)])
def test_equals_the_network_of_the_paper(depth: int, dilated: bool) -> None:
    encoder = randomised(depth, dilated)
    images = torch.rand((1, 3, 40, 72), generator=torch.Generator().manual_seed(0))
    expected = reference(
        torchvision_state(encoder), (images - encoder.mean) / encoder.std, depth, dilated
    )
    actual = encoder(images)
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


def test_keys_translate_both_ways() -> None:
    for depth in (18, 50):
        keys = list(ResNet(depth=depth).model.state_dict())  # type: ignore[arg-type]
        translated = [torchvision_key(key) for key in keys]
        assert [transformers_key(key) for key in translated] == keys
        assert len(set(translated)) == len(keys)
    assert "layer4.2.bn3.running_var" in translated
    assert "layer2.0.downsample.0.weight" in translated
    assert {"conv1.weight", "bn1.bias"} <= set(translated)


@pytest.mark.parametrize("key", ["fc.weight", "layer1.conv1.weight", "embedder.weight", ""])
def test_keys_of_other_networks_are_refused(key: str) -> None:
    for translate in (transformers_key, torchvision_key):
        with pytest.raises(DataError):
            translate(key)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def moco(state: dict[str, Tensor]) -> dict[str, Any]:
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    head = {"fc.0.weight": torch.zeros(8, 8), "fc.2.weight": torch.zeros(8, 8)}
    queries = prefixed(state | head, "module.encoder_q.")
    keys = prefixed(other | head, "module.encoder_k.")
    queue = {"module.queue": torch.zeros(8, 4), "module.queue_ptr": torch.zeros(1)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": keys | queries | queue}


def swav(state: dict[str, Tensor]) -> dict[str, Any]:
    heads = {
        "projection_head.0.weight": torch.zeros(4, 4),
        "projection_head.1.running_mean": torch.zeros(4),
        "prototypes.weight": torch.zeros(4, 4),
    }
    return prefixed(state | heads, "module.")


def slidr(state: dict[str, Tensor]) -> dict[str, Any]:
    decoder = {"decoder.0.weight": torch.zeros(64, 512, 1, 1), "decoder.0.bias": torch.zeros(64)}
    points = {"model_points": {"conv1.weight": torch.zeros(1)}}
    return points | {"model_images": prefixed(state, "encoder.") | decoder}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "torchvision": lambda state: (
        state | {"fc.weight": torch.zeros(9, 9), "fc.bias": torch.zeros(9)}
    ),
    "dino": dict,
    "moco": moco,
    "swav": swav,
    "slidr": slidr,
    "obow": lambda state: {"network": state},
    "pixpro": lambda state: {"model": prefixed(state, "module.encoder.")},
    "no counters": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "transformers": lambda state: {transformers_key(key): value for key, value in state.items()},
    "transformers classifier": lambda state: (
        {f"resnet.{transformers_key(key)}": value for key, value in state.items()}
        | {"classifier.1.weight": torch.zeros(9, 512)}
    ),
}


@pytest.fixture(scope="module")
def teacher() -> ResNet:
    return randomised(18)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_load_from_every_layout(layout: str, teacher: ResNet, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](torchvision_state(teacher)), tmp_path / "weights.pth.tar")
    loaded = ResNet(depth=18, weights=tmp_path / "weights.pth.tar")
    images = torch.rand(1, 3, 40, 40)
    assert torch.equal(loaded(images), teacher(images))
    assert loaded.frozen
    assert not loaded.training


def test_weights_load_from_safetensors_and_from_folders(teacher: ResNet, tmp_path: Path) -> None:
    save_file(torchvision_state(teacher), tmp_path / "weights.safetensors")
    teacher.model.save_pretrained(tmp_path / "folder")
    images = torch.rand(1, 3, 40, 40)
    for weights in (tmp_path / "weights.safetensors", tmp_path / "folder"):
        assert torch.equal(ResNet(depth=18, weights=weights)(images), teacher(images))


def test_weights_that_do_not_fit_name_their_tensors(teacher: ResNet, tmp_path: Path) -> None:
    state = torchvision_state(teacher)
    del state["layer1.0.conv1.weight"]
    state["layer9.0.conv1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(DataError) as caught:
        ResNet(depth=18, weights=tmp_path / "weights.pth")
    assert "1 missing: layer1.0.conv1.weight" in str(caught.value)
    assert "1 unknown: layer9.0.conv1.weight" in str(caught.value)


@pytest.mark.parametrize("layout", ["torchvision", "transformers"])
def test_weights_of_another_depth_are_refused(layout: str, teacher: ResNet, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](torchvision_state(teacher)), tmp_path / "weights.pth")
    with pytest.raises(DataError, match="do not fit"):
        ResNet(depth=34, weights=tmp_path / "weights.pth")


def test_weights_of_no_image_encoder_are_refused(tmp_path: Path) -> None:
    torch.save({"kernel": torch.zeros(27, 4, 4)}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="unknown: kernel"):
        ResNet(depth=18, weights=tmp_path / "weights.pth")


def test_combinations_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="dilated ResNet-18"):
        ResNet(depth=18, dilated=True)
    with pytest.raises(ConfigError, match="depth 51"):
        ResNet(depth=51)  # type: ignore[arg-type]
