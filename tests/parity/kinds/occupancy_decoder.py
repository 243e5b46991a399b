"""ALSO's decoder: pairs of queries and supports, predictions, losses and gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lidarssl.frame import Queries
from lidarssl.losses.occupancy import intensity_sum, occupancy_confusion, occupancy_sum
from lidarssl.methods.also import OccupancyDecoder
from lidarssl.transforms.occupancy import SupportSearch
from parity.case import Case


def recognises(case: Case) -> bool:
    return "InterpNet" in case.reference and {"radius_search", "column_search"} <= case.args.keys()


def check(case: Case) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in case.arrays.items()}
    args, queries = case.args, queries_of(case)
    query, support = search_of(case).pairs(queries, arrays["pos"], arrays["batch"].long())
    expected = torch.stack([arrays["pair_query"], arrays["pair_source"]]).long()
    order = torch.from_numpy(np.lexsort(expected.flip(0).numpy()))
    assert torch.equal(torch.stack([query, support]), expected[:, order])

    decoder = OccupancyDecoder(args["latent_size"], args["out_channels"])
    decoder.load_state_dict({k: torch.from_numpy(v) for k, v in case.weights().items()})
    latents = arrays["latents"].clone().requires_grad_()
    offset = queries.positions[query] - arrays["pos"][support]
    output = decoder(latents, support, offset)
    close(output[:, 0].detach(), arrays["predictions"][order], 1e-4, 1e-5)

    loss, count = occupancy_sum(output[:, 0], queries.occupancy[query])
    total = loss / count
    close(total.detach(), arrays["loss_occ"], 1e-5)
    if args["intensity_loss"]:
        error, known = intensity_sum(output[:, 1], queries.intensity[query])
        close((error / known).detach(), arrays["loss_intensity"], 1e-5)
        total = total + error / known
    total.backward()
    assert latents.grad is not None
    close(latents.grad, arrays["grad_latents"], 1e-4, 1e-6)
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, arrays[f"gradp:{name}"], 1e-4, 1e-6)

    confusion = occupancy_confusion(output[:, 0].detach(), queries.occupancy[query])
    assert torch.equal(confusion, arrays["confusion"])
    close(present_iou(confusion), arrays["iou"], 1e-9)


def queries_of(case: Case) -> Queries:
    arrays = {name: torch.from_numpy(value) for name, value in case.arrays.items()}
    return Queries(
        positions=arrays["pos_query"],
        occupancy=arrays["occupancies"].long(),
        intensity=arrays["intensities"][:, 0],
        batch=arrays["batch_query"].long(),
    )


def search_of(case: Case) -> SupportSearch:
    args = case.args
    if not args["radius_search"]:
        return SupportSearch("nearest", limit=args["K"])
    shape = "column" if args["column_search"] else "ball"
    return SupportSearch(shape, args["radius"], args["max_num_neighbors"], "first")


def present_iou(confusion: Tensor) -> Tensor:
    """The reference's IoU: a class without ground truth gets the mean of the others."""
    hits, truth = confusion.diagonal(), confusion.sum(1)
    iou = hits / (confusion.sum(0) + truth - hits)
    return torch.where(truth > 0, iou, iou[truth > 0].mean())


def close(actual: Tensor, expected: Tensor, relative: float, absolute: float = 0.0) -> None:
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), relative, absolute)
