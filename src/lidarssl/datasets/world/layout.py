"""The plan of a scene: one main street, often a crossing one, gently bent.

Plan coordinates: x along the main street, y to its left, streets straight. ``to_world`` bends
them; everything is placed in the plan, where footprints are axis-aligned.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

REACH = 56.0
"""Half the side of the square with full detail, m; farther than any lidar return."""

LANE_MARK_WIDTH = 0.14
PARKING_WIDTH = 2.2


@dataclass(frozen=True)
class Street:
    """A straight street of the plan.

    Attributes:
        along_x: direction.
        center: y (or x) of its axis, m.
        width: between the kerbs, m.
        parking: cars park along both kerbs.
        half_length: how far things stand along it, m.
    """

    along_x: bool
    center: float
    width: float
    parking: bool
    half_length: float

    @property
    def lane(self) -> float:
        """Distance of a lane's centre from the axis, m."""
        return (self.width / 2 - (PARKING_WIDTH if self.parking else 0)) / 2

    def plan(self, along: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Plan coordinates of points ``along`` the street and ``left`` of its axis, m."""
        along, left = np.asarray(along, float), np.asarray(left, float)
        if self.along_x:
            return along, self.center + left
        return self.center - left, along

    @property
    def heading(self) -> float:
        """Direction of the street in the plan, rad."""
        return 0.0 if self.along_x else np.pi / 2


@dataclass(frozen=True)
class Layout:
    """Streets, pavements and the bend of a scene.

    Attributes:
        main, cross: streets; ``cross`` may be missing.
        sidewalk: width, m.
        curvature: of the main street, 1/m.
        half_length: half the detailed length along x, m.
    """

    main: Street
    cross: Street | None
    sidewalk: float
    curvature: float
    half_length: float

    @property
    def streets(self) -> tuple[Street, ...]:
        return (self.main,) if self.cross is None else (self.main, self.cross)

    def edge_distance(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Signed distance to the nearest kerb, negative on a road, m; plan coordinates."""
        x, y = np.broadcast_arrays(x, y)
        distance = np.abs(y - self.main.center) - self.main.width / 2
        if self.cross is not None:
            other = np.abs(x - self.cross.center) - self.cross.width / 2
            distance = np.minimum(distance, other)
        return np.asarray(distance)

    def in_crossing(self, street: Street, along: float, margin: float) -> bool:
        """Whether a place along ``street`` lies on, or within ``margin`` m of, the other one."""
        other = self.cross if street is self.main else self.main
        if other is None or self.cross is None:
            return False
        return abs(along - other.center) < other.width / 2 + margin

    def _bend(self, x: np.ndarray) -> np.ndarray:
        limit = self.half_length
        inside = np.clip(x, -limit, limit)
        return np.asarray(self.curvature * (inside**2 / 2 + inside * (x - inside)))

    def to_world(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World coordinates of plan coordinates: y is sheared along a parabola."""
        return x, y + self._bend(x)

    def to_plan(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of ``to_world``."""
        return x, y - self._bend(x)

    def heading(self, x: np.ndarray) -> np.ndarray:
        """Direction of the main street in the world at plan x, rad."""
        return np.arctan(self.curvature * np.clip(x, -self.half_length, self.half_length))

    def is_marked(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Where the road is painted white; plan coordinates."""
        marked = self._along_marks(self.main, x, y - self.main.center)
        if self.cross is None:
            return marked
        marked |= self._along_marks(self.cross, y, self.cross.center - x)
        on_main = np.abs(y - self.main.center) < self.main.width / 2
        on_cross = np.abs(x - self.cross.center) < self.cross.width / 2
        zebra = self._zebra(self.main, x, y - self.main.center, self.cross)
        zebra |= self._zebra(self.cross, y, self.cross.center - x, self.main)
        return (marked | zebra) & ~(on_main & on_cross)

    def _along_marks(self, street: Street, along: np.ndarray, left: np.ndarray) -> np.ndarray:
        dashed = (np.abs(left) < LANE_MARK_WIDTH / 2) & (np.mod(along, 6.0) < 3.0)
        if street.parking:
            edge = street.width / 2 - PARKING_WIDTH
            dashed |= np.abs(np.abs(left) - edge) < LANE_MARK_WIDTH / 2
            stall = (np.abs(left) > edge) & (np.mod(along, 6.0) < LANE_MARK_WIDTH)
            dashed |= stall & (np.abs(left) < street.width / 2)
        return np.asarray(dashed & self._clear_of_crossing(street, along))

    def _clear_of_crossing(self, street: Street, along: np.ndarray) -> np.ndarray:
        other = self.cross if street is self.main else self.main
        if other is None:
            return np.ones(np.shape(along), bool)
        return np.asarray(np.abs(along - other.center) > other.width / 2 + 5.5)

    @staticmethod
    def _zebra(street: Street, along: np.ndarray, left: np.ndarray, other: Street) -> np.ndarray:
        behind = np.abs(along - other.center) - other.width / 2
        stripes = np.mod(left, 1.0) < 0.5
        walk = (behind > 1.5) & (behind < 4.2) & stripes
        stop_line = (behind > 4.8) & (behind < 5.15)
        return np.asarray((walk | stop_line) & (np.abs(left) < street.width / 2))


def draw_layout(rng: np.random.Generator, travel: float) -> Layout:
    """A random plan, long enough for ``travel`` m of driving."""
    half_length = REACH + travel / 2
    parking = bool(rng.random() < 0.75)
    main = Street(
        along_x=True,
        center=rng.uniform(-3, 3),
        width=rng.uniform(9, 13) if parking else rng.uniform(6, 10),
        parking=parking,
        half_length=half_length,
    )
    cross = None
    if rng.random() < 0.7:
        cross = Street(
            along_x=False,
            center=rng.choice((-1, 1)) * rng.uniform(6, 25),
            width=rng.uniform(5.5, 10),
            parking=False,
            half_length=REACH,
        )
    curvature = rng.uniform(-1, 1) / 170 if rng.random() < 0.6 else 0.0
    return Layout(main, cross, rng.uniform(1.5, 4), curvature, half_length)


@dataclass
class Occupancy:
    """Footprints already taken: axis-aligned rectangles of the plan."""

    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def claim(self, x: float, y: float, length: float, width: float) -> bool:
        """Take a rectangle of the plan, extent ``length`` along x; False if it overlaps another."""
        left, right = x - length / 2, x + length / 2
        low, high = y - width / 2, y + width / 2
        for a, b, c, d in self.taken:
            if left < b and a < right and low < d and c < high:
                return False
        self.taken.append((left, right, low, high))
        return True
