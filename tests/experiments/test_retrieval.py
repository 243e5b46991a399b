"""After a pretraining, images and scans seek each other among held-out frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lidarssl.batching import collate
from lidarssl.experiments.method_pictures import add_method_pictures
from lidarssl.experiments.pictures import PictureBook, picture_frame
from lidarssl.experiments.retrieval import WITHIN, add_retrieval, lines, neighbours, spread
from lidarssl.frame import Batch, Field, FrameId
from lidarssl.methods.base import Method
from lidarssl.methods.clcp import Clcp
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.report import figures
from lidarssl.report.build import build_report
from lidarssl.report.retrieval import RetrievalRecord, RetrievedScans
from lidarssl.report.schema import Results
from lidarssl.training.settings import Training
from lidarssl.transforms.base import Compose, sample_generator
from methods.small import batch_of, build, frames, methods
from toys import MemoryDataset

COUNT, KS = 11, (1, 5, 10)


def recipe(method: Method, dataset: MemoryDataset | None = None, **options: Any) -> PretrainRecipe:
    training = Training(batch_size=4, workers=0, accelerator="cpu", **options)
    return PretrainRecipe(dataset or MemoryDataset(COUNT), method, training=training)


def judge(made: PretrainRecipe, run: Path) -> tuple[list[str] | None, PictureBook]:
    book = PictureBook(run, made.dataset)
    return add_retrieval(made.method, made, run, book, progress=False), book


def seeded() -> Clcp:
    method = build(Clcp)
    assert isinstance(method, Clcp)
    return method


def test_numbers_are_those_of_a_sort_over_all_held_out_frames(tmp_path: Path) -> None:
    method, dataset = seeded(), MemoryDataset(COUNT)
    said, _ = judge(recipe(method), tmp_path)
    record = RetrievalRecord.load(tmp_path)
    image, lidar = embeddings(method, dataset)
    for table, found in (
        (image @ lidar.T, record.exact.image_to_lidar),
        (lidar @ image.T, record.exact.lidar_to_image),
    ):
        order = table.argsort(1, descending=True)
        ranks = 1 + (order == torch.arange(COUNT)[:, None]).long().argmax(1)
        assert found.recall == pytest.approx([float((ranks <= k).double().mean()) for k in KS])
        assert found.median_rank == ranks.double().quantile(0.5)
    assert record.exact.chance == pytest.approx([k / COUNT for k in KS])
    assert record.near is not None
    assert all(np.greater_equal(record.near.chance, record.exact.chance))
    assert record.split == "memory/val"
    assert record.frames == record.available == COUNT
    assert record.alignment == pytest.approx(float((image - lidar).square().sum(1).mean()))
    assert said == lines(record)


@torch.no_grad()
def embeddings(method: Clcp, dataset: MemoryDataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame by frame, as the transforms of held-out frames show them."""
    view = Compose(method.transforms(training=False))
    method.eval()
    rows = []
    for number, frame in enumerate(dataset.frames("val")):
        seen = view(dataset.load(frame, Field.IMAGES), sample_generator(0, 0, number))
        output = method.training_step(collate([seen]), torch.Generator())
        assert output.pairs is not None
        rows.append(output.pairs)
    return torch.cat([row.image for row in rows]), torch.cat([row.lidar for row in rows])


def test_the_method_stays_as_it_was(tmp_path: Path) -> None:
    method = seeded()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    generator = torch.random.get_rng_state()
    judge(recipe(method), tmp_path)
    assert method.training
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_twice_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        judge(recipe(seeded()), tmp_path / name)
    files = [(tmp_path / name / "retrieval.json").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_the_picture_shows_true_and_best_scans(tmp_path: Path) -> None:
    method, dataset = seeded(), MemoryDataset(COUNT)
    _, book = judge(recipe(method), tmp_path)
    (record,) = book.records
    figure = figures.load(tmp_path / record.file)
    assert isinstance(figure, RetrievedScans)
    image, lidar = embeddings(method, dataset)
    names = [str(frame) for frame in dataset.frames("val")]
    queries = [names.index(name) for name in figure.frames]
    cosines = (image @ lidar.T)[queries]
    assert figure.shown[:, 0].tolist() == queries
    assert figure.shown[:, 1:].tolist() == cosines.topk(3).indices.tolist()
    assert np.allclose(figure.similarity[:, 0], [cosines[i, q] for i, q in enumerate(queries)])
    assert sorted(figure.rank.tolist()) == figure.rank.tolist()
    frame = dataset.load(dataset.frames("val")[queries[0]], Field.IMAGES)
    seen = Compose(method.transforms(False))(frame, sample_generator(0, 0, queries[0]))
    ahead = seen.cameras[0].camera_from_lidar[:3, :3].float() @ seen.points.T
    drawn = figure.points[figure.scan == queries[0]]
    assert np.allclose(drawn[:, 0], ahead[2], atol=1e-5), "x is the depth of a level camera"
    assert np.allclose(drawn[:, 1], -ahead[0], atol=1e-5)
    assert len(figures.draw(tmp_path / record.file).panels) == len(queries) == 4


def test_the_report_is_rebuilt_from_what_is_stored(tmp_path: Path) -> None:
    made = recipe(seeded())
    _, book = judge(made, tmp_path)
    Results("nothing", pictures=tuple(book.records)).save(tmp_path)
    page = build_report(tmp_path).read_text()
    assert "image finds its scan" in page
    assert 'class="picture one wide"' in page
    assert (tmp_path / "figures" / "retrieval_0.png").is_file()
    numbers = json.loads((tmp_path / "report.json").read_text())["retrieval"]
    assert numbers == json.loads((tmp_path / "retrieval.json").read_text())


def test_a_replaced_frame_counts_once(tmp_path: Path) -> None:
    """Frame 13 is bad: with the next in its place, two equal pairs would compete."""
    dataset = MemoryDataset(COUNT, bad=(13,))
    judge(recipe(seeded(), dataset, bad_samples="skip"), tmp_path)
    record = RetrievalRecord.load(tmp_path)
    assert (record.frames, record.available) == (COUNT - 1, COUNT)


@pytest.mark.parametrize("dataset", [MemoryDataset(0), MemoryDataset(4, lacking=Field.IMAGES)])
def test_without_a_held_out_pair_nothing_is_judged(dataset: MemoryDataset, tmp_path: Path) -> None:
    (tmp_path / "retrieval.json").write_text("of the run before")
    said, book = judge(recipe(seeded(), dataset), tmp_path)
    assert said == ["retrieval   not judged: memory/val has no frame with an image and a scan"]
    assert book.records == []
    assert not (tmp_path / "retrieval.json").exists()


def test_one_frame(tmp_path: Path) -> None:
    judge(recipe(seeded(), MemoryDataset(1)), tmp_path)
    record = RetrievalRecord.load(tmp_path)
    assert record.exact.image_to_lidar.recall == (1, 1, 1)
    assert record.near is record.uniformity_image is None


def test_a_diverged_training_is_said(tmp_path: Path) -> None:
    method = seeded()
    method.image_head.weight.data[:] = torch.nan  # type: ignore[union-attr, index]
    said, book = judge(recipe(method), tmp_path)
    assert said is not None
    assert "diverged" in said[0]
    assert book.records == []


@pytest.mark.parametrize("cls", methods())
def test_every_method_with_pairs_is_judged(cls: type[Method], tmp_path: Path) -> None:
    method = build(cls)
    batch: Batch = batch_of(method, frames(method))
    output = method.training_step(batch, torch.Generator().manual_seed(0))
    said, _ = judge(recipe(method), tmp_path)
    assert (said is not None) == (output.pairs is not None)


def test_the_pair_is_shown_where_the_square_has_points(tmp_path: Path) -> None:
    dataset = MemoryDataset(2)
    shown = picture_frame(dataset, dataset.frames("val")[0], "val", labels=False)
    for frame, count in ((shown, 1), (shown.select(torch.arange(len(shown)) < 0), 0)):
        book = PictureBook(tmp_path, dataset)
        add_method_pictures(seeded(), frame, book)
        assert len(book.records) == count


def test_neighbours_are_near_in_the_same_drive() -> None:
    split = [FrameId("d", drive, str(token)) for token in range(20) for drive in ("a", "b")]
    few = spread(split, 9)
    groups = neighbours(few, split)
    assert groups is not None
    for i, one in enumerate(few):
        for j, other in enumerate(few):
            same = one.sequence == other.sequence
            assert (groups.sequence[i] == groups.sequence[j]) == same
            if same:
                apart = int(groups.position[i] - groups.position[j])
                assert apart == int(one.token) - int(other.token)


def test_frames_far_apart_have_no_neighbours() -> None:
    split = [FrameId("d", "a", str(token)) for token in range(3 * WITHIN)]
    assert neighbours(split[:: WITHIN + 1], split) is None
    assert neighbours(split[::WITHIN], split) is not None
    drives = [FrameId("d", str(drive), "0") for drive in range(9)]
    assert neighbours(drives, drives) is None


@pytest.mark.parametrize(("count", "most"), [(10, 4), (10, 10), (3, 10), (1001, 1000)])
def test_frames_are_spread_evenly(count: int, most: int) -> None:
    ids = [FrameId("d", "a", str(token)) for token in range(count)]
    chosen = [int(frame.token) for frame in spread(ids, most)]
    assert len(chosen) == len(set(chosen)) == min(count, most)
    assert chosen[0] == 0
    steps = np.diff(chosen)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1
