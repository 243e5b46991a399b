from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("embreex")

from lidarssl.datasets.world.appearance import Appearance, draw_appearance
from lidarssl.datasets.world.config import AppearanceConfig, CameraConfig
from lidarssl.datasets.world.particles import NEAREST, Particles, draw, falling
from lidarssl.datasets.world.weather import under


def looks(kind: str) -> Appearance:
    rng = np.random.default_rng(0)
    return under(kind, draw_appearance(AppearanceConfig(), rng), rng)  # type: ignore[arg-type]


def brute_force(
    color: np.ndarray, distance: np.ndarray, particles: Particles, paint: np.ndarray
) -> np.ndarray:
    """Every particle over every pixel, the nearest point of its stroke found by sampling."""
    result = color.astype(float)
    steps = np.linspace(-1, 1, 2001)
    for i in range(len(particles.row)):
        for y, x in np.ndindex(*distance.shape):
            off_y = y - particles.row[i] - steps * particles.length[i]
            off_x = x - particles.col[i] - steps * particles.slant[i]
            nearest = (off_y**2 + off_x**2).min()
            cover = max(1 - nearest / particles.radius[i] ** 2, 0) * particles.opacity[i]
            if distance[y, x] > particles.distance[i]:
                result[y, x] += (paint - result[y, x]) * cover
    return result


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_strokes_equal_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, shape = 3, (9, 11)
    particles = Particles(
        row=rng.uniform(-2, 11, count),
        col=rng.uniform(-2, 13, count),
        length=rng.uniform(0, 4, count),
        slant=rng.normal(0, 2, count),
        radius=rng.uniform(0.6, 3, count),
        opacity=rng.uniform(0, 1, count),
        distance=rng.uniform(1, 9, count),
    )
    color, distance = rng.random((*shape, 3)), rng.uniform(0, 10, shape)
    paint = rng.random(3)
    drawn = draw(color, distance, particles, paint)
    np.testing.assert_allclose(
        drawn, brute_force(color, distance, particles, paint), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("kind", ["rain", "snow"])
def test_what_falls_depends_on_the_generator_and_not_on_the_resolution(kind: str) -> None:
    look = looks(kind)
    changed = []
    for height, width in ((64, 128), (256, 512)):
        config = CameraConfig(height=height, width=width)
        color = np.full((height, width, 3), 0.1, np.float32)
        far = np.full((height, width), np.inf, np.float32)
        seen = falling(color, far, config, look, np.random.default_rng(0))
        again = falling(color, far, config, look, np.random.default_rng(0))
        other = falling(color, far, config, look, np.random.default_rng(1))
        np.testing.assert_array_equal(seen, again)
        assert np.abs(seen - other).mean() > 1e-3
        np.testing.assert_array_equal(color, np.float32(0.1))
        changed.append(float(np.abs(seen - color).mean()))
    assert changed[0] == pytest.approx(changed[1], rel=0.35)


def test_nothing_falls_behind_the_scene_or_in_other_weather() -> None:
    config = CameraConfig(height=32, width=64)
    color = np.random.default_rng(0).random((32, 64, 3))
    wall = np.full((32, 64), NEAREST / 2, np.float32)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(falling(color, wall, config, looks("snow"), rng), color)
    far = np.full((32, 64), np.inf, np.float32)
    for kind in ("clear", "fog", "night"):
        np.testing.assert_array_equal(falling(color, far, config, looks(kind), rng), color)


def test_denser_snow_covers_more() -> None:
    config = CameraConfig(height=64, width=128)
    color = np.zeros((64, 128, 3))
    far = np.full((64, 128), np.inf, np.float32)
    means = [
        falling(
            color, far, config, replace(looks("snow"), snowfall=share), np.random.default_rng(0)
        ).mean()
        for share in (0.25, 0.5, 1.0)
    ]
    assert means[0] < means[1] < means[2]


def test_drops_on_the_lens_blur_what_is_behind_them() -> None:
    config = CameraConfig(height=96, width=192)
    stripes = np.zeros((96, 192, 3))
    stripes[:, ::2] = 1
    far = np.full((96, 192), np.inf, np.float32)
    look = replace(looks("rain"), horizon=np.full(3, 0.4))
    seen = falling(stripes, far, config, look, np.random.default_rng(2))
    contrast = np.abs(np.diff(seen[..., 0], axis=1))
    assert np.mean(contrast < 0.4) > 0.02
    assert np.mean(contrast > 0.99) > 0.5
