"""What every labeller inherits."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lidarssl.errors import ConfigError
from lidarssl.prepare.labellers.base import Labeller, as_unit_float


class Brightness(Labeller):
    """Bright pixels are of the second class."""

    def __init__(self, classes: Sequence[str] = ("dark", "bright"), limit: float = 0.5) -> None:
        super().__init__(classes, {"limit": limit})
        self.scale = nn.Linear(1, 1)
        self.dropout = nn.Dropout()
        self.freeze()

    def label(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [1 + (as_unit_float(image, self.device).mean(0) > 0.5).long() for image in images]


def test_it_stays_frozen_in_a_parent_that_trains():
    parent = nn.ModuleList([Brightness()]).train()
    assert parent.training
    assert not any(module.training for module in parent[0].modules())
    assert not any(parameter.requires_grad for parameter in parent.parameters())


def test_the_description_is_plain_and_tells_weights_and_arguments_apart():
    torch.manual_seed(0)
    first = Brightness()
    described = first.description()
    assert json.loads(json.dumps(described)) == described
    assert (described["class"], described["arguments"]) == ("Brightness", {"limit": 0.5})
    other = Brightness(limit=0.25)
    assert other.description()["weights"] != described["weights"]
    other.load_state_dict(first.state_dict())
    assert other.description()["weights"] == described["weights"]
    assert other.description() != described


def test_each_class_has_a_name_of_its_own():
    with pytest.raises(ConfigError, match="more than once: car"):
        Brightness(("car", "bus", "car"))
    with pytest.raises(ConfigError, match="no class"):
        Brightness(())


def test_bytes_become_shares():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    assert as_unit_float(image, torch.device("cpu")).flatten().tolist() == pytest.approx(
        [0, 0.2, 1]
    )
    same = torch.rand(3, 2, 2)
    assert torch.equal(as_unit_float(same, torch.device("cpu")), same)
