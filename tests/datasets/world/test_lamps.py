import numpy as np
import pytest

pytest.importorskip("embreex")

from lidarssl.datasets.world.camera import ego_from_camera, intrinsics
from lidarssl.datasets.world.classes import Semantic
from lidarssl.datasets.world.config import CameraConfig, SplitConfig, WorldConfig, scene_ids
from lidarssl.datasets.world.lamps import Lamps, add_glow, lamp_light, night_lamps, street_lamps
from lidarssl.datasets.world.placing import build_scene
from lidarssl.datasets.world.scene import rotation
from lidarssl.datasets.world.tracing import Layer, RayTracer

CONFIG = WorldConfig(splits=(SplitConfig("train", 3, 1),))
UP = np.array([[0.0, 0, 1]])


def one_lamp(focus: float = 2.0, reach: float = 5.0) -> Lamps:
    """At 6 m above the origin, pointing down."""
    return Lamps(
        np.array([[0.0, 0, 6]]),
        np.array([[0.0, 0, -1]]),
        np.array([[1.0, 0.5, 0.25]]),
        np.array([focus]),
        np.array([reach]),
        np.array([True]),
    )


@pytest.mark.parametrize("number", range(3))
def test_street_lamps_hang_from_their_posts(number: int) -> None:
    scene = build_scene(CONFIG, scene_ids(CONFIG)[number])
    lamps = street_lamps(scene)
    assert len(lamps) > 2
    tracer = RayTracer([Layer(scene.static)])
    above = tracer.cast(lamps - (0, 0, 0.3), np.tile([0.0, 0, 1], (len(lamps), 1)))
    assert (scene.parts.semantic[above.part] == Semantic.POLE).all()
    assert (above.distance < 0.6).all()
    x, y = scene.layout.to_plan(lamps[:, 0], lamps[:, 1])
    height = lamps[:, 2] - scene.ground.height(x, y)
    assert ((height > 4) & (height < 9)).all()


def test_light_falls_with_distance_angle_and_incidence() -> None:
    lamps = one_lamp()
    leaves, solid = np.array([True]), np.array([False])

    def at(x: float, z: float, normal: np.ndarray = UP, foliage: np.ndarray = solid) -> np.ndarray:
        return lamp_light(lamps, np.array([[x, 0, z]]), normal, foliage)[0]

    np.testing.assert_allclose(at(0, 1), 0.5 * lamps.color[0], rtol=1e-5)
    np.testing.assert_allclose(at(0, -4), 0.2 * lamps.color[0], rtol=1e-5)
    cosine = 5 / np.sqrt(50)
    expected = cosine**2 * (0.2 + 0.8 * cosine) / 3 * lamps.color[0]
    np.testing.assert_allclose(at(5, 1), expected, rtol=1e-5)
    assert not at(0, 8).any()
    assert not at(0, 1, -UP).any()
    np.testing.assert_allclose(at(0, 1, -UP, leaves), 0.25 * lamps.color[0], rtol=1e-5)


def test_headlights_shine_ahead_and_rear_lights_behind() -> None:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation(0.7), (3, 4, 0)
    lamps = night_lamps(np.zeros((0, 3)), pose, 1.0, np.random.default_rng(0))
    ego = np.array([[12.0, 0, 0.7], [-6.0, 0, 0.7], [0, 9.0, 0.7]])
    where = ego @ pose[:3, :3].T + pose[:3, 3]
    towards = -(ego - (0, 0, 0.7)) / np.linalg.norm(ego, axis=1, keepdims=True)
    light = lamp_light(lamps, where, towards @ pose[:3, :3].T, np.zeros(3, bool))
    assert light[0].min() > 0.3
    assert light[1, 0] > 3 * light[1, 1] > 0
    assert light[2].max() < 0.01
    brighter = night_lamps(np.zeros((0, 3)), pose, 2.0, np.random.default_rng(0))
    np.testing.assert_allclose(brighter.color, 2 * lamps.color)


def test_the_nearest_lamps_are_taken() -> None:
    posts = np.c_[np.arange(40) * 10.0, np.zeros(40), np.full(40, 6.0)]
    lamps = night_lamps(posts, np.eye(4), 1.0, np.random.default_rng(0))
    near = lamps.nearest(np.array([200.0, 0, 2]), 5)
    assert sorted(near.position[:, 0]) == [180, 190, 200, 210, 220]
    assert near.color.shape == (5, 3)
    assert len(lamps.nearest(np.zeros(3), 100).focus) == 44


def test_glow_is_where_the_lamp_projects_and_hidden_behind_walls() -> None:
    config = CameraConfig(height=60, width=90)
    pose = ego_from_camera(config, np.array([-20.0, 2, 4]))
    matrix = intrinsics(config)
    sky = np.full((60, 90), np.inf, np.float32)

    def glow(distance: np.ndarray, lamps: Lamps) -> np.ndarray:
        color = np.zeros((60, 90, 3), np.float32)
        add_glow(color, lamps, distance, pose, matrix)
        return color

    seen = glow(sky, one_lamp())
    inside = pose[:3, :3].T @ (np.array([0, 0, 6]) - pose[:3, 3])
    u, v = (matrix @ inside / inside[2])[:2]
    row, col = np.unravel_index(seen[..., 0].argmax(), seen.shape[:2])
    assert abs(row - v) <= 0.5
    assert abs(col - u) <= 0.5
    np.testing.assert_allclose(seen[row, col] / seen[row, col, 0], (1, 0.5, 0.25), rtol=1e-5)
    assert not glow(np.full_like(sky, 10), one_lamp()).any()
    behind = Lamps(np.array([[-60.0, 0, 6]]), *list(vars(one_lamp()).values())[1:])
    assert not glow(sky, behind).any()
