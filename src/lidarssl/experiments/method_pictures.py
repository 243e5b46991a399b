"""What the report of a pretraining shows of one method alone; a new method registers a function."""

from __future__ import annotations

from functools import singledispatch

from lidarssl.experiments.calibration_pictures import calibrated
from lidarssl.experiments.class_prototypes import olivine_classes
from lidarssl.experiments.distillation import scalr_features
from lidarssl.experiments.occupancy import also_occupancy
from lidarssl.experiments.pictures import PictureBook
from lidarssl.experiments.retrieval import add_pair
from lidarssl.frame import Frame
from lidarssl.methods.also import Also
from lidarssl.methods.base import Method
from lidarssl.methods.clcp import Clcp
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.olivine import Olivine
from lidarssl.methods.scalr import Scalr
from lidarssl.methods.slidr import Slidr
from lidarssl.transforms.superpixels import slic


@singledispatch
def add_method_pictures(method: Method, frame: Frame, book: PictureBook) -> None:
    """Add what is particular to a method, by its class; by default nothing.

    Args:
        method: trained, on the CPU.
        frame: that it did not see, with its images where it has some.
        book: receives the pictures.
    """


@add_method_pictures.register
def _(method: Slidr, frame: Frame, book: PictureBook) -> None:
    if frame.cameras:
        image = frame.cameras[0].image
        assert image is not None
        book.add_superpixels(frame, slic(image, method.superpixels.settings))


@add_method_pictures.register
def _(method: Also, frame: Frame, book: PictureBook) -> None:
    book.add_occupancy(frame, also_occupancy(method, frame))


@add_method_pictures.register
def _(method: Scalr, frame: Frame, book: PictureBook) -> None:
    if frame.cameras:
        book.add_distilled(frame, scalr_features(method, frame))


@add_method_pictures.register
def _(method: Olivine, frame: Frame, book: PictureBook) -> None:
    figure = olivine_classes(method, frame) if frame.cameras else None
    if figure is not None:
        book.add_weak_classes(frame, figure)


@add_method_pictures.register
def _(method: Nclr, frame: Frame, book: PictureBook) -> None:
    if frame.cameras:
        calibrated(method, frame, book)


@add_method_pictures.register
def _(method: Clcp, frame: Frame, book: PictureBook) -> None:
    if frame.cameras:
        add_pair(method, frame, book)
