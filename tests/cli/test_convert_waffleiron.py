"""`lidarssl convert` of a WaffleIron, as a user types it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from commands import Command
from lidarssl import checkpoints
from plain_waffleiron import published, same

CLASS = "lidarssl.backbones.waffleiron.WaffleIron"
OPTIONS = (
    "--activation", "gelu", "--fov", "[[-32,-32,-4],[32,32,4]]", "--grids", "[[4,4],[4,2],[4,2]]",
    "--voxel_size", 0.1, "--inputs.columns", "[intensity,x,y,z,radius]",
)  # fmt: skip


def test_convert_describes_and_converts(command: Command, tmp_path: Path) -> None:
    path, own, back = (tmp_path / name for name in ("ckpt_last.pth", "own.safetensors", "back.pth"))
    state = published(head="mlp")
    torch.save(
        {
            "epoch": 3,
            "best_miou": np.float64(0.5),
            "model_point": {f"module.{key}": value for key, value in state.items()},
        },
        path,
    )
    done = command("convert", path)
    assert done.code == 0, done.err
    for said in (
        "ScaLR+ (activation gelu)", "WaffleIron, inputs 5, channels 6, depth 2, norm layer",
        "entry 'model_point', prefix 'module.'", "perceptron of 7, 5 values", "best_miou",
    ):  # fmt: skip
        assert said in done.out
    done = command("convert", path, "--to", "lidarssl", "--output", own)
    assert done.code == 2
    assert "--activation, --fov, --grids, --voxel_size, --inputs" in done.err
    done = command("convert", path, "--to", "lidarssl", "--output", own, *OPTIONS)
    assert done.code == 0, done.err
    built = checkpoints.load(own).card.architecture
    assert built.class_path == CLASS
    assert built.init_args["activation"] == "gelu"
    assert built.init_args["grids"] == [[4, 4], [4, 2], [4, 2]]
    done = command("convert", own, "--to", "waffleiron", "--output", back)
    assert done.code == 0, done.err
    assert "without      a head classif" in done.out
    content = torch.load(back, weights_only=True)
    kept = {key: value for key, value in state.items() if not key.startswith("classif.")}
    assert content.keys() == {"model_point"}
    assert same(content["model_point"], kept)
    done = command("convert", path, "--to", "waffleiron", "--output", back, "--overwrite")
    assert done.code == 0, done.err
    assert "without" not in done.out
    assert same(torch.load(back, weights_only=True)["model_point"], state)


def test_convert_for_a_recipe(command: Command, tmp_path: Path) -> None:
    path, own = tmp_path / "ckpt_last.pth", tmp_path / "own.safetensors"
    like = ("--to", "lidarssl", "--output", own, "--like", "probe_waffleiron_synthetic")
    torch.save({"net": published(64, 9, "batch", "norm")}, path)
    done = command("convert", path, *like)
    assert done.code == 0, done.err
    assert checkpoints.load(own).card.architecture.init_args["neighbours"] == 12
    torch.save({"net": published(64, 8, "batch")}, path)
    done = command("convert", path, *like, "--overwrite")
    assert done.code == 2
    assert "--channels" in done.err
    torch.save({"net": published(64, 9, "batch", inputs=3)}, path)
    done = command("convert", path, *like, "--overwrite")
    assert done.code == 2
    assert "--inputs.columns" in done.err
