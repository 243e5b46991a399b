"""Superpixels that are not those a recipe asks for: what the message says to type works."""

from __future__ import annotations

import re
from pathlib import Path

from commands import Command, Outcome, Tiny

DIFFERS = "segments 150, not 12, sigma 3.0, not 1.0"


def typed(told: Outcome, start: str) -> list[str]:
    """The words of what a message puts between backticks."""
    assert told.code == 2, told.out
    found = re.search(rf"`({start}[^`]*)`", told.err)
    assert found is not None, told.err
    return found[1].removeprefix("lidarssl ").split()


def prepare(command: Command, tiny: Tiny, words: list[str], folder: Path) -> None:
    """A pass as told, on the training frames."""
    places = {"DATASET": ["synthetic", "--root", tiny.world], "DIR": [folder]}
    told = [one for word in words for one in places.get(word, [word])]
    done = command(*told, "--split", "train", "--workers", 0, "--quiet")
    assert done.code == 0, done.err


def test_files_made_with_other_settings(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    prepare(command, tiny, ["prepare", "superpixels", "DATASET", "--output", "DIR"], tmp_path / "a")
    words = [*tiny.pretrain(tmp_path / "run"), "--dry-run", "--method.superpixels.folder"]
    refused = command(*words, tmp_path / "a")
    assert DIFFERS in refused.err
    assert str(tmp_path / "a") in refused.err
    theirs = typed(refused, "--method")
    assert command(*words, tmp_path / "a", *theirs).code == 0
    prepare(command, tiny, typed(refused, "lidarssl prepare"), tmp_path / "b")
    assert command(*words, tmp_path / "b").code == 0


def test_a_damaged_file_is_made_again_as_told(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    made = "prepare superpixels DATASET --output DIR --segments 12 --sigma 1"
    prepare(command, tiny, made.split(), tmp_path)
    words = [*tiny.pretrain(tmp_path / "run"), "--dry-run"]
    words += ["--method.superpixels.folder", str(tmp_path)]
    for file in tmp_path.glob("*.runs"):
        file.write_bytes(file.read_bytes()[:30])
    again = typed(command(*words), "lidarssl prepare")
    assert " ".join(again).endswith("--segments 12 --compactness 6.0 --sigma 1.0 --scale 1.0")
    prepare(command, tiny, again, tmp_path)
    assert command(*words).code == 0


def test_shards_with_other_superpixels(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    superpixels, shards = tmp_path / "a", tmp_path / "shards"
    made = ["prepare", "superpixels", "DATASET", "--output", "DIR"]
    prepare(command, tiny, made, superpixels)
    pack = ("data", "shard", "synthetic", shards, "--root", tiny.world, "--quiet", "--workers", 0)
    assert command(*pack, "--superpixels", superpixels).code == 0
    words = [word for word in tiny.pretrain(tmp_path / "run") if "--dataset.root" not in word]
    words += ["--dataset.class_path=Shards", "--method.superpixels.stored=true", "--dry-run"]
    words.append(f"--dataset.root={shards}")
    refused = command(*words)
    assert DIFFERS in refused.err
    assert str(shards) in refused.err
    assert "lidarssl data shard" in refused.err
    assert command(*words, *typed(refused, "--method")).code == 0
    # Nor are they trained on when bad samples are left out.
    training = [word for word in words if word != "--dry-run"]
    assert DIFFERS in command(*training, "--training.bad_samples=skip").err


def test_a_teacher_that_is_not_there(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    words = [*tiny.pretrain(tmp_path / "run"), "--dry-run"]
    absent = "--method.image_encoder.weights=runs/demo/teacher.safetensors"
    refused = command(*words, absent)
    assert "`lidarssl demo` makes runs/demo/teacher.safetensors" in refused.err
    assert command(*words, *typed(refused, "--method")).code == 0
