"""Populates a plan: what stands, parks and moves where. ``build_scene`` is the entry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lidarssl.datasets.world import objects, structures
from lidarssl.datasets.world.classes import Part, PartTable, Semantic, draw_part
from lidarssl.datasets.world.config import SceneId, WorldConfig
from lidarssl.datasets.world.ground import Ground, build_ground
from lidarssl.datasets.world.layout import (
    PARKING_WIDTH,
    REACH,
    Layout,
    Occupancy,
    Street,
    draw_layout,
)
from lidarssl.datasets.world.meshes import Mesh
from lidarssl.datasets.world.objects import Model
from lidarssl.datasets.world.scene import Agent, Drive, Scene, Triangles, join

EGO_CLEARANCE = (6.0, 2.4)
"""Length and width around the ego vehicle in which nothing may be, m."""

BACKDROP = 70.0
"""How far beyond the detailed square buildings and trees go on, for the cameras, m."""


@dataclass
class Draft:
    """A scene in the making.

    Attributes:
        rng: the scene's only source of randomness.
        occupancy: footprints taken in the plan.
        static, parts: triangles so far and what they show.
        instances: number of objects with an instance id.
        ego_path: plan y of the ego vehicle's drive, and half its length along x, m.
    """

    rng: np.random.Generator
    layout: Layout
    ground: Ground
    occupancy: Occupancy = field(default_factory=Occupancy)
    static: list[Triangles] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    instances: int = 0
    ego_path: tuple[float, float] = (0.0, 0.0)

    def add_world(self, mesh: Mesh, part: Part) -> None:
        """A static mesh that is already in world coordinates."""
        faces = mesh.faces.astype(np.int32)
        rows = np.full(len(faces), len(self.parts), np.int32)
        self.static.append(Triangles(mesh.vertices.astype(np.float32), faces, rows))
        self.parts.append(part)

    def add(self, model: Model, x: float, y: float, turn: float) -> None:
        """A static model at plan coordinates, standing on the ground."""
        world_x, world_y = self.layout.to_world(np.array(x), np.array(y))
        yaw = turn + float(self.layout.heading(np.array(x)))
        cos, sin = np.cos(yaw), np.sin(yaw)
        turned = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        place = np.array([world_x, world_y, self.ground.height(x, y)])
        for mesh, part in model.pieces:
            self.add_world(Mesh(mesh.vertices @ turned + place, mesh.faces), part)

    def add_agent(self, agent: Agent) -> None:
        self.agents.append(replace(agent, first_part=len(self.parts)))
        self.parts.extend(part for _, part in agent.model.pieces)

    def new_instance(self) -> int:
        self.instances += 1
        return self.instances

    def claim(self, street: Street, along: float, left: float, length: float, width: float) -> bool:
        """Take ``length`` along and ``width`` across a street; False if something is there."""
        x, y = street.plan(np.array(along), np.array(left))
        if not street.along_x:
            length, width = width, length
        return self.occupancy.claim(float(x), float(y), length, width)

    def line(self, street: Street, left: float) -> structures.Line:
        """A line parallel to a street, on the ground of the world."""

        def at(along: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            x, y = street.plan(along, np.full_like(along, left))
            heading = self.layout.heading(x) + street.heading
            return *self.layout.to_world(x, y), self.ground.height(x, y), heading

        return at


def build_scene(config: WorldConfig, scene: SceneId) -> Scene:
    """Build a scene from (seed, scene) alone; sensors do not change it."""
    rng = np.random.default_rng([config.seed, scene.stream, 0])
    travel = config.frame_distance * (scene.driven - 1)
    layout = draw_layout(rng, travel)
    draft = Draft(rng, layout, build_ground(layout, rng))
    _lay_ground(draft)
    drive = _draw_drive(draft, config, travel)
    for street in layout.streets:
        for side in (-1, 1):
            _line_with_buildings(draft, street, side)
    for street in layout.streets:
        for side in (-1, 1):
            _park_vehicles(draft, street, side)
            _drive_vehicles(draft, street, side)
            _put_cyclists(draft, street, side)
            _put_poles(draft, street, side)
            _put_trees(draft, street, side)
            _put_pedestrians(draft, street, side)
    return _finish(draft, drive, config, scene.driven)


def _lay_ground(draft: Draft) -> None:
    mesh, semantic = draft.ground.mesh(draft.layout)
    for name in (Semantic.ROAD, Semantic.SIDEWALK, Semantic.TERRAIN):
        part = draw_part(name, draft.rng)
        draft.add_world(Mesh(mesh.vertices, mesh.faces[semantic == name]), part)


def _draw_drive(draft: Draft, config: WorldConfig, travel: float) -> Drive:
    street = draft.layout.main
    rng = draft.rng
    left = -street.lane + rng.normal(0, 0.15)
    draft.claim(street, 0.0, left, travel + 2 * EGO_CLEARANCE[0], EGO_CLEARANCE[1])
    draft.ego_path = street.center + left, travel / 2
    yaw, pitch, roll = rng.normal(0, 0.03), rng.normal(0, 0.004), rng.normal(0, 0.004)
    return Drive(-travel / 2, left, config.frame_distance / config.frame_interval, yaw, pitch, roll)


def _line_with_buildings(draft: Draft, street: Street, side: int) -> None:
    """Buildings, and in front of those set back a fence or a hedge."""
    rng = draft.rng
    edge = street.width / 2 + draft.layout.sidewalk
    reach = street.half_length + BACKDROP
    along = -reach + rng.uniform(0, 6)
    while along < reach:
        length, depth, height = rng.uniform(7, 24), rng.uniform(7, 14), rng.uniform(2.6, 14)
        setback, placed = rng.uniform(0, 9), rng.random() < 0.68
        middle = along + length / 2
        along += length + rng.uniform(1, 10)
        clear = not draft.layout.in_crossing(
            street, middle, draft.layout.sidewalk + length / 2 + 0.3
        )
        left = side * (edge + setback + depth / 2 + 0.3)
        if not clear or abs(left) > REACH + BACKDROP:
            continue
        if placed and draft.claim(street, middle, left, length + 0.6, depth + 0.6):
            x, y = street.plan(np.array(middle), np.array(left))
            ground = float(draft.ground.height(x, y))
            turn = street.heading + (0.0 if side > 0 else np.pi)
            model = structures.building(rng, length, depth, height, ground)
            draft.add(model, float(x), float(y), turn)
        if setback > 1.2 and abs(middle) < street.half_length:
            _border_garden(draft, street, middle, length, side * (edge + 0.35))


def _border_garden(draft: Draft, street: Street, middle: float, length: float, left: float) -> None:
    """A fence, a hedge, or nothing."""
    choice = draft.rng.random()
    if choice > 0.78:
        return
    make = structures.fence if choice < 0.42 else structures.hedge
    line = draft.line(street, left)
    for mesh, part in make(draft.rng, line, middle - length / 2, middle + length / 2).pieces:
        draft.add_world(mesh, part)
    draft.claim(street, middle, left, length, 0.5)


def _park_vehicles(draft: Draft, street: Street, side: int) -> None:
    """Cars along the kerb, headed with the traffic of their side."""
    if not street.parking:
        return
    rng = draft.rng
    along = -street.half_length + rng.uniform(0, 6)
    while along < street.half_length:
        wanted = rng.random() < 0.5 and not draft.layout.in_crossing(street, along, 8)
        if wanted:
            left = side * (street.width / 2 - PARKING_WIDTH / 2 + rng.normal(0, 0.08))
            _put_vehicle(draft, street, along, left, side, 0.12, 0.0)
        along += rng.uniform(6, 9)


def _drive_vehicles(draft: Draft, street: Street, side: int) -> None:
    """A lane of traffic at one speed; the crossing street waits."""
    rng = draft.rng
    speed = rng.uniform(2, 10) if street is draft.layout.main else 0.0
    along = -street.half_length + rng.uniform(0, 6)
    while along < street.half_length:
        if rng.random() < 0.28 and not draft.layout.in_crossing(street, along, 8):
            _put_vehicle(draft, street, along, side * street.lane, side, 0.2, speed)
        along += rng.uniform(6, 9)


def _put_vehicle(
    draft: Draft,
    street: Street,
    along: float,
    left: float,
    side: int,
    truck_share: float,
    speed: float,
) -> None:
    rng = draft.rng
    make = objects.truck if rng.random() < truck_share else objects.car
    model = make(rng, draft.instances + 1)
    low, high = model.bounds()
    size = high - low
    width = min(size[1], 2.0)
    if draft.claim(street, along, left, size[0] + 0.6, width):
        turn = (np.pi if side > 0 else 0.0) + rng.normal(0, 0.02)
        draft.new_instance()
        draft.add_agent(Agent(model, street, along, left, turn, speed, 0))


def _put_cyclists(draft: Draft, street: Street, side: int) -> None:
    rng = draft.rng
    kerb = street.width / 2 - (PARKING_WIDTH if street.parking else 0)
    for _ in range(rng.integers(2, 6)):
        on_road = rng.random() < 0.7
        left = side * (kerb - 0.45 if on_road else street.width / 2 + rng.uniform(0.5, 1.2))
        along = rng.uniform(-1, 1) * min(street.half_length, 45)
        speed = rng.uniform(2.5, 6) if street is draft.layout.main else 0.0
        if draft.layout.in_crossing(street, along, 3) or not draft.claim(
            street, along, left, 2.0, 0.7
        ):
            continue
        turn = np.pi if side > 0 else 0.0
        model = objects.cyclist(rng, draft.new_instance())
        draft.add_agent(Agent(model, street, along, left, turn, speed, 0))


def _put_pedestrians(draft: Draft, street: Street, side: int) -> None:
    rng = draft.rng
    for _ in range(rng.integers(4, 12)):
        along = rng.uniform(-1, 1) * min(street.half_length, 45)
        left = side * (street.width / 2 + rng.uniform(-0.4, draft.layout.sidewalk - 0.2))
        crosses = draft.layout.in_crossing(street, along, 1)
        if crosses or not draft.claim(street, along, left, 0.7, 0.7):
            continue
        walks = rng.random() < 0.7 and street is draft.layout.main
        turn = np.pi * rng.integers(0, 2) if walks else rng.uniform(0, 2 * np.pi)
        model = objects.pedestrian(rng, draft.new_instance())
        speed = rng.uniform(0.6, 1.6) if walks else 0.0
        draft.add_agent(Agent(model, street, along, left, turn, speed, 0))


def _put_poles(draft: Draft, street: Street, side: int) -> None:
    rng = draft.rng
    along = -street.half_length + rng.uniform(0, 10)
    while along < street.half_length:
        left = side * (street.width / 2 + rng.uniform(0.3, 0.9))
        is_pole = rng.random() < 0.5
        free = not draft.layout.in_crossing(street, along, 0.3)
        if free and draft.claim(street, along, left, 0.5, 0.5):
            model = objects.lamp_post(rng) if is_pole else objects.sign_post(rng)
            towards_road = 0.0 if side > 0 else np.pi
            facing = towards_road if is_pole else towards_road + rng.normal(0, 0.3)
            x, y = street.plan(np.array(along), np.array(left))
            draft.add(model, float(x), float(y), street.heading + facing)
        along += rng.uniform(6, 18)


def _put_trees(draft: Draft, street: Street, side: int) -> None:
    rng = draft.rng
    edge = street.width / 2 + draft.layout.sidewalk
    reach = street.half_length + BACKDROP
    along = -reach
    while along < reach:
        along += rng.uniform(4, 9.5)
        kind, on_terrain = rng.random(), rng.random() < 0.7
        if kind > 0.8:
            continue
        left = side * (edge + rng.uniform(0.5, 9) if on_terrain else edge - rng.uniform(0.3, 0.6))
        if draft.layout.in_crossing(street, along, draft.layout.sidewalk + 0.5):
            continue
        if not draft.claim(street, along, left, 0.9, 0.9):
            continue
        model = objects.tree(rng) if kind < 0.6 else objects.bush(rng)
        x, y = street.plan(np.array(along), np.array(left))
        turn = rng.uniform(0, 2 * np.pi)
        if not _reaches_ego(draft, model, float(x), float(y)):
            draft.add(model, float(x), float(y), turn)


def _reaches_ego(draft: Draft, model: Model, x: float, y: float) -> bool:
    """Whether a crown hangs into the ego vehicle's path."""
    ego_y, half_length = draft.ego_path
    reach = max(float(np.abs(corner[:2]).max()) for corner in model.bounds()) + 1.2
    return abs(y - ego_y) < reach and abs(x) < half_length + reach


def _finish(draft: Draft, drive: Drive, config: WorldConfig, frames: int) -> Scene:
    """Freeze the draft; whatever would touch the ego vehicle in some frame is left out."""

    def meets_ego(agent: Agent) -> bool:
        for frame in range(frames):
            time = frame * config.frame_interval
            x, y = agent.plan(time)
            ahead = x - drive.start - drive.speed * time
            beside = y - draft.layout.main.center - drive.left
            low, high = agent.model.bounds()
            reach = EGO_CLEARANCE[0] + (high[0] - low[0]) / 2
            if abs(ahead) < reach and abs(beside) < EGO_CLEARANCE[1]:
                return True
        return False

    agents = tuple(agent for agent in draft.agents if not meets_ego(agent))
    parts = PartTable.of(draft.parts)
    scene = Scene(draft.layout, draft.ground, join(draft.static), agents, parts, drive)
    parked = [scene.place(agent, 0.0) for agent in agents if agent.speed == 0]
    return replace(scene, static=join([scene.static, *parked]))
