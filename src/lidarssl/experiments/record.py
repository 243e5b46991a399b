"""What every run folder records, and how weights get in and out of it."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from torch import Tensor, nn

from lidarssl import __version__, checkpoints
from lidarssl.backbones.base import Backbone
from lidarssl.checkpoints.convert import state_for
from lidarssl.checkpoints.networks import Network, kind_of, read_network
from lidarssl.checkpoints.reference import ReferenceCheckpoint, read_reference
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.doctor import device_name, versions
from lidarssl.recipes import files
from lidarssl.report.schema import RunRecord, Stage

RECIPE_FILE = "recipe.yaml"
LOCK_FILE = ".lock"
STUDENT_FILE = "student.safetensors"
LIDAR_ENCODER_FILE = "lidar_encoder.safetensors"
TASK_FILE = "task.safetensors"

# Constructor arguments that change neither the weights nor what they mean.
FREE_ARGUMENTS = (
    "checkpointing", "bn_momentum", "block_bn_momentum", "head_channels", "normalize", "dropout",
    "max_voxels", "reading", "positions", "fov", "grids", "drop_path", "padded",
)  # fmt: skip
# Keys of a recipe that may change when a run goes on: how long and on what it runs, and what is
# told of it, but not what a step computes.
FREE_KEYS = frozenset(
    {
        "about", "share_epochs", "val_split", "workers", "accelerator", "eval_batch_size",
        *(
            f"training.{name}"
            for name in (
                "steps", "epochs", "workers", "accelerator", "devices", "nodes",
                "checkpoint_every", "log_every", "validate_every", "bad_samples", "max_skipped",
                "prefetch", "keep_memory",
            )
        ),
    }
)  # fmt: skip
# Arguments that say where files lie: another path may lead to the same files.
PLACES = frozenset({"root", "folder", "weights", "bank", "fraction_lists"})
# Parts of a backbone that start anew on another task.
HEADS = ("final.", "final_class_level.")
_OTHER_BACKBONE = (
    "choose a recipe whose backbone is that of the checkpoint (`lidarssl convert` describes it), "
    "or set its arguments with --task.backbone.NAME or --backbone.NAME, as "
    "`lidarssl recipes RECIPE --keys` lists them"
)


def lock_folder(run: Path) -> IO[str] | None:
    """Keep other processes out of a run folder for as long as the returned file lives.

    The ranks of one run share its folder: the first holds it for all.

    Raises:
        ConfigError: another process holds it.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    import fcntl

    file = (run / LOCK_FILE).open("w")
    try:
        # Unlike flock, not inherited by loader workers, which outlive a killed run for a moment.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigError(
            "another run writes to this folder",
            path=run,
            field="--run",
            remedy="wait for it, stop it, or choose another folder",
        ) from None
    return file


@dataclass
class Recorder:
    """Times the stages of a run and writes ``run.json`` and ``recipe.yaml``.

    Args:
        run: the run folder.
        title: one line for the reader.
        command: what repeats the run.
        seed: of the run.
        recipe: resolved YAML.

    Raises:
        ConfigError: the run folder cannot be made, or another process writes to it.
    """

    run: Path
    title: str
    command: str
    seed: int
    recipe: str
    notes: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        make_folder(self.run)
        self._lock = lock_folder(self.run)
        self.save()

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[None]:
        """Time a stage; ``run.json`` is up to date after it."""
        start = time.monotonic()
        yield
        self.stages.append(Stage(name, time.monotonic() - start, description))
        self.save()

    def save(self) -> None:
        (self.run / RECIPE_FILE).write_text(self.recipe)
        RunRecord(
            name=self.run.name,
            title=self.title,
            command=self.command,
            created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            version=__version__,
            versions=versions(),
            seed=self.seed,
            recipe=self.recipe,
            device=device_name(),
            wall_seconds=time.monotonic() - self.started,
            notes=tuple(self.notes),
            stages=tuple(self.stages),
        ).save(self.run)


def make_folder(folder: Path) -> None:
    """Make the folder of a run.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        raise ConfigError(
            "a file is where the run folder should be"
            if in_the_way
            else f"the run folder cannot be made ({error.strerror})",
            path=folder,
            field="--run",
            remedy="choose another folder with --run",
        ) from error


def refuse_other_run(run: Path, file: str) -> None:
    """Keep a run of another kind, known by its ``file``, from being written over.

    Raises:
        ConfigError: the folder holds one.
    """
    if (run / file).is_file():
        raise ConfigError(
            f"holds another run, with its {file}",
            path=run,
            field="--run",
            remedy="choose another folder with --run",
        )


def refuse_finished_run(run: Path, file: str, resumable: bool) -> None:
    """Keep a finished run of the same kind, known by its ``file``, from being replaced unasked.

    Args:
        resumable: whether a run of this kind can go on.

    Raises:
        ConfigError: the folder holds one.
    """
    if (run / file).is_file():
        go_on = ", go on with --resume" if resumable else ""
        raise ConfigError(
            f"holds a finished run, with its {file}",
            path=run,
            field="--run",
            remedy=f"choose another folder with --run{go_on}, or replace it with --overwrite",
        )


def refuse_other_recipe(run: Path, resolved: str) -> None:
    """Keep a run from going on with another recipe than the one it was started with.

    Most options change no shape of a weight, so that the checkpoint cannot tell. A folder without
    a readable recipe is let through: the checkpoint is compared later.

    Args:
        resolved: YAML of the recipe that wants to go on.

    Raises:
        ConfigError: an option differs that is not free; names the first.
    """
    try:
        before = files.read(run / RECIPE_FILE)
    except (ConfigError, OSError):
        return
    found = next(differences(before, yaml.safe_load(resolved)), None)
    if found is not None:
        key, old, new = found
        raise ConfigError(
            f"the run was started with {key} {_shown(old)}, not {_shown(new)}",
            path=run / RECIPE_FILE,
            field=key,
            remedy="repeat the options that started the run, or choose another folder with --run",
        )


def differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of what differs between two resolved recipes and is not free."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            old, new = before.get(name), now.get(name)
            # A later version's further option was not there to be chosen; a further dataset was.
            if name in before or (isinstance(new, dict) and "class_path" in new):
                yield from differences(old, new, _dotted(key, str(name)))
    elif before != now and not _is_free(key, before, now):
        yield key, before, now


def _dotted(key: str, name: str) -> str:
    """The name as an option, in which ``init_args`` does not occur."""
    return key if name == "init_args" else f"{key}.{name}" if key else name


def _is_free(key: str, before: Any, now: Any) -> bool:
    name = key.rpartition(".")[2]
    if name in PLACES and _is_place(before) and _is_place(now):
        return True
    section = key.partition(".")[0]
    return key in FREE_KEYS or section in FREE_KEYS or name == "checkpointing"


def _is_place(value: Any) -> bool:
    """Whether it is a path or a list of them; ``weights`` may be numbers of a mixture as well."""
    return all(isinstance(each, str) for each in (value if isinstance(value, list) else [value]))


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:100]}..."


def skipped_note(count: int) -> list[str]:
    """The sentence of a run that replaced ``count`` bad samples; nothing when there was none."""
    if not count:
        return []
    samples = "1 bad sample was" if count == 1 else f"{count} bad samples were"
    return [f"{samples} skipped and replaced by the next good frame (training.bad_samples: skip)."]


def architecture(module: nn.Module, resolved: str, *keys: str) -> checkpoints.Architecture:
    """The class of a module and the arguments that a resolved recipe built it with.

    Args:
        resolved: YAML.
        keys: where the module stands in it, e.g. ``"method", "backbone"``.
    """
    node: Any = yaml.safe_load(resolved)
    for key in keys:
        node = node.get("init_args", node)[key]
    path = f"{type(module).__module__}.{type(module).__qualname__}"
    return checkpoints.Architecture(path, node.get("init_args", {}))


def weights_of(path: Path, option: str) -> Path:
    """The weights file that a path stands for: a file, a run folder or a folder of weights.

    Args:
        option: of the command line, for messages.

    Raises:
        DataError: there is none.
    """
    remedy = "give a weights file, or the run folder of a finished `lidarssl pretrain`"
    if path.is_dir():
        if (path / TASK_FILE).is_file():
            remedy = f"{path / TASK_FILE} is a backbone with the head of a probe or finetune: " + (
                "give that file"
                if option == "SOURCE"
                else "`lidarssl convert` with --like RECIPE takes the backbone out of it"
            )
        inside = (path / STUDENT_FILE, path / checkpoints.WEIGHTS_FILE)
        path = next((file for file in inside if file.is_file()), inside[0])
    if not path.is_file():
        raise DataError("no such checkpoint", path=path, field=option, remedy=remedy)
    return path


def load_backbone(backbone: Backbone, path: Path, wanted: checkpoints.Architecture) -> str:
    """Put pretrained weights into a backbone: a lidarssl student, or a checkpoint of others.

    Args:
        path: weights of any origin that :func:`lidarssl.checkpoints.networks.read_network` reads.
        wanted: class and arguments that the backbone was built with.

    Returns:
        The name of the method that made the weights, as far as the file tells.

    Raises:
        ConfigError: the checkpoint is of another architecture.
        DataError: not a checkpoint.
    """
    path = weights_of(path, "--checkpoint")
    if path.suffix == ".safetensors":
        loaded = checkpoints.load(path)
        _refuse_image_encoder(loaded.card, path)
        with _told_to_the_user(path):
            wanted.check_same(loaded.card.architecture, ignore=FREE_ARGUMENTS)
            checkpoints.load_into(backbone, loaded, drop=HEADS)
        return loaded.card.recipe or path.stem
    state = _foreign_state(path, backbone, wanted)
    with _told_to_the_user(path):
        checkpoints.load_into(backbone, state, drop=HEADS)
    return path.stem


def _refuse_image_encoder(card: checkpoints.Card, path: Path) -> None:
    if card.architecture.class_path.startswith("lidarssl.images."):
        beside = path.with_name(LIDAR_ENCODER_FILE)
        raise ConfigError(
            "holds an image encoder, where a lidar backbone is wanted",
            path=path,
            field="--checkpoint",
            remedy=f"its lidar encoder is {beside}"
            if beside.is_file()
            else "give it to a recipe that segments images, e.g. finetune_vit_synthetic",
        )


@contextmanager
def _told_to_the_user(path: Path) -> Iterator[None]:
    """Weights that do not fit, with a remedy in options instead of calls."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            error.problem, path=error.path or path, field=error.field, remedy=_OTHER_BACKBONE
        ) from error


def _foreign_state(
    path: Path, backbone: Backbone, wanted: checkpoints.Architecture
) -> Mapping[str, Tensor]:
    """Weights of another library under the backbone's names."""
    if not kind_of(backbone.state_dict()):
        # A network that is known to its author alone: its names must be the file's.
        return read_reference(path).state
    network = read_network(path)
    with _told_to_the_user(path):
        _check_settings(network, wanted)
    return state_for(network, backbone)


def _check_settings(network: Network, wanted: checkpoints.Architecture) -> None:
    """Compare the settings beside the weights, as far as both are known, with the backbone's."""
    arguments = wanted.init_args
    expected = {"voxel_size": arguments["voxel_size"]} if "voxel_size" in arguments else {}
    if "rule" in arguments:
        expected["cylindrical_coordinates"] = arguments["rule"] == "slidr_cylindrical"
    ReferenceCheckpoint(network.state, network.config, network.path).check_config(**expected)
