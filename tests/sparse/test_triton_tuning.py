"""Choice of tiles and the file that keeps it; timings are made up."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch

from lidarssl.sparse.backends import triton_tuning as tuning
from lidarssl.sparse.backends.triton_tuning import KeptTiles, Task, Tile, candidates, chosen_tile

TASK = Task("sums", 27, 64, 96, 17_885, torch.bfloat16, "ieee")
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Clock:
    """Calls take the times given, in turn; counts them."""

    def __init__(self, *times: float) -> None:
        self.times, self.calls = times, 0

    def __call__(self, call: object) -> float:
        self.calls += 1
        return self.times[(self.calls - 1) % len(self.times)]


def never(call: object) -> float:
    raise AssertionError("timed")


def nothing(tile: Tile) -> None:
    pass


@pytest.mark.parametrize("kind", ["sums", "gradient"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("c_in", "c_out"), [(1, 1), (3, 96), (384, 16), (256, 256)])
def test_candidates_fit_the_layer(kind, dtype, c_in, c_out):
    task = dataclasses.replace(TASK, kind=kind, dtype=dtype, c_in=c_in, c_out=c_out)
    tiles = candidates(task)
    assert len(set(tiles)) == len(tiles) > 0
    for tile in tiles:
        sizes = (tile.rows, tile.columns, tile.inner)
        assert all(size >= 16 and size & (size - 1) == 0 for size in sizes)
        across, along = (tile.inner, tile.columns) if kind == "sums" else (tile.rows, tile.columns)
        assert across < max(2 * c_in, 17)
        assert along < max(2 * c_out, 17)


def test_parts_are_for_wide_layers_of_many_weights():
    def parts(**change):
        return [tile.parts for tile in candidates(dataclasses.replace(TASK, **change))]

    assert parts()[0] == 1
    assert parts(c_in=256, c_out=128)[0] == 3
    assert set(parts()) == set(parts(c_in=256, c_out=128)) == {1, 3}
    assert set(parts(weights=8, c_in=256, c_out=256)) == {1}
    assert set(parts(kind="gradient", c_in=256, c_out=256)) == {1}


def test_lengths_of_one_power_of_two_share_a_tile():
    near, far = (dataclasses.replace(TASK, length=n) for n in (32_768, 32_769))
    assert near.key == TASK.key != far.key
    for change in ({"c_in": 65}, {"weights": 8}, {"dtype": torch.float16}, {"kind": "gradient"}):
        assert dataclasses.replace(TASK, **change).key != TASK.key


def test_the_fastest_is_chosen_and_kept(tmp_path):
    path, tiles = tmp_path / "made" / "tiles.json", candidates(TASK)
    clock = Clock(*[5.0, float("inf"), 1.0, *[7.0] * (len(tiles) - 3)])
    kept = KeptTiles("a GPU", path, clock)
    assert kept.tile(TASK, tiles, nothing) == tiles[2]
    assert kept.tile(TASK, tiles, nothing) == tiles[2]
    assert clock.calls == len(tiles)
    assert KeptTiles("a GPU", path, never).tile(TASK, tiles, nothing) == tiles[2]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_timed_is_the_work_itself(tmp_path):
    done = []
    tiles = candidates(TASK)

    def measure(call):
        call()
        return 1.0

    KeptTiles("a GPU", tmp_path / "tiles.json", measure).tile(TASK, tiles, done.append)
    assert done == tiles


def test_devices_and_processes_share_a_file(tmp_path):
    path, tiles = tmp_path / "tiles.json", candidates(TASK)
    other = dataclasses.replace(TASK, c_in=128)
    first, second = (KeptTiles(name, path, Clock(1.0)) for name in ("one", "two"))
    again = KeptTiles("one", path, Clock(2.0, 1.0))
    first.tile(TASK, tiles, nothing)
    second.tile(TASK, tiles, nothing)
    again.tile(other, candidates(other), nothing)
    written = json.loads(path.read_text())
    assert {name: set(known) for name, known in written.items()} == {
        "one": {TASK.key, other.key},
        "two": {TASK.key},
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'{"a GPU": 3}',
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (tuning.LARGEST_FILE + 1),
    ],
    ids=["empty", "cut", "list", "number", "bytes", "deep", "large"],
)
def test_a_damaged_file_is_ignored_with_a_warning(tmp_path, content):
    path, tiles = tmp_path / "tiles.json", candidates(TASK)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"tiles\.json: ignored"):
        kept = KeptTiles("a GPU", path, Clock(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert kept.tile(TASK, tiles, nothing) == tiles[0]
    assert json.loads(path.read_text()).keys() == {"a GPU"}


@pytest.mark.parametrize("entry", [None, 3, "x", [1], [0, 0, 0, 0, 0, 0], [7, 64, 32, 4, 3, 1], {}])
def test_an_entry_that_is_no_candidate_is_chosen_again(tmp_path, entry):
    path, tiles = tmp_path / "tiles.json", candidates(TASK)
    path.write_text(json.dumps({"a GPU": {TASK.key: entry}}))
    clock = Clock(2.0, 1.0)
    assert KeptTiles("a GPU", path, clock).tile(TASK, tiles, nothing) == tiles[1]
    assert clock.calls == len(tiles)


def test_a_file_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError("read-only")

    kept = KeptTiles("a GPU", tmp_path / "tiles.json", Clock(1.0))
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.warns(UserWarning, match="not kept"):
        kept.tile(TASK, candidates(TASK), nothing)


def test_the_file_is_in_the_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.cache_file() == tmp_path / "lidarssl" / "triton_tiles.json"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert tuning.cache_file() == Path.home() / ".cache" / "lidarssl" / "triton_tiles.json"


def test_nothing_is_timed_in_the_interpreter_or_where_runs_must_be_equal(monkeypatch):
    monkeypatch.setattr(tuning, "_kept_tiles", never)
    device = torch.device("cpu")
    assert (
        chosen_tile(TASK, device, nothing, interpreted=True).rows
        == tuning._INTERPRETED["sums"].rows
    )
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen_tile(TASK, device, nothing, interpreted=False) == candidates(TASK)[0]
    finally:
        torch.use_deterministic_algorithms(before)
    only = dataclasses.replace(TASK, dtype=torch.float64, weights=8)
    assert chosen_tile(only, device, nothing, interpreted=False) == candidates(only)[0]


def test_a_gpu_is_named_with_the_version(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_milliseconds", lambda call: 1.0)
    tuning._kept_tiles.cache_clear()
    chosen_tile(TASK, torch.device("cpu"), nothing, interpreted=False)
    tuning._kept_tiles.cache_clear()
    (name,) = json.loads((tmp_path / "lidarssl" / "triton_tiles.json").read_text())
    assert name.startswith("NVIDIA H200, triton 3")


def test_a_tile_too_large_for_the_chip_is_never_chosen(monkeypatch):
    triton = pytest.importorskip("triton")
    testing = pytest.importorskip("triton.testing")

    def fails(call, **options):
        raise triton.OutOfResources(1, 0, "shared memory")

    monkeypatch.setattr(testing, "do_bench", fails)
    assert tuning._milliseconds(lambda: None) == float("inf")
