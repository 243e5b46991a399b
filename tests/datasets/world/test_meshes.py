import numpy as np
import pytest

from lidarssl.datasets.world.meshes import (
    Mesh,
    blobs,
    box,
    copies,
    cylinder,
    frustum,
    gable,
    merge,
    sphere,
    wheel,
)


def volume(mesh: Mesh) -> float:
    """Of a closed mesh, by the divergence theorem."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return abs(float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6))


def edges(mesh: Mesh) -> np.ndarray:
    """How often each directed edge occurs."""
    pairs = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    count = np.zeros((len(mesh.vertices),) * 2, int)
    np.add.at(count, (pairs[:, 0], pairs[:, 1]), 1)
    return count


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (box((1, 2, 3), (2, 3, 4), 0.3), 24),
        (frustum((2, 2), (1, 1), 0, 3, 0.2), 3 * (4 + 2 + 1) / 3),
        (gable(), 0.5),
        (cylinder(8), 8 / 2 * np.sin(2 * np.pi / 8)),
        (wheel(10), 10 / 2 * np.sin(2 * np.pi / 10)),
    ],
)
def test_primitives_are_closed_and_have_their_volume(mesh: Mesh, expected: float) -> None:
    count = edges(mesh)
    assert (count <= 1).all()
    assert (count == count.T).all()
    assert volume(mesh) == pytest.approx(expected)


def test_sphere_and_wheel_have_their_place() -> None:
    np.testing.assert_allclose(np.linalg.norm(sphere(1).vertices, axis=1), 1)
    assert len(sphere(2).faces) == 320
    low, high = wheel(8).vertices.min(0), wheel(8).vertices.max(0)
    np.testing.assert_allclose((low[2], low[1], high[1]), (0, -0.5, 0.5), atol=1e-12)


def test_copies_scale_then_turn_then_move() -> None:
    rng = np.random.default_rng(0)
    center, size, yaw = rng.normal(size=(3, 3)), rng.uniform(1, 2, (3, 3)), rng.normal(size=3)
    many = copies(gable(), center, size, yaw)
    for number in range(3):
        cos, sin = np.cos(yaw[number]), np.sin(yaw[number])
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        expected = [center[number] + turn @ (size[number] * vertex) for vertex in gable().vertices]
        np.testing.assert_allclose(many.vertices[6 * number : 6 * number + 6], expected)
        np.testing.assert_array_equal(
            many.faces[8 * number : 8 * number + 8], gable().faces + 6 * number
        )


def test_merge_keeps_triangles() -> None:
    one, two = box((0, 0, 0), (1, 1, 1)), gable()
    both = merge([one, two])
    triangles = np.concatenate([one.vertices[one.faces], two.vertices[two.faces]])
    np.testing.assert_array_equal(both.vertices[both.faces], triangles)


def test_blobs_stay_within_a_quarter_of_their_radii() -> None:
    center = np.array([[0.0, 0, 0], [5, 0, 0]])
    radii = np.array([[1.0, 2, 3], [2, 2, 2]])
    mesh = blobs(center, radii, np.random.default_rng(0), 1)
    vertices = mesh.vertices.reshape(2, -1, 3)
    length = np.linalg.norm((vertices - center[:, None]) / radii[:, None], axis=2)
    assert (length > 0.74).all()
    assert (length < 1.26).all()
    assert length.std() > 0.1
