"""Superpixels per second on one core: segmenting the full image against a quarter-size one.

    python benchmarks/superpixels.py [IMAGE ...] [--json FILE] [--threads 1] [--repeats 3]

Quarter size is a quarter of the height and of the width (``scale`` 0.25). Without arguments: the
real nuScenes images below LIDARSSL_DATA, or smooth noise of 1600 x 900 where there are none. Beside
the rates stands how far both segmentations agree.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import Figure, argument_parser, data_folder, report, taking_turns
from torch import Tensor

from lidarssl.datasets.image_files import read_image
from lidarssl.transforms.superpixels import SlicSettings, slic

FULL, QUARTER = SlicSettings(), SlicSettings(scale=0.25)


def load_images(paths: list[Path]) -> tuple[list[Tensor], str]:
    """(3, H, W) uint8 each, and what they are."""
    if paths:
        return [read_image(path)[0] for path in paths], "given images"
    found = sorted((data_folder() / "nuscenes" / "samples").glob("CAM_*/*.jpg"))
    if found:
        return [read_image(path)[0] for path in found], "real nuScenes images"
    return [smooth_noise()], "smooth noise"


def smooth_noise(height: int = 900, width: int = 1600) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, height // 50, width // 50), generator=generator)
    fine = F.interpolate(coarse, (height, width), mode="bicubic")[0]
    fine += 0.02 * torch.randn(fine.shape, generator=generator)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of pixels whose segment of ``second`` has them mostly in one segment of ``first``."""
    count = torch.zeros((int(second.max()) + 1, int(first.max()) + 1))
    count.index_put_((second.flatten(), first.flatten()), torch.ones(first.numel()), True)
    return float(count.amax(1).sum() / first.numel())


def check(image: Tensor, settings: SlicSettings) -> Tensor:
    """Segments of an image, which cover it without gaps in their numbers."""
    ids = slic(image, settings)
    if ids.shape != image.shape[-2:] or len(ids.unique()) != int(ids.max()) + 1:
        sys.exit(f"the segments of {settings} are no partition of the image")
    return ids


def main() -> None:
    arguments = argument_parser(__doc__, repeats=3, threads=1)
    arguments.add_argument("images", type=Path, nargs="*", metavar="IMAGE")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    images, source = load_images(options.images)
    same = [agreement(check(image, FULL), check(image, QUARTER)) for image in images]

    def all_of(settings: SlicSettings) -> None:
        for image in images:
            slic(image, settings)

    forms = {"full": lambda: all_of(FULL), "quarter": lambda: all_of(QUARTER)}
    ms = taking_turns(forms, options.repeats)
    full, quarter = (1000 * len(images) / ms[form] for form in forms)
    limit = "the compiled k-means of scikit-image"
    figures = [
        Figure("superpixels, full size", full, "images/s", limit=limit),
        Figure("superpixels, quarter size", quarter, "images/s", at_least=5, limit=limit),
        Figure("superpixels, quarter against full size", quarter / full, "x"),
        Figure("pixels in the same main segment", 100 * sum(same) / len(same), "%"),
    ]
    height, width = images[0].shape[-2:]
    report(
        "superpixels", figures, options.json, options.threads, input=source, images=len(images),
        size=f"{width} x {height}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
