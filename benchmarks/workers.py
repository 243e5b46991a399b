"""Samples per second by the number of loader processes, what a batch costs on its way, and shards.

Usage: python benchmarks/workers.py [--threads 1] [--repeats 7] [--batches 8] [--json FILE]

- Batches of PPKT with MinkUNet (files, transforms, matches, voxels, kernel maps) made by 0, 1 and 2
  loader processes, beside none. No training step competes for the cores.
- The same batch handed over by a process again and again, packed and tensor by tensor: CPU time of
  this process and of the other.
- A frame from shards, on the disk and over HTTP from this machine, beside the same frame from the
  files of its dataset. Checked: all frames are equal.

The real nuScenes key frame below LIDARSSL_DATA (default ../shared/data), else made-up streets.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import torch
from measuring import Figure, argument_parser, data_folder, report, taking_turns, threads_of_torch
from torch.utils.data import DataLoader

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.batching import collate
from lidarssl.datasets.base import Dataset
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.datasets.shards import Shards
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.frame import Batch, Field, Frame, FrameId, map_tensors
from lidarssl.methods.image_to_lidar import PairAugmentation
from lidarssl.prepare.shards import pack_shards
from lidarssl.training.loading import EpochBatches, FrameSource, good_batch, training_loader
from lidarssl.training.packing import packed
from lidarssl.wording import counted

BATCH_SIZE = 4


def main() -> int:
    arguments = argument_parser(__doc__, threads=1)
    arguments.add_argument("--batches", type=int, default=8)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, threads_of_torch(options.threads):
        dataset, split = frames_to_load(Path(folder))
        ids = dataset.frames(split)
        figures = [
            *by_workers(dataset, ids, options.batches),
            *handing_over(dataset, ids, options.repeats),
            *from_shards(dataset, split, Path(folder) / "shards", options.repeats),
        ]
    report(
        "loader processes", figures, options.json, options.threads, frames=f"{dataset.name} {split}"
    )
    return 0


def frames_to_load(folder: Path) -> tuple[Dataset, str]:
    root = data_folder() / "nuscenes"
    if root.is_dir():
        return NuScenes(root), "mini_train"
    print("no real frames below LIDARSSL_DATA: made-up streets", file=sys.stderr)
    return Synthetic.generate(folder / "world", progress=False), "train"


def source_of(dataset: Dataset, ids: list[FrameId], samples: int) -> FrameSource:
    transforms = PairAugmentation().transforms(training=True)
    repeated = [ids[number % len(ids)] for number in range(samples)]
    return FrameSource(dataset, repeated, Field.IMAGES, transforms, seed=0)


def by_workers(dataset: Dataset, ids: list[FrameId], count: int) -> Iterator[Figure]:
    """The first batches, which the processes start up for, are left out."""
    net, alone = MinkUNet(), 0.0
    for workers in (0, 1, 2):
        skipped = 1 + 2 * workers
        batches = EpochBatches(BATCH_SIZE, BATCH_SIZE, skipped + count, seed=0)
        source = source_of(dataset, ids, BATCH_SIZE)
        loader = iter(training_loader(source, batches, workers, net.prepare))
        for _ in range(skipped):
            good_batch(next(loader))
        start = time.perf_counter()
        for _ in range(count):
            good_batch(next(loader))
        rate = count * BATCH_SIZE / (time.perf_counter() - start)
        alone = alone or rate
        processes = counted(workers, "loader process", "loader processes")
        yield Figure(f"PPKT, {processes}", rate, "samples/s", beside=alone)


def handing_over(dataset: Dataset, ids: list[FrameId], repeats: int) -> Iterator[Figure]:
    source = source_of(dataset, ids, BATCH_SIZE)
    frames = [source.load(0, sample) for sample in range(BATCH_SIZE)]
    batch = collate(frames)
    batch.points = MinkUNet().prepare(batch.points)
    if tensors_of(batch) != tensors_of(packed(batch)):
        raise SystemExit("a packed batch is another")
    ways = {"packed": packed, "tensor by tensor": lambda one: map_tensors(one, torch.Tensor.clone)}
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, make in ways.items():
            times[way].append(cpu_of_handing_over(batch, make))
    size = sum(len(content) for content in tensors_of(batch)) / 2**20
    for number, where in enumerate(("training process", "loader process")):
        here, beside = (median(one[number] for one in times[way]) for way in ways)
        yield Figure(
            f"a batch of {size:.0f} MiB, CPU of the {where}", here, "ms", beside=beside,
            limit="new pages of shared memory",
        )  # fmt: skip


def tensors_of(batch: Batch) -> list[bytes]:
    found: list[bytes] = []
    map_tensors(batch, lambda tensor: found.append(tensor.contiguous().numpy().tobytes()))
    return found


def cpu_of_handing_over(
    batch: Batch, make: Callable[[Batch], Batch], times: int = 10
) -> tuple[float, float]:
    """Ms per batch here, where every page is looked at once, and in the process that makes it."""
    loader = DataLoader(
        range(times), batch_size=None, num_workers=1, collate_fn=lambda _: make(batch)
    )
    start, others = time.process_time(), children()
    for one in loader:
        map_tensors(one, lambda tensor: tensor.flatten()[::512].sum())
    del one
    here = time.process_time() - start
    del loader
    return 1000 * here / times, 1000 * (children() - others) / times


def children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def from_shards(dataset: Dataset, split: str, folder: Path, repeats: int) -> Iterator[Figure]:
    pack_shards(dataset, split, folder, progress=False)
    frame = dataset.frames(split)[0]
    with serving(folder) as url:
        places = {"files": dataset, "shards": Shards(folder), "shards over HTTP": Shards(url)}
        for name, fields in (("everything", Field.ALL), ("points", Field.NONE)):
            loaded = [place.load(frame, fields) for place in places.values()]
            if any(contents(one) != contents(loaded[0]) for one in loaded):
                raise SystemExit("a frame from shards is another")
            times = taking_turns(
                {
                    way: lambda place=place: place.load(frame, fields)  # noqa: B023
                    for way, place in places.items()
                },
                3 * repeats,
            )
            for way in ("shards", "shards over HTTP"):
                yield Figure(
                    f"a frame ({name}) from {way}", times[way], "ms", beside=times["files"],
                    limit="decoding" if fields else "",
                )  # fmt: skip


def contents(frame: Frame) -> list[bytes]:
    found: list[bytes] = []
    map_tensors(frame, lambda tensor: found.append(tensor.contiguous().numpy().tobytes()))
    return found


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server with range requests in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(folder, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def serve(folder: Path, pipe: object) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = (folder / self.path.lstrip("/")).read_bytes()
            asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("Range", ""))
            self.send_response(206 if asked else 200)
            if asked:
                first, last = int(asked[1]), int(asked[2])
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                data = data[first : last + 1]
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *rest: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])  # type: ignore[attr-defined]
    server.serve_forever()


if __name__ == "__main__":
    raise SystemExit(main())
