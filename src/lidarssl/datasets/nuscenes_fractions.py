"""Which key frames of nuScenes are the labelled ones of a share: whole scenes, or a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lidarssl.datasets.files import MEBIBYTE, read_bytes
from lidarssl.datasets.point_files import parse_npy_header
from lidarssl.errors import ConfigError, DataError, unknown_name

Fractions = Literal["slidr", "also", "scalr"]
ALSO_SCENE = "scene-0392"
LIST_LIMIT = 64 * MEBIBYTE


class NuScenesFractions:
    """Whose shares of the labels, and where the lists of some of them are.

    Args:
        rule: ``slidr`` = every n-th scene; ``also`` = the same, and for 1/1000 scene-0392 alone;
            ``scalr`` = the key frames of the lists in ``lists``, and without them as ``slidr``.
        offset: moves the choice of scenes by so many.
        lists: folder with ScaLR's ``nuscenes-ratio_10-v_0.npy`` and ``..._100-v_0.npy``.

    Raises:
        ConfigError: an unknown rule, or options that the rule has no use for.
    """

    def __init__(self, rule: Fractions, offset: int, lists: str | Path | None) -> None:
        if rule not in get_args(Fractions):
            raise unknown_name("fractions", rule, get_args(Fractions))
        if lists is not None and (rule != "scalr" or offset):
            raise ConfigError(
                "fixed lists of key frames are those of ScaLR, which have no other draw",
                field="fraction_lists",
                remedy="set fractions to scalr and fraction_offset to 0, or leave the lists away",
            )
        self.rule, self.offset = rule, offset
        self.lists = None if lists is None else Path(lists)

    def scenes(self, scenes: Sequence[str], split: str, skip: int) -> list[str]:
        """Every skip-th of the scenes of a split: the skip-th, 2 skip-th, ...

        Raises:
            ConfigError: none is.
        """
        single = self.rule == "also" and skip == 1000 and not self.offset
        if single:
            chosen = [scene for scene in scenes if scene == ALSO_SCENE]
        else:
            numbered = enumerate(scenes, 1 + self.offset)
            chosen = [scene for number, scene in numbered if skip > 0 and number % skip == 0]
        if not chosen:
            raise ConfigError(
                f"1/{skip} of the {len(scenes)} scenes of '{split}' is not a scene",
                field="skip",
                remedy=f"choose a split with {ALSO_SCENE}" if single else f"use 1..{len(scenes)}",
            )
        return chosen

    def listed(self, skip: int) -> set[str] | None:
        """Tokens of the lidar readings that the list of a share names; None = there is none.

        Raises:
            DataError: the list is missing or malformed.
        """
        if self.lists is None or skip == 1:
            return None
        path = self.lists / f"nuscenes-ratio_{skip}-v_0.npy"
        remedy = "the lists of ScaLR are for label_skip 10 and 100; unpack them into this folder"
        return set(parse_list(read_bytes(path, LIST_LIMIT, remedy), path))

    def note(self, skip: int) -> str:
        """What a reader must know of a share; empty = nothing."""
        if self.rule != "scalr" or self.lists is not None or skip == 1:
            return ""
        return (
            f"ScaLR's list for 1/{skip} of nuScenes was not given (dataset.fraction_lists): "
            f"the labels are those of every {skip}-th scene, as SLidR chooses them."
        )


def parse_list(data: bytes, path: Path) -> list[str]:
    """Lidar tokens of a .npy list of key frames; nothing is unpickled.

    Args:
        data: a text array (N, 3): lidar file, label file, token of the lidar reading.
        path: its name, for messages.

    Raises:
        DataError: not such a list, or one that is pickled.
    """
    shape, columns_first, dtype, start = parse_npy_header(data, path)
    if dtype.hasobject:
        raise DataError(
            "holds pickled objects, which could run any program when they are read",
            path=path,
            field="fraction_lists",
            remedy="where you trust the file, save it again as text: "
            "numpy.save(path, rows.astype(str))",
        )
    left = len(data) - start
    count = int(np.prod([int(size) for size in shape], dtype=object))
    three_texts = dtype.kind == "U" and len(shape) == 2 and shape[1] == 3
    if not three_texts or count < 1 or not 0 < count * dtype.itemsize == left:
        raise DataError(
            f"an array of shape {shape} and type {dtype} is no list of key frames in the {left} "
            "bytes that follow",
            path=path,
            field="fraction_lists",
            remedy="give rows of three texts: lidar file, label file, token of the lidar reading",
        )
    rows = np.frombuffer(data, dtype, offset=start)
    try:
        return [str(one) for one in rows.reshape(shape, order="F" if columns_first else "C")[:, 2]]
    except ValueError as error:  # not a character
        raise DataError(f"holds no text ({str(error)[:200]})", path=path) from error
