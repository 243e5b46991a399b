"""A tiny world, a teacher, a pretrained and a probed run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import WORLD, Command, Tiny, run_command


@pytest.fixture(scope="session")
def command() -> Command:
    return run_command


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    from lidarssl.images.unet import SmallUNet

    folder = tmp_path_factory.mktemp("cli")
    made = run_command("data", "synthesize", folder / "world", "--workers", 1, *WORLD)
    assert made.code == 0, made.err
    SmallUNet(num_classes=14).save(folder / "teacher.safetensors")
    return Tiny(folder, folder / "world", folder / "teacher.safetensors")


@pytest.fixture(scope="session")
def pretrained(tiny: Tiny) -> Path:
    """A finished pretraining run."""
    run = tiny.folder / "pretrained"
    done = run_command(*tiny.pretrain(run))
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="session")
def probed(tiny: Tiny, pretrained: Path) -> Path:
    """A probe of it with two seeds, and of the untrained network beside it."""
    run = tiny.folder / "probed"
    done = run_command(*tiny.probe(run), "--checkpoint", pretrained, "--seeds", 2)
    assert done.code == 0, done.err
    return run
