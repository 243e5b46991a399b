from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lidarssl.checkpoints import Architecture, Card, load, load_into, save
from lidarssl.errors import ConfigError


class Net(nn.Module):
    def __init__(self, classes: int = 4, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.final = nn.Linear(width, classes)


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_loads_every_key() -> None:
    source, target = Net(seed=0), Net(seed=1)
    report = load_into(target, source.state_dict())
    assert report.complete
    assert set(report.loaded) == set(source.state_dict())
    assert same(source, target)


def test_a_dropped_head_stays_as_it_was() -> None:
    source, target = Net(classes=4, seed=0), Net(classes=17, seed=1)
    head = target.final.weight.detach().clone()
    report = load_into(target, source.state_dict(), drop=("final.",))
    assert report.complete
    assert report.dropped == ("final.bias", "final.weight")
    assert torch.equal(target.final.weight, head)
    assert same(source.stem, target.stem)


def test_strict_names_what_differs_and_changes_nothing() -> None:
    source, target = Net(classes=4, seed=0), Net(classes=17, seed=1)
    state = source.state_dict()
    state["stemm.weight"] = state.pop("stem.weight")
    before = Net(classes=17, seed=1)
    with pytest.raises(ConfigError) as caught:
        load_into(target, state)
    message = str(caught.value)
    assert "1 missing: 'stem.weight'" in message
    assert "1 unexpected: 'stemm.weight' (closest: 'stem.weight')" in message
    assert "2 of another shape: 'final.bias' (4,) instead of (17,)" in message
    assert same(target, before)


def test_not_strict_loads_what_fits_and_reports_the_rest() -> None:
    source, target = Net(classes=4, seed=0), Net(classes=17, seed=1)
    report = load_into(target, source.state_dict(), strict=False)
    assert not report.complete
    assert report.mismatched == ("final.bias", "final.weight")
    assert same(source.stem, target.stem)


@pytest.mark.parametrize("state", [{}, {"module.stem.weight": torch.ones(8, 3)}])
def test_nothing_that_fits_is_an_error_even_if_not_strict(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="none of the"):
        load_into(Net(), state, strict=False)


def test_old_files_lack_the_batch_counter() -> None:
    state = Net(seed=0).state_dict()
    del state["norm.num_batches_tracked"]
    assert load_into(Net(seed=1), state).complete


def test_values_take_the_dtype_of_the_module() -> None:
    state = {name: value.half() for name, value in Net(seed=0).state_dict().items()}
    target = Net(seed=1)
    load_into(target, state)
    assert target.stem.weight.dtype is torch.float32
    assert torch.equal(target.stem.weight, state["stem.weight"].float())


def test_many_long_hostile_names_are_reported_briefly() -> None:
    state = {f"{index}" + "x" * 100_000: torch.ones(1) for index in range(500)}
    with pytest.raises(ConfigError) as caught:
        load_into(Net(), state)
    assert "500 unexpected" in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_a_checkpoint_of_another_class(tmp_path: Path) -> None:
    class_path = f"{Net.__module__}.{Net.__qualname__}"
    save(tmp_path / "same", Net(), Card(Architecture(class_path)))
    save(tmp_path / "other", Net(), Card(Architecture("lidarssl.backbones.voxelnet.VoxelNet")))
    assert load_into(Net(), load(tmp_path / "same")).complete
    with pytest.raises(ConfigError, match=r"holds a lidarssl\.backbones\.voxelnet\.VoxelNet"):
        load_into(Net(), load(tmp_path / "other"))
