"""Pictures of what a labeller made of an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lidarssl.replacing import replacing

Colour = tuple[float, float, float]
_UNPAINTED = (0.2, 0.2, 0.2)
_DISTINCT = (
    (255, 32, 32), (0, 255, 0), (0, 80, 255), (128, 239, 255), (255, 207, 0), (255, 0, 175),
    (48, 128, 32), (159, 96, 96), (0, 112, 191), (255, 175, 255), (239, 223, 159), (0, 255, 175),
    (223, 0, 255), (48, 112, 112), (191, 112, 16), (175, 239, 80), (143, 64, 175), (207, 0, 80),
    (159, 159, 32), (128, 207, 159), (128, 128, 80), (255, 191, 191), (255, 128, 112),
    (175, 191, 239),
)  # fmt: skip
_GOLDEN_RATIO = 0.618034
_SHARE_OF_COLOUR = 0.7
_WIDEST = 960
_LARGEST_LEGEND = 40
_COLUMNS = 6
_WIDTH, _LINE = 12.4, 0.22  # inches, of the picture and of a line of text


def class_colours(count: int) -> list[Colour]:
    """RGB in [0, 1] of labels 0 = unpainted, 1, ..., ``count``.

    The first 24 are as far from each other as colours get, each from all before it (CIE Lab);
    further ones differ by the golden ratio in hue, and by turns in saturation and brightness.
    """
    more = (
        colorsys.hsv_to_rgb(
            (index * _GOLDEN_RATIO) % 1, (0.5, 0.95)[index % 2], (0.85, 1.0, 0.65)[index % 3]
        )
        for index in range(count - len(_DISTINCT))
    )
    distinct = (tuple(value / 255 for value in colour) for colour in _DISTINCT)
    return [_UNPAINTED, *[(red, green, blue) for red, green, blue in distinct][:count], *more]


def save_preview(path: Path, image: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """An image beside the same image with its labels in colour, and the names of the classes.

    Args:
        path: of the PNG file; its folder is made when missing.
        image: (3, H, W) RGB, uint8 or float32 in [0, 1].
        labels: (H, W) integers: 0 = unpainted, k = ``classes[k - 1]``.
        classes: names.
    """
    step = -(-image.shape[-1] // _WIDEST)
    image, labels = image[:, ::step, ::step].cpu(), labels[::step, ::step].cpu().long()
    pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    pixels = pixels.clamp(0, 1).permute(1, 2, 0)
    colours = class_colours(len(classes))
    painted = torch.lerp(
        pixels.mean(-1, keepdim=True), torch.tensor(colours)[labels], _SHARE_OF_COLOUR
    )
    share = torch.bincount(labels.flatten(), minlength=len(classes) + 1) / labels.numel()
    present = [label for label in share.argsort(descending=True).tolist() if share[label] > 0]
    names = ["unpainted", *classes]
    entries = {
        f"{names[label]}  {100 * share[label]:.1f} %": colours[label]
        for label in present[:_LARGEST_LEGEND]
    }
    _draw(path, pixels, painted, entries)


def _draw(path: Path, pixels: Tensor, painted: Tensor, entries: dict[str, Colour]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    legend = _LINE * (1 + -(-len(entries) // _COLUMNS))
    height = _WIDTH / 2 * pixels.shape[0] / pixels.shape[1] + legend + _LINE
    figure = Figure(figsize=(_WIDTH, height), dpi=110)
    figure.subplots_adjust(0.01, legend / height, 0.99, 1 - _LINE / height, wspace=0.02)
    pictures = {"image": pixels, "weak labels": painted}
    for axis, (title, picture) in zip(figure.subplots(1, 2), pictures.items(), strict=True):
        axis.imshow(picture.numpy())
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    handles = [Patch(facecolor=colour, label=name) for name, colour in entries.items()]
    figure.legend(handles=handles, loc="lower center", ncols=_COLUMNS, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
