"""A pretraining run in the 3-D viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lidarssl import checkpoints
from lidarssl.errors import ConfigError, DataError, require
from lidarssl.experiments.occupancy import also_occupancy, occupancy_scene
from lidarssl.experiments.pictures import picture_frame, point_features
from lidarssl.experiments.pretrain import picture_split
from lidarssl.experiments.record import RECIPE_FILE
from lidarssl.frame import Frame
from lidarssl.methods.also import Also
from lidarssl.methods.base import Method
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.recipes.schema import load
from lidarssl.report.viewer import Scene, feature_colors, view
from lidarssl.weights import read_content, state_of


def view_run(run: str | Path, frames: int = 1, spawn: bool = True) -> None:
    """Show what a finished pretraining makes of held-out frames.

    Args:
        run: folder of ``lidarssl pretrain``.
        frames: number of frames, the first of the held-out split.
        spawn: open a window; see ``view``.

    Raises:
        ConfigError: rerun is not installed, or the checkpoint does not fit the recipe.
        DataError: the folder has no recipe or no checkpoint.
    """
    require("rerun", "viewer")  # before minutes of work
    recipe = trained_recipe(Path(run))
    split = picture_split(recipe)
    shown = recipe.dataset.frames(split)[:frames]
    loaded = [picture_frame(recipe.dataset, frame, split, labels=False) for frame in shown]
    view([scene_of(recipe.method, frame) for frame in loaded], spawn)


def trained_recipe(run: Path, overrides: Sequence[str] = ()) -> PretrainRecipe:
    """The recipe of a run; its method, heads included, has the weights of the last checkpoint.

    Args:
        run: its folder.
        overrides: command line words for the recipe, such as another dataset's.

    Raises:
        ConfigError: a word that the recipe does not know, or that changes the method.
        DataError: no run, or no checkpoint.
    """
    if not (run / RECIPE_FILE).is_file():
        raise DataError(
            _what_it_is(run),
            path=run,
            remedy="give a folder that `lidarssl pretrain` has written",
        )
    recipe: PretrainRecipe = load(str(run / RECIPE_FILE), overrides, ("pretrain",)).recipe
    path = run / "checkpoints" / "last.ckpt"
    state = state_of(read_content(path), path)
    module = "module."
    try:
        checkpoints.load_into(
            recipe.method, {name.removeprefix(module): value for name, value in state.items()}
        )
    except ConfigError as error:
        raise ConfigError(
            error.problem,
            path=path,
            remedy="the method must be the one that was trained: leave out --method options, and "
            "use the version of lidarssl that trained it",
        ) from error
    return recipe


def _what_it_is(run: Path) -> str:
    """Why a path is no run."""
    if run.is_dir():
        return f"holds no run: there is no {RECIPE_FILE}"
    return "is a file, not a run folder" if run.exists() else "no such run folder"


def scene_of(method: Method, frame: Frame) -> Scene:
    """Features of the student, and of an ALSO what it says of the space around."""
    features = point_features(method.lidar_encoder, frame, torch.device("cpu"))
    scene = Scene(frame, {"features": feature_colors(features)})
    if isinstance(method, Also):
        around = occupancy_scene(frame, also_occupancy(method, frame))
        scene = replace(around, colors={**scene.colors, **around.colors})
    return scene
