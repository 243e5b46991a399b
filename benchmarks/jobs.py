"""Jobs in processes of one thread each, whose results are kept on disk."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import torch

from lidarssl.replacing import replacing


class Jobs:
    """A pool whose finished jobs are not run again.

    Args:
        folder: of the results, one JSON file each.
        workers: processes.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.started = folder, time.monotonic()
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    def submit(self, name: str, job: Callable[..., object], *arguments: object) -> Future[object]:
        """Run a job, unless its result is there; tells when it is done."""
        file = self.folder / f"{name.replace(' ', '_')}.json"
        future = self.pool.submit(_once, file, job, *arguments)
        future.add_done_callback(lambda _: self._say(name))
        return future

    def close(self) -> None:
        self.pool.shutdown()

    def _say(self, name: str) -> None:
        print(f"[{(time.monotonic() - self.started) / 60:5.1f} min] {name}", flush=True)


def _once(file: Path, job: Callable[..., object], *arguments: object) -> object:
    torch.set_num_threads(1)
    if file.is_file():
        return json.loads(file.read_text())
    result = job(*arguments)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(json.dumps(result))
    return result
