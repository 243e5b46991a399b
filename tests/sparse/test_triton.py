"""The Triton kernels themselves: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.sparse.backends import choice, triton
from lidarssl.sparse.backends.triton import kernel_gradient, sums
from lidarssl.sparse.backends.triton_plan import Plan
from lidarssl.sparse.backends.triton_tuning import Tile
from lidarssl.sparse.kernel import Triple
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.pairs import KernelMap
from lidarssl.sparse.tensor import SparseTensor
from sparse.backends import CUDA
from sparse.reference import random_sites

pytest.importorskip("triton")
DEVICE = "cuda" if CUDA else "cpu"
KINDS: dict[str, tuple[Triple, int, bool]] = {
    "submanifold": ((3, 3, 3), 1, False),
    "strided": ((2, 2, 2), 2, False),
    "overlapping": ((3, 3, 3), 2, False),
    "transposed": ((2, 2, 2), 2, True),
    "even at stride 1": ((2, 1, 2), 1, False),
}


def kernel_map(kind: str) -> KernelMap:
    size, stride, transposed = KINDS[kind]
    return map_of(size, stride, count=40, extent=2, transposed=transposed)


def map_of(
    size: Triple, stride: int, count: int, extent: int, transposed: bool = False
) -> KernelMap:
    sites = random_sites(torch.Generator().manual_seed(0), count, extent).to(DEVICE)
    maps = SparseTensor.of(sites, torch.zeros(len(sites), 1, device=DEVICE)).maps
    _, found = SparseConv3d(1, 1, size, stride).connect(maps, 0)
    return found.transposed() if transposed else found


def operands(
    pairs: KernelMap, c_in: int, c_out: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, kernel and the gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    shapes = [
        (pairs.rows_in, c_in),
        (len(pairs.counts), c_in, c_out),
        (pairs.rows_out, c_out),
    ]
    features, kernel, grad = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        for shape in shapes
    )
    return features, kernel, grad


def brute_force(
    features: Tensor, kernel: Tensor, grad: Tensor, pairs: KernelMap
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the features and of the kernel in float64, weight by weight."""
    features, kernel, grad = (value.double() for value in (features, kernel, grad))
    output = features.new_zeros(pairs.rows_out, kernel.shape[2])
    back, weight_gradient = torch.zeros_like(features), torch.zeros_like(kernel)
    own = torch.arange(pairs.rows_out, device=features.device)
    into, out = pairs.in_row.split(pairs.counts), pairs.out_row.split(pairs.counts)
    for weight, (read, written) in enumerate(zip(into, out, strict=True)):
        if weight == pairs.identity:
            read = written = own
        output.index_add_(0, written, features[read] @ kernel[weight])
        back.index_add_(0, read, grad[written] @ kernel[weight].t())
        weight_gradient[weight] = features[read].t() @ grad[written]
    return output, back, weight_gradient


def by_kernels(
    features: Tensor, kernel: Tensor, grad: Tensor, pairs: KernelMap, tile: Tile | None
) -> tuple[Tensor, Tensor, Tensor]:
    plan, back = Plan.of(pairs), Plan.of(pairs.transposed())
    return (
        sums(features, kernel, plan, tile),
        sums(grad, kernel.transpose(1, 2), back, tile),
        kernel_gradient(features, grad, plan, tile),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tile", "c_in", "c_out"),
    [
        (Tile(16, 16, 16), 17, 18),
        (Tile(32, 16, 16), 1, 33),
        (Tile(16, 32, 16, parts=3), 33, 1),
        (Tile(64, 32, 32, parts=2), 16, 16),
        (None, 3, 96),
    ],
    ids=str,
)
def test_equals_brute_force(kind, tile, c_in, c_out):
    """Blocks that rows and channels do not fill."""
    pairs = kernel_map(kind)
    values = operands(pairs, c_in, c_out)
    for found, expected in zip(
        by_kernels(*values, pairs, tile), brute_force(*values, pairs), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_every_piece_of_a_long_list_counts():
    """Several pieces per weight, the last one short."""
    pairs = map_of((3, 1, 1), 1, 900, 5)
    assert max(pairs.pairs_per_weight()) > 2 * triton.SHORTEST_CHUNK
    values = operands(pairs, 3, 2)
    found = kernel_gradient(values[0], values[2], Plan.of(pairs), Tile(16, 16, 64))
    torch.testing.assert_close(found, brute_force(*values, pairs)[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(5, 5, 5), (4, 4, 4), (1, 7, 9)])
def test_more_weights_than_a_word_has_bits(size):
    pairs = map_of(size, 1, 40, 3)
    values = operands(pairs, 3, 2)
    tile = Tile(64, 16, 16)
    expected = brute_force(*values, pairs)[0]
    torch.testing.assert_close(sums(*values[:2], Plan.of(pairs), tile), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["submanifold", "transposed"])
def test_narrow_types_round_once(dtype, kind):
    """Operands as they are, sums in float32, one rounding of the result.

    Against float64 of the same operands: half a unit in the last place of the result, and for
    n terms n float32 roundings of the sum of their magnitudes. The interpreter cuts bfloat16
    where a GPU rounds: a whole unit.
    """
    cuts = dtype == torch.bfloat16 and triton.interpreted()
    pairs = kernel_map(kind)
    values = operands(pairs, 20, 24, dtype)
    exact = brute_force(*values, pairs)
    magnitude = brute_force(*(value.abs() for value in values), pairs)
    terms = [27 * 20, 27 * 24, pairs.rows_out]
    for found, expected, sizes, n in zip(
        by_kernels(*values, pairs, None), exact, magnitude, terms, strict=True
    ):
        assert found.dtype == dtype
        bound = (
            torch.finfo(dtype).eps * (1.0 if cuts else 0.5) * expected.abs()
            + n * torch.finfo(torch.float32).eps * sizes
            + torch.finfo(dtype).tiny
        )
        assert bool(((found.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_equal_bit_by_bit(dtype):
    runs = []
    for _ in range(2):
        pairs = kernel_map("submanifold")  # a new map, and so a new plan
        runs.append(by_kernels(*operands(pairs, 20, 24, dtype), pairs, None))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_operands_may_be_strided():
    pairs = kernel_map("submanifold")
    features, kernel, grad = operands(pairs, 4, 6)
    wide = features.repeat_interleave(2, 1)[:, ::2].requires_grad_()
    odd = kernel.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    assert not wide.is_contiguous()
    output = triton.convolve(wide, odd, pairs)
    found = torch.autograd.grad(output, (wide, odd), grad.t().contiguous().t())
    expected = brute_force(features, kernel, grad, pairs)
    for actual, reference in zip((output, *found), expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=0, atol=1e-12)


def test_only_what_is_asked_for_is_differentiated():
    pairs = kernel_map("submanifold")
    features, kernel, grad = operands(pairs, 4, 6)
    for first, second in ((True, False), (False, True)):
        output = triton.convolve(
            features.clone().requires_grad_(first), kernel.clone().requires_grad_(second), pairs
        )
        assert output.requires_grad
        output.backward(grad)


def test_autocast_computes_in_its_dtype():
    sites = random_sites(torch.Generator().manual_seed(0), 40, 3).to(DEVICE)
    features = torch.randn(len(sites), 3, device=DEVICE, requires_grad=True)
    layer = SparseConv3d(3, 4, 3).to(DEVICE)
    with choice.backend("triton"), torch.autocast(DEVICE, torch.bfloat16):
        y = layer(SparseTensor.of(sites, features)).features
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.kernel.grad.dtype == features.grad.dtype == torch.float32


def test_tf32_is_used_where_torch_allows_it():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for allowed, expected in (("ieee", "ieee"), ("tf32", "tf32")):
            matmul.fp32_precision = allowed
            assert triton._precision(torch.float32) == expected
            assert triton._precision(torch.float64) == "ieee"
    finally:
        matmul.fp32_precision = before


def test_other_types_are_refused():
    pairs = kernel_map("strided")
    features, kernel, _ = operands(pairs, 2, 2)
    with pytest.raises(TypeError, match="float64 and a kernel"):
        triton.convolve(features, kernel.float(), pairs)
    with pytest.raises(TypeError, match="int64"):
        triton.convolve(features.long(), kernel.long(), pairs)


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    pairs = kernel_map("strided")
    features, kernel, _ = operands(pairs, 2, 2)
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    with pytest.raises(ConfigError, match="TRITON_INTERPRET=1"):
        triton.convolve(features.cpu(), kernel.cpu(), pairs)


def test_without_triton_the_error_says_how_to_get_it(monkeypatch):
    pairs = kernel_map("strided")
    features, kernel, _ = operands(pairs, 2, 2)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match=r"pip install 'lidarssl\[gpu\]'"):
        triton.convolve(features.cpu(), kernel.cpu(), pairs)


LATE = """
import triton, triton.language, os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from lidarssl.sparse.backends.choice import backend
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
sites = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]])
x = SparseTensor.of(sites, torch.tensor([[1.0], [2.0]], requires_grad=True))
layer = SparseConv3d(1, 1, 3)
with backend("triton"):
    y = layer(x).features
y.sum().backward()
first, centre, last = layer.kernel.detach().flatten()[12:15]
expected = torch.stack([centre + 2 * last, first + 2 * centre])
assert torch.allclose(y.flatten(), expected)
assert layer.kernel.grad.flatten()[12:15].tolist() == [1.0, 3.0, 2.0]
"""


def test_triton_may_have_been_imported_before_the_interpreter_is_chosen():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", LATE], env=environment, check=True)
