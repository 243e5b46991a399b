"""`lidarssl convert`, `push` and `pull` as a user types them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commands import Command, Outcome, Tiny
from lidarssl import checkpoints
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.checkpoints.minkunet_names import Naming, from_ours
from lidarssl.checkpoints.openpcdet import plane_shapes, trunk_shapes
from lidarssl.errors import DataError
from lidarssl.experiments.record import weights_of
from lidarssl.report.schema import Results
from lidarssl.tasks.semantic import SemanticSegmentation
from weight_files import Bomb

SMALL: dict[str, Any] = {
    "stem_channels": 8,
    "encoder_channels": (8, 8, 8),
    "decoder_channels": (8, 8, 8),
    "blocks": (1,) * 6,
}
SMALL_WORDS = [f"--{name}={[*v] if isinstance(v, tuple) else v}" for name, v in SMALL.items()]
VOXELS = ("--rule", "also", "--voxel_size", 0.1, "--inputs.columns", "[intensity]")


def refuses(done: Outcome, *said: str) -> None:
    assert done.code == 2, done.out
    assert done.err.count("error: ") == 1
    assert "remedy: " in done.err
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def also(tmp_path: Path) -> Path:
    """A checkpoint as ALSO's Lightning trainer leaves it."""
    torch.manual_seed(0)
    state = from_ours(MinkUNet(**SMALL).state_dict(), Naming.TORCHSPARSE)
    content: dict[str, Any] = {f"backbone.{name}": value for name, value in state.items()}
    content["backbone.classifier.0.weight"] = torch.ones(128, 8)
    path = tmp_path / "also.ckpt"
    torch.save({"state_dict": content, "epoch": 199, "optimizer_states": []}, path)
    return path


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """ALSO's published file of SECOND."""
    torch.manual_seed(0)
    shapes = trunk_shapes() | plane_shapes()
    state = {f"model.{name}": torch.randn(shape) for name, shape in shapes.items()}
    path = tmp_path / "second.ckpt"
    torch.save(state | {"model.global_step": torch.ones(1)}, path)
    return path


def ours() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return MinkUNet(**SMALL).state_dict()


@pytest.mark.parametrize("verb", ["convert", "push", "pull"])
def test_help_explains_with_examples(command: Command, verb: str) -> None:
    shown = command(verb, "--help")
    assert shown.code == 0
    assert f"  lidarssl {verb} " in shown.out
    assert "pip install 'lidarssl[hub]'" in shown.out or verb == "convert"


def test_without_a_target_the_file_is_described(command: Command, also: Path) -> None:
    done = command("convert", also)
    assert done.code == 0, done.err
    for said in (
        "also.ckpt", "torchsparse (ALSO, NCLR, BEVContrast)", "MinkUNet, inputs 1",
        "encoder channels 8 8 8", "entry 'state_dict', prefix 'backbone.'",
        "classifier (1 tensor)", "epoch", "optimizer_states",
        f"{sum(p.numel() for p in MinkUNet(**SMALL).parameters()):,} in {len(ours())} tensors",
    ):  # fmt: skip
        assert said in done.out
    assert sorted(also.parent.iterdir()) == [also]


def test_to_lidarssl_and_back_to_torchsparse(command: Command, also: Path, tmp_path: Path) -> None:
    own, back = tmp_path / "own.safetensors", tmp_path / "back.ckpt"
    done = command(
        "convert", also, "--to", "lidarssl", "--output", own, *VOXELS,
        "--licence", "MIT", "--data", "nuscenes/train", "--data", "once/raw",
    )  # fmt: skip
    assert done.code == 0, done.err
    card = checkpoints.load(own).card
    assert card.architecture.class_path == "lidarssl.backbones.minkunet.MinkUNet"
    assert card.architecture.init_args["rule"] == "also"
    assert card.architecture.init_args["stem_channels"] == 8
    assert card.architecture.init_args["inputs"]["columns"] == ["intensity"]
    assert (card.licence, card.data) == ("MIT", ("nuscenes/train", "once/raw"))
    assert all(torch.equal(v, ours()[k]) for k, v in checkpoints.load(own).state.items())
    done = command("convert", own, "--to", "torchsparse", "--output", back)
    assert done.code == 0, done.err
    assert "licence      MIT" in done.out
    assert "no published network has this shape" in done.out
    assert "takes it as checkpoint" not in done.out
    written = torch.load(back, weights_only=True)
    expected = from_ours(ours(), Naming.TORCHSPARSE)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_a_run_folder_for_slidr(command: Command, pretrained: Path, tmp_path: Path) -> None:
    done = command("convert", pretrained, "--to", "minkowski", "--output", tmp_path / "slidr.pt")
    assert done.code == 0, done.err
    written = torch.load(tmp_path / "slidr.pt", weights_only=True)
    assert written["config"] == {"voxel_size": 0.2, "cylindrical_coordinates": False}
    student = checkpoints.load(pretrained / "student.safetensors").state
    assert written["model_points"].keys() == student.keys()
    assert all(torch.equal(written["model_points"][name], student[name]) for name in student)


def test_a_published_network_is_named(command: Command, tmp_path: Path) -> None:
    torch.save(from_ours(MinkUNet().state_dict(), Naming.TORCHSPARSE), tmp_path / "also.ckpt")
    for target, name in (("torchsparse", "MinkUNet34"), ("minkowski", "Res16UNet34C")):
        words = ["--to", target, "--output", tmp_path / f"{target}.pt"]
        done = command("convert", tmp_path / "also.ckpt", *words)
        assert done.code == 0, done.err
        assert f"of {name}\n" in done.out
        assert "no published network" not in done.out


def test_what_the_card_of_a_run_says(command: Command, pretrained: Path) -> None:
    done = command("convert", pretrained)
    assert done.code == 0, done.err
    card = checkpoints.load(pretrained / "student.safetensors").card
    assert card.recipe
    assert f"  method       {card.recipe}\n" in done.out


def test_a_finetuned_run_names_its_file(command: Command, tmp_path: Path) -> None:
    run, own = tmp_path / "run", tmp_path / "own.safetensors"
    torch.manual_seed(0)
    task = SemanticSegmentation(MinkUNet(**SMALL), 3)
    card = checkpoints.Card(checkpoints.Architecture("lidarssl.tasks.semantic.X", {}))
    checkpoints.save(run / "task.safetensors", task, card)
    refuses(command("convert", run), "no such checkpoint", f"{run / 'task.safetensors'} is")
    with pytest.raises(DataError, match="no such checkpoint") as caught:
        weights_of(run, "--checkpoint")
    assert f"{run / 'task.safetensors'} is" in (caught.value.remedy or "")
    assert "`lidarssl convert`" in (caught.value.remedy or "")
    words = [
        "convert", run / "task.safetensors", "--to", "lidarssl", "--output", own,
        "--like", "probe_minkunet_synthetic", *SMALL_WORDS,
    ]  # fmt: skip
    done = command(*words, "--inputs.columns", "[intensity]", "--inputs.scale", "[1]")
    assert done.code == 0, done.err
    assert "head (2 tensors)" in done.out
    assert all(torch.equal(v, ours()[k]) for k, v in checkpoints.load(own).state.items())


def test_like_a_recipe_it_is_probed(
    command: Command, tiny: Tiny, pretrained: Path, tmp_path: Path
) -> None:
    """Our student as a file of others, that file as ours again, and both under `probe`."""
    flat, own = tmp_path / "flat.ckpt", tmp_path / "own"
    recipe = tiny.probe(tmp_path / "plain")[1]
    assert command("convert", pretrained, "--to", "torchsparse", "--output", flat).code == 0
    small = ["--stem_channels=8", "--encoder_channels=[8,8,8]", "--decoder_channels=[8,8,8]"]
    done = command(
        "convert", flat, "--to", "lidarssl", "--output", own, "--like", recipe, *small
    )  # fmt: skip
    assert done.code == 0, done.err
    scores = []
    for number, checkpoint in enumerate((pretrained, flat, own)):
        run = tmp_path / f"run{number}"
        done = command(*tiny.probe(run), "--checkpoint", checkpoint, "--no-baseline")
        assert done.code == 0, done.err
        scores.append(Results.load(run).efficiency[0].seeds)
    assert scores[0] == scores[1] == scores[2]


def test_a_probe_of_another_network_says_which_options_help(
    command: Command, tiny: Tiny, pretrained: Path, also: Path, tmp_path: Path
) -> None:
    for checkpoint, said in (
        (pretrained, "voxel_size is 0.2 in the checkpoint, 0.3 here"),
        (also, "of another shape"),
    ):
        words = [*tiny.probe(tmp_path / "run"), "--checkpoint", checkpoint]
        done = command(*words, "--no-baseline", "--backbone.voxel_size", 0.3, "--backbone.blocks",
                       "[1,1,1,1,1,2]")  # fmt: skip
        refuses(done, said, "choose a recipe whose backbone is", "--backbone.NAME")


def test_another_architecture_than_the_recipe_names_the_difference(
    command: Command, also: Path, tmp_path: Path
) -> None:
    done = command(
        "convert", also, "--to", "lidarssl", "--output", tmp_path / "own",
        "--like", "probe_minkunet_synthetic",
    )  # fmt: skip
    refuses(done, "also.ckpt", "of another shape", "instead of", "choose a --like recipe")
    assert "build the module" not in done.err
    done = command(
        "convert", also, "--to", "lidarssl", "--output", tmp_path / "own",
        "--like", "probe_minkunet_synthetic", *SMALL_WORDS,
    )  # fmt: skip
    refuses(done, "take 1 value", "are 4: intensity, z, range, one", "field: --inputs.columns")
    assert not (tmp_path / "own").exists()


def test_second_for_openpcdet(command: Command, second: Path, tmp_path: Path) -> None:
    done = command("convert", second, "--to", "openpcdet", "--output", tmp_path / "second.pth")
    assert done.code == 0, done.err
    assert "global_step (1 tensor)" in done.out
    assert "layout KRSC" in done.out
    source = torch.load(second, weights_only=True)
    state = torch.load(tmp_path / "second.pth", weights_only=True)["model_state"]
    assert {f"model.{name}" for name in state} == source.keys() - {"model.global_step"}
    assert all(torch.equal(value, source[f"model.{name}"]) for name, value in state.items())
    old = tmp_path / "old.pth"
    done = command(
        "convert", second, "--to", "openpcdet", "--output", old, "--output-layout", "RSCK"
    )
    assert done.code == 0, done.err
    assert "layout RSCK" in command("convert", old).out


def test_second_for_lidarssl(command: Command, second: Path, tmp_path: Path) -> None:
    words = ["convert", second, "--to", "lidarssl", "--output", tmp_path / "second.safetensors"]
    refuses(command(*words), "point_range, voxel_size, inputs")
    grid = ["--point_range", "[0, -40, -3, 70.4, 40, 1]", "--voxel_size", "[0.05, 0.05, 0.1]"]
    grid += ["--inputs.columns", "[x, y, z, intensity]", "--inputs.reduce", "mean"]
    done = command(*words, *grid)
    assert done.code == 0, done.err
    card = checkpoints.load(tmp_path / "second.safetensors").card
    assert card.architecture.class_path == "lidarssl.backbones.second.Second"
    assert card.architecture.init_args["layers"] == [5, 5]
    wrong = [*grid, "--voxel_size", "[0.05, 0.05, 0.05]"]
    refuses(command(*words, "--overwrite", *wrong), "backbone_2d.blocks.0.1.weight")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "lidarssl"], ["--to and --output belong together"]),
        (["--voxel_size", "0.1"], ["--voxel_size describes a file to write"]),
        (["--output", "x.pt"], ["--to and --output belong together"]),
        (["--to", "lidarssl", "--output", "x"], ["rule, voxel_size, inputs", "--like"]),
        (
            ["--to", "lidarssl", "--output", "x", *VOXELS, "--voxel_sice", 1],
            ["voxel_sice", "did you mean 'voxel_size'"],
        ),
        (["--to", "lidarssl", "--output", "x", "--rule", "also", "--voxel_size", "big"], ["'big'"]),
        (["--to", "lidarssl", "--output", "x", *VOXELS, "--blocks", "[1,1]"], ["blocks"]),
        (["--to", "lidarssl", "--output", "x", *VOXELS, "--voxel_size", -1], ["--voxel_size"]),
        (["--to", "lidarssl", "--output", "x", *VOXELS, "--voxel_size", 0], ["--voxel_size"]),
        (
            ["--to", "lidarssl", "--output", "x", *VOXELS, "--voxel_size", "[0.1,0.1,-1]"],
            ["--voxel_size"],
        ),
        (
            ["--to", "lidarssl", "--output", "x", *VOXELS, "--rule", "alsoo"],
            ["--rule", "did you mean 'also'"],
        ),
        (
            ["--to", "lidarssl", "--output", "x", *VOXELS, "--inputs.columns", "[x, y, z]"],
            ["field: --inputs.columns", "take 1 value", "are 3: x, y, z", "--like"],
        ),
        (["--to", "lidarssl", "--output", "x", *VOXELS, "--stem_channels", 4], ["another shape"]),
        (["--to", "torchspars", "--output", "x.pt"], ["choose from", "torchsparse"]),
        (["--to", "openpcdet", "--output", "x.pt"], ["have no MinkUNet\n", "--to lidarssl"]),
        (["--to", "torchsparse", "--output", "x.safetensors"], ["torch.save", ".ckpt"]),
        (["--to", "lidarssl", "--output", "x.pt", *VOXELS], ["x.pt", ".safetensors"]),
        (["--to", "torchsparse", "--output", "x.pt", "--voxel_size", 1], ["--voxel_size"]),
        (["--to", "torchsparse", "--output", "x.pt", "--licence", "MIT"], ["--licence"]),
        (["--to", "torchsparse", "--output", "x.pt", "--output-layout", "RSCK"], ["output-layout"]),
        (["--to", "lidarssl", "--output", "x", "--like", "slidr_mink"], ["no recipe 'slidr_mink'"]),
        (["--prefix", "teacher."], ["under the prefix 'teacher.'"]),
    ],
)
def test_bad_options(
    command: Command, also: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any],
    said: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(also.parent)
    refuses(command("convert", "also.ckpt", *words), *said)
    assert list(also.parent.iterdir()) == [also]


def test_an_output_that_exists_stays(command: Command, also: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.ckpt"
    output.write_text("precious")
    (tmp_path / "out.json").write_text("precious")
    words = ["convert", also, "--to", "torchsparse", "--output", output]
    refuses(command(*words), "out.ckpt: exists", "--overwrite")
    assert output.read_text() == "precious"
    assert command(*words, "--overwrite").code == 0
    assert torch.load(output, weights_only=True)
    own = tmp_path / "out.safetensors"
    words = ["convert", also, "--to", "lidarssl", "--output", own, *VOXELS]
    refuses(command(*words), "out.json: exists", "--overwrite")
    assert (tmp_path / "out.json").read_text() == "precious"


@pytest.mark.parametrize("target", ["torchsparse", "lidarssl"])
def test_a_place_that_cannot_be_written(
    command: Command, also: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real errors of the writers, which differ: a folder that is gone."""
    suffix, voxels = (".ckpt", ()) if target == "torchsparse" else (".safetensors", VOXELS)
    folder = tmp_path / "gone"
    monkeypatch.setattr(Path, "mkdir", lambda path, *how, **more: None)
    words = ["--to", target, "--output", folder / f"x{suffix}", *voxels]
    refuses(command("convert", also, *words), f"x{suffix}: cannot be written", "field: --output")
    assert not folder.exists()
    monkeypatch.undo()
    words = ["--to", target, "--output", also / f"x{suffix}", *voxels]
    refuses(command("convert", also, *words), f"x{suffix}: cannot be written", "field: --output")


def test_no_warning_about_a_pickle(command: Command, tmp_path: Path) -> None:
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuses(command("convert", tmp_path / "plain.pt"), "plain.pt: not a file of plain tensors")


def write_bomb(path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "config": Bomb(path.parent / "mark")}, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (write_bomb, "nothing in it was run"),
        (lambda path: path.write_bytes(b"PK\x03\x04truncated"), "damaged archive"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
        (lambda path: torch.save({"w": torch.ones(1)}, path), "no lidar network"),
        (lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"), "not a file of plain tensors"),
        (lambda path: None, "no such checkpoint"),
        (lambda path: path.mkdir(), "no such checkpoint"),
    ],
)
def test_files_that_are_no_weights(command: Command, tmp_path: Path, write: Any, said: str) -> None:
    write(tmp_path / "file.pt")
    refuses(command("convert", tmp_path / "file.pt"), "file.pt", said)
    assert not (tmp_path / "mark").exists()
