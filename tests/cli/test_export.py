"""`lidarssl export onnx` as a user types it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import Command, Outcome
from export.networks import UNET, clouds, lived
from lidarssl import checkpoints
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.checkpoints import Architecture, Card
from lidarssl.cli import build_parser
from lidarssl.errors import DataError
from lidarssl.experiments.exporting import preprocessing, product
from lidarssl.export.backbones import onnx_inputs
from lidarssl.export.onnx_file import about, open_session
from lidarssl.frame import Batch, FrameId
from lidarssl.report.schema import ClassTableRow, Protocol, Results
from lidarssl.tasks.semantic import SemanticSegmentation

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

UNET_CARD: dict[str, Any] = {name: v for name, v in UNET.items() if name != "inputs"} | {
    "inputs": {"columns": ["intensity", "x", "y", "z"], "reduce": "mean"}
}
CLASSES = ("car", "road", "pole")


def card(cls: type, arguments: dict[str, Any]) -> Card:
    path = f"{cls.__module__}.{cls.__qualname__}"
    return Card(Architecture(path, arguments), recipe="slidr", data=("nuscenes/train",))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A run folder of a pretraining whose backbone has a head."""
    torch.manual_seed(0)
    head: dict[str, Any] = {"head_channels": 5, "normalize": True}
    network = lived(MinkUNet(**UNET | head))
    run = tmp_path / "slidr"
    checkpoints.save(run / "student.safetensors", network, card(MinkUNet, UNET_CARD | head))
    return run


@pytest.fixture
def task() -> SemanticSegmentation:
    torch.manual_seed(1)
    made = SemanticSegmentation(lived(MinkUNet(**UNET)), 4, head="norm_linear")
    torch.nn.init.normal_(made.head[1].weight)
    return made.eval()


@pytest.fixture
def probed(tmp_path: Path, task: SemanticSegmentation) -> Path:
    """A run folder of a probe."""
    run = tmp_path / "probe"
    checkpoints.save(run / "task.safetensors", task, card(MinkUNet, UNET_CARD))
    row = ClassTableRow("slidr", Protocol.PROBE, 1.0, CLASSES, (0.5,) * 3, (9,) * 3)
    Results("3 frames", classes=(row,)).save(run)
    return run


def refuses(done: Outcome, *said: str) -> None:
    assert done.code == 2, done.out
    assert done.err.count("error: ") == 1
    assert "remedy: " in done.err
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err


def test_help_explains_with_examples(command: Command) -> None:
    shown = command("export", "onnx", "--help")
    assert shown.code == 0
    assert "  lidarssl export onnx " in shown.out
    assert "pip install 'lidarssl[onnx]'" in shown.out
    assert "onnx" in command("export", "--help").out


def test_a_probe_becomes_a_segmentation(
    command: Command, probed: Path, task: SemanticSegmentation, tmp_path: Path
) -> None:
    """Class names, inputs and outputs come from the file alone; classes are those of the task."""
    file = tmp_path / "new" / "segmentation.onnx"
    done = command("export", "onnx", probed, "--output", file, "--check", 2)
    assert done.code == 0, done.err
    assert not done.err
    assert done.out.startswith(f"{file}\n")
    for line in (
        "  input   values (voxels0, 4) float32",
        "  input   level0_to_1_k2 (voxels1, 8) int64",
        "  output  logits (voxels0, 4) float32",
        "  output  classes (voxels0) int64",
        "  checked on 2 random clouds: differs from PyTorch by at most ",
    ):
        assert line in done.out
    said = about(file)
    assert said["class_names"] == ["ignored", *CLASSES]
    assert said["method"] == "slidr"
    assert said["data"] == ["nuscenes/train"]
    backbone, session = preprocessing(file), open_session(file)
    for cloud in clouds([1, 50, 800]):
        inputs, token = onnx_inputs(backbone, cloud.points.numpy(), cloud.intensity.numpy())
        classes = session.run(["classes"], inputs)[0]
        wanted = task.predict(Batch((FrameId("a", "b", "c"),), cloud))
        np.testing.assert_array_equal(classes[token], wanted.numpy())


@pytest.mark.parametrize(
    ("words", "head"), [([], None), (["--head"], True), (["--features"], False)]
)
def test_what_is_said_of_the_head(words: list[str], head: bool | None) -> None:
    parsed = build_parser().parse_args(["export", "onnx", "run", "--output", "x.onnx", *words])
    assert parsed.head is head


@torch.no_grad()
def test_features_with_and_without_a_head(
    pretrained: Path, probed: Path, task: SemanticSegmentation
) -> None:
    """What comes out: channels, their length, and whether they are logits."""
    cloud = clouds([60])[0]
    plain = product(pretrained).reference(cloud)
    own = product(pretrained / "student.safetensors", head=True).reference(cloud)
    assert (plain.shape[1], own.shape[1]) == (8, 5)
    torch.testing.assert_close(own.norm(dim=1), torch.ones(len(own)))
    assert not torch.allclose(plain.norm(dim=1), torch.ones(len(plain)), atol=0.1)
    assert torch.equal(product(probed).reference(cloud), product(probed, True).reference(cloud))
    features = product(probed, head=False)
    assert features.head is None
    assert "class_names" not in features.about
    assert torch.equal(features.reference(cloud), task.backbone(cloud).features)


def test_bad_sources(command: Command, pretrained: Path, tmp_path: Path) -> None:
    def export(source: Path, *words: object) -> Outcome:
        return command("export", "onnx", source, "--output", tmp_path / "x.onnx", *words)

    refuses(export(tmp_path / "nothing"), "nothing", "no such checkpoint", "SOURCE")
    (tmp_path / "empty").mkdir()
    refuses(export(tmp_path / "empty"), "no such checkpoint")
    foreign = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1)}, foreign)
    refuses(export(foreign), "not a weights file of lidarssl", "lidarssl convert")
    with torch.device("meta"):
        arguments: dict[str, Any] = {"width": 0.5}
        shapes = Spvcnn(**arguments).state_dict()
    state = {name: torch.zeros(value.shape) for name, value in shapes.items()}
    checkpoints.save(tmp_path / "spvcnn.safetensors", state, card(Spvcnn, arguments))
    refuses(export(tmp_path / "spvcnn.safetensors"), "Spvcnn cannot be exported", "WaffleIron")
    assert not (tmp_path / "x.onnx").exists()


def test_bad_cards(command: Command, tmp_path: Path) -> None:
    def export(arguments: dict[str, Any]) -> Outcome:
        file = tmp_path / "student.safetensors"
        state = MinkUNet(**UNET).state_dict()
        checkpoints.save(file, state, card(MinkUNet, arguments))
        return command("export", "onnx", file, "--output", tmp_path / "x.onnx")

    refuses(export(UNET_CARD | {"stem_chanels": 8}), "architecture.init_args")
    refuses(export(UNET_CARD | {"stem_channels": "many"}), "architecture.init_args")
    refuses(export(UNET_CARD | {"stem_channels": 16}), "do not fit")
    refuses(export(UNET_CARD | {"voxel_size": -1.0}), "voxel_size")


def test_bad_options(command: Command, pretrained: Path, probed: Path, tmp_path: Path) -> None:
    def export(output: object, *words: object, source: Path = pretrained) -> Outcome:
        return command("export", "onnx", source, "--output", output, *words)

    refuses(export(tmp_path / "x.onnx", "--opset", 17), "--opset", "18")
    refuses(export(tmp_path / "x.onnx", "--opset", "new"), "--opset")
    refuses(export(tmp_path / "x.onnx", "--check", 0), "--check")
    refuses(export(tmp_path / "x.onnx", "--head", "--features"), "--features")
    refuses(export(tmp_path / "x.pb"), "ends in .onnx")
    refuses(export(tmp_path), "ends in .onnx")
    (tmp_path / "old.onnx").write_bytes(b"old")
    refuses(export(tmp_path / "old.onnx"), "exists", "--overwrite")
    assert (tmp_path / "old.onnx").read_bytes() == b"old"
    refuses(export(tmp_path / "old.onnx" / "x.onnx"), "cannot be written", "--output")
    network = MinkUNet(**UNET)
    headless = tmp_path / "headless.safetensors"
    checkpoints.save(headless, network, card(MinkUNet, UNET_CARD))
    refuses(export(tmp_path / "x.onnx", "--head", source=headless), "have no head", "--head")
    task = checkpoints.load(probed / "task.safetensors")
    strange = {name.replace("head.1.", "head.5."): value for name, value in task.state.items()}
    checkpoints.save(tmp_path / "strange.safetensors", strange, task.card)
    refuses(
        export(tmp_path / "x.onnx", source=tmp_path / "strange.safetensors"), "head", "--features"
    )
    refuses(command("export"), "lidarssl export --help")
    refuses(command("export", "tensorrt", pretrained), "onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_a_file_that_does_not_say_what_it_is(tmp_path: Path, pretrained: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        preprocessing(tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="ONNX"):
        preprocessing(tmp_path / "x.onnx")
