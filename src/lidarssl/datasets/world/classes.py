"""Classes of the synthetic world and the looks of what belongs to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import numpy as np

Color = tuple[float, float, float]


class Semantic(enum.IntEnum):
    """Train ids; 0 is ignored (in images: sky)."""

    IGNORED = 0
    CAR = 1
    TRUCK = 2
    CYCLIST = 3
    PEDESTRIAN = 4
    ROAD = 5
    SIDEWALK = 6
    TERRAIN = 7
    BUILDING = 8
    FENCE = 9
    VEGETATION = 10
    TRUNK = 11
    POLE = 12
    SIGN = 13


PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (230, 90, 60),
    (150, 40, 150),
    (250, 170, 30),
    (220, 20, 100),
    (120, 100, 130),
    (240, 150, 230),
    (150, 200, 120),
    (90, 120, 190),
    (200, 140, 90),
    (40, 140, 50),
    (120, 75, 40),
    (170, 170, 170),
    (245, 225, 50),
)


class Pattern(enum.IntEnum):
    """Painted detail that is not modelled as triangles."""

    PLAIN = 0
    ROAD = 1
    SLABS = 2
    FACADE = 3
    FOLIAGE = 4


@dataclass(frozen=True)
class Material:
    """Looks of a class.

    Attributes:
        reflectivity: mean and standard deviation over instances, at the lidar's wavelength.
            The classes overlap on purpose: intensity alone must not tell them apart.
        colors: RGB 0..1, one is drawn per instance.
        color_spread: standard deviation around the drawn colour.
        texture_cell: size of the coarser of two octaves of texture, m.
        texture_strength: relative.
    """

    reflectivity: tuple[float, float]
    colors: tuple[Color, ...]
    color_spread: float
    texture_cell: float
    texture_strength: float
    pattern: Pattern = Pattern.PLAIN


CAR_COLORS = (
    (0.55, 0.56, 0.58),
    (0.10, 0.10, 0.11),
    (0.80, 0.80, 0.79),
    (0.48, 0.08, 0.07),
    (0.10, 0.17, 0.36),
    (0.62, 0.56, 0.45),
    (0.12, 0.28, 0.18),
)
CLOTH_COLORS = (
    (0.15, 0.17, 0.28),
    (0.60, 0.16, 0.14),
    (0.75, 0.73, 0.68),
    (0.14, 0.14, 0.15),
    (0.30, 0.42, 0.30),
    (0.70, 0.55, 0.22),
    (0.35, 0.30, 0.45),
)
FACADE_COLORS = (
    (0.62, 0.38, 0.29),
    (0.72, 0.66, 0.55),
    (0.60, 0.60, 0.60),
    (0.78, 0.75, 0.70),
    (0.55, 0.47, 0.38),
    (0.66, 0.70, 0.72),
    (0.74, 0.60, 0.42),
)
ROOF_COLORS = ((0.42, 0.20, 0.15), (0.28, 0.28, 0.30), (0.45, 0.36, 0.30))
GLASS: Color = (0.10, 0.12, 0.15)
RUBBER: Color = (0.05, 0.05, 0.05)

MATERIALS: dict[Semantic, Material] = {
    Semantic.CAR: Material((0.35, 0.20), CAR_COLORS, 0.05, 0.30, 0.04),
    Semantic.TRUCK: Material(
        (0.40, 0.20), (*CAR_COLORS[:4], (0.85, 0.84, 0.80), (0.20, 0.35, 0.55)), 0.06, 0.60, 0.06
    ),
    Semantic.CYCLIST: Material((0.25, 0.12), CLOTH_COLORS, 0.06, 0.15, 0.15),
    Semantic.PEDESTRIAN: Material((0.30, 0.12), CLOTH_COLORS, 0.06, 0.15, 0.15),
    Semantic.ROAD: Material(
        (0.14, 0.04), ((0.25, 0.25, 0.26), (0.31, 0.30, 0.30)), 0.03, 1.1, 0.16, Pattern.ROAD
    ),
    Semantic.SIDEWALK: Material(
        (0.24, 0.06),
        ((0.52, 0.51, 0.49), (0.38, 0.37, 0.36), (0.50, 0.44, 0.39)),
        0.03,
        0.9,
        0.14,
        Pattern.SLABS,
    ),
    Semantic.TERRAIN: Material(
        (0.28, 0.07), ((0.26, 0.36, 0.15), (0.36, 0.38, 0.18), (0.42, 0.34, 0.23)), 0.03, 1.5, 0.45
    ),
    Semantic.BUILDING: Material((0.35, 0.12), FACADE_COLORS, 0.05, 0.8, 0.10, Pattern.FACADE),
    Semantic.FENCE: Material(
        (0.30, 0.12), ((0.45, 0.32, 0.20), (0.75, 0.74, 0.70), (0.30, 0.32, 0.33)), 0.05, 0.4, 0.15
    ),
    Semantic.VEGETATION: Material(
        (0.26, 0.08),
        ((0.17, 0.31, 0.10), (0.25, 0.38, 0.13), (0.42, 0.40, 0.14), (0.36, 0.26, 0.12)),
        0.04,
        0.4,
        0.9,
        Pattern.FOLIAGE,
    ),
    Semantic.TRUNK: Material(
        (0.28, 0.08), ((0.30, 0.22, 0.15), (0.38, 0.33, 0.27)), 0.04, 0.2, 0.3
    ),
    Semantic.POLE: Material(
        (0.40, 0.15), ((0.45, 0.46, 0.47), (0.22, 0.24, 0.23), (0.60, 0.60, 0.58)), 0.04, 0.3, 0.06
    ),
    Semantic.SIGN: Material(
        (0.80, 0.15), ((0.70, 0.10, 0.10), (0.10, 0.25, 0.60), (0.85, 0.75, 0.15)), 0.05, 0.12, 0.1
    ),
}


@dataclass(frozen=True)
class Part:
    """Triangles of one colour that belong to one object.

    Attributes:
        semantic, instance: labels; instance 0 = none.
        color: RGB 0..1.
        reflectivity: 0..1, at the lidar's wavelength.
        texture_cell, texture_strength, pattern: see ``Material``.
        base, top: heights between which a facade has windows, m.
    """

    semantic: Semantic
    instance: int
    color: Color
    reflectivity: float
    texture_cell: float
    texture_strength: float
    pattern: Pattern = Pattern.PLAIN
    base: float = 0.0
    top: float = 0.0

    def painted(self, color: Color, pattern: Pattern = Pattern.PLAIN) -> Part:
        """The same object in another colour."""
        return replace(self, color=color, pattern=pattern)


def draw_part(semantic: Semantic, rng: np.random.Generator, instance: int = 0) -> Part:
    """Looks of a new object of a class."""
    material = MATERIALS[semantic]
    return Part(
        semantic=semantic,
        instance=instance,
        color=draw_color(material.colors, rng, material.color_spread),
        reflectivity=float(np.clip(rng.normal(*material.reflectivity), 0.02, 1.0)),
        texture_cell=material.texture_cell,
        texture_strength=material.texture_strength,
        pattern=material.pattern,
    )


def draw_color(colors: tuple[Color, ...], rng: np.random.Generator, spread: float) -> Color:
    """One of ``colors``, changed in brightness and, less, in hue."""
    change = rng.normal(0, spread) + rng.normal(0, 0.35 * spread, 3)
    color = np.clip(np.array(colors[rng.integers(len(colors))]) + change, 0.02, 1)
    return float(color[0]), float(color[1]), float(color[2])


@dataclass(frozen=True)
class PartTable:
    """The parts of a scene as columns, indexed by part number.

    Attributes:
        semantic, instance, pattern: (P,) int64.
        color: (P, 3) float32.
        reflectivity, texture_cell, texture_strength, base, top: (P,) float32.
    """

    semantic: np.ndarray
    instance: np.ndarray
    pattern: np.ndarray
    color: np.ndarray
    reflectivity: np.ndarray
    texture_cell: np.ndarray
    texture_strength: np.ndarray
    base: np.ndarray
    top: np.ndarray

    @classmethod
    def of(cls, parts: list[Part]) -> PartTable:
        def column(name: str, dtype: type) -> np.ndarray:
            return np.array([getattr(part, name) for part in parts], dtype)

        whole = {name: column(name, np.int64) for name in ("semantic", "instance", "pattern")}
        real = (
            "color",
            "reflectivity",
            "texture_cell",
            "texture_strength",
            "base",
            "top",
        )
        return cls(**whole, **{name: column(name, np.float32) for name in real})
