"""Refuses to pack into a folder whose shards are of something else, and says what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.files import read_bytes, read_json
from lidarssl.datasets.shard_index import FRAMES_LIMIT, INDEX_FILE
from lidarssl.datasets.shard_parsing import parse_index
from lidarssl.errors import ConfigError
from lidarssl.prepare.shard_tables import ShardSettings, describe_dataset

_UNKNOWN = "superpixels that do not tell what they were made with"
_OF_A_DATASET = {
    "lidar": "kinds of frames",
    "classes": "classes",
    "box_classes": "classes of boxes",
    "forward": "direction of travel",
    "intensity_statistics": "intensity statistics",
}


def check_dataset(folder: Path, dataset: Dataset) -> None:
    """Raises ConfigError for a folder with shards of another dataset."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return
    stored = asdict(parse_index(read_bytes(path, FRAMES_LIMIT), path))
    asked = asdict(describe_dataset(dataset, {}))
    problem = f"the shards in this folder are of the dataset '{stored['dataset']}', not of "
    if stored["dataset"] == dataset.name:
        others = [words for name, words in _OF_A_DATASET.items() if stored[name] != asked[name]]
        if not others:
            return
        problem += f"one with other {', '.join(others)}"
    else:
        problem += f"'{dataset.name}'"
    raise ConfigError(
        problem, path=path, field="dataset", remedy="choose another folder, or delete this one"
    )


def check_settings(folder: Path, settings: ShardSettings) -> None:
    """Raises ConfigError for a folder with shards of the split that were made otherwise."""
    for path in sorted(folder.glob(f"{settings.split}-*.json")):
        if re.fullmatch(r"[0-9]{6}", path.stem.removeprefix(f"{settings.split}-"), re.ASCII):
            stored = read_json(path, FRAMES_LIMIT)
            stored = stored.get("settings") if isinstance(stored, dict) else None
            if isinstance(stored, dict):
                _check_same(path, stored, json.loads(json.dumps(asdict(settings))))
                return


def _check_same(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if stored == asked:
        return
    found = list(_differences(stored, asked)) or [("settings", "those of another version")]
    raise ConfigError(
        "the shards of this split were made with other settings: "
        + "; ".join(words for _, words in found),
        path=path,
        field=", ".join(dict.fromkeys(field for field, _ in found)),
        remedy="choose another folder, or --overwrite",
    )


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Field and words of what differs, but for what another difference brings about."""
    name, frames, number = (
        (stored.get(key), asked[key]) for key in ("dataset", "frames", "frames_per_shard")
    )
    if name[0] != name[1]:
        yield "dataset", f"the dataset '{name[0]}' instead of '{name[1]}'"
        return
    if frames[0] != frames[1]:
        yield "dataset", f"{frames[0]} frames instead of {frames[1]}"
    elif stored.get("fingerprint") != asked["fingerprint"]:
        yield "dataset", "other frames of the dataset"
    if _fields(stored) != _fields(asked):
        yield "fields", f"{_fields(stored)} instead of {_fields(asked)}"
    if number[0] != number[1]:
        had = f"up to {number[0]} frames in a tar file (--frames-per-shard {number[0]})"
        yield "frames_per_shard", f"{had} instead of {number[1]}"
    here, there = _superpixels(stored, asked), _superpixels(asked, stored)
    if here != there:
        yield "superpixels", f"{here} instead of {there}"
    # Fields change the digest, and so do superpixels where nobody knows what they were made with.
    follows = _fields(stored) != _fields(asked) or (here != there and _UNKNOWN in (here, there))
    if stored.get("first") != asked["first"] and not follows:
        unknown = "superpixels, " if here == _UNKNOWN else ""
        yield (
            "dataset",
            f"other {unknown}calibration or points of the first frame (options of the dataset)",
        )


def _fields(settings: Mapping[str, Any]) -> str:
    names = [name for name in _packed(settings) if name != "superpixels"]
    return f"fields {', '.join(names)}" if names else "no fields"


def _packed(settings: Mapping[str, Any]) -> list[str]:
    fields = settings.get("fields")
    return list(map(str, fields)) if isinstance(fields, list) else []


def _superpixels(settings: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """What they were made with, as far as that is not the same in ``others``."""
    made, other = settings.get("superpixels"), others.get("superpixels")
    if isinstance(made, dict):
        same = other if isinstance(other, dict) else {}
        told = [f"{name} {one}" for name, one in made.items() if one != same.get(name)]
        return f"superpixels with {', '.join(told)}" if told else "the same superpixels"
    return _UNKNOWN if "superpixels" in _packed(settings) else "no superpixels"
