"""`data shard`, and what can be done with shards, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Command, Tiny
from shard_dataset_files import serving


def shard(command: Command, tiny: Tiny, folder: Path, *more: object) -> str:
    done = command(
        "data", "shard", "synthetic", folder, "--root", tiny.world, "--workers", 0, "--quiet", *more
    )
    assert done.code == 0, done.err
    return done.out


def test_a_split_is_packed_checked_and_kept(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    out = shard(command, tiny, folder, "--frames-per-shard", 1)
    assert "2 shards of 'train' packed" in out
    assert "up to 1 frame each" in out
    assert "1 shard of 'val' packed" in shard(command, tiny, folder, "--split", "val")
    assert "images: 4 as their files, 0 as PNG" in out
    assert "2 kept" in shard(command, tiny, folder, "--frames-per-shard", 1)
    checked = command("data", "check", "shards", "--root", folder, "--workers", 0)
    assert checked.code == 0, checked.out
    assert "synthetic train: 2 frames in 2 sequences; 2 checked, 0 bad" in checked.out
    stats = command("data", "stats", "shards", "--root", folder)
    assert stats.out == command("data", "stats", "synthetic", "--root", tiny.world).out


def test_a_method_trains_from_a_web_server_as_from_the_dataset(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for split in ("train", "val"):
        shard(command, tiny, tmp_path / "shards", "--fields", "images", "--split", split)
    words = tiny.pretrain(tmp_path / "one", "ppkt")
    assert command(*words).code == 0
    words[words.index("--training.workers=0")] = "--training.workers=2"
    with serving(tmp_path / "shards") as server:
        root = f"--dataset.root={server.url}"
        moved = [root if word.startswith("--dataset.root") else word for word in words]
        moved[moved.index(str(tmp_path / "one"))] = str(tmp_path / "two")
        done = command(*moved, "--dataset.class_path=Shards")
    assert done.code == 0, done.err
    shards = [(path, asked) for path, asked in server.requests if path.endswith(".tar")]
    assert len(shards) >= 4, "of two steps with two frames each"
    assert all(asked and asked.startswith("bytes=") for _, asked in shards)
    one, two = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("one", "two"))
    assert _losses(one) == _losses(two)


def test_a_server_without_ranges_is_told_once(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    shard(command, tiny, tmp_path)
    with serving(tmp_path) as server:
        server.ranges = False
        done = command("data", "check", "shards", "--root", server.url, "--quiet")
    assert done.code == 2, done.out
    assert done.err.count("ignores range requests") == 1
    assert "remedy: serve the folder" in done.err


def _losses(metrics: str) -> list[str]:
    found = [part for part in metrics.replace("{", ",").split(",") if '"loss"' in part]
    assert len(found) == 2
    return found


def test_what_is_wrong_is_one_message(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    pack = ("data", "shard", "synthetic", tmp_path, "--root", tiny.world)
    for words, told in (
        ((*pack, "--fields", "image"), "field: fields\n  remedy: did you mean 'images'? known: "),
        ((*pack, "--shard", "2/2"), "--shard"),
        ((*pack, "--frames-per-shard", "0"), "1 or more"),
        ((*pack, "--frames-per-shard", "2", "--shard-size", "256"), "not both"),
        (("data", "check", "shards", "--root", tmp_path), "index.json"),
        (("data", "check", "shards", "--root", "ftp://host/x"), "https://"),
        (("data", "shard", "synthetic"), "output"),
    ):
        done = command(*words)
        assert done.code == 2, done.out
        assert told in done.err
        assert "Traceback" not in done.err
