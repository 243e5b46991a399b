"""Frames per second and peak memory of every pretraining method, from files to gradients.

    python benchmarks/methods.py [--only WORD ...] [--folder DIR] [--json FILE] [--threads 2]
                                 [--repeats 5]

Each method by its shipped recipe of the synthetic world, in its own process: load, augment, make
voxels, match, forward, backward, without loader processes; beside it the data alone, in the same
process. World, superpixels, weak labels and the teacher are made up in a temporary folder, or
in DIR, where those of an earlier call are taken. The teacher is hardly trained: its speed
does not depend on its weights.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import Figure, alone, argument_parser, own_peak, report

from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import SplitConfig, WorldConfig
from lidarssl.experiments.pretrain import dry_run
from lidarssl.experiments.teacher import train_teacher
from lidarssl.prepare.labellers.small_unet import SmallUNetLabeller
from lidarssl.prepare.superpixels import prepare_superpixels
from lidarssl.prepare.weak_labels import prepare_weak_labels
from lidarssl.recipes import files
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.recipes.schema import load
from lidarssl.training.loading import EpochBatches, FrameSource, training_loader
from lidarssl.wording import counted

SPLITS = (SplitConfig("train", scenes=36, frames=2), SplitConfig("val", scenes=1, frames=1))
STEM = "_synthetic"


@dataclass(frozen=True)
class Cost:
    """Of a step.

    Attributes:
        method: its name in tables.
        frames: of a step.
        seconds: from files to gradients.
        data: s of loading and preparing alone.
        memory: GiB, peak of the process.
    """

    method: str
    frames: int
    seconds: float
    data: float
    memory: float


def recipes() -> list[str]:
    """Shipped pretrainings on the synthetic world."""
    found = {name: files.read(path) for name, path in files.shipped().items()}
    return [name for name in found if name.endswith(STEM) and found[name]["kind"] == "pretrain"]


def prepare(folder: Path, names: list[str]) -> None:
    """What the recipes read; what is there is kept."""
    dataset = Synthetic.generate(folder / "world", WorldConfig(splits=SPLITS), progress=False)
    teacher = folder / "teacher.safetensors"
    if not teacher.is_file():
        train_teacher(dataset, teacher, split="train", steps=2, progress=False)
    if any(name.startswith("slidr") for name in names):
        prepare_superpixels(
            dataset, "train", folder / "superpixels", segments=100, compactness=6.0, sigma=1.0,
            progress=False,
        )  # fmt: skip
    if any(name.startswith("olivine") for name in names):
        labeller = SmallUNetLabeller(teacher)
        prepare_weak_labels(dataset, "train", folder / "weak_labels", labeller, progress=False)


def overrides(folder: Path, name: str) -> list[str]:
    """Where the recipe finds things."""
    words = [f"--dataset.root={folder / 'world'}", "--training.workers=0"]
    encoder = files.read(files.find(name))["method"]["init_args"].get("image_encoder", {})
    if "weights" in encoder.get("init_args", {}):
        words.append(f"--method.image_encoder.weights={folder / 'teacher.safetensors'}")
    if name.startswith("slidr"):
        words.append(f"--method.superpixels.folder={folder / 'superpixels'}")
    if name.startswith("olivine"):
        words.append(f"--method.weak_labels.folder={folder / 'weak_labels'}")
    return words


def cost(name: str, words: list[str], threads: int, repeats: int) -> Cost:
    torch.set_num_threads(threads)
    loaded = load(name, [*words, "--training.accelerator=cpu"])
    recipe: PretrainRecipe = loaded.recipe
    found = dry_run(loaded, repeats + 1)
    data = seconds_of_data(recipe, repeats)
    frames = recipe.training.batch_size
    return Cost(recipe.method.title, frames, found.seconds, data, own_peak())


def seconds_of_data(recipe: PretrainRecipe, repeats: int) -> float:
    """Median time of a batch, ready for the network."""
    method, dataset, training = recipe.method, recipe.dataset, recipe.training
    ids = dataset.frames(recipe.train_split)
    source = FrameSource(dataset, ids, method.needs, method.transforms(True), training.seed)
    batches = EpochBatches(
        len(ids), training.batch_size, repeats + 1, training.seed, drop_last=training.drop_last
    )
    seconds = []
    start = time.perf_counter()
    for _ in training_loader(source, batches, 0, method.lidar_encoder.prepare):
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    return sorted(seconds[1:])[len(seconds[1:]) // 2]


def figures(name: str, one: Cost) -> list[Figure]:
    title = f"{one.method}, {name.removesuffix(STEM).partition('_')[2]}"
    share = 100 * one.data / one.seconds
    return [
        Figure(
            f"{title}: frames of the synthetic world", one.frames / one.seconds, "frames/s",
            limit=f"{share:.0f} % of the time is data, {100 - share:.0f} % the network",
        ),
        Figure(f"{title}: data alone", one.frames / one.data, "frames/s"),
        Figure(f"{title}: peak memory, {counted(one.frames, 'frame')}", one.memory, "GiB"),
    ]  # fmt: skip


def main() -> None:
    arguments = argument_parser(__doc__, repeats=5)
    arguments.add_argument("--only", nargs="+", metavar="WORD", help="recipes with it in the name")
    arguments.add_argument("--folder", type=Path, help="keep what is made here")
    options = arguments.parse_args()
    names = [name for name in recipes() if any(word in name for word in options.only or [""])]
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        alone(prepare, folder, names)
        for name in names:
            words = overrides(folder, name)
            one = alone(cost, name, words, options.threads, options.repeats)
            print(f"{name}: {one.seconds:.2f} s", flush=True)
            found += figures(name, one)
    report(
        "Pretraining methods, from files to gradients", found, options.json, options.threads,
        data="synthetic world", loader_processes=0,
    )  # fmt: skip


if __name__ == "__main__":
    main()
