"""The verb `export`: its arguments, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

from lidarssl.cli.groups import Verbs
from lidarssl.cli.parser import at_least

NOTE = """\
MinkUNet and WaffleIron can be exported. What they read is prepared outside: voxels and tables of
their neighbours, or tokens, their neighbours and cells; docs/export.md defines every array, and
lidarssl.export.backbones.onnx_inputs makes them from a cloud. The number of points is free.
The file is compared with PyTorch on random clouds, and not kept if it differs.
Needs `pip install 'lidarssl[onnx]'`."""


def add_export(top: Verbs) -> None:
    """`lidarssl export onnx`."""
    formats = top.parent("export", "networks for other engines", "formats", "FORMAT")
    parser = formats.add(
        "onnx", "a backbone, with or without its head, as an ONNX file", export_onnx,
        "lidarssl export onnx runs/slidr --output backbone.onnx\n"
        "lidarssl export onnx runs/slidr_probe --output segmentation.onnx\n"
        "lidarssl export onnx runs/slidr_probe --output backbone.onnx --features",
        NOTE,
    )  # fmt: skip
    parser.add_argument("source", type=Path, help="run folder, or weights of lidarssl")
    parser.add_argument("--output", type=Path, required=True, help=".onnx file to write")
    parser.add_argument(
        "--opset", type=at_least(1), default=18, help="of ONNX, 18 to 23 (default: 18)"
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--head", action="store_true", default=None,
        help="keep the head: of a probe or finetune (default there), or of a pretraining",
    )  # fmt: skip
    kept.add_argument(
        "--features", dest="head", action="store_false",
        help="leave out the head (default for a pretraining)",
    )  # fmt: skip
    parser.add_argument(
        "--check", type=at_least(1), default=5, metavar="N",
        help="compare with PyTorch on so many random clouds (default: 5)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def export_onnx(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.exporting import Wanted
    from lidarssl.experiments.exporting import export_onnx as run

    wanted = Wanted(
        arguments.output, arguments.opset, arguments.head, arguments.check, arguments.overwrite
    )
    print(run(arguments.source, wanted))
