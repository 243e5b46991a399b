"""ScaLR's distance of points to their pixels, and its gradient."""

from __future__ import annotations

import numpy as np
import torch

from lidarssl.losses.distillation import unit_distance
from parity.case import Case


def recognises(case: Case) -> bool:
    return {"point_feats", "image_feats", "pairing_images_0", "grad_points"} <= case.array_names


def check(case: Case) -> None:
    arrays = case.arrays
    points = torch.from_numpy(arrays["point_feats"]).requires_grad_()
    images = torch.from_numpy(arrays["image_feats"])
    near, far = [], []
    for item in range(len(points)):
        pixel = torch.from_numpy(arrays[f"pairing_images_{item}"].astype(np.int64))
        near.append(points[item, :, : len(pixel)].T)
        far.append(images[item][:, pixel[:, 1], pixel[:, 2]].T)
    loss = unit_distance(torch.cat(near), torch.cat(far)).mean()
    (gradient,) = torch.autograd.grad(loss, points)
    np.testing.assert_allclose(loss.item(), arrays["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient.numpy(), arrays["grad_points"], rtol=1e-4, atol=1e-7)
