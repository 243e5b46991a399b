"""Mixed scans against plain loops in float64, and where every point of them comes from."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId, Matches
from lidarssl.prepare.instances import instances_of, prepare_instances
from lidarssl.transforms.instance_bank import Instances, class_ids, join_instances
from lidarssl.transforms.mixing import (
    CutMix,
    Placements,
    PolarMix,
    ScanMixing,
    cut_mix,
    in_half_turn,
    places_on,
    polar_mix,
)
from object_scans import BICYCLE, NAMES, PERSON, ROAD, WALL, ObjectScans
from transforms.scenes import make_frame, same

SCANS = ObjectScans(4)
IDS = SCANS.frames("train")
OBJECTS = (PERSON, BICYCLE)
OBJECT_NAMES = ("bicycle", "motorcycle", "other-vehicle", "person", "bicyclist")
GROUND_NAMES = ("road", "parking", "sidewalk")
ANGLE = st.floats(-math.pi, math.pi)
SEED = st.integers(0, 2**32 - 1)


def scan(number: int = 0) -> Frame:
    return SCANS.load(IDS[number])


def bank() -> Instances:
    return join_instances([instances_of(scan(k), k, OBJECTS, 1) for k in range(len(IDS))])


def rows_of(frame: Frame) -> list[tuple[float, ...]]:
    """Points of a scan as numbers: x, y, z, intensity, class."""
    assert frame.semantic is not None
    columns = (*frame.points.T.double().tolist(), frame.intensity.tolist(), frame.semantic.tolist())
    return list(zip(*columns, strict=True))


def turned(row: tuple[float, ...], angle: float) -> tuple[float, ...]:
    x, y, *rest = row
    cos, sin = math.cos(angle), math.sin(angle)
    return (cos * x - sin * y, sin * x + cos * y, *rest)


def polar_reference(
    frame: Frame, other: Frame, start: float | None, angles: list[float]
) -> list[tuple[float, ...]]:
    def ahead(row: tuple[float, ...]) -> bool:
        assert start is not None
        return 0 < (math.atan2(row[1], row[0]) - start) % (2 * math.pi) < math.pi

    mine, theirs = rows_of(frame), rows_of(other)
    mixed: list[tuple[float, ...]] = list(mine)
    if start is not None:
        mixed = [row for row in mine if not ahead(row)] + [row for row in theirs if ahead(row)]
    objects = [row for row in theirs if row[4] in OBJECTS]
    mixed += objects
    for angle in angles:
        mixed += [turned(row, angle) for row in objects]
    return mixed


def agree(frame: Frame, expected: list[tuple[float, ...]]) -> None:
    found, truth = np.array(rows_of(frame)), np.array(expected)
    assert found.shape == truth.shape
    np.testing.assert_allclose(found[:, :3], truth[:, :3], rtol=0, atol=5e-6)
    np.testing.assert_array_equal(found[:, 3:], truth[:, 3:])


@given(ANGLE | st.none(), st.lists(ANGLE, max_size=3))
@settings(max_examples=40, deadline=None)
def test_polar_mix_is_the_plain_loop(start: float | None, angles: list[float]) -> None:
    frame, other = scan(0), scan(1)
    mixed = polar_mix(frame, other, start, OBJECTS, angles)
    agree(mixed, polar_reference(frame, other, start, angles))


@given(ANGLE)
@settings(max_examples=30, deadline=None)
def test_half_turns_share_the_circle(start: float) -> None:
    """A point lies in one of two opposite half turns, and each takes about half of a ring."""
    azimuth = torch.linspace(-3.1, 3.1, 501) + 0.001
    ring = torch.stack([torch.cos(azimuth), torch.sin(azimuth), torch.zeros(501)], 1)
    one, two = in_half_turn(ring, start), in_half_turn(ring, start + math.pi)
    assert not bool((one & two).any())
    assert int((~one & ~two).sum()) <= 2, "the border belongs to neither"
    assert 240 <= int(one.sum()) <= 261


def test_objects_are_told_apart_by_their_ids() -> None:
    """Both scans count from 1; a turned copy is another object, an untouched one is the same."""
    frame, other = scan(0), scan(1)
    start = -math.pi / 2
    mixed = polar_mix(frame, other, start, OBJECTS, [1.0, 2.0])
    assert mixed.instance is not None
    assert frame.instance is not None
    assert other.instance is not None
    assert other.semantic is not None
    mine = set(frame.instance[~in_half_turn(frame.points, start)].tolist())
    objects = torch.isin(other.semantic, torch.tensor(OBJECTS)) & (other.instance > 0)
    theirs = len(other.instance[objects].unique())
    found = set(mixed.instance.tolist())
    assert mine <= found
    assert len(found) == len(mine) + 3 * theirs
    per_id = Counter(mixed.instance.tolist())
    copies = [value for value in sorted(found) if value > int(frame.instance.max())][-theirs:]
    assert [per_id[value] for value in copies] == [
        int((other.instance == value).sum()) for value in other.instance[objects].unique()
    ]


@given(SEED)
@settings(max_examples=40, deadline=None)
def test_every_point_of_a_polar_mixture_comes_from_a_scan(seed: int) -> None:
    """Intensities are names: a point keeps its height, its range and what it is."""
    frame = scan(0)
    mixed = PolarMix(OBJECTS)(frame, np.random.default_rng(seed), lambda _: scan(2))
    sources = {row[3]: row for row in rows_of(frame) + rows_of(scan(2))}
    counts = Counter(row[3] for row in rows_of(mixed))
    for x, y, z, name, label in rows_of(mixed):
        truth = sources[name]
        assert math.hypot(x, y) == pytest.approx(math.hypot(*truth[:2]), abs=1e-5)
        assert (z, label) == truth[2::2]
    names = set(frame.intensity.tolist())
    swapped = not names <= set(counts)
    for name, (*_, label) in sources.items():
        if label in OBJECTS and name not in names:
            assert counts[name] in ((3, 4) if swapped else (3,))
        else:
            assert counts[name] in ((0, 1) if swapped or name not in names else (1,))


def test_the_swap_has_its_probability_and_objects_always_come() -> None:
    frame, other = scan(0), scan(1)
    added = 3 * sum(row[4] in OBJECTS for row in rows_of(other))

    def swapped(probability: float, seed: int) -> bool:
        rng = np.random.default_rng(seed)
        mixed = PolarMix(OBJECTS, probability)(frame, rng, lambda _: other)
        kept = set(frame.intensity.tolist()) <= set(mixed.intensity.tolist())
        assert not kept or len(mixed) == len(frame) + added
        return not kept

    assert not any(swapped(0.0, seed) for seed in range(20))
    assert all(swapped(1.0, seed) for seed in range(20))
    assert 70 <= sum(swapped(0.5, seed) for seed in range(200)) <= 130


def test_classes_that_the_other_scan_lacks_add_nothing() -> None:
    other = scan(1).select(torch.zeros(len(scan(1)), dtype=torch.bool))
    assert len(polar_mix(scan(0), other, None, OBJECTS, [1.0])) == len(scan(0))
    assert len(polar_mix(other, scan(0), None, (), [1.0])) == 0


def one_placement(
    row: int, mirror: int, angle: float, scale: float, at: tuple[float, float, float]
) -> Placements:
    angles, scales = (torch.tensor([value], dtype=torch.float64) for value in (angle, scale))
    position = torch.tensor([at], dtype=torch.float64)
    return Placements(torch.tensor([row]), torch.tensor([mirror]), angles, scales, position)


def test_a_placed_instance_by_hand() -> None:
    """Mirrored: (-1, 2); a quarter turn: (-2, -1); twice as large; at (5, 6, 7)."""
    one = torch.tensor([1])
    instance = Instances(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0.5]), one, one, one, one)
    placement = one_placement(0, 0, math.pi / 2, 2.0, (5.0, 6.0, 7.0))
    mixed = cut_mix(scan(0), instance, placement)
    assert mixed.points[-1].tolist() == pytest.approx([1.0, 4.0, 13.0])
    assert float(mixed.intensity[-1]) == 0.5


@given(SEED, st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_cut_mix_is_the_plain_loop(seed: int, most: int) -> None:
    frame, instances, rng = scan(0), bank(), np.random.default_rng(seed)
    mix = CutMix(instances, OBJECTS, [ROAD], most, (0.5, 2.0))
    placements = mix.draw(places_on(frame, [ROAD], rng), rng)
    first = np.r_[0, np.cumsum(instances.size.numpy())]
    expected = rows_of(frame)
    for row, mirror, angle, scale, position in zip(
        placements.row.tolist(), placements.mirror.tolist(), placements.angle.tolist(),
        placements.scale.tolist(), placements.position.tolist(), strict=True,
    ):  # fmt: skip
        for point in range(first[row], first[row + 1]):
            moved = instances.points[point].double().tolist()
            moved[mirror] = -moved[mirror]
            moved = [scale * value for value in turned(tuple(moved), angle)]
            at = [a + b for a, b in zip(moved, position, strict=True)]
            name = float(instances.intensity[point])
            expected.append((at[0], at[1], at[2], name, int(instances.label[row])))
    agree(cut_mix(frame, instances, placements), expected)


@given(SEED, st.integers(0, 60), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_draws_keep_to_the_rules(seed: int, count: int, most: int) -> None:
    instances = bank()
    places = torch.arange(3.0 * count).reshape(count, 3).double()
    drawn = CutMix(instances, OBJECTS, [ROAD], most).draw(places, np.random.default_rng(seed))
    assert len(drawn.row) <= count
    of_class = Counter(instances.label[drawn.row].tolist())
    assert set(of_class) <= set(OBJECTS)
    assert all(number <= most for number in of_class.values())
    assert len(drawn.position.unique(dim=0)) == len(drawn.row), "a place serves once"
    assert bool(torch.isin(drawn.position[:, 0], places[:, 0]).all())
    assert bool(((drawn.scale >= 0.9) & (drawn.scale < 1.1)).all())
    assert bool(torch.isin(drawn.mirror, torch.tensor([0, 1])).all())


def test_numbers_of_instances_are_uniform() -> None:
    """Of 0..3 each comes with a quarter of 400 draws; all instances and both mirrorings come up."""
    mix = CutMix(bank(), [BICYCLE], [ROAD], 3)
    drawn = [mix.draw(torch.zeros((9, 3)), np.random.default_rng(seed)) for seed in range(400)]
    numbers = Counter(len(one.row) for one in drawn)
    assert set(numbers) == {0, 1, 2, 3}
    assert all(65 <= number <= 135 for number in numbers.values())
    rows = torch.cat([one.row for one in drawn])
    assert set(rows.tolist()) == set((mix.instances.label == BICYCLE).nonzero()[:, 0].tolist())
    assert 0.4 < float(torch.cat([one.mirror for one in drawn]).double().mean()) < 0.6


@given(SEED)
@settings(max_examples=30, deadline=None)
def test_places_are_ground_points_of_different_voxels(seed: int) -> None:
    frame = scan(3)
    places = places_on(frame, [ROAD], np.random.default_rng(seed))
    truth = {row[:3]: row[4] for row in rows_of(frame)}
    low = frame.points.min(0).values.double()
    cells: dict[tuple[int, ...], set[int]] = {}
    for row in rows_of(frame):
        cells.setdefault(cell_of(row[:3], low), set()).add(int(row[4]))
    chosen = [cell_of(place, low) for place in places.tolist()]
    assert {truth[tuple(place)] for place in places.tolist()} <= {ROAD}
    assert len(set(chosen)) == len(chosen)
    pure = {cell for cell, labels in cells.items() if labels == {ROAD}}
    assert pure <= set(chosen)


def cell_of(point: tuple[float, ...], low: Tensor) -> tuple[int, ...]:
    return tuple(
        math.floor(np.float32(value) - np.float32(first))
        for value, first in zip(point, low.tolist(), strict=True)
    )


def test_places_are_random_points_in_random_order() -> None:
    draws = [places_on(scan(3), [ROAD], np.random.default_rng(seed)) for seed in range(30)]
    assert len({tuple(map(tuple, places.tolist())) for places in draws}) == 30
    assert len({tuple(sorted(map(tuple, places.tolist()))) for places in draws}) == 30
    low = scan(3).points.min(0).values.double()
    first = {cell_of(places[0].tolist(), low) for places in draws}
    assert len(first) > 15, "not voxel by voxel"
    assert len(places_on(scan(3), [], np.random.default_rng(0))) == 0


def test_scans_are_not_changed_in_place_and_draws_come_from_the_generator() -> None:
    frame, other = scan(0), scan(1)
    before = copy.deepcopy((frame, other))
    for mix in (PolarMix(OBJECTS, 1.0), CutMix(bank(), OBJECTS, [ROAD])):
        one, two, three = (
            mix(frame, np.random.default_rng(seed), lambda _: other) for seed in (5, 5, 6)
        )
        assert same((frame, other), before)
        assert same(one, two)
        assert not same(one, three)


def test_what_belongs_to_one_place_or_camera_does_not_survive() -> None:
    frame = make_frame(200)
    nothing = torch.zeros(0, dtype=torch.int64)
    frame = replace(
        frame, matches=Matches(nothing, nothing, nothing, nothing), input_points=frame.points,
        thinned_to=0.1, intensity_statistics=(0.3, 0.1), time=torch.zeros(200),
    )  # fmt: skip
    mixed = polar_mix(frame, make_frame(100, seed=1), 0.0, [1], [])
    assert (mixed.cameras, mixed.pose, mixed.boxes, mixed.matches) == ((), None, None, None)
    assert (mixed.input_points, mixed.thinned_to, mixed.time) == (None, None, None)
    assert mixed.instance is None
    assert (mixed.id, mixed.intensity_statistics) == (frame.id, (0.3, 0.1))
    assert len(mixed) == len(mixed.intensity) == len(mixed.points)


def test_scans_without_labels_are_refused() -> None:
    bare = replace(scan(0), semantic=None)
    for mix in (PolarMix(OBJECTS), CutMix(bank(), OBJECTS, [ROAD])):
        with pytest.raises(DataError, match="objects/train/0000 has no labels") as caught:
            mix(bare, np.random.default_rng(0), lambda _: scan(1))
        assert caught.value.field == "semantic"
    with pytest.raises(DataError, match="has no labels"):
        polar_mix(scan(0), bare, None, OBJECTS, [])


def test_scans_of_two_datasets_are_not_mixed() -> None:
    other = replace(scan(1), id=FrameId("elsewhere", "0", "0"))
    with pytest.raises(ConfigError, match="'objects' cannot be mixed with one of 'elsewhere'"):
        PolarMix(OBJECTS)(scan(0), np.random.default_rng(0), lambda _: other)


def options(folder: Path | None, **changes: object) -> ScanMixing:
    names = ("person", "bicycle")
    given = {"cut_classes": names, "polar_classes": names, "paste_on": ("road",)} | changes
    return ScanMixing(folder, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bank")
    prepare_instances(SCANS, "train", made, ("person", "bicycle"), progress=False)
    return made


def test_mixing_is_polar_mix_and_then_cut_mix(folder: Path) -> None:
    polar, cut = options(folder, max_instances=7, polar_probability=0.25).transforms(SCANS, IDS)
    assert isinstance(polar, PolarMix)
    assert (polar.classes, polar.probability) == ([PERSON, BICYCLE], 0.25)
    assert isinstance(cut, CutMix)
    assert (cut.ground, cut.most, cut.scale) == ([ROAD], 7, (0.9, 1.1))
    labels = [set(cut.instances.label[rows].tolist()) for rows in cut.of_class]
    assert labels == [{PERSON}, {BICYCLE}]
    (alone,) = options(None, cut_classes=()).transforms(SCANS, IDS)
    assert isinstance(alone, PolarMix)
    (alone,) = options(folder, polar_classes=(), polar_probability=0.0).transforms(SCANS, IDS)
    assert isinstance(alone, CutMix)


def test_classes_of_a_recipe_must_exist(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'persn'(?s:.*)did you mean 'person'"):
        options(folder, polar_classes=("persn",)).transforms(SCANS, IDS)
    with pytest.raises(ConfigError, match=r"'rod'(?s:.*)did you mean 'road'"):
        options(folder, paste_on=("rod",)).transforms(SCANS, IDS)
    with pytest.raises(ConfigError, match="unknown class 'ignored'"):
        options(folder, cut_classes=("ignored",)).transforms(SCANS, IDS)
    with pytest.raises(ConfigError, match="made without wall") as caught:
        options(folder, cut_classes=("person", "wall")).transforms(SCANS, IDS)
    assert caught.value.field == "mixing.cut_classes"
    assert NAMES[WALL] == "wall"


def test_a_share_of_the_labels_sees_its_own_objects(folder: Path) -> None:
    share = [IDS[3], IDS[1]]
    _, cut = options(folder).transforms(SCANS, share)
    assert isinstance(cut, CutMix)
    expected = join_instances([instances_of(scan(number), number, OBJECTS) for number in (1, 3)])
    assert all(map(torch.equal, vars(cut.instances).values(), vars(expected).values()))
    drawn = cut(scan(1), np.random.default_rng(0), lambda _: scan(1))
    assert {int(name) // 1000 for name in drawn.intensity.tolist()} == {1, 3}
    with pytest.raises(ConfigError, match="no instance of what is trained on, 4 scans"):
        options(folder).transforms(SCANS, SCANS.frames("val"))
    with pytest.raises(ConfigError, match=r"made of 4 scans of split 'train', not of the 5"):
        options(folder).transforms(ObjectScans(5), IDS)


def test_a_bank_must_be_given_and_fit(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no bank") as caught:
        options(None).transforms(SCANS, IDS)
    assert "prepare instances" in str(caught.value.remedy)
    renamed = ObjectScans()
    renamed.name = "elsewhere"
    with pytest.raises(ConfigError, match="of 'objects' with 5 classes, the scans of 'elsewhere'"):
        options(folder).transforms(renamed, IDS)
    with pytest.raises(ConfigError, match="scale"):
        options(folder, scale=(1.1, 0.9)).transforms(SCANS, IDS)
    with pytest.raises(ConfigError, match="max_instances"):
        options(folder, max_instances=-1).transforms(SCANS, IDS)
    with pytest.raises(ConfigError, match="polar_probability"):
        options(folder, polar_probability=1.5).transforms(SCANS, IDS)


@pytest.mark.real
def test_real_scans_are_mixed_as_stated(data_root: Path, tmp_path: Path) -> None:
    """Every part of the mixture of two real scans, found again among their points by numpy."""
    kitti = SemanticKitti(data_root / "semantic_kitti")
    ids, fields = kitti.frames("train"), Field.SEMANTIC | Field.INSTANCE
    prepare_instances(kitti, "train", tmp_path, progress=False)
    frame, other = (kitti.load(ids[number], fields) for number in (0, 5))
    polar, cut = ScanMixing(tmp_path, polar_probability=1.0).transforms(kitti, ids)
    rng = np.random.default_rng(3)
    swapped = polar(frame, rng, lambda _: other)
    mixed = cut(swapped, rng, lambda _: other)
    mine, theirs, found = (scan.points.double().numpy() for scan in (frame, other, mixed))
    assert other.semantic is not None
    objects = np.isin(other.semantic, class_ids(OBJECT_NAMES, kitti.classes.names))
    rng = np.random.default_rng(3)
    rng.random()
    start, angles = rng.uniform(-np.pi, np.pi), rng.uniform(-np.pi, np.pi, 2)
    ahead = [
        (((np.arctan2(xyz[:, 1], xyz[:, 0]) - start) % (2 * np.pi)) < np.pi)
        for xyz in (mine, theirs)
    ]
    parts = [mine[~ahead[0]], theirs[ahead[1]], theirs[objects]]
    for angle in angles:
        cos, sin = np.cos(angle), np.sin(angle)
        parts.append(theirs[objects] @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]]))
    expected = np.concatenate(parts)
    assert len(swapped) == len(expected) < len(mixed)
    np.testing.assert_allclose(found[: len(expected)], expected, rtol=0, atol=1e-5)
    check_pasted(mixed, len(expected), kitti)


def check_pasted(mixed: Frame, first: int, kitti: SemanticKitti) -> None:
    """Each pasted object has the height of a real one and stands on a point of the ground."""
    assert mixed.instance is not None
    assert mixed.semantic is not None
    ground = np.isin(mixed.semantic[:first], class_ids(GROUND_NAMES, kitti.classes.names))
    places = mixed.points[:first].numpy()[ground]
    for number in mixed.instance[first:].unique().tolist():
        body = (mixed.instance == number).numpy()
        assert not body[:first].any()
        assert len(mixed.semantic[body].unique()) == 1
        points = mixed.points.numpy()[body]
        middle = np.r_[points[:, :2].mean(0), points[:, 2].min()]
        assert np.abs(places - middle).max(1).min() < 1e-4
        assert np.ptp(points[:, 2]) < 6
