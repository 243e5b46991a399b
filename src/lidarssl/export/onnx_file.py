"""ONNX files: written with what they mean, checked against PyTorch, or not left at all."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lidarssl import __version__
from lidarssl.backbones.base import Backbone
from lidarssl.errors import ConfigError, DataError, require
from lidarssl.export.backbones import graph_of
from lidarssl.export.clouds import cloud_of, random_cloud
from lidarssl.export.graph import Classifier, Graph, Port
from lidarssl.frame import PointBatch
from lidarssl.replacing import replacing

OPSETS = range(18, 24)
TOLERANCE = 1e-4
_EXTRA = "onnx"
_PREFIX = "lidarssl."
_EXAMPLE_POINTS = 400


@dataclass(frozen=True)
class Product:
    """What a file shall hold.

    Attributes:
        backbone: with its weights.
        head: from features to logits, which then take their place; or None.
        about: facts for the metadata of the file, as plain values.
    """

    backbone: Backbone
    head: nn.Module | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def outputs(self, graph: Graph) -> tuple[Port, ...]:
        rows = graph.rows
        if self.head is None:
            return (Port("features", (rows, graph.channels), "float32", "of every row of values"),)
        return (
            Port(
                "logits",
                (rows, _width(self.head)),
                "float32",
                "of every class; class 0 is the ignored one",
            ),
            Port("classes", (rows,), "int64", "the largest logit's, the ignored class aside"),
        )

    def module(self, graph: Graph) -> nn.Module:
        return graph if self.head is None else Classifier(graph, self.head).eval()

    def reference(self, points: PointBatch) -> Tensor:
        """The first output by the backbone itself."""
        features = self.backbone(points).features
        return features if self.head is None else self.head(features)


@dataclass(frozen=True)
class Written:
    """What was written, and how well it agrees.

    Attributes:
        inputs, outputs: of the file.
        clouds: number of random clouds it was compared on.
        difference: largest difference of an output from that of PyTorch.
        largest: largest output.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    clouds: int
    difference: float
    largest: float

    @property
    def agrees(self) -> bool:
        """Within 1e-4, of outputs beyond 1 relative to the largest."""
        return self.difference <= TOLERANCE * max(1.0, self.largest) < math.inf


def check_opset(opset: int) -> None:
    """Raise unless files of this version can be written.

    Raises:
        ConfigError: older or newer than what is possible.
    """
    if opset not in OPSETS:
        raise ConfigError(
            f"ONNX opset {opset} cannot be written",
            field="--opset",
            remedy=f"choose one from {OPSETS[0]} (sums by index need it) to {OPSETS[-1]}",
        )


def write(
    path: Path, product: Product, opset: int = OPSETS[0], clouds: int = 5, seed: int = 0
) -> Written:
    """Write a file that computes what PyTorch does, or none.

    Args:
        path: in a folder that exists.
        product: what it holds.
        opset: version of ONNX's operators.
        clouds: random clouds to compare on.
        seed: of the clouds.

    Raises:
        ConfigError: a backbone that has no such form, a package is missing, an impossible opset,
            weights that are not finite, or outputs that differ from those of PyTorch.
    """
    check_opset(opset)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, _EXTRA)
    _check_weights(product, path)
    graph = graph_of(product.backbone.eval())
    rng = np.random.default_rng(seed)
    with replacing(path) as partial, torch.no_grad():
        _save(partial, product, graph, rng, opset)
        written = _compare(partial, product, graph, [random_cloud(rng) for _ in range(clouds)])
        if not written.agrees:
            raise ConfigError(
                f"its outputs differ by {written.difference:.1e} from those of PyTorch "
                f"(values up to {written.largest:.3g}), so that it was not kept",
                path=path,
                remedy="try another --opset, or other versions of torch and onnxruntime",
            )
    return written


def about(path: Path) -> dict[str, Any]:
    """The metadata of a file that ``write`` made.

    Returns:
        ``version`` of lidarssl, ``inputs`` and ``outputs`` (see ``Port``), and what the product
        said of itself, such as ``architecture`` and ``class_names``.

    Raises:
        DataError: no such file, not ONNX, or not of lidarssl.
    """
    onnx = require("onnx", _EXTRA)
    if not path.is_file():
        raise DataError("no such file", path=path)
    try:
        properties = onnx.load(path, load_external_data=False).metadata_props
        found = {
            one.key.removeprefix(_PREFIX): json.loads(one.value)
            for one in properties
            if one.key.startswith(_PREFIX)
        }
    except Exception as error:  # of protobuf, which is no dependency of its own
        raise DataError(f"not a readable ONNX file ({error})", path=path) from error
    if "architecture" not in found:
        raise DataError(
            "was not written by `lidarssl export`",
            path=path,
            field=f"{_PREFIX}architecture",
            remedy="its inputs are whatever its author says",
        )
    return found


def _check_weights(product: Product, path: Path) -> None:
    parts = [product.backbone] if product.head is None else [product.backbone, product.head]
    for part in parts:
        for name, value in part.state_dict().items():
            if not bool(value.isfinite().all()):
                raise ConfigError(
                    f"'{name}' is not finite: the training has diverged",
                    path=path,
                    field=name,
                    remedy="export an earlier checkpoint",
                )


def _save(path: Path, product: Product, graph: Graph, rng: np.random.Generator, opset: int) -> None:
    example = graph.arrays(cloud_of(rng, _EXAMPLE_POINTS)).inputs
    outputs = product.outputs(graph)
    with _quiet():
        program = torch.onnx.export(
            product.module(graph),
            kwargs={"inputs": example},
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in outputs],
            dynamic_shapes={"inputs": _dynamic(graph.inputs)},
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        model = program.model
        described = {"inputs": graph.inputs, "outputs": outputs}
        facts = {"version": __version__, **product.about} | {
            name: [port.described() for port in ports] for name, ports in described.items()
        }
        model.metadata_props.update(
            {f"{_PREFIX}{name}": json.dumps(value) for name, value in facts.items()}
        )
        for value, port in zip(
            (*model.graph.inputs, *model.graph.outputs), (*graph.inputs, *outputs), strict=True
        ):
            value.doc_string = port.meaning
        program.save(str(path), external_data=False)
    require("onnx", _EXTRA).checker.check_model(str(path), full_check=True)


def _width(head: nn.Module) -> int:
    """Number of logits."""
    biases = [layer.bias for layer in head.modules() if isinstance(layer, nn.Linear)]
    return len(biases[-1])


def _dynamic(ports: tuple[Port, ...]) -> dict[str, dict[int, torch.export.Dim]]:
    """Which axes have which named size."""
    sizes = {size for port in ports for size in port.shape if isinstance(size, str)}
    dims = {size: torch.export.Dim(size, min=1) for size in sizes}
    return {
        port.name: {axis: dims[size] for axis, size in enumerate(port.shape) if size in dims}
        for port in ports
    }


def _compare(path: Path, product: Product, graph: Graph, clouds: list[PointBatch]) -> Written:
    """Run the file and the backbone itself on the same clouds."""
    session = open_session(path)
    difference = largest = 0.0
    for cloud in clouds:
        wanted = product.reference(cloud).numpy()
        inputs = {name: array.numpy() for name, array in graph.arrays(cloud).inputs.items()}
        found = session.run(None, inputs)[0]
        # An output that is not finite must not pass as the larger of two.
        difference = float(np.max([difference, np.abs(found - wanted).max(initial=0)]))
        largest = float(np.max([largest, np.abs(wanted).max(initial=0)]))
    return Written(graph.inputs, product.outputs(graph), len(clouds), difference, largest)


def open_session(path: Path) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, with as many threads as PyTorch has."""
    runtime = require("onnxruntime", _EXTRA)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision and on its own future."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
