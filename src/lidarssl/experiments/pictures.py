"""Raw data of the report's pictures, taken from one frame."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.bev import BevGrid
from lidarssl.batching import collate
from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.experiments.occupancy import OccupancyAt, occupancy_slices
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.report.class_prototypes import ClassPrototypes
from lidarssl.report.distillation import DistilledFeatures
from lidarssl.report.figures import (
    BevPrediction,
    BevScalar,
    CameraLabels,
    FeaturePca,
    FigureData,
    LidarOnImage,
    Similarity,
    SuperpixelOverlay,
)
from lidarssl.report.pictures import Array
from lidarssl.report.schema import PictureRecord, Section
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.transforms.paired import MatchPixels

QUERY_CLASSES = ("car", "vehicle", "truck")


def picture_frame(dataset: Dataset, frame: FrameId, split: str, labels: bool = True) -> Frame:
    """A frame with whatever pictures can use, and its matches when it has cameras.

    Args:
        labels: of points and pixels, where the dataset has them; without, no label is read.
    """
    wanted = Field.IMAGES | (Field.SEMANTIC | Field.IMAGE_LABELS if labels else Field.NONE)
    loaded = dataset.load(frame, wanted & dataset.provides(split))
    if any(camera.image is not None for camera in loaded.cameras):
        loaded = MatchPixels(allow_none=True)(loaded, np.random.default_rng(0))
    return loaded


class PictureBook:
    """Saves figures into a run folder and remembers what they show.

    Args:
        run: the run folder.
        dataset: of the frames; its classes and colours are those of the pictures.
    """

    def __init__(self, run: Path, dataset: Dataset) -> None:
        self.run, self.dataset, self.classes = run, dataset, dataset.classes
        self.records: list[PictureRecord] = []
        self.part = ""

    def of_part(self, name: str) -> PictureBook:
        """The same book for the pictures of one part of it, named in files and titles."""
        part = copy.copy(self)
        part.part = name
        return part

    def turn(self, frame: Frame) -> Tensor:
        """(3, 3) from the lidar frame to one whose x is the direction of travel."""
        x, y = self.dataset.of(frame.id).forward
        return torch.tensor([[x, y, 0.0], [-y, x, 0.0], [0.0, 0.0, 1.0]])

    def points_of(self, frame: Frame) -> Array:
        """The points turned so that the vehicle drives along +x, (N, 3)."""
        return (frame.points @ self.turn(frame).T).numpy()

    def add(
        self, name: str, figure: FigureData, title: str, caption: str, section: Section
    ) -> None:
        file = f"figures/{slug(self.part)}_{name}.npz" if self.part else f"figures/{name}.npz"
        figure.save(self.run / file)
        title = f"{self.part}: {title}" if self.part else title
        self.records.append(PictureRecord(file, title, caption, section))

    def add_input(self, frame: Frame, cameras: int = 2) -> None:
        """Points over images, or the bare scan when there is no camera."""
        if frame.matches is None:
            self.add(
                "scan",
                BevScalar(self.points_of(frame), frame.points[:, 2].numpy(), "height, m"),
                f"Scan {frame.id}",
                "The scan from above, coloured by height.",
                Section.INPUT,
            )
            return
        for number, camera in enumerate(frame.cameras[:cameras]):
            pairs = frame.matches[frame.matches.image == number]
            distance = frame.points[pairs.point].norm(dim=1)
            assert camera.image is not None
            self.add(
                f"lidar_on_{camera.name}",
                LidarOnImage(
                    camera.image.numpy(), pairs.row.numpy(), pairs.col.numpy(), distance.numpy()
                ),
                f"Lidar on {camera.name}",
                "Points should follow the edges of objects: poles on poles, cars on cars. "
                "A constant shift means a wrong calibration.",
                Section.INPUT,
            )

    def add_superpixels(self, frame: Frame, superpixels: Tensor) -> None:
        """Superpixels of the first camera."""
        image = frame.cameras[0].image
        assert image is not None
        self.add(
            "superpixels",
            SuperpixelOverlay(image.numpy(), superpixels.numpy()),
            "Superpixels",
            "SLidR pools features inside each outline: it should not mix a car with the road.",
            Section.INPUT,
        )

    def add_occupancy(self, frame: Frame, occupancy: OccupancyAt) -> None:
        """Slices of predicted space beside what the rays of the frame saw.

        Args:
            occupancy: in the lidar frame.
        """
        turn = self.turn(frame)
        slices = occupancy_slices(frame.points @ turn.T, lambda places: occupancy(places @ turn))
        self.add(
            "occupancy",
            slices,
            "Occupancy: what it predicts around a scan",
            f"Scan {frame.id} in slices {slices.thickness:g} m thick. Truth: a cell that a ray "
            "passes is free; a cell with a return counts as full, although the ray proves it only "
            "of the few centimetres behind the return; nobody saw the rest. Prediction: mean "
            "probability that the features near the centre of the cell give, full above one half. "
            "Heights are above the ground at the sensor: on a slope a slice leaves the ground.",
            Section.PREDICTIONS,
        )

    def add_distilled(self, frame: Frame, features: DistilledFeatures) -> None:
        """Features of points beside those of their pixels."""
        self.add(
            "distilled",
            features,
            "Features of the image encoder and of the points that learned them",
            f"Scan {frame.id}, which training did not see. The three main directions of both "
            "as red, green, blue: the same colour means the same feature. Shown are the "
            "points that a training step would take: thinned, in one camera, around one place.",
            Section.FEATURES,
        )

    def add_weak_classes(self, frame: Frame, figure: ClassPrototypes | CameraLabels) -> None:
        """Weak labels of an image, with the points by the nearest class where there is one."""
        if isinstance(figure, CameraLabels):
            title, caption = "Weak labels", "No class has a distribution here."
            self.add("weak_labels", figure, title, f"Scan {frame.id}. {caption}", Section.INPUT)
            return
        compared = (
            "Agree: share of the points with this weak label whose nearest class it is; weak "
            "labels err too."
            if figure.pixels is not None
            else "The folder of weak labels has no file of this image to compare with: `lidarssl "
            "prepare weak-labels --split` makes those of the held-out split too."
        )
        self.add(
            "class_prototypes",
            figure,
            "Classes: their distributions, and the points nearest to each",
            f"Scan {frame.id}. A point has the class whose mean direction is nearest to its "
            "feature: one kind of thing should have one colour, with borders where the image has "
            "them. One colour over everything, or all of them mixed like confetti, means that the "
            "directions do not tell the classes apart. Bars: concentration kappa, the larger the "
            "more alike the features of a class; one with a gap is cut. Weight: of features in "
            "the mean, 0 to 1. A class that was not seen while the means were estimated gets no "
            f"point. {compared}",
            Section.FEATURES,
        )

    def add_image_labels(self, frame: Frame, predicted: Tensor) -> None:
        """What an image encoder says of the first camera."""
        image = frame.cameras[0].image
        assert image is not None
        self.add(
            "teacher",
            CameraLabels(
                image.numpy(), predicted.numpy(), np.array(self.classes.colors), self.classes.names
            ),
            "What the image encoder sees",
            "Its features are all that the lidar network is taught, mistakes included.",
            Section.INPUT,
        )

    def add_features(self, frame: Frame, features: Tensor, name: str, caption: str) -> None:
        """PCA of the features of every point, and similarity to one point.

        Args:
            features: (N, C) of the points of the frame, NaN where the network has none; pictures
                show their directions after every channel is standardised, as a linear probe sees
                them.
        """
        features = standard_directions(features)
        known = torch.isfinite(features).all(1)
        unknown = "" if bool(known.all()) else " Dark: outside the network's grid, no features."
        self.add(
            f"pca_{slug(name)}",
            FeaturePca(self.points_of(frame), features.numpy()),
            f"Features: {name}",
            f"The three main directions of the features as red, green, blue. {caption}{unknown}",
            Section.FEATURES,
        )
        query, what = query_point(frame, self.dataset.of(frame.id).classes, known)
        camera = _camera_of(frame, query)
        self.add(
            f"similarity_{slug(name)}",
            Similarity(self.points_of(frame), features.numpy(), query, *camera),
            f"Similarity: {name}",
            f"Cosine similarity of every point to the ringed one ({what}). "
            f"Other objects of its kind should light up, and little else.{unknown}",
            Section.FEATURES,
        )

    def add_prediction(self, frame: Frame, predicted: Tensor, name: str) -> None:
        """Truth, prediction and mistakes of a scan."""
        assert frame.semantic is not None
        self.add(
            f"prediction_{slug(name)}",
            BevPrediction(
                self.points_of(frame),
                predicted.numpy(),
                frame.semantic.numpy(),
                np.array(self.classes.colors),
                self.classes.names,
            ),
            f"Prediction: {name}",
            "Mistakes at the borders of objects are normal; whole objects in red are not.",
            Section.PREDICTIONS,
        )


@torch.no_grad()
def point_features(backbone: Backbone, frame: Frame, device: torch.device) -> Tensor:
    """Features of the points of one frame in eval mode, (N, C) on the CPU.

    NaN where the network has none of the point's own: outside its bird's-eye grid it repeats the
    border or says zero, which a picture would show as something learned.
    """
    backbone.to(device).eval()
    features: Tensor = backbone(collate([bare(frame)]).to(device).points).at_points()
    features = features.float().cpu()
    grid = getattr(backbone, "bev", None)
    if isinstance(grid, BevGrid):
        place = grid.coordinates(frame.points)
        inside = (place >= 0) & (place < place.new_tensor((grid.width, grid.height)))
        features[~(inside.all(1) & features.any(1))] = torch.nan
    return features


def point_predictions(task: SemanticSegmentation, frame: Frame, device: torch.device) -> Tensor:
    """Predicted class of the points of one frame, (N,) on the CPU."""
    task.to(device).eval()
    return task.predict(collate([bare(frame)]).to(device)).cpu()


def bare(frame: Frame) -> Frame:
    """The frame without cameras, whose images may differ in size."""
    return replace(frame, cameras=(), matches=None, queries=None)


def most_crowded(points: Tensor, radius: float = 0.7, most: int = 2000) -> int:
    """The point with most others within ``radius`` m: on the body of a thing, not on its rim.

    Args:
        points: (N, 3) m, N > 0.
        most: points looked at, evenly spread.
    """
    step = -(-len(points) // most)
    few = points[::step]
    return int((torch.cdist(few, few) < radius).sum(1).argmax()) * step


def standard_directions(features: Tensor) -> Tensor:
    """Rows of unit length after every channel has mean 0 and standard deviation 1, (N, C).

    Rows with NaN stay out of both and become NaN.
    """
    known = torch.isfinite(features).all(1)
    rows = features[known]
    spread = rows.std(0, correction=0).clamp(min=1e-6)
    directions = torch.full_like(features, torch.nan)
    directions[known] = torch.nn.functional.normalize((rows - rows.mean(0)) / spread, dim=1)
    return directions


def query_point(frame: Frame, classes: ClassTable, known: Tensor | None = None) -> tuple[int, str]:
    """A point worth asking about: on a car where labels say so, else about 10 m away.

    Points that fall into an image are preferred.

    Args:
        known: (N,) bool, points that may be asked about; None, or none of them, means all.
    """
    distance = frame.points[:, :2].norm(dim=1)
    usable = torch.ones(len(frame), dtype=torch.bool)
    if known is not None and bool(known.any()):
        usable = known
    seen = torch.zeros(len(frame), dtype=torch.bool)
    if frame.matches is not None:
        seen[frame.matches.point] = True
    seen &= usable
    for name in QUERY_CLASSES:
        if frame.semantic is None or name not in classes.names:
            continue
        chosen = usable & (frame.semantic == classes.names.index(name))
        for mask in (chosen & seen, chosen):
            if int(mask.sum()) >= 20:
                rows = torch.nonzero(mask)[:, 0]
                return int(rows[most_crowded(frame.points[rows])]), f"on a {name}"
    rows = torch.nonzero(seen if bool(seen.any()) else usable)[:, 0]
    return int(rows[(distance[rows] - 10).abs().argmin()]), "about 10 m away"


def _camera_of(frame: Frame, query: int) -> tuple[Array | None, ...]:
    """Image, point, row and col of the camera that sees the queried point, or Nones."""
    if frame.matches is None:
        return (None, None, None, None)
    hits = frame.matches.image[frame.matches.point == query]
    number = int(hits[0]) if len(hits) else 0
    pairs, image = frame.matches[frame.matches.image == number], frame.cameras[number].image
    assert image is not None
    return image.numpy(), pairs.point.numpy(), pairs.row.numpy(), pairs.col.numpy()


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
