"""Files and hub ids that cannot be used must say so, and must never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.resnet import ResNet, torchvision_key
from lidarssl.images.weights import check_shapes, find_network, is_pretrained_source
from weight_files import Bomb


def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "run"
    torch.save({"conv1.weight": torch.zeros(3), "extra": Bomb(mark)}, path)
    with pytest.raises(DataError, match="nothing in it was run") as caught:
        ResNet(depth=18, weights=path)
    assert str(path) in str(caught.value)
    assert not mark.exists()


def test_a_malicious_folder_is_refused_and_not_run(tmp_path: Path) -> None:
    import transformers

    mark = tmp_path / "run"
    transformers.ResNetConfig().save_pretrained(tmp_path)
    torch.save({"embedder": Bomb(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        ResNet(depth=18, weights=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("container", [None, "state_dict", "network", "teacher", "model_images"])
def test_the_network_is_found_inside_a_checkpoint(container: str | None, tmp_path: Path) -> None:
    encoder = ResNet(depth=18)
    state = {torchvision_key(key): value for key, value in encoder.model.state_dict().items()}
    others = {"epoch": 5, "model_points": {"conv1.weight": torch.zeros(1)}}
    torch.save(state if container is None else others | {container: state}, tmp_path / "c.pth")
    read = ResNet(depth=18, weights=tmp_path / "c.pth").model.state_dict()
    assert all(torch.equal(read[key], value) for key, value in encoder.model.state_dict().items())


def test_network_is_found_below_its_prefix_and_without_its_heads() -> None:
    one = torch.ones(1)
    state = {
        "module.encoder_q.conv1.weight": one,
        "module.encoder_q.fc.0.weight": one,
        "module.encoder_k.conv1.weight": one,
        "module.queue": one,
    }
    found = find_network(state, "conv1.weight", ("fc.",))
    assert found is not None
    assert list(found) == ["conv1.weight"]
    assert find_network(state, "patch_embed.proj.weight", ()) is None


def test_every_kind_of_mismatch_is_named() -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(3), "old": torch.zeros(1)}
    expected = {"a": (2,), "b": (4,), "c": (1,), "bn.num_batches_tracked": ()}
    with pytest.raises(DataError) as caught:
        check_shapes(state, expected, "file.pth")
    message = str(caught.value)
    assert "1 missing: c" in message
    assert "1 unknown: old" in message
    assert "b (3,) instead of (4,)" in message
    assert "num_batches_tracked" not in message


def test_files_folders_and_hub_ids_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    assert not is_pretrained_source(tmp_path / "w.pth")
    assert is_pretrained_source(tmp_path)
    assert is_pretrained_source("facebook/dinov2-small")
    for missing in ("weights/moco.pth.tar", "moco_v2", tmp_path / "none", "../a/b"):
        with pytest.raises(DataError, match="no such weights"):
            is_pretrained_source(missing)


def test_a_hub_that_cannot_be_reached_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("we could not connect")

    monkeypatch.setattr(transformers.ResNetModel, "from_pretrained", unreachable)
    with pytest.raises(ConfigError, match=r"owner/name.*could not connect") as caught:
        ResNet(depth=18, weights="owner/name")
    assert "remedy" in str(caught.value)
