"""The weak labels that OLIVINE's authors distribute for nuScenes, as files of this library.

Their archive has one 8-bit single-channel PNG for each camera of a key frame,
``<folder>/<camera channel>/<name of the image file>.png``, as large as the image; every value is a
class, of one of two orders (``transforms.weak_labels.ORDERS``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.files import check_name
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, FrameId
from lidarssl.prepare.passes import (
    OnError,
    Summary,
    check_options,
    frames_with_images,
    run_pass,
)
from lidarssl.prepare.weak_labels import WeakLabelWork, claim
from lidarssl.transforms.images import image_size
from lidarssl.transforms.weak_labels import (
    WeakLabelSettings,
    class_order,
    read_weak_labels,
    save_weak_labels,
)

_REMEDY = (
    "unpack the archive again and give its folder with CAM_FRONT and the others; choose --classes "
    "as it was made; load images at their full size"
)


def import_camseg(
    dataset: Dataset,
    split: str,
    output: str | Path,
    archive: str | Path,
    classes: str | Path,
    *,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on_error: OnError = "raise",
    progress: bool = True,
) -> Summary:
    """Write ``<output>/<camera token>.png`` for every image of a split, from the archive.

    Args:
        dataset: nuScenes, with images at their full size.
        split: of it.
        output: folder, made when missing.
        archive: unpacked, the folder with a folder for each camera.
        classes: order of the archive's classes, see ``transforms.weak_labels.class_order``.
        workers, shard, overwrite, on_error, progress: see ``prepare_weak_labels``.

    Raises:
        ConfigError: another dataset, no archive, no such class order, or a folder with labels
            of something else.
        DataError: a file is missing, damaged, of another size or with a value that is no class,
            and ``on_error`` is ``raise``.
    """
    if not isinstance(dataset, NuScenes):
        raise ConfigError(
            f"the archive has labels of nuScenes, not of {dataset.name}", field="camseg"
        )
    source = Path(archive)
    if not source.is_dir():
        raise ConfigError(
            "there is no such folder", path=source, field="camseg", remedy="unpack the archive"
        )
    check_options(on_error)
    frames = frames_with_images(dataset, split, shard)
    settings = class_order(classes)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, settings, overwrite)
    work = _Importing(dataset, frames, folder, settings, overwrite, source)
    summary = Summary(folder, "imported", len(frames))
    # The workers leave no image to this process.
    list(run_pass(work, summary, "weak labels", workers, on_error, progress))
    return summary


class _Importing(WeakLabelWork):
    """Reads a file of the archive, and writes what it says under the camera's token."""

    def __init__(
        self,
        dataset: NuScenes,
        frames: Sequence[FrameId],
        folder: Path,
        settings: WeakLabelSettings,
        overwrite: bool,
        archive: Path,
    ) -> None:
        super().__init__(dataset, frames, folder, settings, overwrite)
        self.archive = archive
        key_frames = dataset.index.key_frames.values()
        readings = [reading for frame in key_frames for reading in frame.readings.values()]
        self.names = {reading.token: reading.filename for reading in readings}

    def make(self, path: Path, camera: Camera) -> None:
        stem = check_name(PurePosixPath(self.names[camera.token]).stem, None, "filename")
        source = self.archive / camera.name / f"{stem}.png"
        try:
            labels = read_weak_labels(source, image_size(camera), self.settings)
        except DataError as error:
            raise DataError(
                error.problem, path=source, field=error.field, remedy=_REMEDY
            ) from error
        save_weak_labels(path, labels)
