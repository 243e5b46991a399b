"""The mask transformer of Segmenter as mmsegmentation has it, with its loss and gradient."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from lidarssl.images.mask_transformer import MaskTransformer, MaskTransformerShape, load_mmseg
from lidarssl.losses.pixel_cross_entropy import pixel_cross_entropy
from parity.case import Case

_IGNORED = 255


def recognises(case: Case) -> bool:
    return "decode_heads/segmenter_mask_head.py" in case.reference and {
        "x", "out",
    } <= case.array_names  # fmt: skip


def check(case: Case) -> None:
    args = case.args
    shape = MaskTransformerShape(
        layers=args["num_layers"],
        heads=args["num_heads"],
        width=args["embed_dims"],
        mlp_ratio=args.get("mlp_ratio", 4),
        drop_path=args.get("drop_path_rate", 0.1),
    )
    head = MaskTransformer(args["in_channels"], args["num_classes"], shape).eval()
    weights = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    load_mmseg(head, weights, case.folder)
    x = torch.from_numpy(case.arrays["x"]).requires_grad_()
    out = head(x)
    atol = float(case.manifest["tolerance"]["out"].removeprefix("atol "))
    np.testing.assert_allclose(out.detach().numpy(), case.arrays["out"], rtol=0, atol=atol)
    if "labels" in case.arrays:
        _check_loss(case, x, out)


def _check_loss(case: Case, x: torch.Tensor, out: torch.Tensor) -> None:
    """The published mean over all pixels; the mean over the labelled ones is larger by a share."""
    published = torch.from_numpy(case.arrays["labels"]).long()
    labels = torch.where(published == _IGNORED, 0, published + 1)
    logits = F.interpolate(out, labels.shape[-2:], mode="bilinear", align_corners=False)
    loss = pixel_cross_entropy(logits, labels, average="all")
    (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
    absolute, relative = case.manifest["tolerance"]["grads"].split(" + ")
    atol = float(absolute.removeprefix("atol "))
    rtol = float(relative.removeprefix("rtol "))
    expected = float(case.arrays["loss_ce"])
    np.testing.assert_allclose(float(loss.detach()), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.numpy(), case.arrays["grad_x"], rtol=rtol, atol=atol)
    share = float((labels > 0).double().mean())
    labelled = pixel_cross_entropy(logits, labels)
    np.testing.assert_allclose(float(labelled.detach()), expected / share, rtol=1e-5)
