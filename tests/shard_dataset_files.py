"""Shards of tiny datasets, and a web server for them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from dataset_files import write_nuscenes
from lidarssl.datasets.base import Dataset
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.prepare.shards import pack_shards


def nuscenes_of(root: Path) -> NuScenes:
    return NuScenes(write_nuscenes(root), cameras=("CAM_BACK", "CAM_FRONT"))


def write_shards(root: Path, dataset: Dataset | None = None, frames_per_shard: int = 2) -> Path:
    """Every split of a dataset, by default of a tiny nuScenes, in ``root/shards``."""
    dataset = dataset or nuscenes_of(root / "nuscenes")
    folder = root / "shards"
    for split in ("train", "val"):
        pack_shards(dataset, split, folder, frames_per_shard=frames_per_shard, progress=False)
    return folder


def differences(one: Any, other: Any, where: str = "frame") -> list[str]:
    """Names of what is not equal in two frames, bit by bit."""
    if isinstance(one, torch.Tensor):
        kinds = [(value.dtype, value.shape) for value in (one, other)]
        equal = kinds[0] == kinds[1] and _bits(one) == _bits(other)
        return [] if equal else [where]
    if is_dataclass(one) and type(one) is type(other):
        return [
            found
            for item in fields(one)
            for found in differences(
                getattr(one, item.name), getattr(other, item.name), f"{where}.{item.name}"
            )
        ]
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for at, (a, b) in pairs for found in differences(a, b, f"{where}[{at}]")]
    return [] if one == other else [where]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@dataclass
class Server:
    """What a test tells the server, and what it sees of it.

    Attributes:
        url: of the folder that is served.
        requests: path and range of every request.
        failures: statuses that the next requests are answered with.
        ranges: whether it understands ranges.
        cut: bytes after which the body of the next answer ends.
        redirect: where every request is sent on to.
    """

    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    ranges: bool = True
    cut: list[int] = field(default_factory=list)
    redirect: str = ""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A web server with range requests, on this machine alone."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, asked = self.path.partition("?")[0], self.headers.get("Range")
            state.requests.append((self.path, asked))
            file = folder / path.lstrip("/")
            if state.redirect:
                self.answer(302, b"", Location=state.redirect)
            elif state.failures:
                self.answer(state.failures.pop(0), b"")
            elif not file.is_file():
                self.answer(404, b"")
            else:
                self.send_part(file.read_bytes(), asked if state.ranges else None)

        def send_part(self, data: bytes, asked: str | None) -> None:
            found = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", asked or "")
            if found is None:
                self.answer(200, data)
                return
            first, last = int(found[1]), min(int(found[2]), len(data) - 1)
            if first >= len(data):
                self.answer(416, b"")
                return
            told = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            self.answer(206, data[first : last + 1], **told)

        def answer(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: state.cut.pop(0)] if state.cut and data else data)

        def log_message(self, *rest: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
