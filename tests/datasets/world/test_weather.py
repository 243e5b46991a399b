import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("embreex")

from commands import run_command
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.appearance import Appearance, draw_appearance, window_light
from lidarssl.datasets.world.camera import ego_from_camera, intrinsics, photograph
from lidarssl.datasets.world.classes import PartTable, Semantic, draw_part
from lidarssl.datasets.world.config import (
    VERSION,
    WEATHERS,
    AppearanceConfig,
    CameraConfig,
    LidarConfig,
    SplitConfig,
    Weather,
    WorldConfig,
    camera_rig,
    scene_ids,
)
from lidarssl.datasets.world.drive import WorldFrame, record
from lidarssl.datasets.world.kitti_writer import write_semantic_kitti
from lidarssl.datasets.world.layout import Layout, Street
from lidarssl.datasets.world.lidar import NEAREST_ECHO, Sweep, scan
from lidarssl.datasets.world.meshes import box
from lidarssl.datasets.world.nuscenes_writer import write_nuscenes
from lidarssl.datasets.world.scene import Triangles, join
from lidarssl.datasets.world.tracing import Hits, Layer, RayTracer
from lidarssl.datasets.world.weather import (
    SNOW_COLOR,
    WEAKEST_RETURN,
    Air,
    air,
    mirrored,
    snow_on,
    under,
)
from lidarssl.errors import ConfigError
from world_files import digest

LAYOUT = Layout(Street(True, 0.0, 8.0, False, 60.0), None, 2.0, 0.0, 60.0)
EXACT = LidarConfig(range_noise=0, dropout=0, weak_dropout=0, far_dropout=0, intensity_spread=0)
WORLD = WorldConfig(
    splits=(SplitConfig("train", 1, 1), SplitConfig("val", 3, 2)),
    cameras=camera_rig(2, height=64, width=128),
)
SHIFTED = WORLD.repeated("val", WEATHERS[1:])
BAD: tuple[Weather, ...] = WEATHERS[1:]


def frames(config: WorldConfig, weather: str) -> list[WorldFrame]:
    """Every frame of ``val`` in one weather."""
    scenes = [s for s in scene_ids(config) if s.split in ("val", f"val_{weather}")]
    return [f for s in scenes if s.weather == weather for f in record(config, s)]


@pytest.fixture(scope="module")
def shown() -> dict[str, list[WorldFrame]]:
    return {weather: frames(SHIFTED, weather) for weather in WEATHERS}


def ground() -> tuple[RayTracer, PartTable]:
    """A flat road (part 0) and a cube of 2 m at x = 10 (part 1)."""
    rng = np.random.default_rng(0)
    parts = [draw_part(Semantic.ROAD, rng), draw_part(Semantic.CAR, rng, instance=7)]
    meshes = [box((0, 0, -0.5), (300, 300, 1)), box((10, 0, 1), (2, 2, 2))]
    triangles = [
        Triangles(m.vertices.astype(np.float32), m.faces.astype(np.int32), np.full(12, i, np.int32))
        for i, m in enumerate(meshes)
    ]
    return RayTracer([Layer(join(triangles))]), PartTable.of(parts)


def looks(weather: Weather, seed: int = 0) -> Appearance:
    clear = draw_appearance(AppearanceConfig(pixel_noise=0), np.random.default_rng(seed))
    return under(weather, clear, np.random.default_rng(seed))


@pytest.mark.parametrize("weather", BAD)
def test_geometry_and_labels_are_those_of_the_clear_scenes(
    shown: dict[str, list[WorldFrame]], weather: str
) -> None:
    assert len(shown[weather]) == len(shown["clear"]) == 6
    for one, clear in zip(shown[weather], shown["clear"], strict=True):
        assert (one.index, one.time) == (clear.index, clear.time)
        np.testing.assert_array_equal(one.world_from_ego, clear.world_from_ego)
        assert len(one.boxes) == len(clear.boxes) > 0
        for box_there, box_here in zip(one.boxes, clear.boxes, strict=True):
            assert box_there.instance == box_here.instance
            np.testing.assert_array_equal(box_there.center, box_here.center)
            np.testing.assert_array_equal(box_there.size, box_here.size)
        assert one.box_met == clear.box_met == tuple(n > 0 for n in clear.box_points)
        for there, here in zip(one.exposures, clear.exposures, strict=True):
            np.testing.assert_array_equal(there.image.semantic, here.image.semantic)
            np.testing.assert_array_equal(there.world_from_ego, here.world_from_ego)
            differs = np.abs(there.image.rgb.astype(int) - here.image.rgb).mean()
            assert differs > 8


def test_a_repeated_split_may_be_shorter() -> None:
    short = SplitConfig("val_fog", 1, 1, like="val", weather="fog")
    config = replace(WORLD, splits=(*WORLD.splits, short))
    scene = next(s for s in scene_ids(config) if s.split == "val_fog")
    [one] = record(config, scene)
    clear = next(record(config, next(s for s in scene_ids(config) if s.split == "val")))
    np.testing.assert_array_equal(
        one.exposures[0].image.semantic, clear.exposures[0].image.semantic
    )
    np.testing.assert_array_equal(one.world_from_ego, clear.world_from_ego)


def test_weathers_look_like_what_they_are_called(shown: dict[str, list[WorldFrame]]) -> None:
    def mean(weather: str, *classes: Semantic) -> float:
        """Brightness of the pixels of some classes, or of all."""
        images = [e.image for frame in shown[weather] for e in frame.exposures]
        rgb = np.concatenate([image.rgb.reshape(-1, 3) for image in images])
        semantic = np.concatenate([image.semantic.ravel() for image in images])
        return float(rgb[np.isin(semantic, classes)].mean() if classes else rgb.mean())

    assert mean("night") < 0.5 * mean("clear")
    assert mean("night", Semantic.IGNORED) < 0.2 * mean("clear", Semantic.IGNORED)
    assert mean("night") > 8
    for weather in ("clear", "fog", "rain"):
        assert mean("snow", Semantic.TERRAIN) > 1.4 * mean(weather, Semantic.TERRAIN)
    assert mean("snow", Semantic.ROAD) > 1.2 * mean("clear", Semantic.ROAD)
    assert mean("rain", Semantic.ROAD) < mean("clear", Semantic.ROAD)


def test_fog_and_rain_lose_returns_and_night_none(shown: dict[str, list[WorldFrame]]) -> None:
    def surfaces(weather: str) -> int:
        return sum(int((f.sweep.semantic > 0).sum()) for f in shown[weather])

    for weather in ("fog", "rain", "snow"):
        assert surfaces(weather) < 0.98 * surfaces("clear")
        assert any((f.sweep.semantic == 0).any() for f in shown[weather])
    assert surfaces("fog") < surfaces("rain")
    for dark, clear in zip(shown["night"], shown["clear"], strict=True):
        np.testing.assert_array_equal(dark.sweep.points, clear.sweep.points)


def test_fog_hides_by_the_law_of_its_distance() -> None:
    """Koschmieder: colour = own * exp(-d / D) + fog * (1 - exp(-d / D))."""
    tracer, parts = ground()
    config = CameraConfig(height=60, width=90)
    mount = ego_from_camera(config, np.array([0, 0, 1.8]))
    foggy = replace(looks("fog"), gain=np.ones(3) * 0.6)
    none = replace(foggy, fog_distance=1e9)
    scene = tracer, parts, LAYOUT, mount, config
    seen = [photograph(*scene, look, np.random.default_rng(0)).rgb / 255 for look in (foggy, none)]
    row, col = np.mgrid[40:60:4, :30]
    ray = np.stack([col, row, np.ones_like(row)], -1) @ np.linalg.inv(intrinsics(config)).T
    # The ground lies mount[2, 3] below the camera, whose y axis points down.
    distance = mount[2, 3] / ray[..., 1] * np.linalg.norm(ray, axis=-1)
    share = np.exp(-distance / foggy.fog_distance)[..., None]
    expected = seen[1][row, col] * share + 0.6 * foggy.horizon * (1 - share)
    np.testing.assert_allclose(seen[0][row, col], expected, atol=1.2 / 255)
    assert 13 <= foggy.fog_distance <= 34


@pytest.mark.parametrize("weather", ["fog", "rain", "snow"])
def test_returns_in_bad_air_are_some_of_those_in_clear_air(weather: Weather) -> None:
    tracer, parts = ground()
    pose = np.eye(4)
    pose[2, 3] = 1.8
    medium = air(weather, looks(weather))
    assert medium is not None
    views = tracer, parts, LAYOUT, pose, EXACT
    clear = scan(*views, np.random.default_rng(3))
    bad = scan(*views, np.random.default_rng(3), medium, np.random.default_rng(4))
    surface = bad.semantic > 0
    known = {tuple(point): index for index, point in enumerate(clear.points)}
    index = np.array([known[tuple(point)] for point in bad.points[surface]])
    distance = np.linalg.norm(clear.points[index], axis=1)
    expected = clear.intensity[index] * medium.wet * np.exp(-2 * medium.extinction * distance)
    np.testing.assert_allclose(bad.intensity[surface], expected, rtol=1e-6)
    assert bad.intensity.min() >= WEAKEST_RETURN
    np.testing.assert_array_equal(bad.semantic[surface], clear.semantic[index])
    np.testing.assert_array_equal(bad.ring[surface], clear.ring[index])
    assert (np.diff(index) > 0).all()
    everything = clear.intensity * medium.wet
    everything *= np.exp(-2 * medium.extinction * np.linalg.norm(clear.points, axis=1))
    detectable = np.flatnonzero(everything > WEAKEST_RETURN)
    lost = 1 - np.isin(detectable, index).mean()
    # A beam loses its return to what floats in front of it, never to what floats behind.
    assert 0.3 * medium.scatter < lost < 1.1 * medium.scatter


def test_echoes_of_the_air_lie_before_what_the_beam_meets() -> None:
    tracer, parts = ground()
    pose = np.eye(4)
    pose[2, 3] = 1.8
    thick = Air(extinction=0, wet=1, scatter=0.5, depth=20.0, brightness=0.1)
    rng = np.random.default_rng(0)
    bad = scan(tracer, parts, LAYOUT, pose, EXACT, np.random.default_rng(3), thick, rng)
    echo = bad.semantic == 0
    assert echo.sum() > 2000
    assert (bad.instance[echo] == 0).all()
    length = np.linalg.norm(bad.points, axis=1)
    assert length[echo].min() >= NEAREST_ECHO
    down = -bad.points[echo, 2] / length[echo]
    to_ground = np.where(down > 0, 1.8 / np.maximum(down, 1e-9), EXACT.max_range)
    assert (length[echo] <= np.minimum(to_ground, EXACT.max_range) + 1e-6).all()
    elevation = np.degrees(np.arcsin(bad.points[:, 2] / length))
    np.testing.assert_allclose(
        elevation, np.linspace(*EXACT.elevation, EXACT.beams)[bad.ring], atol=1e-6
    )
    # Clockwise from behind, firing after firing, and one return of each beam.
    turned = np.mod(np.pi - np.arctan2(bad.points[:, 1], bad.points[:, 0]), 2 * np.pi)
    assert (np.diff(turned.round(6)) >= 0).all()
    assert len({(a, r) for a, r in zip(turned.round(6), bad.ring, strict=True)}) == len(turned)


def test_night_and_clear_air_leave_the_lidar_alone() -> None:
    assert air("clear", looks("clear")) is None
    assert air("night", looks("night")) is None
    assert looks("clear") is not None


def test_snow_lies_on_what_faces_up() -> None:
    _, parts = ground()
    count = 500
    where = np.random.default_rng(0).uniform(-30, 30, (count, 3)).astype(np.float32)
    color = np.full((count, 3), 0.2, np.float32)
    car = np.ones(count, np.int64)

    def covered(up: float, part: np.ndarray, amount: float = 1.0) -> np.ndarray:
        normal = np.tile(np.array([np.sqrt(1 - up**2), 0, up], np.float32), (count, 1))
        hits = Hits(np.ones(count, np.float32), part, normal)
        return snow_on(color, parts, hits, where, LAYOUT, amount)

    np.testing.assert_array_equal(covered(0.0, car), color)
    np.testing.assert_array_equal(covered(-1.0, car), color)
    np.testing.assert_allclose(covered(1.0, car).mean(0), SNOW_COLOR, atol=0.06)
    means = [covered(up, car).mean() for up in (0.3, 0.5, 0.7, 0.9)]
    assert means == sorted(means)
    road = covered(1.0, car * 0)
    assert color.mean() + 0.1 < road.mean() < covered(1.0, car).mean()
    assert covered(1.0, car * 0, 0.2).mean() < road.mean()


@pytest.mark.parametrize("degrees", [5, 30, 60, 80, 87])
def test_wet_roads_mirror_by_fresnels_equations(degrees: float) -> None:
    """The exact reflectance of a film of refractive index 1.33, times the share of puddles."""
    tracer, parts = ground()
    look = replace(looks("rain"), clouds=0.0)
    sky = np.full(3, 0.8)
    look = replace(look, zenith=sky, horizon=sky)
    angle = np.radians(degrees)
    count = 400
    where = np.random.default_rng(0).uniform(-90, -50, (count, 3)).astype(np.float32)
    where[:, 2] = 0
    ray = np.tile(np.array([-np.sin(angle), 0, -np.cos(angle)], np.float32), (count, 1))
    up = np.tile(np.array([0, 0, 1], np.float32), (count, 1))
    hits = Hits(np.ones(count, np.float32), np.zeros(count, np.int64), up)
    lit = np.full((count, 3), 0.1)
    share = (mirrored(lit, tracer, parts, hits, where, ray, look) - lit)[:, 0] / 0.7
    inside = np.arcsin(np.sin(angle) / 1.33)
    parallel = (np.tan(angle - inside) / np.tan(angle + inside)) ** 2
    across = (np.sin(angle - inside) / np.sin(angle + inside)) ** 2
    exact = (parallel + across) / 2
    assert share.min() >= 0
    assert share.max() <= 1
    # Half to all of it is under water on average; ripples tilt the film by about a degree.
    assert 0.45 * exact - 0.02 < share.mean() < exact + 0.06


def test_the_asked_share_of_the_windows_is_lit() -> None:
    rng = np.random.default_rng(0)
    part = replace(draw_part(Semantic.BUILDING, rng), base=0.0, top=300.0)
    parts = PartTable.of([part])
    along, up = np.meshgrid(np.arange(-300, 300, 0.5), np.arange(0, 240, 0.5))
    where = np.c_[np.zeros(along.size), along.ravel(), up.ravel()].astype(np.float32)
    normal = np.tile(np.array([1, 0, 0], np.float32), (len(where), 1))
    rows = np.zeros(len(where), np.int64)
    shares = []
    for share in (0.1, 0.3, 0.999999):
        light = window_light(where, normal, parts, rows, share)
        shares.append((light > 0).all(1).mean())
    assert shares[0] / shares[2] == pytest.approx(0.1, abs=0.05)
    assert shares[1] / shares[2] == pytest.approx(0.3, abs=0.07)
    level = np.tile(np.array([0, 0, 1], np.float32), (len(where), 1))
    assert not window_light(where, level, parts, rows, 0.999999).any()


@given(st.integers(0, 10_000), st.sampled_from(BAD))
def test_weathers_are_drawn_within_reason(seed: int, weather: Weather) -> None:
    clear = draw_appearance(AppearanceConfig(), np.random.default_rng(seed))
    look = under(weather, clear, np.random.default_rng(seed))
    assert not look.sun_light.any()
    for color in (look.sky_light, look.zenith, look.horizon):
        assert ((color > 0) & (color < 1.3)).all()
    assert (look.lamps > 0) == (look.lit_windows > 0) == (weather == "night")
    assert (look.snow > 0) == (look.snowfall > 0) == (weather == "snow")
    assert (look.wetness > 0) == (look.rainfall > 0) == (weather == "rain")
    assert look.fog_distance <= clear.fog_distance


def test_bytes_do_not_depend_on_workers_or_on_when_weather_was_added(tmp_path: Path) -> None:
    tiny = replace(
        WORLD,
        splits=(SplitConfig("val", 2, 1),),
        lidar=LidarConfig(beams=8, azimuth_steps=60),
        cameras=(CameraConfig(height=16, width=32),),
    )
    shifted = tiny.repeated("val", BAD)
    expected = digest(write_nuscenes(shifted, tmp_path / "one", workers=1, progress=False))
    assert digest(write_nuscenes(shifted, tmp_path / "two", workers=2, progress=False)) == expected
    grown = write_nuscenes(tiny, tmp_path / "grown", workers=1, progress=False)
    before = digest(grown)
    assert not (grown / VERSION / "weather.json").exists()
    # A world written before there was weather holds the same notes, so that it can be completed.
    assert "splits" not in json.loads((grown / VERSION / ".scenes" / "world.json").read_text())
    note = json.loads((grown / VERSION / ".scenes" / "scene-val-0000.json").read_text())
    assert set(note) == {"frames", "rows"}
    write_nuscenes(shifted, grown, workers=1, progress=False)
    assert digest(grown) == expected
    kept = {name: value for name, value in before.items() if not name.startswith(VERSION)}
    assert len(kept) > 8
    assert kept.items() <= expected.items()
    write_nuscenes(tiny, grown, workers=1, progress=False)
    after = digest(grown)
    assert {name: after[name] for name in before} == before
    assert not (grown / VERSION / "weather.json").exists()


def test_scenes_are_written_again_when_their_weather_changes(tmp_path: Path) -> None:
    def image(weather: Weather, frames: int = 1) -> bytes:
        splits = (
            SplitConfig("val", 1, frames),
            SplitConfig("other", 1, 1, like="val", weather=weather),
        )
        config = replace(WORLD, splits=splits, cameras=(CameraConfig(height=16, width=32),))
        write_nuscenes(config, tmp_path, workers=1, progress=False)
        [path] = (tmp_path / "samples" / "CAM_FRONT").glob("scene-other-0000*")
        return path.read_bytes()

    fog, night, longer = image("fog"), image("night"), image("night", 3)
    assert len({fog, night, longer}) == 3
    assert image("fog") == fog


def test_a_world_of_one_weather_in_the_layout_of_semantic_kitti(tmp_path: Path) -> None:
    def written(weather: Weather, folder: str) -> dict[str, str]:
        config = replace(
            WorldConfig.kitti(),
            splits=(SplitConfig("val", 1, 1, weather=weather),),
            lidar=LidarConfig(beams=8, azimuth_steps=60),
            cameras=(CameraConfig("image_2", height=16, width=48),),
        )
        return digest(write_semantic_kitti(config, tmp_path / folder, 1, progress=False))

    clear, night = written("clear", "a"), written("night", "b")
    changed = {name for name in clear if clear[name] != night[name]}
    sequence = "dataset/sequences/08"
    assert changed == {f"{sequence}/image_2/000000.png", ".scenes/scene-val-0000.json"}
    assert written("night", "a") == night


def test_repeated_splits() -> None:
    shift = WorldConfig.shift(seed=3)
    assert shift.seed == 3
    assert [split.name for split in shift.splits] == [
        "teacher", "train", "val", "val_fog", "val_night", "val_rain", "val_snow",
    ]  # fmt: skip
    assert [split.weather for split in shift.splits[2:]] == list(WEATHERS)
    ids = scene_ids(shift)
    streams = {w: [s.stream for s in ids if s.split == f"val_{w}"] for w in WEATHERS[1:]}
    assert all(found == [s.stream for s in ids if s.split == "val"] for found in streams.values())
    assert len({s.name for s in ids}) == len(ids)
    assert set(scene_ids(WorldConfig(seed=3))) < set(ids)


def _splits(*more: SplitConfig) -> WorldConfig:
    return WorldConfig(splits=(SplitConfig("val", 2, 2), *more))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: _splits(SplitConfig("a", 1, 1, like="vall", weather="fog")), "splits.like"),
        (lambda: _splits(SplitConfig("a", 1, 1, like="a", weather="fog")), "splits.like"),
        (lambda: _splits(SplitConfig("a", 3, 1, like="val", weather="fog")), "val has 2"),
        (lambda: _splits(SplitConfig("a", 1, 3, like="val", weather="fog")), "val has 2"),
        (lambda: _splits(SplitConfig("a", 1, 1, like="val")), "each weather once"),
        (
            lambda: _splits(
                SplitConfig("a", 1, 1, like="val", weather="fog"),
                SplitConfig("b", 1, 1, like="a", weather="snow"),
            ),
            "scenes of its own",
        ),
        (lambda: SplitConfig("a", 1, 1, weather="hail"), "clear, fog, night, rain, snow"),  # type: ignore[arg-type]
        (lambda: _splits().repeated("train", ["fog"]), "'train'"),
        (lambda: _splits().repeated("val", ["fog", "fog"]), "names that differ"),
        (lambda: _splits().repeated("val", ["clear"]), "each weather once"),
    ],
)
def test_impossible_repetitions_are_refused(make: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()  # type: ignore[operator]


def test_sweeps_take_and_join() -> None:
    one = Sweep(*(np.arange(3) for _ in range(5)))
    both = one.take(np.array([True, False, True])).joined(one.take(np.array([1])))
    assert both.ring.tolist() == [0, 2, 1]


def test_the_command_adds_weathers_to_a_world(tmp_path: Path) -> None:
    words = (
        "data", "synthesize", tmp_path, "--quiet", "--workers", 1, "--lidar.azimuth_steps", 30,
        "--cameras", "[{name: CAM_FRONT, height: 16, width: 32}]",
        "--splits", "[{name: train, scenes: 1, frames: 1}, {name: val, scenes: 2, frames: 1}]",
    )  # fmt: skip
    assert run_command(*words).out.endswith(": 3 frames\n")
    added = run_command(*words, "--weathers", "night", "fog")
    assert (added.code, added.err) == (0, "")
    assert added.out.endswith(": 7 frames\n")
    dataset = Synthetic(tmp_path)
    assert dataset.splits == ("train", "val", "val_night", "val_fog")
    assert {name: len(ids) for name, ids in dataset.conditions("val").items()} == {
        "clear": 2,
        "fog": 2,
        "night": 2,
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weathers", "hail"], "invalid choice: 'hail'"),
        (["--weathers"], "expected at least one"),
        (["--weathers", "fog", "fog"], "names that differ"),
        (["--weathers", "fog", "--layout", "semantic_kitti"], "leave --layout out"),
        (["--weathers", "fog", "--splits=[{name: a, scenes: 1, frames: 1}]"], "'val'"),
        (["--splits=[{name: a, scenes: 1, frames: 1, weather: hail}]"], "weather"),
    ],
)
def test_weathers_that_cannot_be_made_are_refused(
    tmp_path: Path, words: list[str], said: str
) -> None:
    done = run_command("data", "synthesize", tmp_path, *words)
    assert done.code != 0
    assert said in done.err, done.err
    assert not list(tmp_path.iterdir())
