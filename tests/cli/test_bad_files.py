"""Files that are missing, damaged or hostile: exit code 2, one message, never a traceback."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import WORLD, Command, Outcome, Tiny
from dataset_files import CALIB, POINTS, write_semantic_kitti
from lidarssl import checkpoints
from lidarssl.report.schema import RunRecord

KITTI = ("dataset", "sequences", "00")


def refuses(done: Outcome, *said: str) -> None:
    """One message on stderr that holds every word of ``said`` and a remedy."""
    assert done.code == 2, done.err or done.out
    assert done.err.count("error: ") == 1
    assert done.err.startswith("error: ")
    assert "remedy: " in done.err
    for words in said:
        assert words in done.err
    for internal in ("Traceback", "jsonargparse", "Namespace", "Parser key"):
        assert internal not in done.err


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    """One training and one validation scan."""
    return write_semantic_kitti(tmp_path / "kitti", (("00", 1), ("08", 1)))


def pretrain_kitti(tiny: Tiny, root: Path, *more: str) -> list[str]:
    return [
        "pretrain", "ppkt_minkunet_kitti_sample", "--run", str(root / "run"), "--quiet",
        f"--dataset.root={root}", f"--method.image_encoder.weights={tiny.teacher}",
        "--training.steps=1", "--training.workers=0", "--method.augmentation.image_size=[32,48]",
        *more,
    ]  # fmt: skip


def probe_kitti(root: Path) -> list[str]:
    return [
        "probe", "probe_minkunet_kitti_sample", "--run", str(root / "run"), "--quiet",
        f"--dataset.root={root}", "--workers=0", "--probe.steps=1",
    ]  # fmt: skip


def scan(root: Path, kind: str, suffix: str) -> Path:
    return root.joinpath(*KITTI, kind, f"000000{suffix}")


def truncate(root: Path) -> Path:
    path = scan(root, "velodyne", ".bin")
    path.write_bytes(path.read_bytes()[:-3])
    return path


def empty(root: Path) -> Path:
    path = scan(root, "velodyne", ".bin")
    path.write_bytes(b"")
    return path


def not_finite(root: Path) -> Path:
    path = scan(root, "velodyne", ".bin")
    points = np.frombuffer(path.read_bytes(), np.float32).copy()
    points[8] = np.nan
    path.write_bytes(points.tobytes())
    return path


def no_image(root: Path) -> Path:
    path = scan(root, "image_2", ".png")
    path.unlink()
    return path


def no_picture(root: Path) -> Path:
    path = scan(root, "image_2", ".png")
    path.write_bytes(path.read_bytes()[:60])
    return path


def no_transform(root: Path) -> Path:
    path = root.joinpath(*KITTI, "calib.txt")
    path.write_text("".join(line for line in CALIB.splitlines(True) if not line.startswith("Tr")))
    return path


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, "bytes"),
        (empty, "has 0 points"),
        (not_finite, "finite"),
        (no_image, "not found"),
        (no_picture, "does not decode"),
        (no_transform, "Tr"),
    ],
)
def test_pretraining_on_a_bad_file(
    command: Command, tiny: Tiny, kitti: Path, spoil: Callable[[Path], Path], said: str
) -> None:
    path = spoil(kitti)
    refuses(command(*pretrain_kitti(tiny, kitti)), path.name, said)


def test_labels_that_do_not_belong_to_the_points(command: Command, kitti: Path) -> None:
    path = scan(kitti, "labels", ".label")
    path.write_bytes(path.read_bytes()[:-4])
    refuses(command(*probe_kitti(kitti)), path.name, str(POINTS), str(POINTS - 1))


def test_points_that_no_camera_sees(command: Command, tiny: Tiny, kitti: Path) -> None:
    path = scan(kitti, "velodyne", ".bin")
    points = np.frombuffer(path.read_bytes(), np.float32).reshape(-1, 4).copy()
    points[:, 0] = -np.abs(points[:, 0]) - 5
    path.write_bytes(points.tobytes())
    refuses(command(*pretrain_kitti(tiny, kitti)), "semantic_kitti/00/000000", "camera_from_lidar")


def test_a_bad_file_is_skipped_where_the_recipe_says_so(
    command: Command, tiny: Tiny, tmp_path: Path
) -> None:
    root = write_semantic_kitti(tmp_path, (("00", 3), ("08", 1)))
    truncate(root)
    done = command(*pretrain_kitti(tiny, root, "--training.bad_samples=skip", "--training.steps=3"))
    assert done.code == 0, done.err
    last = json.loads((root / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped"] == 1
    (note,) = RunRecord.load(root / "run").notes
    assert note.startswith("1 bad sample")
    assert note in (root / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("dataset", "level", "right"),
    [
        ("synthetic", "samples", "world"),
        ("synthetic", "..", "world"),
        ("semantic_kitti", "dataset/sequences/00", "kitti"),
        ("semantic_kitti", "..", "kitti"),
    ],
)
def test_root_of_a_wrong_level(
    command: Command, tiny: Tiny, kitti: Path, dataset: str, level: str, right: str
) -> None:
    root = tiny.world if dataset == "synthetic" else kitti
    done = command("data", "check", dataset, "--root", root / level)
    refuses(done, "there is no", right)


def test_world_of_another_configuration(command: Command, tiny: Tiny) -> None:
    refuses(command("data", "synthesize", tiny.world, "--seed=7"), "another", "seed")


class Hostile:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    path = tmp_path / "hostile.pt"
    torch.save({"state_dict": {"weight": Hostile(tmp_path / "mark")}}, path)
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    return path


def test_hostile_checkpoint_runs_nothing(command: Command, tiny: Tiny, hostile: Path) -> None:
    done = command(*tiny.probe(hostile.parent / "run"), "--checkpoint", hostile)
    refuses(done, hostile.name, "nothing in it was run")
    assert not hostile.with_name("mark").exists()


@pytest.mark.parametrize("encoder", ["SmallUNet", "ResNet"])
def test_hostile_image_encoder_runs_nothing(
    command: Command, tiny: Tiny, hostile: Path, encoder: str
) -> None:
    done = command(
        *tiny.pretrain(hostile.parent / "run"), f"--method.image_encoder.class_path={encoder}",
        f"--method.image_encoder.weights={hostile}",
    )  # fmt: skip
    refuses(done, hostile.name)
    assert not hostile.with_name("mark").exists()


def test_truncated_weights(command: Command, tiny: Tiny, pretrained: Path, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes((pretrained / "student.safetensors").read_bytes()[:-100])
    refuses(command(*tiny.probe(tmp_path / "run"), "--checkpoint", path), path.name, "truncated")
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(tiny.teacher.read_bytes()[:1000])
    words = tiny.pretrain(tmp_path / "run")
    refuses(command(*words, f"--method.image_encoder.weights={teacher}"), teacher.name)


def test_checkpoint_of_another_architecture(
    command: Command, tiny: Tiny, pretrained: Path, tmp_path: Path
) -> None:
    done = command(*tiny.probe(tmp_path), "--checkpoint", pretrained, "--backbone.voxel_size=0.3")
    refuses(done, "student.safetensors", "voxel_size is 0.2 in the checkpoint, 0.3 here")


@pytest.mark.parametrize("name", ["nowhere.safetensors", "nowhere.pt", "folder"])
def test_checkpoint_that_is_not_there(
    command: Command, tiny: Tiny, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    done = command(*tiny.probe(tmp_path / "run"), "--checkpoint", tmp_path / name)
    refuses(done, name, "no such checkpoint", "--checkpoint")


def test_nothing_to_resume(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    done = command(*tiny.pretrain(tmp_path), "--resume")
    refuses(done, "last.ckpt", "without --resume")


def test_damaged_checkpoint_to_resume(
    command: Command, tiny: Tiny, pretrained: Path, tmp_path: Path
) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_bytes((pretrained / "checkpoints" / "last.ckpt").read_bytes()[:2000])
    refuses(command(*tiny.pretrain(tmp_path), "--resume"), "last.ckpt")


@pytest.mark.parametrize("verb", ["report", "evaluate"])
@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_folder_without_a_run(command: Command, tmp_path: Path, verb: str, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    refuses(command(verb, tmp_path / folder), folder, "run")


def test_evaluate_needs_a_judged_run(command: Command, pretrained: Path, tmp_path: Path) -> None:
    refuses(command("evaluate", pretrained), "pretraining", "lidarssl probe")
    shutil.copy(pretrained / "recipe.yaml", tmp_path)
    recipe = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(recipe.replace("kind: pretrain", "kind: probe"))
    refuses(command("evaluate", tmp_path), "not finished")


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_run_folder_that_is_a_file(
    command: Command, tiny: Tiny, tmp_path: Path, inside: str
) -> None:
    path = tmp_path / "file"
    path.touch()
    refuses(command(*tiny.pretrain(path / inside)), "file", "--run")


def test_output_that_is_a_file_or_a_folder(
    command: Command, tiny: Tiny, probed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.touch()
    data = ["synthetic", "--root", tiny.world]
    spoilt = [
        ("data", "synthesize", path, "--workers", 1),
        ("prepare", "superpixels", *data, "--output", path),
        ("prepare", "teacher", *data, "--output", tmp_path),
        ("prepare", "teacher", *data, "--output", tmp_path / "teacher.pt"),
        ("report", probed, "--compare", probed, "--output", tmp_path),
    ]
    for words in spoilt:
        refuses(command(*words), tmp_path.name)


def test_folder_that_may_not_be_written(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *rest: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    refuses(command(*tiny.pretrain(tmp_path / "run")), "Permission denied", "run")
    words = ["prepare", "superpixels", "synthetic", "--root", tiny.world, "--output", "spx"]
    refuses(command(*words), "spx: Permission denied")


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("skimage", "images", ["prepare", "superpixels", "synthetic", "--root", "{world}"]),
        ("embreex", "synthetic", ["data", "synthesize", "--quiet", "--workers", "1", *WORLD]),
    ],
)
def test_missing_extra(
    command: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    package: str, extra: str, words: list[str],
) -> None:  # fmt: skip
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    output = ["--output", str(tmp_path)] if package == "skimage" else [str(tmp_path)]
    done = command(*(word.replace("{world}", str(tiny.world)) for word in words), *output)
    refuses(done, f"pip install 'lidarssl[{extra}]'")


def test_card_survives_the_run(pretrained: Path) -> None:
    """The tests above truncate copies: the original must still load."""
    assert checkpoints.load(pretrained / "student.safetensors").state
