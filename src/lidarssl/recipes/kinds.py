"""The kinds of recipes: what each one names, and its defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.methods.base import Method
from lidarssl.tasks.image_segmentation import ImageSegmentation
from lidarssl.tasks.probe import LinearProbe
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.training.settings import Training


@dataclass
class About:
    """What a recipe is for.

    Args:
        title: one line.
        paper: the publication it reproduces.
        target: the published number it aims at, with its protocol.
        verified: what was run of it, and what came out.
    """

    title: str = ""
    paper: str = ""
    target: str = ""
    verified: str = ""


@dataclass
class PretrainRecipe:
    """A method on unlabelled frames.

    Args:
        dataset: where frames come from.
        method: how it pretrains.
        about: what it is for.
        train_split: of the dataset.
        val_split: for pictures and checks.
        training: how it trains.
    """

    dataset: Dataset
    method: Method
    about: About = field(default_factory=About)
    train_split: str = "train"
    val_split: str = "val"
    training: Training = field(default_factory=Training)


@dataclass
class SegmentationRecipe:
    """A segmentation task on a fraction of the labels.

    Args:
        dataset: where frames come from.
        task: backbone, head and loss.
        about: what it is for.
        train_split, val_split: of the dataset.
        label_skip: train on 1 / label_skip of the labels, chosen by the dataset's protocol.
        share_epochs: epochs of ``training`` for each ``label_skip``, where it names none itself.
        training: how it trains.
        adapt_frames: frames that set the batch-norm statistics of a random frozen backbone.
        eval_batch_size: frames of an evaluation step.
    """

    dataset: Dataset
    task: SemanticSegmentation
    about: About = field(default_factory=About)
    train_split: str = "train"
    val_split: str = "val"
    label_skip: int = 1
    share_epochs: dict[int, int] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    adapt_frames: int = 32
    eval_batch_size: int = 4


@dataclass
class ImageSegmentationRecipe:
    """A segmentation task on labelled images.

    Args:
        dataset: where frames come from.
        task: image encoder, head and loss.
        about: what it is for.
        train_split, val_split: of the dataset.
        label_skip: train on 1 / label_skip of the labels, chosen by the dataset's protocol.
        training: how it trains.
        eval_batch_size: frames of an evaluation step, with images of one size.
    """

    dataset: Dataset
    task: ImageSegmentation
    about: About = field(default_factory=About)
    train_split: str = "train"
    val_split: str = "val"
    label_skip: int = 1
    training: Training = field(default_factory=Training)
    eval_batch_size: int = 1


@dataclass
class ProbeRecipe:
    """Softmax regression on features of a frozen backbone.

    Args:
        dataset: where frames come from.
        backbone: what is judged.
        about: what it is for.
        train_split, val_split: of the dataset.
        label_skip: fit on 1 / label_skip of the labels, chosen by the dataset's protocol.
        probe: how the regression is fitted.
        seed: of the draws, and of the weights without a checkpoint.
        workers: loader processes.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        adapt_frames: frames that set the batch-norm statistics of a random backbone.
        eval_batch_size: frames of an evaluation step.
    """

    dataset: Dataset
    backbone: Backbone
    about: About = field(default_factory=About)
    train_split: str = "train"
    val_split: str = "val"
    label_skip: int = 1
    probe: LinearProbe = field(default_factory=LinearProbe)
    seed: int = 0
    workers: int = 2
    accelerator: str = "auto"
    adapt_frames: int = 32
    eval_batch_size: int = 4


KINDS: dict[str, type] = {
    "pretrain": PretrainRecipe,
    "segmentation": SegmentationRecipe,
    "image_segmentation": ImageSegmentationRecipe,
    "probe": ProbeRecipe,
}
Recipe = PretrainRecipe | SegmentationRecipe | ImageSegmentationRecipe | ProbeRecipe
