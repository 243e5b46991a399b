from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lidarssl.checkpoints import Architecture, Card, load, read_state, save
from lidarssl.errors import ConfigError, DataError

CARD = Card(Architecture("torch.nn.modules.container.Sequential"), recipe="test")


def make_module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("name", ["run", "v1.0", "sub/run", "weights.safetensors"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    module = make_module()
    path = save(tmp_path / name, module, CARD)
    checkpoint = load(tmp_path / name)
    assert path.suffix == ".safetensors"
    assert checkpoint.card == CARD
    assert checkpoint.path == path
    assert checkpoint.state.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(checkpoint.state[key], value)
        assert checkpoint.state[key].dtype == value.dtype
    assert read_state(path).keys() == module.state_dict().keys()
    assert Card.from_json(path.with_suffix(".json").read_text()) == CARD


def test_saves_tied_strided_and_training_tensors(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3).T.requires_grad_()
    save(tmp_path, {"a": weight, "b": weight, "half": weight[:1].bfloat16()}, CARD)
    state = load(tmp_path).state
    assert torch.equal(state["a"], weight)
    assert torch.equal(state["b"], weight)
    assert state["half"].dtype is torch.bfloat16


def test_the_card_travels_inside_the_weights(tmp_path: Path) -> None:
    save(tmp_path, make_module(), CARD)
    (tmp_path / "model.json").unlink()
    assert load(tmp_path).card == CARD


def test_a_card_beside_foreign_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(DataError, match="no card"):
        load(path)
    path.with_suffix(".json").write_text(CARD.to_json())
    assert load(path).card == CARD
    path.with_suffix(".json").write_text('{"architecture": 3}')
    with pytest.raises(DataError, match=r"foreign\.json"):
        load(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, make_module(0), CARD)
    before = path.read_bytes()

    def full_disk(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, make_module(1), CARD)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_refuses_to_save_what_is_not_a_tensor(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'epoch' is a int"):
        save(tmp_path, {"epoch": 3}, CARD)  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [None, 0, 4, 8, 9, 40, -1])
def test_missing_or_truncated_weights(tmp_path: Path, keep: int | None) -> None:
    path = save(tmp_path, make_module(), CARD)
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert caught.value.path == path
    assert caught.value.remedy


def test_reads_safetensors_only(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(make_module().state_dict(), path)
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load(path)
