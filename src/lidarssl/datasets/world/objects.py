"""Vehicles and people: models in their own frame (x ahead, y left, z up, standing on z = 0)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lidarssl.datasets.world.classes import (
    CAR_COLORS,
    CLOTH_COLORS,
    GLASS,
    RUBBER,
    Part,
    Semantic,
    draw_color,
    draw_part,
)
from lidarssl.datasets.world.meshes import (
    Mesh,
    blobs,
    box,
    copies,
    cylinder,
    frustum,
    merge,
    sphere,
    wheel,
)

HEADLIGHT = (0.95, 0.93, 0.85)
TAIL_LIGHT = (0.65, 0.05, 0.05)


@dataclass(frozen=True)
class Model:
    """An object: meshes and the part each shows."""

    pieces: tuple[tuple[Mesh, Part], ...]

    @cached_property
    def whole(self) -> Mesh:
        """All pieces as one mesh."""
        return merge([mesh for mesh, _ in self.pieces])

    @cached_property
    def piece_of_face(self) -> np.ndarray:
        """(F,) int32 piece that each face of ``whole`` belongs to."""
        counts = [len(mesh.faces) for mesh, _ in self.pieces]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    @property
    def semantic(self) -> Semantic:
        return self.pieces[0][1].semantic

    @property
    def instance(self) -> int:
        return self.pieces[0][1].instance

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner, (3,) each, m."""
        return self.whole.vertices.min(0), self.whole.vertices.max(0)


def _moved(mesh: Mesh, offset: tuple[float, float, float]) -> Mesh:
    return Mesh(mesh.vertices + offset, mesh.faces)


def _wheels(positions: list[float], width: float, radius: float, part: Part) -> tuple[Mesh, Part]:
    centers = np.array([(x, side * (width / 2 - 0.09), 0) for x in positions for side in (-1, 1)])
    size = np.array([radius, 0.22, radius])
    return copies(wheel(), centers, size), part.painted(RUBBER)


def _lights(length: float, width: float, height: float, part: Part) -> list[tuple[Mesh, Part]]:
    def pair(x: float) -> Mesh:
        centers = np.array([(x, side * width * 0.36, height) for side in (-1, 1)])
        return copies(box((0, 0, 0), (0.06, 0.3, 0.14)), centers, np.ones(3))

    return [
        (pair(length / 2 - 0.02), part.painted(HEADLIGHT)),
        (pair(-length / 2 + 0.02), part.painted(TAIL_LIGHT)),
    ]


def car(rng: np.random.Generator, instance: int) -> Model:
    """Lower body with bonnet and boot, glazed cabin, roof, wheels, lights."""
    length, width, height = rng.uniform(3.6, 4.9), rng.uniform(1.6, 1.95), rng.uniform(1.35, 1.9)
    part = draw_part(Semantic.CAR, rng, instance)
    belt, radius = 0.58 * height, rng.uniform(0.29, 0.36)
    cabin = length * rng.uniform(0.52, 0.8 if height > 1.6 else 0.62)
    roof = cabin * rng.uniform(0.62, 0.78)
    back = -0.09 * length
    shell = frustum((length, width), (length * 0.96, width * 0.96), 0.22, belt)
    glass = frustum((cabin, width * 0.92), (roof, width * 0.76), belt, height - 0.07)
    top = frustum((roof * 1.01, width * 0.77), (roof * 0.94, width * 0.72), height - 0.07, height)
    pillar = frustum((0.12, width * 0.925), (0.1, width * 0.765), belt, height - 0.07)
    pieces = [
        (merge([shell, _moved(top, (back, 0, 0)), _moved(pillar, (back, 0, 0))]), part),
        (_moved(glass, (back, 0, 0)), part.painted(GLASS)),
        _wheels([-0.31 * length, 0.31 * length], width, radius, part),
        *_lights(length, width, 0.42 * height, part),
    ]
    return Model(tuple(pieces))


def truck(rng: np.random.Generator, instance: int) -> Model:
    """Cargo box, cab with windscreen, chassis, wheels; also vans and buses by their colours."""
    length, width, height = rng.uniform(5.5, 10), rng.uniform(2.0, 2.5), rng.uniform(2.2, 3.6)
    part = draw_part(Semantic.TRUCK, rng, instance)
    cab_length = rng.uniform(1.5, 2.0)
    cab_height = height * rng.uniform(0.75, 0.95)
    cargo_length = length - cab_length - 0.12
    cab_x = (length - cab_length) / 2
    cargo = box(
        (-cab_length / 2 - 0.06, 0, (height + 0.85) / 2), (cargo_length, width, height - 0.85)
    )
    cab_part = part.painted(draw_color(CAR_COLORS, rng, 0.05))
    cab = frustum(
        (cab_length, width * 0.95), (cab_length * 0.82, width * 0.9), 0.4, cab_height, -0.1
    )
    screen_z = 0.4 + (cab_height - 0.4) * 0.72
    screen = box((length / 2 - 0.17, 0, screen_z), (0.1, width * 0.82, (cab_height - 0.4) * 0.36))
    sides = box((cab_x + 0.1, 0, screen_z), (cab_length * 0.45, width * 0.965, 0.5))
    chassis = box((0, 0, 0.68), (length * 0.94, width * 0.55, 0.34))
    rear = -length / 2
    axles = (
        [rear + 0.8, rear + 1.9, length / 2 - 0.9]
        if length > 7.5
        else [rear + 1.1, length / 2 - 0.9]
    )
    return Model(
        (
            (cargo, part),
            (_moved(cab, (cab_x, 0, 0)), cab_part),
            (merge([screen, sides]), part.painted(GLASS)),
            (chassis, part.painted((0.12, 0.12, 0.13))),
            _wheels(axles, width, rng.uniform(0.4, 0.5), part),
            *_lights(length, width, 0.7, part),
        )
    )


def _body(
    rng: np.random.Generator, part: Part, height: float, stride: float, lean: float
) -> list[tuple[Mesh, Part]]:
    """A person of ``height`` whose feet are on z = 0; ``lean`` moves the shoulders ahead."""
    legs_top, shoulders = 0.48 * height, 0.84 * height
    trousers = part.painted(draw_color(CLOTH_COLORS, rng, 0.05))
    skin = part.painted((0.62, 0.46, 0.37))
    legs = [
        _moved(
            frustum((0.14, 0.13), (0.18, 0.16), 0, legs_top, -side * stride),
            (side * stride, 0.09 * side, 0),
        )
        for side in (-1, 1)
    ]
    torso = frustum((0.22, 0.32), (0.26, 0.44), legs_top, shoulders, lean)
    arms = [
        _moved(
            frustum(
                (0.1, 0.1), (0.11, 0.11), 0.47 * height, shoulders - 0.03, side * stride + lean
            ),
            (-side * stride, 0.25 * side, 0),
        )
        for side in (-1, 1)
    ]
    head = copies(
        sphere(1), np.array([lean * 1.25, 0, 0.925 * height]), np.array([0.11, 0.1, 0.14])
    )
    return [(torso, part), (merge(arms), part), (merge(legs), trousers), (head, skin)]


def pedestrian(rng: np.random.Generator, instance: int) -> Model:
    part = draw_part(Semantic.PEDESTRIAN, rng, instance)
    return Model(tuple(_body(rng, part, rng.uniform(1.45, 1.9), rng.uniform(0.0, 0.2), 0.02)))


def cyclist(rng: np.random.Generator, instance: int) -> Model:
    """A bicycle and its rider."""
    part = draw_part(Semantic.CYCLIST, rng, instance)
    rider = _body(rng, part, rng.uniform(1.35, 1.6), 0.16, rng.uniform(0.12, 0.3))
    lifted = [(_moved(mesh, (-0.15, 0, 0.22)), piece) for mesh, piece in rider]
    tyres = copies(wheel(12), np.array([(-0.53, 0, 0), (0.53, 0, 0)]), np.array([0.34, 0.07, 0.34]))
    bars = merge(
        [
            box((0, 0, 0.62), (0.75, 0.06, 0.08)),
            box((0.42, 0, 0.7), (0.06, 0.06, 0.7)),
            box((0.4, 0, 1.05), (0.05, 0.52, 0.05)),
            box((-0.2, 0, 0.72), (0.3, 0.14, 0.08)),
        ]
    )
    frame_color = part.painted(draw_color(CAR_COLORS, rng, 0.05))
    return Model((*lifted, (tyres, part.painted(RUBBER)), (bars, frame_color)))


def sign_post(rng: np.random.Generator) -> Model:
    """A traffic sign facing along x on its post."""
    height, side = rng.uniform(1.9, 3.0), rng.uniform(0.5, 1.1)
    post = copies(cylinder(6), np.array([0, 0, -0.3]), np.array([0.05, 0.05, height + 0.3]))
    plate_part = draw_part(Semantic.SIGN, rng)
    round_plate = rng.random() < 0.5
    z = height - side / 2 + 0.1
    if round_plate:
        x, y, up = cylinder(12).vertices.T
        disc = Mesh(np.c_[up, x, y], cylinder(12).faces)
        plate = copies(disc, np.array([0.06, 0, z]), np.array([0.03, side / 2, side / 2]))
        inner = copies(disc, np.array([0.085, 0, z]), np.array([0.02, side * 0.33, side * 0.33]))
    else:
        plate = box((0.075, 0, z), (0.03, side, side))
        inner = box((0.095, 0, z), (0.02, side * 0.72, side * 0.3))
    white = plate_part.painted((0.85, 0.85, 0.84))
    return Model(((plate, plate_part), (inner, white), (post, draw_part(Semantic.POLE, rng))))


def lamp_post(rng: np.random.Generator) -> Model:
    """A pole, often with an arm and a lamp over the road (towards -y)."""
    height, radius = rng.uniform(3, 8), rng.uniform(0.07, 0.16)
    part = draw_part(Semantic.POLE, rng)
    pole = copies(cylinder(8), np.array([0, 0, -0.3]), np.array([radius, radius, height + 0.3]))
    pieces = [pole]
    if height > 5:
        pieces.append(box((0, -0.6, height), (0.1, 1.4, 0.1)))
        pieces.append(box((0, -1.3, height - 0.05), (0.24, 0.6, 0.14)))
    return Model(((merge(pieces), part),))


def tree(rng: np.random.Generator) -> Model:
    """A trunk and one to three crowns."""
    radius, height = rng.uniform(0.1, 0.3), rng.uniform(1.4, 4)
    trunk = copies(cylinder(8), np.array([0, 0, -0.4]), np.array([radius, radius, height + 1.2]))
    count = int(rng.integers(1, 4))
    size = rng.uniform(0.9, 2.2, count)
    center = np.c_[rng.normal(0, 0.5, (count, 2)), height + size * rng.uniform(0.6, 1.1, count)]
    radii = size[:, None] * rng.uniform(0.8, 1.2, (count, 3))
    crown = blobs(center, radii, rng)
    leaves = draw_part(Semantic.VEGETATION, rng)
    return Model(((crown, leaves), (trunk, draw_part(Semantic.TRUNK, rng))))


def bush(rng: np.random.Generator) -> Model:
    radius = rng.uniform(0.3, 1.1)
    center = np.array([[0, 0, radius * 0.6], [radius * 0.6, radius * 0.3, radius * 0.4]])
    radii = np.array([[radius] * 3, [radius * 0.7] * 3])
    return Model(((blobs(center, radii, rng, 1), draw_part(Semantic.VEGETATION, rng)),))
