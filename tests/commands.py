"""The command line in this process, and the words that keep its runs tiny."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lidarssl.cli import main

WORLD = (
    "--splits=[{name: teacher, scenes: 1, frames: 1}, {name: train, scenes: 2, frames: 1}, "
    "{name: val, scenes: 1, frames: 1}]",
    "--lidar.beams=12",
    "--lidar.azimuth_steps=120",
    "--cameras=[{name: CAM_FRONT, height: 32, width: 64}, "
    "{name: CAM_BACK, yaw: 180, height: 32, width: 64}]",
)
SMALL_BACKBONE = {
    "stem_channels": "8",
    "encoder_channels": "[8, 8, 8]",
    "decoder_channels": "[8, 8, 8]",
}


@dataclass(frozen=True)
class Outcome:
    """What a command printed and returned."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def run_command(*words: object) -> Outcome:
    """`lidarssl` as typed, in this process; a traceback fails the test by itself."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as leave:  # --help and --version
            code = int(leave.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def small(prefix: str) -> list[str]:
    """Overrides that make a backbone tiny; ``prefix`` is where it stands in the recipe."""
    return [f"--{prefix}.{key}={value}" for key, value in SMALL_BACKBONE.items()]


@dataclass(frozen=True)
class Tiny:
    """Tiny inputs, and the words that point the synthetic recipes at them.

    Attributes:
        folder: for whatever a test writes beside them.
        world: a synthetic world of two training frames.
        teacher: an untrained image encoder.
    """

    folder: Path
    world: Path
    teacher: Path

    def pretrain(self, run: Path, method: str = "slidr") -> list[str]:
        slidr = ["--method.superpixels.segments=12"] if method == "slidr" else []
        return [
            "pretrain", f"{method}_minkunet_synthetic", "--run", str(run), "--quiet",
            f"--dataset.root={self.world}", f"--method.image_encoder.weights={self.teacher}",
            "--method.augmentation.image_size=[32,64]", "--training.steps=2",
            "--training.workers=0", "--training.log_every=1", *slidr, *small("method.backbone"),
        ]  # fmt: skip

    def probe(self, run: Path) -> list[str]:
        return [
            "probe", "probe_minkunet_synthetic", "--run", str(run), "--quiet",
            f"--dataset.root={self.world}", "--workers=0", "--probe.steps=5",
            "--probe.rows=256", *small("backbone"),
        ]  # fmt: skip

    def finetune(self, run: Path) -> list[str]:
        return [
            "finetune", "finetune_minkunet_synthetic", "--run", str(run), "--quiet",
            f"--dataset.root={self.world}", "--label_skip=1", "--training.steps=2",
            "--training.batch_size=2", "--training.workers=0", *small("task.backbone"),
        ]  # fmt: skip
