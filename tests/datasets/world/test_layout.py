import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.datasets.world.classes import Semantic
from lidarssl.datasets.world.ground import build_ground
from lidarssl.datasets.world.layout import Layout, Occupancy, Street, draw_layout


def make_layout(cross: bool = True, curvature: float = 0.004) -> Layout:
    main = Street(along_x=True, center=1.0, width=8.0, parking=False, half_length=60.0)
    other = Street(along_x=False, center=-12.0, width=6.0, parking=False, half_length=56.0)
    return Layout(main, other if cross else None, 2.5, curvature, 60.0)


@given(
    x=st.floats(-190, 190),
    y=st.floats(-190, 190),
    curvature=st.floats(-0.006, 0.006),
)
def test_bending_is_undone(x: float, y: float, curvature: float) -> None:
    layout = make_layout(curvature=curvature)
    back = layout.to_plan(*layout.to_world(np.array(x), np.array(y)))
    np.testing.assert_allclose(back, (x, y), atol=1e-9)


@given(x=st.floats(-100, 100), curvature=st.floats(-0.006, 0.006))
def test_heading_is_the_direction_of_the_street(x: float, curvature: float) -> None:
    layout = make_layout(curvature=curvature)
    steps = np.array([x - 1e-4, x + 1e-4])
    world_x, world_y = layout.to_world(steps, np.zeros(2))
    slope = np.arctan2(np.diff(world_y), np.diff(world_x))[0]
    assert layout.heading(np.array(x)) == pytest.approx(slope, abs=1e-4)


def test_edge_distance_against_nearest_road_point() -> None:
    layout = make_layout()
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-40, 40, (2, 300))
    outside_main = np.abs(y - 1.0) - 4.0
    outside_cross = np.abs(x + 12.0) - 3.0
    expected = np.minimum(outside_main, outside_cross)
    np.testing.assert_allclose(layout.edge_distance(x, y), expected)


def test_street_left_is_left_of_its_heading() -> None:
    layout = make_layout()
    for street in layout.streets:
        ahead = np.subtract(
            street.plan(np.array(1.0), np.array(0.0)), street.plan(np.array(0.0), np.array(0.0))
        )
        left = np.subtract(
            street.plan(np.array(0.0), np.array(1.0)), street.plan(np.array(0.0), np.array(0.0))
        )
        assert ahead[0] * left[1] - ahead[1] * left[0] == pytest.approx(1)
        assert np.arctan2(ahead[1], ahead[0]) == pytest.approx(street.heading)


def test_occupancy_refuses_overlap_and_keeps_what_it_refused_out() -> None:
    occupancy = Occupancy()
    assert occupancy.claim(0, 0, 4, 2)
    assert not occupancy.claim(1.9, 0.9, 1, 1)
    assert occupancy.claim(3, 0, 2, 2)
    assert occupancy.claim(0, 2, 4, 2)
    assert not occupancy.claim(0, 0, 100, 100)
    assert len(occupancy.taken) == 3


def test_paint_lies_on_the_road_but_not_in_the_crossing() -> None:
    layout = make_layout()
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-40, 40, (2, 100_000))
    marked = layout.is_marked(x, y)
    assert 0.001 < marked.mean() < 0.05
    assert (layout.edge_distance(x, y)[marked] < 0).all()
    crossing = (np.abs(y - 1) < 4) & (np.abs(x + 12) < 3)
    assert not (marked & crossing).any()


@pytest.mark.parametrize("seed", range(4))
def test_ground_classes_end_exactly_at_kerbs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layout = draw_layout(rng, 10.0)
    ground = build_ground(layout, rng)
    x, y = rng.uniform(-55, 55, (2, 5000))
    distance = layout.edge_distance(x, y)
    expected = np.where(distance < 0, Semantic.ROAD, Semantic.TERRAIN)
    expected[(distance >= 0) & (distance < layout.sidewalk)] = Semantic.SIDEWALK
    i, j = np.searchsorted(ground.x, x) - 1, np.searchsorted(ground.y, y) - 1
    np.testing.assert_array_equal(ground.semantic[i, j], expected)


def test_ground_height_is_linear_between_grid_points_and_kerbs_rise() -> None:
    rng = np.random.default_rng(5)
    layout = draw_layout(rng, 0.0)
    ground = build_ground(layout, rng)
    i, j = 40, 60
    np.testing.assert_allclose(ground.height(ground.x[i], ground.y[j]), ground.z[i, j])
    middle = ground.height((ground.x[i] + ground.x[i + 1]) / 2, ground.y[j])
    assert middle == pytest.approx((ground.z[i, j] + ground.z[i + 1, j]) / 2)
    kerb = layout.main.center + layout.main.width / 2
    along = np.linspace(30, 50, 20)
    rise = ground.height(along, kerb + 0.05) - ground.height(along, kerb - 0.02)
    assert (rise > 0.05).all()
    assert (rise < 0.2).all()


def test_ground_mesh_follows_the_height_field() -> None:
    rng = np.random.default_rng(6)
    layout = draw_layout(rng, 5.0)
    ground = build_ground(layout, rng)
    mesh, semantic = ground.mesh(layout)
    assert len(mesh.faces) == len(semantic) == 2 * ground.semantic.size
    triangles = mesh.vertices[mesh.faces]
    x, y = layout.to_plan(triangles[..., 0], triangles[..., 1])
    np.testing.assert_allclose(ground.height(x, y), triangles[..., 2], atol=1e-6)
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    assert (normal[:, 2] > 0).all()
    distance = layout.edge_distance(x.mean(1), y.mean(1))
    np.testing.assert_array_equal(semantic == Semantic.ROAD, distance < 0)
