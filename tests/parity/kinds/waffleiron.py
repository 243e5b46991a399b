"""WaffleIron on padded clouds: outputs in both modes, gradients, running statistics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lidarssl.backbones.plane_tokens import PlaneTokens
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.checkpoints.waffleiron_names import from_published
from parity.case import Case

_OUTPUTS = {"feat", "cell_ind", "neighbors", "occupied", "out_eval", "out_train"}


def recognises(case: Case) -> bool:
    return "WaffleIron" in case.reference and case.array_names >= _OUTPUTS


def check(case: Case) -> None:
    network, head = _network(case)
    tokens = _tokens(case)
    occupied = torch.from_numpy(case.arrays["occupied"]).flatten() > 0
    scale = float(np.abs(case.arrays["out_eval"]).max())
    expected = _rows(case.arrays["out_eval"])
    head.eval()
    for one in (network.eval(), network.merged()):
        with torch.no_grad():
            actual = head(one.forward_tokens(tokens))
        np.testing.assert_allclose(
            actual[occupied].numpy(), expected[occupied].numpy(), rtol=0, atol=1e-4 * scale
        )
    _check_training(case, network.train(), head.train(), tokens, occupied)


def _network(case: Case) -> tuple[WaffleIron, nn.Module]:
    args = case.args
    low, high = (tuple(float(v) for v in corner) for corner in args["fov"])
    network = WaffleIron(
        args["feat_channels"],
        args["depth"],
        norm="layer" if args["norm"] == "layernorm" else "batch",
        activation="gelu" if args.get("gelu") else "relu",
        fov=(low, high),  # type: ignore[arg-type]
        planes=tuple(args["dim_proj"]),
        grids=tuple((rows, columns) for rows, columns in args["grids"]),
        neighbours=args["num_neighbors"],
        # The case brings the values: only their number counts.
        inputs=PointInputs(("one",) * args["input_channels"]),
        drop_path=args["drop_path_prob"],
    )
    state = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    backbone, head_state = from_published(state)
    network.load_state_dict(backbone)
    head = _head({key.removeprefix("classif."): value for key, value in head_state.items()})
    return network, head


def _head(state: Mapping[str, Tensor]) -> nn.Module:
    """One linear layer, or a batch norm or a hidden layer before it."""
    if "weight" in state:
        head: nn.Module = nn.Linear(*reversed(state["weight"].shape))
    elif "0.running_mean" in state:
        head = nn.Sequential(
            nn.BatchNorm1d(len(state["0.weight"])), nn.Linear(*reversed(state["1.weight"].shape))
        )
    else:
        first, last = (nn.Linear(*reversed(state[f"{n}.weight"].shape)) for n in (0, 2))
        head = nn.Sequential(first, nn.ReLU(), last)
    head.load_state_dict(dict(state))
    return head


def _tokens(case: Case) -> PlaneTokens:
    """All rows of the padded batch, padding included, frame after frame."""
    arrays = case.arrays
    frames, _, count = arrays["feat"].shape
    first = torch.arange(frames)[:, None, None] * count
    neighbours = torch.from_numpy(arrays["neighbors"].astype(np.int64)) + first
    cells = torch.from_numpy(arrays["cell_ind"].astype(np.int64))
    sizes = torch.tensor([rows * columns for rows, columns in case.args["grids"]])
    cells = cells + torch.arange(frames)[:, None, None] * sizes[:, None]
    cells = cells.transpose(0, 1).flatten(1)
    occupied = torch.from_numpy(arrays["occupied"]).flatten()
    weights = torch.stack(
        [
            occupied / (torch.bincount(own, occupied.double(), int(size) * frames)[own] + 1e-6)
            for own, size in zip(cells, sizes, strict=True)
        ]
    )
    return PlaneTokens(
        features=_rows(arrays["feat"]),
        neighbours=neighbours.transpose(1, 2).flatten(0, 1)[:, 1:],
        cells=cells,
        weights=weights.float(),
        positions=torch.zeros(frames * count, 3),
        batch=torch.arange(frames).repeat_interleave(count),
        token_of_point=torch.arange(frames * count),
        batch_size=frames,
        real=frames * count,
    )


def _rows(maps: np.ndarray) -> Tensor:
    """(B, C, N) -> (B * N, C)."""
    return torch.from_numpy(maps).transpose(1, 2).flatten(0, 1)


def _check_training(
    case: Case, network: WaffleIron, head: nn.Module, tokens: PlaneTokens, occupied: Tensor
) -> None:
    tokens.features = tokens.features.clone().requires_grad_()
    output = head(network.forward_tokens(tokens))
    expected = _rows(case.arrays["out_train"])
    scale = float(np.abs(case.arrays["out_train"]).max())
    np.testing.assert_allclose(
        output.detach()[occupied].numpy(), expected[occupied].numpy(), rtol=0, atol=1e-4 * scale
    )
    loss = output[occupied].square().sum() / occupied.sum()
    loss.backward()
    assert abs(loss.item() / case.manifest["loss_train"] - 1) < 1e-4
    assert tokens.features.grad is not None
    _check_input_gradient(tokens.features.grad.numpy(), _rows(case.arrays["grad_feat"]).numpy())
    _check_norms(case, network, head)
    for key, value in case.arrays.items():
        if key.startswith("bn_after:"):
            actual = network.state_dict()[key.removeprefix("bn_after:")]
            np.testing.assert_allclose(actual.numpy(), value, rtol=1e-4, atol=1e-5, err_msg=key)


def _check_input_gradient(actual: np.ndarray, expected: np.ndarray) -> None:
    """Its norm within the manifest's 1e-3, and nearly all of its elements.

    A ReLU at zero up to rounding, or a maximum over neighbours that are equal up to rounding,
    hands its gradient to one token or another: plain PyTorch in the precision and the order of
    operations of the reference misses 51 elements of ``waffleiron_small``, float64 misses 8.
    """
    np.testing.assert_allclose(np.linalg.norm(actual), np.linalg.norm(expected), rtol=1e-3)
    near = np.isclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert near.mean() > 0.998


def _check_norms(case: Case, network: WaffleIron, head: nn.Module) -> None:
    expected = case.manifest["grad_norms_params"]
    gradients = {name: value.grad for name, value in network.named_parameters()}
    gradients |= {f"classif.{name}": value.grad for name, value in head.named_parameters()}
    assert set(expected) == set(gradients)
    # A batch norm right before another has a bias without effect: its gradient is rounding.
    rounding = 1e-6 * max(expected.values())
    for name, norm in expected.items():
        gradient = gradients[name]
        assert gradient is not None
        np.testing.assert_allclose(
            float(gradient.norm()), norm, rtol=1e-3, atol=rounding, err_msg=name
        )
