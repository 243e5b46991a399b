"""Compiles the Triton kernels for a GPU; none is needed. Run by ``test_triton_compiles``.

Usage: python compile_triton.py CAPABILITY (as 90)
Prints one line of JSON per kernel: its name, type of the features, bytes of shared memory, PTX.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lidarssl.sparse.backends import triton_kernels as kernels
from lidarssl.sparse.backends.triton_tuning import Task, candidates

TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
POINTERS = ("features", "kernel", "output", "grad", "partial", "result")
TABLES = ("table", "order", "listed", "counts", "first", "read", "written", "start", "stop")


def compiled(kernel: Any, dtype: str, options: dict[str, int], **constants: Any) -> Any:
    """As launched on channels that are multiples of 16, weights contiguous along the output."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        wide = "fp64" if dtype == "fp64" else "fp32"
        if name in constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            summed = name == "partial" or (name == "output" and constants.get("ADD"))
            signature[name] = f"*{wide if summed else dtype}"
        elif name in TABLES:
            signature[name] = "*i32"
        else:
            signature[name] = "i32"
        if name not in constants and name not in ("weights", "rows_out"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    return triton.compile(source, target=target, options=options)


def report(kernel: Any, dtype: str, options: dict[str, int], **constants: Any) -> None:
    found = compiled(kernel, dtype, options, **constants)
    about = {"kernel": kernel.__name__, "dtype": dtype, "shared": found.metadata.shared}
    print(json.dumps({**about, "ptx": found.asm["ptx"]}))


def main() -> None:
    import torch

    for dtype, name in TYPES.items():
        total = tl.float64 if dtype == "fp64" else tl.float32
        for kind, kernel in (("sums", kernels.tile_sums), ("gradient", kernels.chunk_products)):
            task = Task(kind, 27, 96, 96, 20_000, getattr(torch, name), "ieee")
            tile = candidates(task)[0]
            options = {"num_warps": tile.warps, "num_stages": tile.stages}
            constants = {
                "TILE": tile.rows,
                "COLUMNS": tile.columns,
                "INNER": tile.inner,
                "SUM": total,
                "PRECISION": "tf32" if dtype == "fp32" else "ieee",
                "WIDEN": False,
            }
            if kind == "gradient":
                report(kernel, dtype, options, **constants)
                continue
            for add in (False, True):
                report(kernel, dtype, options, **constants, ADD=add, stride_out=1)
        report(kernels.add_chunks, dtype, {}, BLOCK=1024, SUM=total)


if __name__ == "__main__":
    main()
