"""Checkpoints of the reference repositories: SLidR, OLIVINE, ScaLR, ALSO, DepthContrast.

They wrap one state dict in entries and key prefixes that depend on who saved it. What remains
here are the reference's own names; a backbone maps those to its modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.weights import read_content, state_of, weights_file

Branch = Literal["points", "images"]
BRANCH_PREFIXES: dict[Branch, tuple[str, ...]] = {
    "points": ("model_points.", "model_point.", "trunk.2."),
    "images": ("model_images.",),
}
WRAPPER_PREFIXES = ("module.", "model.", "encoder.")


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """Weights under the names of the reference's network.

    Attributes:
        state: name -> tensor, prefixes removed.
        config: the settings stored with them, empty when there are none.
        path: the file.
    """

    state: Mapping[str, Tensor]
    config: Mapping[str, Any]
    path: Path

    def check_config(self, **expected: object) -> None:
        """Compare settings that change what the weights mean.

        Args:
            expected: e.g. ``voxel_size=0.1, cylindrical_coordinates=True``; a setting that the
                file does not state is not compared.

        Raises:
            ConfigError: names every setting that differs.
        """
        differences = [
            f"{name} is {self.config[name]} in the checkpoint, {value} here"
            for name, value in expected.items()
            if name in self.config and _plain(self.config[name]) != _plain(value)
        ]
        if differences:
            raise ConfigError(
                f"trained with other settings: {'; '.join(differences)}",
                path=self.path,
                field="config",
                remedy="build the backbone with the settings of the checkpoint",
            )


def read_reference(path: str | Path, branch: Branch = "points") -> ReferenceCheckpoint:
    """Read a checkpoint of a reference repository.

    Args:
        path: its file.
        branch: the network to take from a file that holds several.

    Raises:
        DataError: as :func:`lidarssl.weights.read_state`, or the file lacks the branch.
    """
    path = weights_file(path)
    content = read_content(path)
    config = content.get("config")
    own, other = f"model_{branch}", "model_images" if branch == "points" else "model_points"
    if isinstance(content.get(own), Mapping):
        content = {"state_dict": content[own]}
    state = strip_prefixes(state_of(content, path), branch)
    if other in content or _any_starts(state, f"{other}."):
        raise DataError(f"holds no weights of the {branch} branch", path=path, field=own)
    return ReferenceCheckpoint(state, config if isinstance(config, Mapping) else {}, path)


def strip_prefixes(state: Mapping[str, Tensor], branch: Branch = "points") -> dict[str, Tensor]:
    """Remove the prefixes of trainers and wrappers, in any nesting, judging by all keys.

    A wrapper's prefix (``module.``, ``model.``, ``encoder.``) goes when every key has it; where
    some keys name a branch (``model_points.``, ``trunk.2.``) only those of ``branch`` are kept.
    """
    stripped = dict(state)
    while True:
        common = next((p for p in WRAPPER_PREFIXES if _all_start(stripped, p)), None)
        chosen = next((p for p in BRANCH_PREFIXES[branch] if _any_starts(stripped, p)), None)
        prefix = common or chosen
        if prefix is None:
            return stripped
        stripped = {
            name.removeprefix(prefix): value
            for name, value in stripped.items()
            if name.startswith(prefix)
        }


def _all_start(state: Mapping[str, Tensor], prefix: str) -> bool:
    return bool(state) and all(name.startswith(prefix) for name in state)


def _any_starts(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | list) else value
