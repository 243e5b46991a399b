"""Colours against the standard library, pixel by pixel; draws by what they may do."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.frame import Frame
from lidarssl.transforms.photometric import (
    PhotometricDistortion,
    change_colours,
    hsv_to_rgb,
    rgb_to_hsv,
)
from transforms.scenes import apply_purely, make_frame

# Bytes make ties between channels, greys and black likely.
BYTES = st.tuples(*[st.sampled_from([0, 1, 64, 128, 200, 254, 255]) for _ in range(3)])
UNITS = st.floats(0, 1)


def pixel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


@given(st.one_of(BYTES.map(lambda b: tuple(v / 255 for v in b)), st.tuples(UNITS, UNITS, UNITS)))
def test_hsv_is_that_of_the_standard_library(rgb: tuple[float, ...]) -> None:
    found = rgb_to_hsv(pixel(rgb)).flatten().tolist()
    expected = list(colorsys.rgb_to_hsv(*rgb))
    # The circle is closed: just below 1 is just above 0.
    around = abs(found[0] - expected[0])
    assert min(around, 1 - around) < 1e-9
    assert 0 <= found[0] < 1
    assert found[1:] == pytest.approx(expected[1:], abs=1e-9)
    assert hsv_to_rgb(rgb_to_hsv(pixel(rgb))).flatten().tolist() == pytest.approx(rgb, abs=1e-9)


@given(st.floats(0, 1, exclude_max=True), UNITS, UNITS)
def test_rgb_is_that_of_the_standard_library(hue: float, purity: float, value: float) -> None:
    found = hsv_to_rgb(pixel((hue, purity, value))).flatten().tolist()
    assert found == pytest.approx(colorsys.hsv_to_rgb(hue, purity, value), abs=1e-9)


@given(BYTES, st.floats(0, 2), st.floats(-0.2, 0.2))
def test_changed_colours(values: tuple[int, ...], gain: float, turn: float) -> None:
    rgb = tuple(value / 255 for value in values)
    hue, purity, value = colorsys.rgb_to_hsv(*rgb)
    expected = colorsys.hsv_to_rgb((hue + turn) % 1, min(1.0, purity * gain), value)
    found = change_colours(pixel(rgb), gain, turn).flatten().tolist()
    assert found == pytest.approx(expected, abs=1e-9)


def of(frame: Frame) -> Tensor:
    return torch.stack([camera.image for camera in frame.cameras if camera.image is not None])


def drawn(transform: PhotometricDistortion, frame: Frame, count: int = 400) -> list[Tensor]:
    return [of(transform(frame, np.random.default_rng(seed)))[0] for seed in range(count)]


def small_frame(image: Tensor) -> Frame:
    frame = make_frame(1, cameras=1)
    return replace(frame, cameras=(replace(frame.cameras[0], image=image),))


def test_brightness_alone() -> None:
    """Half of the images get one summand on every pixel, uniform in its range."""
    image = torch.full((3, 2, 2), 0.5)
    images = drawn(PhotometricDistortion(0.2, None, None, 0), small_frame(image))
    shifts = torch.stack([(one - image)[0, 0, 0] for one in images])
    assert all((one - image - s).abs().max() < 1e-6 for one, s in zip(images, shifts, strict=True))
    changed = shifts[shifts != 0]
    assert len(changed) / len(shifts) == pytest.approx(0.5, abs=0.1)
    assert 0.18 < float(changed.max()) <= 0.2
    assert -0.2 <= float(changed.min()) < -0.18


def test_contrast_alone() -> None:
    """A factor, before or after: once and not twice."""
    image = torch.tensor([0.1, 0.2, 0.4])[:, None, None].expand(3, 2, 2)
    images = drawn(PhotometricDistortion(0, (0.5, 1.5), None, 0), small_frame(image))
    factors = torch.stack([(one / image)[0, 0, 0] for one in images])
    assert all((one - image * f).abs().max() < 1e-6 for one, f in zip(images, factors, strict=True))
    assert float((factors != 1).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert 0.5 <= float(factors.min()) < 0.53
    assert 1.47 < float(factors.max()) <= 1.5


def test_colours_keep_greys_and_values() -> None:
    grey = torch.linspace(0, 1, 12).view(1, 3, 4).expand(3, 3, 4)
    colours = PhotometricDistortion(0, None, (0.5, 1.5), 0.1)
    assert all(torch.allclose(one, grey, atol=1e-6) for one in drawn(colours, small_frame(grey)))
    image = torch.rand(3, 5, 5)
    images = drawn(colours, small_frame(image))
    assert all(torch.allclose(one.amax(0), image.amax(0), atol=1e-6) for one in images)
    changed = sum(not torch.equal(one, image) for one in images)
    assert changed / len(images) == pytest.approx(0.75, abs=0.1)


def test_contrast_comes_before_and_after_the_colours() -> None:
    """Cut at 1 between them, the order shows: both are drawn."""
    image = torch.tensor([0.8, 0.5, 0.4])[:, None, None].expand(3, 1, 1)
    transform = PhotometricDistortion(0, (1.5, 1.5), (1.5, 1.5), 0)
    found = {tuple(one.flatten().tolist()) for one in drawn(transform, small_frame(image))}

    def contrasted(one: Tensor) -> Tensor:
        return (1.5 * one).clamp(0, 1)

    both = [change_colours(contrasted(image), 1.5, 0), contrasted(change_colours(image, 1.5, 0))]
    alone = [image, contrasted(image), change_colours(image, 1.5, 0)]
    assert found == {tuple(one.flatten().tolist()) for one in both + alone}


def test_bytes_and_floats_are_the_same_and_stay_in_range() -> None:
    frame = make_frame(5)
    as_floats = replace(
        frame,
        cameras=tuple(replace(one, image=one.image.float() / 255) for one in frame.cameras),
    )
    transform = PhotometricDistortion()
    for seed in range(10):
        found = of(apply_purely(transform, frame, seed))
        assert torch.equal(found, of(transform(as_floats, np.random.default_rng(seed))))
        assert found.dtype == torch.float32
        assert found.min() >= 0
        assert found.max() <= 1


def test_every_camera_has_its_own_draws() -> None:
    frame = make_frame(5)
    same = replace(
        frame, cameras=tuple(replace(one, image=frame.cameras[0].image) for one in frame.cameras)
    )
    images = of(PhotometricDistortion()(same, np.random.default_rng(0)))
    assert not torch.equal(images[0], images[1])
