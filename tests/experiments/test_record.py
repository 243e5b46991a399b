"""Run folders, and weights that get into backbones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lidarssl import checkpoints
from lidarssl.backbones.base import Backbone
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.voxelnet import VoxelNet
from lidarssl.checkpoints.minkunet_names import Naming, from_ours
from lidarssl.checkpoints.openpcdet import plane_shapes, trunk_shapes
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.record import (
    LIDAR_ENCODER_FILE,
    RECIPE_FILE,
    STUDENT_FILE,
    Recorder,
    architecture,
    load_backbone,
    refuse_other_recipe,
    skipped_note,
)
from lidarssl.report.schema import RunRecord

ARGUMENTS = {
    "stem_channels": 8,
    "encoder_channels": [8, 8],
    "decoder_channels": [8, 8],
    "blocks": [1, 1, 1, 1],
    "voxel_size": 0.2,
}
CLASS = "lidarssl.backbones.minkunet.MinkUNet"


def network(seed: int) -> MinkUNet:
    torch.manual_seed(seed)
    return MinkUNet(
        stem_channels=8, encoder_channels=(8, 8), decoder_channels=(8, 8), blocks=(1,) * 4,
        voxel_size=0.2,
    )  # fmt: skip


def built(**changes: object) -> checkpoints.Architecture:
    return checkpoints.Architecture(CLASS, ARGUMENTS | changes)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    checkpoints.save(tmp_path / STUDENT_FILE, network(1), checkpoints.Card(built(), recipe="slidr"))
    return tmp_path


def test_a_run_is_recorded_from_its_first_moment(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a" / "run", "Title", "lidarssl x", 3, "kind: probe\n")
    record = RunRecord.load(tmp_path / "a" / "run")
    assert (record.title, record.command, record.seed) == ("Title", "lidarssl x", 3)
    assert record.stages == ()
    with recorder.stage("train", "what it does"):
        pass
    (stage,) = RunRecord.load(tmp_path / "a" / "run").stages
    assert (stage.name, stage.description) == ("train", "what it does")
    assert (tmp_path / "a" / "run" / RECIPE_FILE).read_text() == "kind: probe\n"


def test_notes_reach_the_record(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "", "", 0, "")
    recorder.notes.append("A known limit.")
    recorder.save()
    assert RunRecord.load(tmp_path).notes == ("A known limit.",)


STARTED = """
kind: pretrain
dataset:
  class_path: Mixed
  init_args:
    datasets: {a: {class_path: Folder, init_args: {root: x, lift: 1.0}}}
    weights: {a: 1.0}
method:
  class_path: Scalr
  init_args:
    backbone: {class_path: WaffleIron, init_args: {grids: [[4, 4]], checkpointing: false}}
    image_encoder: {class_path: ViT, init_args: {weights: teacher.pth, frozen: true}}
    augmentation: null
about: {title: One}
val_split: val
training: {steps: 10, workers: 2, optimizer: {lr: 0.1}}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[[4, 4]]", "[[4, 8]]", "method.backbone.grids [[4, 4]], not [[4, 8]]"),
        ("lr: 0.1", "lr: 0.2", "training.optimizer.lr 0.1, not 0.2"),
        ("frozen: true", "frozen: false", "method.image_encoder.frozen true, not false"),
        ("teacher.pth", "null", 'method.image_encoder.weights "teacher.pth", not null'),
        ("weights: {a: 1.0}", "weights: {a: 2.0}", "dataset.weights.a 1.0, not 2.0"),
        ("weights: {a: 1.0}", "weights: null", 'dataset.weights {"a": 1.0}, not null'),
        ("lift: 1.0", "lift: 2.0", "dataset.datasets.a.lift 1.0, not 2.0"),
        ("1.0}}}", "1.0}}, b: {class_path: Folder}}", "dataset.datasets.b null, not "),
        ("datasets: {a:", "datasets: {b:", 'dataset.datasets.a {"class_path"'),
        ("augmentation: null", "augmentation: {flip: x}", 'augmentation null, not {"flip": "x"}'),
        ("class_path: ViT", "class_path: ResNet", 'class_path "ViT", not "ResNet"'),
        (", frozen: true", "", "method.image_encoder.frozen true, not null"),
        ("title: One", "title: Two", None),
        ("val_split: val", "val_split: test", None),
        ("steps: 10, workers: 2", "steps: 20, workers: 0", None),
        ("checkpointing: false", "checkpointing: true", None),
        ("teacher.pth", "elsewhere/teacher.pth", None),
        ("root: x", "root: y", None),
        ("root: x", "root: [x, y]", None),
        ("lr: 0.1", "lr: 0.1, nesterov: false", None),
    ],
)
def test_what_may_differ_when_a_run_goes_on(
    tmp_path: Path, old: str, new: str, said: str | None
) -> None:
    assert STARTED.count(old) == 1
    (tmp_path / RECIPE_FILE).write_text(STARTED)
    now = STARTED.replace(old, new)
    if said is None:
        refuse_other_recipe(tmp_path, now)
        return
    with pytest.raises(ConfigError, match="repeat the options") as refused:
        refuse_other_recipe(tmp_path, now)
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [None, "", "kind: [", "a: 1", "\0"])
def test_a_folder_without_a_recipe_is_let_through(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / RECIPE_FILE).write_text(content)
    refuse_other_recipe(tmp_path, STARTED)


def test_skipped_samples_are_worth_a_note() -> None:
    assert skipped_note(0) == []
    (note,) = skipped_note(4)
    assert note.startswith("4 bad samples")
    assert skipped_note(1)[0].startswith("1 bad sample was")


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_file_in_the_way(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a file is where the run folder should be"):
        Recorder(tmp_path / "file" / inside, "", "", 0, "")


def test_architecture_finds_the_module_in_a_recipe() -> None:
    node = {"class_path": CLASS, "init_args": ARGUMENTS}
    recipe = yaml.safe_dump({"method": {"class_path": "x", "init_args": {"backbone": node}}})
    assert architecture(network(0), recipe, "method", "backbone") == built()


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_student_gets_into_a_backbone(run: Path, form: str) -> None:
    backbone = network(2)
    assert load_backbone(backbone, run if form == "folder" else run / STUDENT_FILE, built()) == (
        "slidr"
    )
    for name, value in network(1).state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name


def test_arguments_that_change_no_weight_may_differ(run: Path) -> None:
    load_backbone(network(2), run, built(checkpointing=True, bn_momentum=0.02))


def test_another_architecture_is_refused(run: Path) -> None:
    backbone = network(2)
    with pytest.raises(ConfigError, match=r"voxel_size is 0\.2 in the checkpoint, 0\.1 here"):
        load_backbone(backbone, run, built(voxel_size=0.1))
    for name, value in network(2).state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), "nothing may have been loaded"


def test_a_checkpoint_of_the_reference(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in network(1).state_dict().items()}
    torch.save({"model_points": state, "config": {"voxel_size": 0.2}}, tmp_path / "slidr.pt")
    backbone = network(2)
    assert load_backbone(backbone, tmp_path / "slidr.pt", built()) == "slidr"
    assert torch.equal(backbone.state_dict()["conv0p1s1.kernel"],
                       network(1).state_dict()["conv0p1s1.kernel"])  # fmt: skip
    with pytest.raises(ConfigError, match="voxel_size"):
        load_backbone(backbone, tmp_path / "slidr.pt", built(voxel_size=0.3))


def test_a_checkpoint_of_also(tmp_path: Path) -> None:
    """Names and kernels of torchsparse, with the head and the decoder of its pretraining."""
    state = from_ours(network(1).state_dict(), Naming.TORCHSPARSE)
    content = {f"backbone.{name}": value for name, value in state.items()}
    heads = {"backbone.classifier.0.weight": torch.ones(2), "decoder.fc.weight": torch.ones(2)}
    torch.save({"state_dict": content | heads, "epoch": 199}, tmp_path / "also.ckpt")
    backbone = network(2)
    assert load_backbone(backbone, tmp_path / "also.ckpt", built()) == "also"
    for name, value in network(1).state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name


def test_the_trunk_of_a_second_gets_into_a_voxelnet(tmp_path: Path) -> None:
    shapes = trunk_shapes() | plane_shapes()
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save({"model_state": state}, tmp_path / "second.pth")
    backbone = VoxelNet()
    wanted = checkpoints.Architecture("lidarssl.backbones.voxelnet.VoxelNet", {})
    load_backbone(backbone, tmp_path / "second.pth", wanted)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[f"backbone_3d.{name}"]) or "num_batches" in name, name
    with pytest.raises(ConfigError, match="holds a Second, where a MinkUNet is wanted") as caught:
        load_backbone(network(2), tmp_path / "second.pth", built())
    assert caught.value.path == tmp_path / "second.pth"


class Own(Backbone):
    """A backbone that this library does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


def test_a_backbone_of_ones_own_takes_files_under_its_names(tmp_path: Path) -> None:
    source, target = Own(), Own()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "own.pt")
    load_backbone(target, tmp_path / "own.pt", checkpoints.Architecture("own.Own"))
    assert torch.equal(target.layer.weight, source.layer.weight)


def test_a_folder_of_weights(tmp_path: Path) -> None:
    """As `lidarssl pull` leaves it."""
    checkpoints.save(tmp_path, network(1), checkpoints.Card(built(), recipe="slidr"))
    assert load_backbone(network(2), tmp_path, built()) == "slidr"


@pytest.mark.parametrize("name", ["", "nowhere", "nowhere.safetensors"])
def test_no_checkpoint(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such checkpoint"):
        load_backbone(network(0), tmp_path / name, built())


HOLDER = """
import sys, time
from pathlib import Path
from lidarssl.experiments.record import Recorder
recorder = Recorder(Path(sys.argv[1]), "title", "command", 0, "")
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_in_use_is_refused_until_its_run_dies(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another run writes to this folder"):
            Recorder(tmp_path, "title", "command", 0, "")
        holder.kill()
    Recorder(tmp_path, "title", "command", 0, "")


def test_the_recipe_of_a_run_is_on_disk_once_it_is_known(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "title", "command", 0, "")
    recorder.recipe = "kind: probe\n"
    recorder.save()
    assert (tmp_path / RECIPE_FILE).read_text() == "kind: probe\n"


@pytest.mark.parametrize("beside", [False, True])
def test_an_image_encoder_is_no_backbone(tmp_path: Path, beside: bool) -> None:
    """The run of a pretraining of images says where its lidar encoder is."""
    card = checkpoints.Card(checkpoints.Architecture("lidarssl.images.vit.ViT", {}), "clcp")
    checkpoints.save(tmp_path / STUDENT_FILE, {"weight": torch.zeros(2)}, card)
    if beside:
        checkpoints.save(
            tmp_path / LIDAR_ENCODER_FILE, network(1), checkpoints.Card(built(), "clcp")
        )
    with pytest.raises(ConfigError, match="holds an image encoder") as caught:
        load_backbone(network(2), tmp_path, built())
    assert (LIDAR_ENCODER_FILE in str(caught.value.remedy)) is beside
    if beside:
        assert load_backbone(network(2), tmp_path / LIDAR_ENCODER_FILE, built()) == "clcp"
