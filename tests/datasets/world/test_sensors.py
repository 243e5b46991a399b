from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("embreex")

from lidarssl.datasets.world.appearance import draw_appearance, noise, sky_color
from lidarssl.datasets.world.camera import ego_from_camera, intrinsics, photograph
from lidarssl.datasets.world.classes import PartTable, Semantic, draw_part
from lidarssl.datasets.world.config import AppearanceConfig, CameraConfig, LidarConfig
from lidarssl.datasets.world.layout import Layout, Street
from lidarssl.datasets.world.lidar import scan
from lidarssl.datasets.world.meshes import box
from lidarssl.datasets.world.scene import Triangles, join, rotation
from lidarssl.datasets.world.tracing import Layer, RayTracer

STREET = Street(along_x=True, center=0.0, width=8.0, parking=False, half_length=60.0)
LAYOUT = Layout(STREET, None, 2.0, 0.0, 60.0)
EXACT = LidarConfig(range_noise=0, dropout=0, weak_dropout=0, far_dropout=0, intensity_spread=0)


def room() -> tuple[RayTracer, PartTable]:
    """Flat ground (part 0) and a cube of 2 m at x = 10 (part 1)."""
    rng = np.random.default_rng(0)
    parts = [draw_part(Semantic.TERRAIN, rng), draw_part(Semantic.BUILDING, rng, instance=7)]
    meshes = [box((0, 0, -0.5), (300, 300, 1)), box((10, 0, 1), (2, 2, 2))]
    triangles = [
        Triangles(m.vertices.astype(np.float32), m.faces.astype(np.int32), np.full(12, i, np.int32))
        for i, m in enumerate(meshes)
    ]
    return RayTracer([Layer(join(triangles))]), PartTable.of(parts)


def lidar_pose() -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = rotation(0.3, 0.02, -0.01)
    pose[:3, 3] = 1.0, -2.0, 1.8
    return pose


def test_returns_lie_on_surfaces_and_carry_their_labels() -> None:
    tracer, parts = room()
    pose = lidar_pose()
    sweep = scan(tracer, parts, LAYOUT, pose, EXACT, np.random.default_rng(0))
    world = sweep.points @ pose[:3, :3].T + pose[:3, 3]
    on_cube = sweep.instance == 7
    assert on_cube.sum() > 20
    np.testing.assert_array_equal(sweep.semantic == Semantic.BUILDING, on_cube)
    np.testing.assert_allclose(world[~on_cube, 2], 0, atol=1e-4)
    offset = np.abs(world[on_cube] - (10, 0, 1))
    np.testing.assert_allclose(offset.max(1), 1, atol=1e-4)
    elevation = np.degrees(np.arcsin(sweep.points[:, 2] / np.linalg.norm(sweep.points, axis=1)))
    expected = np.linspace(*EXACT.elevation, EXACT.beams)[sweep.ring]
    np.testing.assert_allclose(elevation, expected, atol=1e-4)
    assert np.linalg.norm(sweep.points, axis=1).max() < EXACT.max_range


def test_intensity_follows_its_formula() -> None:
    tracer, parts = room()
    pose = np.eye(4)
    pose[2, 3] = 1.8
    sweep = scan(tracer, parts, LAYOUT, pose, EXACT, np.random.default_rng(0))
    ground = sweep.semantic == Semantic.TERRAIN
    distance = np.linalg.norm(sweep.points[ground], axis=1)
    incidence = 1.8 / distance
    expected = parts.reflectivity[0] * (0.35 + 0.65 * incidence) * np.exp(-distance / 90)
    np.testing.assert_allclose(sweep.intensity[ground], expected, rtol=1e-3)


def test_noise_and_dropout_have_their_size() -> None:
    tracer, parts = room()
    pose = np.eye(4)
    pose[2, 3] = 1.8
    rng = np.random.default_rng(1)
    exact = scan(tracer, parts, LAYOUT, pose, EXACT, np.random.default_rng(1))
    noisy = scan(tracer, parts, LAYOUT, pose, replace(EXACT, range_noise=0.05), rng)
    error = np.linalg.norm(noisy.points, axis=1) - np.linalg.norm(exact.points, axis=1)
    assert error.std() == pytest.approx(0.05, rel=0.05)
    lossy = replace(EXACT, dropout=0.3)
    kept = len(scan(tracer, parts, LAYOUT, pose, lossy, np.random.default_rng(1)).points)
    assert kept / len(exact.points) == pytest.approx(0.7, abs=0.02)


def test_pixels_show_what_projects_onto_them() -> None:
    tracer, parts = room()
    config = CameraConfig(yaw=20, height=60, width=90, field_of_view=70)
    mount = ego_from_camera(config, np.array([0, 0, 1.8]))
    np.testing.assert_allclose(
        mount[:3, 2], (np.cos(np.radians(20)), np.sin(np.radians(20)), 0), atol=1e-12
    )
    np.testing.assert_allclose(mount[:3, 1], (0, 0, -1), atol=1e-12)
    appearance = draw_appearance(AppearanceConfig(), np.random.default_rng(0))
    image = photograph(tracer, parts, LAYOUT, mount, config, appearance, np.random.default_rng(0))
    corners = np.array([(9, y, z) for y in (-1, 1) for z in (0, 2)], float)
    camera = (corners - mount[:3, 3]) @ mount[:3, :3]
    uv = camera @ intrinsics(config).T
    uv = uv[:, :2] / uv[:, 2:]
    row, col = np.mgrid[: config.height, : config.width]
    inside = (col > uv[:, 0].min()) & (col < uv[:, 0].max())
    face = inside & (row > uv[1::2, 1].max()) & (row < uv[::2, 1].min())
    assert face.sum() > 50
    assert (image.semantic[face] == Semantic.BUILDING).all()
    assert (image.semantic[: int(config.height * config.horizon) - 12] != Semantic.TERRAIN).all()
    assert set(np.unique(image.semantic)) == {0, Semantic.TERRAIN, Semantic.BUILDING}


def test_fog_and_darkness_change_images_only_through_the_appearance() -> None:
    tracer, parts = room()
    config = CameraConfig(height=40, width=60)
    mount = ego_from_camera(config, np.array([0, 0, 1.8]))

    def mean(appearance: AppearanceConfig) -> tuple[float, float]:
        drawn = draw_appearance(appearance, np.random.default_rng(3))
        rng = np.random.default_rng(0)
        rgb = photograph(tracer, parts, LAYOUT, mount, config, drawn, rng).rgb.astype(float)
        return float(rgb.mean()), float(rgb[20:].std())

    clear, foggy = mean(AppearanceConfig()), mean(AppearanceConfig(fog_distance=(8, 8)))
    night = mean(AppearanceConfig(brightness=(0.05, 0.05)))
    assert night[0] < 0.25 * clear[0]
    assert foggy[0] > clear[0]


def test_sky_is_brighter_towards_the_sun() -> None:
    config = AppearanceConfig(overcast=0.0)
    appearance = draw_appearance(config, np.random.default_rng(0))
    away = -appearance.sun * (1, 1, -1)
    sun, other = sky_color(appearance, np.stack([appearance.sun, away])).sum(1)
    assert sun > other + 0.3


def test_texture_varies_smoothly_and_repeats_exactly() -> None:
    where = np.c_[np.linspace(0, 5, 4000), np.zeros(4000), np.zeros(4000)]
    values = noise(where, np.float32(1.0))
    np.testing.assert_array_equal(values, noise(where, np.float32(1.0)))
    assert 0.3 < values.std() < 2
    assert np.abs(np.diff(values)).max() < 2
    assert (
        np.abs(values[4:] - values[:-4]).mean() < 0.2 * np.abs(values[2000:] - values[:2000]).mean()
    )
