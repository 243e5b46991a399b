"""Batch norm of two processes equals that of one process on all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lidarssl.sparse.layers import BatchNorm
from lidarssl.sparse.norms import MapNorm
from lidarssl.sparse.tensor import SparseTensor

ROWS, CHANNELS = 11, 3
SPLITS = (4, 10, ROWS)  # rows of the first rank


def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, CHANNELS, generator=generator, dtype=torch.float64) * 3 + 5


def step(norm: BatchNorm, features: torch.Tensor, first: int) -> dict[str, torch.Tensor]:
    """Forward and backward of rows ``first``, ... of the whole batch."""
    features = features.clone().requires_grad_()
    sites = torch.arange(features.shape[0])[:, None].expand(-1, 4).contiguous()
    out = norm(SparseTensor.of(sites, features)).features
    weight = torch.linspace(-1, 2, ROWS * CHANNELS, dtype=torch.float64).view(ROWS, CHANNELS)
    (out.square() * weight[first : first + out.shape[0]]).sum().backward()
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    return {
        **state,
        "out": out.detach(),
        "input": features.grad,
        "scale": norm.bn.weight.grad,
        "shift": norm.bn.bias.grad,
    }


def map_step(frames: slice) -> dict[str, torch.Tensor]:
    """Forward and backward of some of three maps."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(3, CHANNELS, 4, 5, generator=generator, dtype=torch.float64) * 2 + 1
    weight = torch.randn(3, CHANNELS, 4, 5, generator=generator, dtype=torch.float64)
    norm = MapNorm(CHANNELS, momentum=0.3).double()
    mine = maps[frames].requires_grad_()
    (norm(mine).square() * weight[frames]).sum().backward()
    return {"input": mine.grad, "mean": norm.running_mean, "variance": norm.running_var}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    for split in SPLITS:
        first, last = ((0, split), (split, ROWS))[rank]
        result = step(BatchNorm(CHANNELS, momentum=0.3).double(), rows()[first:last], first)
        torch.save(result, f"{folder}/{split}.{rank}.pt")
    torch.save(map_step((slice(2), slice(2, 3))[rank]), f"{folder}/map.{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of both ranks for every split."""
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_equal_one(folder: Path, split: int) -> None:
    """The second rank has the other rows, or none."""
    ranks = [torch.load(folder / f"{split}.{rank}.pt", weights_only=True) for rank in range(2)]
    expected = step(BatchNorm(CHANNELS, momentum=0.3).double(), rows(), 0)
    for key in ("out", "input"):
        together = torch.cat([result[key] for result in ranks])
        assert torch.allclose(together, expected[key], rtol=1e-12, atol=1e-12), key
    for key in ("scale", "shift"):
        total = ranks[0][key] + ranks[1][key]
        assert torch.allclose(total, expected[key], rtol=1e-12, atol=1e-12), key
    for key in ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked"):
        for result in ranks:
            assert torch.allclose(result[key], expected[key], rtol=1e-12), key


def test_two_processes_equal_one_on_maps(folder: Path) -> None:
    ranks = [torch.load(folder / f"map.{rank}.pt", weights_only=True) for rank in range(2)]
    expected = map_step(slice(3))
    together = torch.cat([result["input"] for result in ranks])
    assert torch.allclose(together, expected["input"], rtol=1e-12, atol=1e-12)
    for key in ("mean", "variance"):
        for result in ranks:
            assert torch.allclose(result[key], expected[key], rtol=1e-12), key
