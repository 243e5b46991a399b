"""What a method or task asks of a dataset, checked before the first step of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lidarssl.datasets.base import Dataset, describe_missing
from lidarssl.errors import ConfigError
from lidarssl.frame import Field, FrameId
from lidarssl.methods.base import Method, PreparedFiles
from lidarssl.wording import counted

_REMEDIES = {
    "images": "give the dataset its image folders (see `lidarssl data check`)",
    "superpixels": "leave `method.superpixels.stored` false and name the folder of `lidarssl "
    "prepare superpixels` by `--method.superpixels.folder DIR`, or take shards that were packed "
    "with --superpixels",
    "semantic": "give the dataset its label files, or choose a labelled split; a mixture has no "
    "labels: take one of its datasets by itself",
    "image_labels": "choose a dataset with labelled images, such as the synthetic world",
}


def check_method(method: Method, dataset: Dataset, split: str) -> None:
    """Stop before the first step when the frames of a split are not what a method asks for.

    Raises:
        ConfigError: they lack what it needs (see ``check_needs``), or were prepared otherwise.
    """
    check_needs(method.needs, dataset, split, type(method).__name__)
    method.check_dataset(dataset, split)


def check_needs(needs: Field, dataset: Dataset, split: str, who: str, points: bool = True) -> None:
    """Stop before the first step when frames lack what a method or task needs.

    Args:
        needs: what every frame must carry.
        dataset, split: where frames come from.
        who: needs it, for messages.
        points: whether it reads scans.

    Raises:
        ConfigError: names the field, the dataset and how to make it; a dataset of images alone.
    """
    if points and not dataset.lidar:
        raise ConfigError(
            f"{who} needs points, and dataset '{dataset.name}' has images alone",
            field="dataset",
            remedy="choose a dataset with lidar",
        )
    missing = describe_missing(needs, dataset.provides(split))
    if missing:
        raise ConfigError(
            f"{who} needs {', '.join(missing)}, which dataset '{dataset.name}' does not provide "
            f"for split '{split}'",
            field=missing[0],
            remedy=_REMEDIES.get(missing[0], "choose another dataset or split"),
        )


def check_prepared(
    prepared: Sequence[PreparedFiles], dataset: Dataset, frames: Sequence[FrameId]
) -> None:
    """Stop before the first step when a folder has fewer files than the frames have images.

    A pass that was killed, or that made one shard of several, would stop the run hours later.
    Each dataset of a mixture is taken to have as many cameras in every frame as in its first.

    Raises:
        ConfigError: too few files, or no folder.
    """
    if not prepared:
        return
    counts = Counter(frame.dataset for frame in frames)
    firsts = {frame.dataset: frame for frame in reversed(frames)}
    images = sum(
        counts[name] * len(dataset.load(frame, Field.IMAGES | Field.UNDECODED).cameras)
        for name, frame in firsts.items()
    )
    for files in prepared:
        remedy = f"let `{files.made_by}` finish on this dataset and split, every shard"
        if not files.folder.is_dir():
            raise ConfigError("is no folder", path=files.folder, field="folder", remedy=remedy)
        there = sum(1 for file in files.folder.iterdir() if file.name.endswith(files.suffix))
        if there < images:
            raise ConfigError(
                f"holds {counted(there, 'file')} for {counted(images, 'image')} of "
                f"{counted(len(frames), 'frame')}",
                path=files.folder,
                field="folder",
                remedy=remedy,
            )
