import sys

import numpy as np
import pytest

pytest.importorskip("embreex")

from lidarssl.datasets.world.scene import Triangles, join
from lidarssl.datasets.world.tracing import Layer, RayTracer
from lidarssl.errors import ConfigError


def soup(rng: np.random.Generator, count: int, first_part: int = 0) -> Triangles:
    center = rng.uniform(-5, 5, (count, 1, 3))
    vertices = (center + rng.normal(0, 2, (count, 3, 3))).reshape(-1, 3)
    return Triangles(
        vertices.astype(np.float32),
        np.arange(3 * count, dtype=np.int32).reshape(-1, 3),
        np.arange(first_part, first_part + count, dtype=np.int32),
    )


def nearest(triangles: Triangles, origin: np.ndarray, direction: np.ndarray) -> tuple[float, int]:
    """Moeller-Trumbore over all triangles, in float64."""
    a, b, c = np.moveaxis(triangles.vertices.astype(float)[triangles.faces], 1, 0)
    side, other = b - a, c - a
    across = np.cross(direction, other)
    determinant = np.einsum("ij,ij->i", side, across)
    to_origin = origin - a
    u = np.einsum("ij,ij->i", to_origin, across) / determinant
    turned = np.cross(to_origin, side)
    v = turned @ direction / determinant
    distance = np.einsum("ij,ij->i", other, turned) / determinant
    distance[(u < 0) | (v < 0) | (u + v > 1) | (distance < 0)] = np.inf
    best = int(distance.argmin())
    return float(distance[best]), int(triangles.part[best]) if np.isfinite(distance[best]) else -1


def test_layers_together_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    one, two = soup(rng, 40), soup(rng, 30, 40)
    tracer = RayTracer([Layer(one), Layer(two)])
    origins = rng.uniform(-6, 6, (200, 3))
    directions = rng.normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    hits = tracer.cast(origins, directions)
    expected = [nearest(join([one, two]), o, d) for o, d in zip(origins, directions, strict=True)]
    distance, part = (np.array(column) for column in zip(*expected, strict=True))
    assert 0.3 < (part >= 0).mean() < 0.98
    np.testing.assert_array_equal(hits.part, part)
    np.testing.assert_allclose(hits.distance[part >= 0], distance[part >= 0], rtol=1e-4)
    assert not np.isfinite(hits.distance[part < 0]).any()
    assert (np.einsum("ij,ij->i", hits.normal, directions)[part >= 0] <= 1e-6).all()
    np.testing.assert_allclose(np.linalg.norm(hits.normal[part >= 0], axis=1), 1, rtol=1e-5)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(ConfigError, match=r"pip install 'lidarssl\[synthetic\]'"):
        Layer(soup(np.random.default_rng(0), 1))


def test_shadow_of_either_layer() -> None:
    plate = Triangles(
        np.array([[-1, -1, 2], [3, -1, 2], [-1, 3, 2]], np.float32),
        np.array([[0, 1, 2]], np.int32),
        np.zeros(1, np.int32),
    )
    elsewhere = Triangles(plate.vertices + np.float32(50), plate.faces, plate.part)
    points = np.array([[0, 0, 0], [0, 0, 3], [10, 0, 0]], float)
    for layers in ([plate, elsewhere], [elsewhere, plate]):
        tracer = RayTracer([Layer(layer) for layer in layers])
        np.testing.assert_array_equal(
            tracer.shadowed(points, np.array([0, 0, 1.0])), [True, False, False]
        )
