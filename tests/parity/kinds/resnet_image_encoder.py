"""Frozen ResNet with a trained 1x1 head, of SLidR / PPKT and, with two heads, of OLIVINE."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lidarssl.images.decoders import UpsampledHead
from lidarssl.images.resnet import ResNet
from parity.case import Case

_HEADS = ("decoder", "decoder_class_level")


def recognises(case: Case) -> bool:
    encoder = str(case.args.get("config", {}).get("images_encoder", ""))
    return (
        "model/image_model.py" in case.reference
        and re.fullmatch(r"resnet(18|34|50|101)", encoder) is not None
        and "image" in case.arrays
    )


def check(case: Case) -> None:
    config = case.args["config"]
    weights = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    encoder = _encoder(case, weights)
    heads = [name for name in _HEADS if f"{name}.0.weight" in weights]
    head = UpsampledHead(
        encoder.out_channels,
        config["model_n_out"],
        scale=encoder.stride,
        heads=len(heads),
        normalize=config["normalize_features"],
    )
    for projection, name in zip(head.projections, heads, strict=True):
        projection.load_state_dict(
            {part: weights[f"{name}.0.{part}"] for part in ("weight", "bias")}
        )
    with torch.no_grad():
        features = encoder.features(torch.from_numpy(case.arrays["image"]))
    _check_encoder(case, features)
    outputs = [head(features, index) for index in range(len(heads))]
    for index, output in enumerate(outputs):
        _check_output(case, index, output.detach().numpy())
    outputs[0][:, :8].square().sum().backward()
    _check_gradients(case, head)


def _encoder(case: Case, weights: dict[str, torch.Tensor]) -> ResNet:
    depth = int(case.args["config"]["images_encoder"].removeprefix("resnet"))
    what = case.manifest["what"] + case.reference
    dilated = "replaced by dilation" in what or "DilationFeatureExtractor" in what
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model_images.safetensors"
        save_file(weights, path)
        return ResNet(depth=depth, weights=path, dilated=dilated)


def _check_encoder(case: Case, features: torch.Tensor) -> None:
    assert tuple(features.shape) == tuple(case.arrays["encoder_shape"])
    expected = case.arrays["encoder_chan_sum"]
    actual = features.double().sum((0, 2, 3)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def _check_output(case: Case, index: int, output: np.ndarray) -> None:
    atol = float(case.manifest["tolerance"]["out"].split("atol")[1].split()[0])
    step = int(re.findall(r"every (\d+)", case.manifest["conventions"])[0])
    sample = case.arrays[f"out{index}_sample"]
    np.testing.assert_allclose(output[..., ::step, ::step], sample, rtol=0, atol=atol)
    expected = case.arrays[f"out{index}_chan_sum"]
    sums = output.astype(np.float64).sum((0, 2, 3))
    np.testing.assert_allclose(sums, expected, rtol=0, atol=atol * np.abs(expected).max())


def _check_gradients(case: Case, head: UpsampledHead) -> None:
    rtol = float(case.manifest["tolerance"]["grads"].split("rtol")[1].split()[0])
    weight, bias = head.projections[0].weight.grad, head.projections[0].bias.grad
    assert weight is not None
    assert bias is not None
    norm = float(case.arrays["grad_decoder_weight_norm"])
    np.testing.assert_allclose(float(weight.double().norm()), norm, rtol=rtol)
    expected = case.arrays["grad_decoder_bias"]
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(bias.numpy(), expected, rtol=rtol, atol=rtol * scale)
