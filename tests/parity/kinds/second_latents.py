"""ALSO's latents on SECOND: the input and the detector are those of another case."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import nn

from lidarssl.backbones.second import Second
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case
from parity.spconv import compare_sums, read_sites

PARTS = ("backbone_3d.", "backbone_2d.")


def recognises(case: Case) -> bool:
    return (
        "(SECOND)" in case.reference
        and "latent" in case.args
        and {"sample_idx", "latents_sample", "positions_sample"} <= case.array_names
        and re.search(r"of case (\w+)", case.manifest.get("what", "")) is not None
    )


def detector(case: Case) -> Case:
    """The case that has the input and the list of weights."""
    name = re.search(r"of case (\w+)", case.manifest["what"])
    assert name is not None
    return Case.read(case.folder.parent / name[1])


def check(case: Case) -> None:
    source = detector(case)
    model, classifier = build(case, source)
    sites = read_sites(source.arrays["coords"])
    x = SparseTensor.of(
        sites,
        torch.from_numpy(source.arrays["feats"]),
        shape=model.backbone_3d.voxelization.shape,
    )
    with torch.no_grad():
        seen = model.backbone_3d.forward_map(x, int(sites[:, 0].max()) + 1)
        maps = model.backbone_2d(seen)
        latents = classifier(maps).permute(0, 2, 3, 1).flatten(0, 2)
    compare_sums(source.arrays, "spatial_features", seen.permute(0, 2, 3, 1).flatten(0, 2))
    compare_sums(source.arrays, "spatial_features_2d", maps.permute(0, 2, 3, 1).flatten(0, 2))
    compare_sums(case.arrays, "latents", latents)
    rows, expected = case.arrays["sample_idx"], case.arrays["latents_sample"]
    limit = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(latents.numpy()[rows], expected, rtol=0, atol=limit)
    positions = model.bev.positions(stretched=True).numpy()[rows]
    np.testing.assert_allclose(positions, case.arrays["positions_sample"], rtol=0, atol=1e-4)


def build(case: Case, source: Case) -> tuple[Second, nn.Conv2d]:
    """The two backbones of the detector, and ALSO's 1x1 convolution to the latents."""
    args, plane = source.args, source.args["backbone_2d"]
    model = Second(
        tuple(args["range"]),
        tuple(args["voxel_size"]),
        PointInputs(("one",) * source.arrays["feats"].shape[1], reduce="mean"),
        layers=tuple(plane["LAYER_NUMS"]),
        strides=tuple(plane["LAYER_STRIDES"]),
        plane_channels=tuple(plane["NUM_FILTERS"]),
        up_channels=tuple(plane["NUM_UPSAMPLE_FILTERS"]),
        positions="stretched",
    )
    weights = {
        key: torch.from_numpy(case.fill.value(key, shape))
        for key, shape, _ in source.manifest["state_dict"]
        if key.startswith(PARTS)
    }
    model.load_state_dict(weights)
    classifier = nn.Conv2d(model.out_channels, case.args["latent"], 1)
    classifier.load_state_dict(
        {
            key: torch.from_numpy(case.fill.value(f"classifier.{key}", value.shape))
            for key, value in classifier.state_dict().items()
        }
    )
    return model.eval(), classifier
