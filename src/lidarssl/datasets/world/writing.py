"""Writes scenes in parallel; what is finished is kept, what was cut short is written again.

The files of a scene depend on nothing but the configuration and the scene's number, so the
bytes on disk do not depend on the number of workers or on interruptions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lidarssl.datasets.world.config import SceneId, WorldConfig
from lidarssl.errors import ConfigError
from lidarssl.replacing import replacing

GENERATOR = 1
"""Raised whenever the same configuration gives other bytes than before."""

Rows = dict[str, list[dict[str, Any]]]
WriteScene = Callable[[WorldConfig, SceneId, Path], Rows]


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is either complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """A JSON file; the items of a list each on a line."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]\n"
    else:
        text = json.dumps(value) + "\n"
    write_file(path, text.encode())


def write_scenes(
    config: WorldConfig,
    scenes: Sequence[SceneId],
    root: Path,
    records: Path,
    write_scene: WriteScene,
    workers: int = 0,
    progress: bool = True,
) -> list[Rows]:
    """Write every scene that is not yet finished.

    Args:
        root: folder of the dataset, for ``write_scene``.
        records: folder where finished scenes are noted.
        write_scene: writes one scene and returns what the dataset's tables must hold of it;
            a module-level function, so that other processes can call it.
        workers: processes; 0 = one per core, 1 = none beside this one.

    Returns:
        The result of ``write_scene`` of every scene, in the order of ``scenes``.

    Raises:
        ConfigError: another world is in ``records``, or worker processes cannot start.
    """
    _stamp(config, records)
    pending = [scene for scene in scenes if not _is_finished(scene, records)]
    jobs = _run(config, pending, root, records, write_scene, workers)
    for _ in tqdm(jobs, "synthetic world", len(pending), unit="scene", disable=not progress):
        pass
    return [json.loads(_record(scene, records).read_text())["rows"] for scene in scenes]


def _stamp(config: WorldConfig, records: Path) -> None:
    """Note what world this is; refuse to mix it with another. Splits may grow."""
    path = records / "world.json"
    world = json.loads(json.dumps({"generator": GENERATOR, **asdict(config)}))
    del world["splits"]
    if not path.is_file():
        write_json(path, world)
        return
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if found != world:
        old = found if isinstance(found, dict) else {}
        differs = [key for key in world if old.get(key) != world[key]]
        raise ConfigError(
            "this folder holds another synthetic world",
            path=path,
            field=", ".join(differs),
            remedy="choose another folder, delete this one, or use its configuration",
        )


def _record(scene: SceneId, records: Path) -> Path:
    return records / f"{scene.name}.json"


def _is_finished(scene: SceneId, records: Path) -> bool:
    try:
        found = json.loads(_record(scene, records).read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict):
        return False
    noted = {key: value for key, value in found.items() if key != "rows"}
    return "rows" in found and noted == _note(scene)


def _note(scene: SceneId) -> dict[str, Any]:
    """What a record says of its scene beside the rows: that nothing else stands in its files."""
    note: dict[str, Any] = {"frames": scene.frames}
    if scene.repeats or scene.weather != "clear":
        note |= {"stream": scene.stream, "weather": scene.weather, "repeats": scene.repeats}
    return note


def _run(
    config: WorldConfig,
    pending: list[SceneId],
    root: Path,
    records: Path,
    write_scene: WriteScene,
    workers: int,
) -> Iterator[None]:
    workers = min(workers or _cores(), len(pending))
    if workers <= 1:
        for scene in pending:
            _write_one(config, scene, root, records, write_scene)
            yield
        return
    # Spawned, not forked: a copy of a process whose libraries run threads can deadlock.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tasks = [
            pool.submit(_write_one, config, scene, root, records, write_scene) for scene in pending
        ]
        try:
            for task in as_completed(tasks):
                task.result()
                yield
        except BrokenProcessPool as error:
            raise ConfigError(
                "the worker processes of the synthetic world ended early",
                field="workers",
                remedy="use workers=1, or in a script call this under `if __name__ == '__main__':`",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _write_one(
    config: WorldConfig, scene: SceneId, root: Path, records: Path, write_scene: WriteScene
) -> None:
    rows = write_scene(config, scene, root)
    write_json(_record(scene, records), {**_note(scene), "rows": rows})


def _cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
