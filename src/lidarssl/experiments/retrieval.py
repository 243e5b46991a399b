"""How well held-out images and scans find each other after a pretraining that pairs them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.pictures import PictureBook
from lidarssl.frame import Frame, FrameId, Pairs
from lidarssl.methods.base import Method
from lidarssl.methods.clcp import Clcp
from lidarssl.metrics.retrieval import (
    Directions,
    FrameGroups,
    Retrieval,
    RetrievalReport,
    partner_ranks,
    retrieval,
)
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.report.figures import LidarOnImage
from lidarssl.report.pictures import Array
from lidarssl.report.retrieval import (
    RETRIEVAL_FILE,
    BothWays,
    Recalls,
    RetrievalRecord,
    RetrievedScans,
)
from lidarssl.report.schema import Section
from lidarssl.training.devices import choose_device
from lidarssl.training.loading import FrameSource, evaluation_batches
from lidarssl.transforms.base import Compose
from lidarssl.transforms.paired import MatchPixels
from lidarssl.wording import counted

MOST_FRAMES = 1000
WITHIN = 5
"""Frames of a drive before and after the partner that show nearly the same."""
PICTURED = (0.1, 0.4, 0.7, 0.95)
"""Which images are shown: shares of those whose scan ranks better."""
BEST, MOST_POINTS = 3, 3000
"""Scans shown beside the right one, and points kept of each."""


@dataclass(frozen=True)
class Embedded:
    """Held-out frames and their embeddings, row by row.

    Attributes:
        ids: of the frames.
        pairs: (N, D) each.
        source: loads the frames as they were embedded.
    """

    ids: list[FrameId]
    pairs: Pairs
    source: FrameSource

    def load(self, row: int) -> Frame:
        return self.source.load(0, self.source.ids.index(self.ids[row]))


def add_retrieval(
    method: Method, recipe: PretrainRecipe, run: Path, book: PictureBook, progress: bool
) -> list[str] | None:
    """Judge a method that pairs images and scans by retrieval among held-out frames.

    Writes ``retrieval.json`` and adds a picture. Exchanges nothing with other processes.

    Args:
        method: trained.
        recipe: of its run.
        run: the run folder.
        book: receives the picture.
        progress: show a bar.

    Returns:
        Lines to print; None for a method that embeds no pairs.

    Raises:
        DataError: a bad frame under the policy ``raise``.
    """
    (run / RETRIEVAL_FILE).unlink(missing_ok=True)  # of a run that this one replaces
    if not isinstance(method, Clcp):
        return None
    split = f"{recipe.dataset.name}/{recipe.val_split}"
    available = held_out(recipe)
    if not available:
        return [f"retrieval   not judged: {split} has no frame with an image and a scan"]
    embedded = embed(method, recipe, spread(available, MOST_FRAMES), progress)
    image, lidar = embedded.pairs.image, embedded.pairs.lidar
    if not bool(image.isfinite().all() and lidar.isfinite().all()):
        return ["retrieval   not judged: the training has diverged, embeddings are not finite"]
    report = retrieval(image, lidar, groups=neighbours(embedded.ids, available))
    record = to_record(report, split, len(available))
    record.save(run)
    book.add(
        "retrieval",
        retrieved_scans(embedded),
        "Images and the scans that they find",
        "From an image whose scan ranks well to one whose scan ranks badly: of all, sorted by "
        "rank, those at 10, 40, 70 and 95 %. Numbers are cosines; a green frame is around the "
        "right scan. Scans without one should at least show a place that looks alike. From above: "
        "the camera (triangle) looks up.",
        Section.FEATURES,
    )
    return lines(record)


def add_pair(method: Clcp, frame: Frame, book: PictureBook) -> None:
    """Picture of what a step compares: the square of the image, and the points inside it.

    Args:
        frame: with images.
    """
    view = Compose([*method.transforms(training=False), MatchPixels()])
    try:
        seen = view(replace(frame, matches=None, semantic=None), np.random.default_rng(0))
    except DataError:  # no point in the square; the report of a finished run can do without
        return
    image, matches = seen.cameras[0].image, seen.matches
    assert image is not None
    assert matches is not None
    distance = seen.points[matches.point].norm(dim=1)
    book.add(
        "pair",
        LidarOnImage(image.numpy(), matches.row.numpy(), matches.col.numpy(), distance.numpy()),
        "A pair",
        f"Scan {frame.id} as both encoders see it: one gets the image, the other the points.",
        Section.INPUT,
    )


def held_out(recipe: PretrainRecipe) -> list[FrameId]:
    """Frames of the held-out split; none where it lacks what the method needs."""
    dataset, split = recipe.dataset, recipe.val_split
    try:
        ids = dataset.frames(split)
    except ConfigError:
        raise
    except DataError:  # a root with training data alone
        return []
    return ids if recipe.method.needs in dataset.provides(split) else []


def spread(ids: Sequence[FrameId], most: int) -> list[FrameId]:
    """At most ``most`` of the frames, evenly spread."""
    count = min(most, len(ids))
    return [ids[number * len(ids) // count] for number in range(count)]


@torch.no_grad()
def embed(method: Clcp, recipe: PretrainRecipe, ids: Sequence[FrameId], progress: bool) -> Embedded:
    """Embeddings of frames in eval mode, each frame once; the method is left on the CPU."""
    training, device = recipe.training, choose_device(recipe.training.accelerator)
    source = FrameSource(
        recipe.dataset, ids, method.needs, method.transforms(training=False), training.seed,
        training.bad_samples,
    )  # fmt: skip
    size, was_training = training.batch_size, method.training
    batches = evaluation_batches(source, size, training.workers, method.lidar_encoder.prepare)
    method.to(device).eval()
    names: list[FrameId] = []
    found: list[tuple[Tensor, Tensor]] = []
    for batch in tqdm(
        batches, "retrieval", -(-len(ids) // size), disable=not progress, leave=False
    ):
        moved = batch.to(device)
        names += batch.ids
        found.append((method.embed_images(moved), method.embed_scans(moved)))
    method.train(was_training).cpu()
    # A bad frame was replaced by the next, which comes once more.
    first = {name: number for number, name in reversed([*enumerate(names)])}
    once = sorted(first.values())
    image, lidar = (torch.cat(rows).float().cpu()[once] for rows in zip(*found, strict=True))
    return Embedded([names[number] for number in once], Pairs(image, lidar), source)


def neighbours(ids: Sequence[FrameId], split: Sequence[FrameId]) -> FrameGroups | None:
    """Which drive each frame is of, and which frame of it; None where no frame has a neighbour.

    Args:
        ids: frames of the split.
        split: all frames of it, those of a drive in order of time.
    """
    drives: dict[tuple[str, str], int] = {}
    place: dict[FrameId, tuple[int, int]] = {}
    length: Counter[int] = Counter()
    for frame in split:
        drive = drives.setdefault((frame.dataset, frame.sequence), len(drives))
        place[frame] = drive, length[drive]
        length[drive] += 1
    sequence, position = torch.tensor([place[frame] for frame in ids]).unbind(1)
    groups = FrameGroups(sequence, position, WITHIN)
    return groups if _some_are_near(groups) else None


def _some_are_near(groups: FrameGroups) -> bool:
    order = torch.argsort(groups.sequence * (groups.position.max() + 1) + groups.position)
    sequence, position = groups.sequence[order], groups.position[order]
    near = (sequence.diff() == 0) & (position.diff() <= groups.within)
    return bool(near.any())


def to_record(report: RetrievalReport, split: str, available: int) -> RetrievalRecord:
    """What ``retrieval.json`` holds.

    Args:
        split: dataset and split.
        available: frames of the split.
    """
    return RetrievalRecord(
        split=split,
        frames=report.count,
        available=available,
        ks=tuple(report.exact.chance),
        exact=_both_ways(report.exact),
        within=WITHIN,
        near=None if report.near is None else _both_ways(report.near),
        alignment=report.alignment,
        uniformity_image=_known(report.uniformity_image),
        uniformity_lidar=_known(report.uniformity_lidar),
        modality_gap=report.modality_gap,
    )


def _both_ways(found: Directions) -> BothWays:
    return BothWays(
        _recalls(found.image_to_lidar), _recalls(found.lidar_to_image), (*found.chance.values(),)
    )


def _recalls(found: Retrieval) -> Recalls:
    return Recalls((*found.recall.values(),), found.median_rank, found.mean_reciprocal_rank)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def lines(record: RetrievalRecord) -> list[str]:
    """What the command line says of a record."""
    heads = " ".join(f"{f'recall@{k}':>10}" for k in record.ks)
    rows = [
        f"retrieval among {counted(record.frames, 'held-out frame')} of {record.split}",
        f"{'':<24}{heads}  median rank",
        _line("image finds its scan", record.exact.image_to_lidar),
        _line("scan finds its image", record.exact.lidar_to_image),
        _line("chance", record.exact.chance),
    ]
    if record.near is not None:
        rows += [
            f"  the partner, or a frame at most {record.within} before or after it in its drive:",
            _line("image finds its scan", record.near.image_to_lidar),
            _line("scan finds its image", record.near.lidar_to_image),
            _line("chance", record.near.chance),
        ]
    uniformity = (record.uniformity_image, record.uniformity_lidar)
    image, lidar = ("-" if value is None else f"{value:.2f}" for value in uniformity)
    return [
        *rows,
        f"alignment {record.alignment:.2f}, uniformity {image} (images) {lidar} (scans), "
        f"modality gap {record.modality_gap:.2f}",
    ]


def _line(name: str, found: Recalls | tuple[float, ...]) -> str:
    recall = found.recall if isinstance(found, Recalls) else found
    median = f"{found.median_rank:13g}" if isinstance(found, Recalls) else ""
    return f"  {name:<22}" + " ".join(f"{100 * value:8.1f} %" for value in recall) + median


def retrieved_scans(embedded: Embedded) -> RetrievedScans:
    """Some images, from well to badly ranked, with their scans and the most similar ones."""
    pairs, count = embedded.pairs, len(embedded.ids)
    ranks = partner_ranks(pairs.image, pairs.lidar)
    order = torch.argsort(ranks, stable=True).tolist()
    queries = [order[place] for place in dict.fromkeys(int(share * count) for share in PICTURED)]
    cosines = pairs.image[queries] @ pairs.lidar.T
    best = cosines.topk(min(BEST, count)).indices
    shown = torch.cat([torch.tensor(queries)[:, None], best], 1)
    scans = {number: _scan(embedded, number) for number in shown.unique().tolist()}
    return RetrievedScans(
        image=np.stack([_image(embedded, query) for query in queries]),
        rank=ranks[queries].numpy(),
        shown=shown.numpy(),
        similarity=cosines.gather(1, shown).numpy(),
        points=np.concatenate([*scans.values()]),
        scan=np.repeat([*scans], [len(points) for points in scans.values()]),
        frames=tuple(str(embedded.ids[query]) for query in queries),
        candidates=count,
    )


def _scan(embedded: Embedded, number: int) -> Array:
    """(P, 3) float32 m of at most ``MOST_POINTS`` points as embedded, x where the camera looks."""
    frame = embedded.load(number)
    axis = frame.cameras[0].camera_from_lidar[2, :2]
    x, y = torch.nn.functional.normalize(axis, dim=0).float()
    step = -(-len(frame) // MOST_POINTS) or 1
    points = frame.points[::step]
    ahead, left = points[:, 0] * x + points[:, 1] * y, points[:, 1] * x - points[:, 0] * y
    return torch.stack([ahead, left, points[:, 2]], 1).numpy()


def _image(embedded: Embedded, number: int) -> Array:
    """(H, W, 3) uint8, as it was embedded."""
    image = embedded.load(number).cameras[0].image
    assert image is not None
    pixels = image if image.dtype == torch.uint8 else (255 * image).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).numpy()
