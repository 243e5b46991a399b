"""The frames of a split, packed once into tar files that training reads from anywhere.

``datasets.shard_files`` and ``datasets.shard_index`` describe the files. The pass can be killed at
any moment and started again, and shared by machines: neither changes a byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.utils.data import Dataset as TorchDataset

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.files import MEBIBYTE, check_name
from lidarssl.datasets.shard_files import END, checksum, key, tar_member
from lidarssl.datasets.shard_index import (
    FrameTable,
    Layout,
    Row,
    ShardFile,
    frames_file,
)
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Field
from lidarssl.prepare.passes import Outcome, check_shard, outcomes
from lidarssl.prepare.shard_leftovers import CANNOT_LOCK, lock, remove_abandoned
from lidarssl.prepare.shard_packing import Packer
from lidarssl.prepare.shard_refusals import check_dataset, check_settings
from lidarssl.prepare.shard_tables import ShardSettings, part_paths, read_part, write_index
from lidarssl.replacing import replacing
from lidarssl.wording import counted

_SHARD_LIMIT = 1_000_000
_SHARD_SIZE = 256


@dataclass
class ShardsSummary:
    """What a pass did.

    Attributes:
        folder, settings: of the shards.
        written, kept: shards that were made, and that were there and whole.
        missing: shards of the split that are not there yet.
        bytes: of the shards that were made.
        originals, encoded: images whose file was taken as it is, and that were written as PNG.
        seconds: wall clock.
    """

    folder: Path
    settings: ShardSettings
    written: int = 0
    kept: int = 0
    missing: int = 0
    bytes: int = 0
    originals: int = 0
    encoded: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        settings = self.settings
        lines = [
            f"{self.folder}: {counted(self.written, 'shard')} of '{settings.split}' packed "
            f"({self.bytes / MEBIBYTE:.1f} MiB), {self.kept} kept, up to "
            f"{counted(settings.frames_per_shard, 'frame')} each, in {self.seconds:.0f} s"
        ]
        if self.originals or self.encoded:
            lines.append(
                f"  images: {self.originals} as their files, {self.encoded} as PNG (without loss)"
            )
        if self.missing:
            lines.append(
                f"  left to others: {self.missing} of {counted(settings.shards, 'shard')}; the "
                "split can be read when all are here and this command ran once more"
            )
        return "\n".join(lines)


def pack_shards(
    dataset: Dataset,
    split: str,
    output: str | Path,
    fields: Sequence[str] | None = None,
    superpixels: str | Path | None = None,
    frames_per_shard: int | None = None,
    shard_size: int | None = None,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    progress: bool = True,
) -> ShardsSummary:
    """Pack the frames of a split.

    Args:
        dataset: any but a mixture.
        split: of it.
        output: folder, made when missing; it may hold other splits of the dataset.
        fields: names of what to pack beside points; None = all that frames carry.
        superpixels: folder of ``lidarssl prepare superpixels`` to pack with the images.
        frames_per_shard: None = as many as make ``shard_size``, by the first frame.
        shard_size: MiB; None = 256. Not with ``frames_per_shard``, which sets it.
        workers: processes beside this one; 0 = work here.
        shard: (i, n) makes shards i, i + n, i + 2n, ...: one i per machine.
        overwrite: make shards again that are there and whole.
        progress: show a bar on standard error.

    Raises:
        ConfigError: an option that makes no sense, or a folder with shards of something else.
        DataError: a frame cannot be read.
    """
    check_shard(shard)
    packer = Packer(dataset, _fields(dataset, split, fields), _folder_of(superpixels))
    settings = _settings(packer, split, frames_per_shard, shard_size)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    check_dataset(folder, dataset)
    if overwrite:
        (folder / frames_file(split)).unlink(missing_ok=True)
    else:
        check_settings(folder, settings)
    work = _Work(packer, folder, settings, shard, overwrite)
    summary, started = ShardsSummary(folder, settings), time.monotonic()
    for outcome in outcomes(work, len(work), "shards", "shard", workers, progress=progress):
        summary.written += outcome.written
        summary.kept += outcome.kept
        summary.bytes += outcome.bytes
        summary.originals += outcome.originals
        summary.encoded += outcome.encoded
    summary.missing = write_index(folder, dataset, settings)
    summary.seconds = time.monotonic() - started
    return summary


def _fields(dataset: Dataset, split: str, names: Sequence[str] | None) -> Field:
    if names is None:
        return Field.ALL
    provided = dataset.provides(split)
    known = {str(one.name).lower(): one for one in provided}
    found = Field.NONE
    for name in names:
        if name not in known:
            raise unknown_name("field", name, known, "fields")
        found |= known[name]
    return found


def _folder_of(superpixels: str | Path | None) -> Path | None:
    folder = None if superpixels is None else Path(superpixels)
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            "is no folder",
            path=folder,
            field="superpixels",
            remedy="run `lidarssl prepare superpixels` on this dataset and split",
        )
    return folder


def _settings(
    packer: Packer, split: str, frames_per_shard: int | None, shard_size: int | None
) -> ShardSettings:
    dataset = packer.dataset
    check_name(split, None, "split")
    if frames_per_shard is not None and shard_size is not None:
        raise ConfigError(
            "frames_per_shard and shard_size both say how large a tar file is",
            field="shard_size",
            remedy="give --frames-per-shard or --shard-size, not both",
        )
    ids = dataset.frames(split)
    if any(frame.dataset != dataset.name for frame in ids):
        raise ConfigError(
            "a mixture has the classes and the lidar frame of no one dataset",
            field="dataset",
            remedy="pack each of its datasets, and mix the shards: a Mixed of several Shards",
        )
    provided = dataset.provides(split) & packer.fields
    if packer.superpixels is not None:
        provided |= Field.SUPERPIXELS
    if Field.SUPERPIXELS in provided and Field.IMAGES not in provided:
        raise ConfigError(
            "superpixels are packed with their images",
            field="superpixels",
            remedy="add images to --fields, or choose a dataset with images",
        )
    files = dict(packer.files(ids[0]).members)
    made_with, told = None, ["frame.json", "points.npy"]
    if Field.SUPERPIXELS in provided:
        made_with = packer.superpixels_made_with(split)
    if made_with is None:
        told += [suffix for suffix in files if suffix.startswith("superpixels")]
    if frames_per_shard is None:
        size = _SHARD_SIZE if shard_size is None else shard_size
        frames_per_shard = max(1, size * MEBIBYTE // sum(map(len, files.values())))
    settings = ShardSettings(
        dataset=dataset.name,
        split=split,
        fields=tuple(str(one.name).lower() for one in provided),
        frames=len(ids),
        fingerprint=_digest("\n".join(map(str, ids)).encode()),
        frames_per_shard=frames_per_shard,
        first=_digest(b"".join(files[suffix] for suffix in told)),
        superpixels=made_with,
    )
    if frames_per_shard < 1 or settings.shards > _SHARD_LIMIT:
        raise ConfigError(
            f"{counted(len(ids), 'frame')} cannot be packed {frames_per_shard} to a shard",
            field="frames_per_shard",
            remedy=f"use 1 or more, for at most {_SHARD_LIMIT} shards",
        )
    return settings


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@dataclass
class _Outcome(Outcome):
    """What became of one shard; see ``ShardsSummary``."""

    bytes: int = 0
    originals: int = 0
    encoded: int = 0


class _Work(TorchDataset[_Outcome]):
    """Item i makes the i-th shard of a machine: a loader's workers are the processes."""

    def __init__(
        self,
        packer: Packer,
        folder: Path,
        settings: ShardSettings,
        shard: tuple[int, int],
        overwrite: bool,
    ) -> None:
        self.packer, self.folder, self.settings = packer, folder, settings
        self.ids = packer.dataset.frames(settings.split)
        self.shards = range(settings.shards)[shard[0] :: shard[1]]
        self.overwrite = overwrite

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> _Outcome:
        shard = self.shards[index]
        try:
            if not self.overwrite and read_part(self.folder, self.settings, shard) is not None:
                return _Outcome(kept=1)
            return self._pack(shard)
        except DataError as error:
            return _Outcome(error=error)

    def _pack(self, shard: int) -> _Outcome:
        tar, part = part_paths(self.folder, self.settings.split, shard)
        part.unlink(missing_ok=True)
        remove_abandoned(tar)
        rows, layouts, outcome = [], dict[Layout, int](), _Outcome(written=1)
        with replacing(tar) as partial, partial.open("wb") as file:
            with contextlib.suppress(*CANNOT_LOCK):
                lock(file)
            for number in self.settings.rows(shard):
                frame = self.ids[number]
                files = self.packer.files(frame)
                layout = Layout(files.cameras, tuple(suffix for suffix, _ in files.members))
                sizes = tuple(len(content) for _, content in files.members)
                checks = "".join(checksum(content) for _, content in files.members)
                place = layouts.setdefault(layout, len(layouts))
                rows.append(Row(frame.sequence, frame.token, place, file.tell(), sizes, checks))
                for suffix, content in files.members:
                    file.write(tar_member(f"{key(number)}.{suffix}", content))
                outcome.originals += files.originals
                outcome.encoded += files.images - files.originals
            file.write(END)
            outcome.bytes = file.tell()
        shards = (ShardFile(tar.name, outcome.bytes, len(rows)),)
        table = json.loads(FrameTable(shards, tuple(layouts), tuple(rows)).to_json())
        with replacing(part) as partial:
            partial.write_text(json.dumps({**table, "settings": asdict(self.settings)}))
        return outcome
