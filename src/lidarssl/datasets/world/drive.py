"""Drives a scene: what the sensors of the ego vehicle record, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lidarssl.datasets.world.appearance import Appearance, draw_appearance
from lidarssl.datasets.world.camera import Image, ego_from_camera, intrinsics, photograph
from lidarssl.datasets.world.config import SceneId, WorldConfig
from lidarssl.datasets.world.lamps import Lamps, night_lamps, street_lamps
from lidarssl.datasets.world.lidar import Sweep, scan
from lidarssl.datasets.world.placing import build_scene
from lidarssl.datasets.world.scene import Box3D, Scene
from lidarssl.datasets.world.tracing import Layer, RayTracer
from lidarssl.datasets.world.weather import air, under


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
        box_met: whether each box's object returns any in clear air.
    """

    index: int
    time: float
    sweep: Sweep
    ego_from_lidar: np.ndarray
    world_from_ego: np.ndarray
    exposures: tuple[Exposure, ...]
    boxes: tuple[Box3D, ...]
    box_points: tuple[int, ...]
    box_met: tuple[bool, ...]


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
    draws = _Draws(config.seed, scene_id)
    clear = draw_appearance(config.appearance, draws.of(1))
    look = under(scene_id.weather, clear, draws.weather(4))
    medium = air(scene_id.weather, look)
    ego_from_lidar = np.eye(4)
    ego_from_lidar[2, 3] = config.lidar.height
    cameras = _Cameras(config, scene, static, look, draws, synchronous)
    for index in range(scene_id.frames):
        time = index * config.frame_interval
        pose = scene.world_from_ego(time)
        world_from_lidar = pose @ ego_from_lidar
        tracer = _tracer(scene, static, time)
        lidar = tracer, scene.parts, scene.layout, world_from_lidar, config.lidar
        met = sweep = scan(*lidar, draws.of(2, index))
        if medium is not None:
            sweep = scan(*lidar, draws.of(2, index), medium, draws.weather(5, index))
        boxes = _near_boxes(scene, time, world_from_lidar, config)
        yield WorldFrame(
            index,
            time,
            sweep,
            ego_from_lidar,
            pose,
            tuple(cameras.expose(index, time)),
            boxes,
            box_points=_count(boxes, sweep),
            box_met=tuple(count > 0 for count in _count(boxes, met)),
        )


@dataclass(frozen=True)
class _Draws:
    """The random generators of a scene, one for each purpose.

    Splits that repeat a scene share all of them but those of the weather.
    """

    seed: int
    scene: SceneId

    def of(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.scene.stream, *purpose])

    def weather(self, purpose: int, *which: int) -> np.random.Generator:
        return self.of(purpose, self.scene.weather_stream, *which)


class _Cameras:
    """The cameras of the ego vehicle on one drive."""

    def __init__(
        self,
        config: WorldConfig,
        scene: Scene,
        static: Layer,
        look: Appearance,
        draws: _Draws,
        synchronous: bool,
    ) -> None:
        self.config = config
        self.scene = scene
        self.static = static
        self.look = look
        self.draws = draws
        self.synchronous = synchronous
        self.posts = street_lamps(scene) if look.lamps else None

    def expose(self, index: int, time: float) -> Iterator[Exposure]:
        """Images of frame ``index``, whose sweep is at ``time``, one per camera."""
        lidar_position = np.array([0, 0, self.config.lidar.height])
        for number, camera in enumerate(self.config.cameras):
            moment = time if self.synchronous else time - camera.delay
            pose = self.scene.world_from_ego(moment)
            mount = ego_from_camera(camera, lidar_position)
            image = photograph(
                _tracer(self.scene, self.static, moment),
                self.scene.parts,
                self.scene.layout,
                pose @ mount,
                camera,
                self.look,
                self.draws.of(3, index, number),
                self._lamps(pose),
                self.draws.weather(7, index, number),
            )
            yield Exposure(camera.name, image, moment, intrinsics(camera), mount, pose)

    def _lamps(self, world_from_ego: np.ndarray) -> Lamps | None:
        if self.posts is None:
            return None
        return night_lamps(self.posts, world_from_ego, self.look.lamps, self.draws.weather(6))


def _tracer(scene: Scene, static: Layer, time: float) -> RayTracer:
    moving = scene.moving(time)
    return RayTracer([static, Layer(moving)] if len(moving.faces) else [static])


def _near_boxes(
    scene: Scene, time: float, world_from_lidar: np.ndarray, config: WorldConfig
) -> tuple[Box3D, ...]:
    """Boxes within the lidar's range."""
    return tuple(
        box
        for box in scene.boxes(time)
        if np.linalg.norm(box.center - world_from_lidar[:3, 3]) < config.lidar.max_range
    )


def _count(boxes: tuple[Box3D, ...], sweep: Sweep) -> tuple[int, ...]:
    """Returns of each box's object."""
    counts = np.bincount(sweep.instance)
    return tuple(int(counts[box.instance]) if box.instance < len(counts) else 0 for box in boxes)
