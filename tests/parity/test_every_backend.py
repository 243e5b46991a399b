"""Equality with the reference implementations by the Triton kernels too.

On a GPU they are compared with the CPU (``tests/gpu``); here they run in Triton's interpreter, at
some milliseconds per block of a product. Small convolutions run always. Large kernels and whole
networks take minutes each:

LIDARSSL_SLOW_INTERPRETER=1 python -m pytest tests/parity/test_every_backend.py
"""

from __future__ import annotations

import os

import pytest
import torch

from lidarssl.sparse.backends.choice import backend
from parity.case import Case
from parity.kinds import res16unet, sparse_ops, spconv_ops, torchsparse_unets, voxel_trunk
from parity.test_goldens import case_folders

pytest.importorskip("triton")
SINGLE = (sparse_ops, spconv_ops)
NETWORKS = (res16unet, torchsparse_unets, voxel_trunk)
LARGEST = 27
"""Weights of a kernel that is always run."""
SLOW = bool(os.environ.get("LIDARSSL_SLOW_INTERPRETER"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        folders = case_folders(metafunc.config.getoption("--goldens"))
        cases = [
            case
            for case in map(Case.read, folders)
            if any(kind.recognises(case) for kind in (*SINGLE, *NETWORKS))
        ]
        metafunc.parametrize("case", cases, ids=[case.folder.name for case in cases])


def is_slow(case: Case) -> bool:
    size = case.args.get("kernel_size", 0)
    weights = size**3 if isinstance(size, int) else LARGEST + 1
    return weights > LARGEST or any(kind.recognises(case) for kind in NETWORKS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its kernels are not interpreted")
def test_triton_equals_reference(case: Case) -> None:
    if is_slow(case) and not SLOW:
        pytest.skip("slow in Triton's interpreter (LIDARSSL_SLOW_INTERPRETER=1 runs it)")
    (kind,) = (kind for kind in (*SINGLE, *NETWORKS) if kind.recognises(case))
    with backend("triton"):
        kind.check(case)
