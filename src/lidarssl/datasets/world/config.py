"""What a synthetic world is made of: every number a user may change, checked when it is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from lidarssl.errors import ConfigError
from lidarssl.wording import counted

Range = tuple[float, float]
SCENES_PER_SPLIT = 100_000
VERSION = "v1.0-synthetic"
"""Folder of the tables in the layout of nuScenes."""

WEATHER_FILE = "weather.json"
"""In that folder: which split repeats which, and the weather of each."""

Weather = Literal["clear", "fog", "night", "rain", "snow"]
WEATHERS: tuple[Weather, ...] = get_args(Weather)
"""``clear`` is what ``AppearanceConfig`` describes; the others change it (see ``weather``)."""


def _check(condition: bool, name: str, expected: str) -> None:
    if not condition:
        raise ConfigError("a synthetic world cannot be built so", field=name, remedy=expected)


@dataclass(frozen=True)
class LidarConfig:
    """A spinning lidar.

    Attributes:
        beams: number of beams, spread evenly over ``elevation``.
        elevation: lowest and highest beam, degrees above the horizon.
        azimuth_steps: firings per turn.
        max_range: m; farther returns are lost.
        range_noise: standard deviation, m.
        foliage_depth: mean depth by which a return lies inside foliage, m.
        attenuation: distance over which intensity falls by 1/e, m.
        intensity_spread: standard deviation of the logarithm of the speckle.
        dropout: share of returns lost whatever their strength.
        weak_dropout: further share lost as intensity falls from ``weak_intensity`` to 0.
        weak_intensity: 0..1.
        far_dropout: further share lost beyond ``far``.
        far: m.
        height: m above the ground.
    """

    beams: int = 32
    elevation: Range = (-30.0, 10.0)
    azimuth_steps: int = 480
    max_range: float = 55.0
    range_noise: float = 0.02
    foliage_depth: float = 0.2
    attenuation: float = 90.0
    intensity_spread: float = 0.2
    dropout: float = 0.03
    weak_dropout: float = 0.35
    weak_intensity: float = 0.08
    far_dropout: float = 0.12
    far: float = 35.0
    height: float = 1.8

    def __post_init__(self) -> None:
        _check(self.beams >= 1, "lidar.beams", "at least 1")
        _check(self.azimuth_steps >= 1, "lidar.azimuth_steps", "at least 1")
        _check(-90 < self.elevation[0] <= self.elevation[1] < 90, "lidar.elevation", "ascending")
        _check(0 < self.max_range <= 80, "lidar.max_range", "between 0 and 80 m")
        _check(self.height > 0, "lidar.height", "above the ground")


@dataclass(frozen=True)
class CameraConfig:
    """A pin-hole camera beside the lidar.

    Attributes:
        name: sensor name; no slash.
        yaw: degrees counter-clockwise from straight ahead.
        height, width: pixels.
        field_of_view: horizontal, degrees.
        horizon: principal point as a share of the height.
        delay: exposure before the lidar timestamp, s (the ego vehicle moves meanwhile).
    """

    name: str = "CAM_FRONT"
    yaw: float = 0.0
    height: int = 128
    width: int = 256
    field_of_view: float = 90.0
    horizon: float = 0.42
    delay: float = 0.004

    def __post_init__(self) -> None:
        _check(self.name != "" and "/" not in self.name, "camera.name", "a name without a slash")
        _check(self.height >= 1 and self.width >= 1, "camera.height/width", "at least 1 pixel")
        _check(0 < self.field_of_view < 170, "camera.field_of_view", "between 0 and 170 degrees")

    @property
    def focal_length(self) -> float:
        """Pixels."""
        return self.width / 2 / math.tan(math.radians(self.field_of_view) / 2)


_RIGS = {
    2: ("CAM_FRONT", "CAM_BACK"),
    3: ("CAM_FRONT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"),
    4: ("CAM_FRONT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
    5: ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "CAM_FRONT_RIGHT"),
    6: (
        "CAM_FRONT",
        "CAM_FRONT_LEFT",
        "CAM_BACK_LEFT",
        "CAM_BACK",
        "CAM_BACK_RIGHT",
        "CAM_FRONT_RIGHT",
    ),
}
_YAWS = {
    "CAM_FRONT": 0.0,
    "CAM_FRONT_LEFT": 55.0,
    "CAM_BACK_LEFT": 110.0,
    "CAM_BACK": 180.0,
    "CAM_BACK_RIGHT": -110.0,
    "CAM_FRONT_RIGHT": -55.0,
}


def camera_rig(count: int = 3, height: int = 128, width: int = 256) -> tuple[CameraConfig, ...]:
    """``count`` (2 to 6) cameras around the vehicle, exposed 3 ms after one another."""
    if count not in _RIGS:
        told = counted(count, "camera")
        raise ConfigError(f"no rig of {told}", field="cameras", remedy="choose 2 to 6")
    return tuple(
        CameraConfig(name, _YAWS[name], height, width, delay=0.004 + 0.003 * index)
        for index, name in enumerate(_RIGS[count])
    )


@dataclass(frozen=True)
class AppearanceConfig:
    """Ranges from which light, weather and camera response of a scene are drawn.

    Attributes:
        sun_elevation: degrees.
        overcast: probability of a sky without direct sun.
        ambient: share of the light that does not come from the sun.
        fog_distance: distance over which contrast falls by 1/e, m.
        exposure: gain of the camera.
        white_balance: standard deviation of the gain of each colour channel.
        pixel_noise: standard deviation, of a full scale of 1.
        brightness: all light of the scene (1 = day; near 0 = night).
    """

    sun_elevation: Range = (22.0, 65.0)
    overcast: float = 0.3
    ambient: Range = (0.35, 0.6)
    fog_distance: Range = (140.0, 400.0)
    exposure: Range = (0.75, 1.3)
    white_balance: float = 0.045
    pixel_noise: float = 0.02
    brightness: Range = (1.0, 1.0)


@dataclass(frozen=True)
class SplitConfig:
    """``scenes`` drives of ``frames`` frames each.

    Attributes:
        name: of the split.
        scenes: number of drives.
        frames: of each drive.
        like: a split whose scenes are repeated: the same streets, objects, drives and times, of
            as many scenes and frames as this split has. Empty: scenes of its own.
        weather: clear, fog, night, rain or snow.
    """

    name: str
    scenes: int
    frames: int
    like: str = ""
    weather: Weather = "clear"

    def __post_init__(self) -> None:
        _check(self.name.isidentifier(), "splits.name", "letters, digits and underscores")
        _check(self.weather in WEATHERS, "splits.weather", f"one of {', '.join(WEATHERS)}")
        _check(0 <= self.scenes < SCENES_PER_SPLIT, "splits.scenes", f"below {SCENES_PER_SPLIT}")
        _check(1 <= self.frames <= 40, "splits.frames", "between 1 and 40")


DEMO_SPLITS = (
    SplitConfig("teacher", scenes=40, frames=2),
    SplitConfig("train", scenes=60, frames=2),
    SplitConfig("val", scenes=40, frames=1),
)


@dataclass(frozen=True)
class WorldConfig:
    """A synthetic world; equal configurations give equal worlds.

    Attributes:
        seed: with the number of a scene, the only source of randomness.
        splits: their scenes are disjoint unless one is ``like`` another; changing one split leaves
            the others as they are, except for those that are ``like`` it.
        lidar, cameras: sensors of the ego vehicle.
        appearance: light, weather, camera response.
        frame_distance: m driven between frames.
        frame_interval: s between frames.
    """

    seed: int = 0
    splits: tuple[SplitConfig, ...] = DEMO_SPLITS
    lidar: LidarConfig = field(default_factory=LidarConfig)
    cameras: tuple[CameraConfig, ...] = field(default_factory=camera_rig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    frame_distance: float = 5.0
    frame_interval: float = 0.5

    def __post_init__(self) -> None:
        _check(self.seed >= 0, "seed", "0 or more")
        for what, names in (
            ("splits", [split.name for split in self.splits]),
            ("cameras", [camera.name for camera in self.cameras]),
        ):
            _check(len(names) == len(set(names)), what, "names that differ")
        self._check_repetitions()
        _check(self.frame_interval > 0, "frame_interval", "above 0 s")
        _check(0 <= self.frame_distance <= 20, "frame_distance", "between 0 and 20 m")

    def _check_repetitions(self) -> None:
        originals = {split.name: split for split in self.splits if not split.like}
        shown = [(split.like or split.name, split.weather) for split in self.splits]
        _check(len(shown) == len(set(shown)), "splits.weather", "each weather once for its scenes")
        for split in self.splits:
            if not split.like:
                continue
            known = split.like in originals
            _check(known, "splits.like", "a split of this world that has scenes of its own")
            original = originals[split.like]
            for what, own, most in (
                ("scenes", split.scenes, original.scenes),
                ("frames", split.frames, original.frames),
            ):
                _check(own <= most, f"splits.{what}", f"{split.like} has {most} to repeat")

    def repeated(self, split: str, weathers: Sequence[Weather]) -> WorldConfig:
        """The same world, with the scenes of a split shown again under each of ``weathers``.

        The new splits are called after both, such as ``val_fog``.

        Raises:
            ConfigError: no such split, or it is shown in that weather already.
        """
        found = [each for each in self.splits if each.name == split]
        _check(len(found) == 1, "splits", f"a split '{split}', whose scenes can be repeated")
        more = [
            replace(found[0], name=f"{split}_{weather}", like=split, weather=weather)
            for weather in weathers
        ]
        return replace(self, splits=(*self.splits, *more))

    @classmethod
    def shift(cls, seed: int = 0) -> WorldConfig:
        """The default world, with the scenes of ``val`` also in fog, at night, in rain and snow."""
        return cls(seed=seed).repeated("val", WEATHERS[1:])

    @classmethod
    def kitti(cls, seed: int = 0, frames: int = 4) -> WorldConfig:
        """Eleven drives with a 64-beam lidar and one forward camera, as in SemanticKITTI."""
        return cls(
            seed=seed,
            splits=(SplitConfig("train", 10, frames), SplitConfig("val", 1, frames)),
            lidar=LidarConfig(beams=64, elevation=(-24.8, 2.0), azimuth_steps=900),
            cameras=(CameraConfig("image_2", height=188, width=620, field_of_view=81.0),),
        )


@dataclass(frozen=True)
class SceneId:
    """Which scene of a world, and how many frames it has.

    Attributes:
        split, number: its place.
        frames: that are recorded.
        stream: what its random generators start from; scenes that repeat one another share it.
        weather: what is shown of it.
        repeats: frames of the scene that this one repeats, 0 = none: the drive is as long as there.
    """

    split: str
    number: int
    frames: int
    stream: int
    weather: Weather = "clear"
    repeats: int = 0

    @property
    def name(self) -> str:
        return f"scene-{self.split}-{self.number:04d}"

    @property
    def driven(self) -> int:
        """Frames that the drive has room for, recorded or not."""
        return self.repeats or self.frames

    @property
    def weather_stream(self) -> int:
        """Number that sets the random generators of one weather apart from those of others."""
        return int.from_bytes(self.weather.encode(), "big")


def scene_ids(config: WorldConfig) -> list[SceneId]:
    """Every scene of the world, split after split.

    ``stream`` feeds the random generator and depends on the split's name and the number of
    the scene within it, so splits can grow without changing the scenes that exist.
    """
    frames = {split.name: split.frames for split in config.splits}
    return [
        SceneId(
            split.name,
            number,
            split.frames,
            _stream(split.like or split.name) + number,
            split.weather,
            frames[split.like] if split.like else 0,
        )
        for split in config.splits
        for number in range(split.scenes)
    ]


def _stream(split: str) -> int:
    return int.from_bytes(split.encode(), "big") * SCENES_PER_SPLIT
