from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("embreex")

from lidarssl.datasets.world.classes import PALETTE, Semantic
from lidarssl.datasets.world.config import (
    LidarConfig,
    SplitConfig,
    WorldConfig,
    camera_rig,
    scene_ids,
)
from lidarssl.datasets.world.placing import build_scene
from lidarssl.datasets.world.scene import Scene, rotation
from lidarssl.datasets.world.tracing import Layer, RayTracer
from lidarssl.errors import ConfigError

CONFIG = WorldConfig(splits=(SplitConfig("train", 6, 3),))
SCENES = [build_scene(CONFIG, scene) for scene in scene_ids(CONFIG)]


@pytest.fixture(params=range(len(SCENES)))
def scene(request: pytest.FixtureRequest) -> Scene:
    return SCENES[request.param]


def test_scenes_depend_on_seed_and_number_only() -> None:
    number = scene_ids(CONFIG)[2]
    sensors = replace(CONFIG, lidar=LidarConfig(beams=4), cameras=camera_rig(6))
    again = build_scene(sensors, number)
    np.testing.assert_array_equal(again.static.vertices, SCENES[2].static.vertices)
    other = build_scene(replace(CONFIG, seed=1), number)
    assert other.static.vertices.shape != SCENES[2].static.vertices.shape
    assert SCENES[1].static.vertices.shape != SCENES[2].static.vertices.shape


def test_splits_grow_without_changing_scenes() -> None:
    small = WorldConfig(splits=(SplitConfig("train", 2, 1), SplitConfig("val", 2, 1)))
    large = WorldConfig(splits=(SplitConfig("extra", 3, 1), *small.splits))
    assert set(scene_ids(small)) < set(scene_ids(large))
    assert len({scene.stream for scene in scene_ids(WorldConfig())}) == 140


def test_every_class_can_be_met() -> None:
    seen = set().union(*(set(scene.parts.semantic.tolist()) for scene in SCENES))
    assert seen == set(range(1, len(PALETTE)))


def test_instances_belong_to_one_agent(scene: Scene) -> None:
    instances = [agent.model.instance for agent in scene.agents]
    assert len(instances) == len(set(instances))
    assert min(instances) > 0
    things = {Semantic.CAR, Semantic.TRUCK, Semantic.CYCLIST, Semantic.PEDESTRIAN}
    stuff = ~np.isin(scene.parts.semantic, list(things))
    assert (scene.parts.instance[stuff] == 0).all()
    assert (scene.parts.instance[~stuff] > 0).all()


def test_boxes_contain_their_triangles(scene: Scene) -> None:
    for time in (0.0, 0.7):
        for agent, box in zip(scene.agents, scene.boxes(time), strict=True):
            local = (scene.place(agent, time).vertices - box.center) @ rotation(box.yaw)
            assert (np.abs(local) <= box.size / 2 + 1e-4).all()
            assert (np.abs(local).max(0) >= box.size / 2 - 0.1).all()


def test_agents_stand_on_the_ground(scene: Scene) -> None:
    for agent, box in zip(scene.agents, scene.boxes(0.5), strict=True):
        x, y = agent.plan(0.5)
        bottom = box.center[2] - box.size[2] / 2
        slack = 0.25 + 0.1 * box.size[:2].max() / 2
        assert abs(bottom - scene.ground.height(x, y)) < slack


def test_nothing_is_where_the_ego_vehicle_drives(scene: Scene) -> None:
    """Level rays from inside the vehicle meet nothing within its outline."""
    static = Layer(scene.static)
    azimuth = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    for time in CONFIG.frame_interval * np.arange(3):
        tracer = RayTracer([static, Layer(scene.moving(time))])
        pose = scene.world_from_ego(time)
        for height in (0.6, 1.8):
            directions = np.c_[np.cos(azimuth), np.sin(azimuth), np.zeros(180)]
            origin = pose[:3, 3] + (0, 0, height)
            hits = tracer.cast(np.tile(origin, (180, 1)), directions @ pose[:3, :3].T)
            outline = 1 / np.maximum(np.abs(directions[:, 0]) / 3, np.abs(directions[:, 1]) / 0.9)
            assert (hits.distance > outline).all()


def test_ego_moves_by_the_frame_distance(scene: Scene) -> None:
    one, two = scene.world_from_ego(0.0), scene.world_from_ego(CONFIG.frame_interval)
    step = two[:3, 3] - one[:3, 3]
    assert np.linalg.norm(step[:2]) == pytest.approx(CONFIG.frame_distance, rel=0.15)
    ahead = (step @ one[:3, 0]) / np.linalg.norm(step)
    assert ahead > 0.97
    np.testing.assert_allclose(one[:3, :3] @ one[:3, :3].T, np.eye(3), atol=1e-12)
    assert one[2, 2] > 0.999


def test_agents_move_at_their_speed(scene: Scene) -> None:
    moving = [agent for agent in scene.agents if agent.speed > 0]
    assert moving
    for agent in moving:
        (x0, y0), (x1, y1) = agent.plan(0.0), agent.plan(0.1)
        moved = np.hypot(x1 - x0, y1 - y0)
        wrapped = moved > agent.street.half_length
        assert wrapped or moved == pytest.approx(0.1 * agent.speed, rel=0.01)


def test_parked_agents_are_static_triangles(scene: Scene) -> None:
    parked = [agent for agent in scene.agents if agent.speed == 0]
    static = set(scene.static.part.tolist())
    moving = set(scene.moving(0.0).part.tolist())
    assert all(agent.first_part in static for agent in parked)
    assert not static & moving


@settings(max_examples=50)
@given(st.floats(-3, 3), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_rotation_is_proper(yaw: float, pitch: float, roll: float) -> None:
    matrix = rotation(yaw, pitch, roll)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert np.arctan2(matrix[1, 0], matrix[0, 0]) == pytest.approx(yaw)


@pytest.mark.parametrize(
    "make",
    [
        lambda: WorldConfig(seed=-1),
        lambda: WorldConfig(cameras=camera_rig(3) + camera_rig(2)),
        lambda: WorldConfig(splits=(SplitConfig("a", 1, 1), SplitConfig("a", 2, 1))),
        lambda: camera_rig(7),
        lambda: LidarConfig(beams=0),
        lambda: LidarConfig(elevation=(10.0, -30.0)),
        lambda: SplitConfig("../up", 1, 1),
        lambda: SplitConfig("train", 1, 0),
    ],
)
def test_impossible_worlds_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match="remedy"):
        make()  # type: ignore[operator]
