"""Drives a scene: what the sensors of the ego vehicle record, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lidarssl.datasets.world.appearance import draw_appearance
from lidarssl.datasets.world.camera import Image, ego_from_camera, intrinsics, photograph
from lidarssl.datasets.world.config import SceneId, WorldConfig
from lidarssl.datasets.world.lidar import Sweep, scan
from lidarssl.datasets.world.placing import build_scene
from lidarssl.datasets.world.scene import Box3D, Scene
from lidarssl.datasets.world.tracing import Layer, RayTracer


@dataclass(frozen=True)
class Exposure:
    """An image with its calibration.

    Attributes:
        name: of the camera.
        image: pixels and labels.
        time: s since the first frame of the scene.
        intrinsics: (3, 3).
        ego_from_camera: (4, 4).
        world_from_ego: (4, 4) at ``time``.
    """

    name: str
    image: Image
    time: float
    intrinsics: np.ndarray
    ego_from_camera: np.ndarray
    world_from_ego: np.ndarray


@dataclass(frozen=True)
class WorldFrame:
    """One recorded moment.

    Attributes:
        index: number of the frame in its scene.
        time: of the sweep, s since the first frame of the scene.
        sweep: lidar returns.
        ego_from_lidar, world_from_ego: (4, 4), the latter at ``time``.
        exposures: one per camera.
        boxes: of every agent near the lidar, world frame, at ``time``.
        box_points: number of lidar returns of each box's object.
    """

    index: int
    time: float
    sweep: Sweep
    ego_from_lidar: np.ndarray
    world_from_ego: np.ndarray
    exposures: tuple[Exposure, ...]
    boxes: tuple[Box3D, ...]
    box_points: tuple[int, ...]


def record(
    config: WorldConfig, scene_id: SceneId, synchronous: bool = False
) -> Iterator[WorldFrame]:
    """Build a scene and drive through it.

    Args:
        synchronous: expose the cameras at the lidar's timestamp, whatever their delay.

    Yields:
        ``scene_id.frames`` frames.
    """
    scene = build_scene(config, scene_id)
    static = Layer(scene.static)
    light_rng = np.random.default_rng([config.seed, scene_id.stream, 1])
    appearance = draw_appearance(config.appearance, light_rng)
    ego_from_lidar = np.eye(4)
    ego_from_lidar[2, 3] = config.lidar.height
    for index in range(scene_id.frames):
        time = index * config.frame_interval
        rng = np.random.default_rng([config.seed, scene_id.stream, 2, index])
        pose = scene.world_from_ego(time)
        tracer = _tracer(scene, static, time)
        sweep = scan(tracer, scene.parts, scene.layout, pose @ ego_from_lidar, config.lidar, rng)
        exposures = []
        for number, camera in enumerate(config.cameras):
            moment = time if synchronous else time - camera.delay
            camera_pose = scene.world_from_ego(moment)
            mount = ego_from_camera(camera, ego_from_lidar[:3, 3])
            image = photograph(
                tracer if synchronous else _tracer(scene, static, moment),
                scene.parts,
                scene.layout,
                camera_pose @ mount,
                camera,
                appearance,
                np.random.default_rng([config.seed, scene_id.stream, 3, index, number]),
            )
            matrix = intrinsics(camera)
            exposures.append(Exposure(camera.name, image, moment, matrix, mount, camera_pose))
        boxes, counts = _visible_boxes(scene, sweep, time, pose @ ego_from_lidar, config)
        yield WorldFrame(index, time, sweep, ego_from_lidar, pose, tuple(exposures), boxes, counts)


def _tracer(scene: Scene, static: Layer, time: float) -> RayTracer:
    moving = scene.moving(time)
    return RayTracer([static, Layer(moving)] if len(moving.faces) else [static])


def _visible_boxes(
    scene: Scene, sweep: Sweep, time: float, world_from_lidar: np.ndarray, config: WorldConfig
) -> tuple[tuple[Box3D, ...], tuple[int, ...]]:
    """Boxes within the lidar's range, and how many returns each object has."""
    counts = np.bincount(sweep.instance)
    near = [
        box
        for box in scene.boxes(time)
        if np.linalg.norm(box.center - world_from_lidar[:3, 3]) < config.lidar.max_range
    ]
    points = [int(counts[box.instance]) if box.instance < len(counts) else 0 for box in near]
    return tuple(near), tuple(points)
