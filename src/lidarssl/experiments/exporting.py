"""`lidarssl export onnx`: trained networks for other engines."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lidarssl import checkpoints
from lidarssl.backbones.base import Backbone
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.record import STUDENT_FILE, TASK_FILE, weights_of
from lidarssl.export import onnx_file
from lidarssl.export.backbones import GRAPHS
from lidarssl.export.onnx_file import Product, Written
from lidarssl.recipes import schema
from lidarssl.report.schema import Results
from lidarssl.tasks.semantic import SemanticSegmentation

# Arguments of a backbone that belong to the head of its pretraining.
_WITHOUT_HEAD = {"head_channels": None, "normalize": False}
_HEAD_OF_BACKBONE = ("final.",)


@dataclass(frozen=True)
class Wanted:
    """What an export shall make.

    Attributes:
        output: the file.
        opset: version of ONNX's operators.
        head: keep the head; None = that of a probe or finetune, but not that of a pretraining.
        clouds: random clouds to compare on.
        overwrite: replace ``output``.
    """

    output: Path
    opset: int = onnx_file.OPSETS[0]
    head: bool | None = None
    clouds: int = 5
    overwrite: bool = False


def export_onnx(source: Path, wanted: Wanted) -> str:
    """Write an ONNX file that computes what PyTorch does, or none.

    Args:
        source: run folder or weights file of lidarssl.
        wanted: see there.

    Returns:
        What was written, for people.

    Raises:
        DataError: no weights, or none of lidarssl.
        ConfigError: the output exists or cannot be written, a package is missing, the backbone
            has no such form, there is no head to keep, or the file would not compute the same.
    """
    onnx_file.check_opset(wanted.opset)
    _check_output(wanted)
    made = product(source, wanted.head)
    try:
        wanted.output.parent.mkdir(parents=True, exist_ok=True)
        written = onnx_file.write(wanted.output, made, wanted.opset, wanted.clouds)
    except OSError as error:
        raise ConfigError(
            f"cannot be written ({error.strerror or error})",
            path=wanted.output,
            field="--output",
            remedy="choose a place where you may write and that has room",
        ) from error
    return _summary(wanted.output, written)


def product(source: Path, head: bool | None = None) -> Product:
    """The network of a run folder or weights file, with or without its head.

    Args:
        head: see ``Wanted``.
    """
    path = _source_file(source)
    loaded = checkpoints.load(path)
    state = loaded.state
    task = any(name.startswith("head.") for name in state)
    if not task and head and loaded.card.architecture.init_args.get("head_channels") is None:
        raise ConfigError(
            "these weights have no head",
            path=path,
            field="--head",
            remedy="leave it out to export features, or give the folder of a probe or finetune",
        )
    keep_own = bool(head) and not task
    built = _architecture(loaded, keep_own)
    backbone = _build(built, path)
    about = _facts(loaded, built)
    if not task:
        drop = () if keep_own else _HEAD_OF_BACKBONE
        checkpoints.load_into(backbone, state, drop=drop)
        return Product(backbone, None, about)
    made = _task(backbone, state, path)
    if head is False:
        return Product(made.backbone, None, about)
    names = _class_names(path.parent)
    about |= {"class_names": names} if len(names) == made.num_classes else {}
    return Product(made.backbone, made.head, about)


def preprocessing(path: str | Path) -> Backbone:
    """The backbone of an exported file without weights, for ``onnx_inputs``.

    Args:
        path: written by `lidarssl export onnx`.

    Raises:
        DataError: no such file, or not written by lidarssl.
    """
    path = Path(path)
    found = onnx_file.about(path)["architecture"]
    try:
        built = checkpoints.Architecture(found["class_path"], found["init_args"])
    except (TypeError, KeyError) as error:
        raise DataError(
            "does not say which network it is", path=path, field="lidarssl.architecture"
        ) from error
    with torch.device("meta"):
        return _build(built, path)


def _source_file(source: Path) -> Path:
    """The weights that a path stands for; a run folder without a student is a probe's."""
    if not (source / STUDENT_FILE).is_file() and (source / TASK_FILE).is_file():
        return source / TASK_FILE
    path = weights_of(source, "SOURCE")
    if path.suffix != ".safetensors":
        raise DataError(
            "is not a weights file of lidarssl",
            path=path,
            field="SOURCE",
            remedy=f"`lidarssl convert {path} --to lidarssl --output weights.safetensors` makes "
            "one of the published files of others",
        )
    return path


def _architecture(loaded: checkpoints.Checkpoint, keep_head: bool) -> checkpoints.Architecture:
    card = loaded.card.architecture
    arguments = copy.deepcopy(dict(card.init_args))
    if not keep_head:
        arguments |= {name: v for name, v in _WITHOUT_HEAD.items() if name in arguments}
    return checkpoints.Architecture(card.class_path, arguments)


def _build(built: checkpoints.Architecture, path: Path) -> Backbone:
    """The backbone of a card.

    Raises:
        ConfigError: one that cannot be exported, or arguments that it does not have.
    """
    from jsonargparse import ArgumentError

    known = {f"{kind.__module__}.{kind.__qualname__}": kind.__name__ for kind in GRAPHS}
    if built.class_path not in known:
        raise ConfigError(
            f"a {built.class_path.rpartition('.')[2]} cannot be exported",
            path=path,
            field="architecture.class_path",
            remedy=f"these can: {', '.join(known.values())}",
        )
    node = {"class_path": built.class_path, "init_args": dict(built.init_args)}
    try:
        return schema.build_backbone(node, seed=0)
    except ArgumentError as error:
        raise ConfigError(
            f"the card does not fit its network: {' '.join(str(error).split())[:300]}",
            path=path,
            field="architecture.init_args",
            remedy="the card may come from a newer lidarssl: update it",
        ) from error


def _task(backbone: Backbone, state: Mapping[str, Any], path: Path) -> SemanticSegmentation:
    """The task of a probe or finetune with its weights."""
    normed = "head.1.weight" in state
    bias = state.get("head.1.bias" if normed else "head.bias")
    if bias is None or bias.dim() != 1:
        raise DataError(
            "has a head that is not known here",
            path=path,
            field="head",
            remedy="add --features to export the backbone alone",
        )
    task = SemanticSegmentation(
        backbone, len(bias), freeze=True, head="norm_linear" if normed else "linear"
    )
    checkpoints.load_into(task, state)
    return task.eval()


def _facts(loaded: checkpoints.Checkpoint, built: checkpoints.Architecture) -> dict[str, Any]:
    """What the metadata of the file says of the network."""
    card = loaded.card
    facts = {
        "architecture": {"class_path": built.class_path, "init_args": dict(built.init_args)},
        "method": card.recipe,
        "data": list(card.data),
        "licence": card.licence,
    }
    return {name: value for name, value in facts.items() if value}


def _class_names(run: Path) -> list[str]:
    """Names of the logits, as far as a run folder tells them."""
    try:
        rows = Results.load(run).classes
    except DataError:
        return []
    return ["ignored", *rows[0].names] if rows else []


def _summary(path: Path, written: Written) -> str:
    ports = [("input", port) for port in written.inputs]
    ports += [("output", port) for port in written.outputs]
    lines = [f"  {kind:<8}{port}" for kind, port in ports]
    return "\n".join(
        [
            str(path),
            *lines,
            f"  checked on {written.clouds} random clouds: differs from PyTorch by at most "
            f"{written.difference:.1e} (values up to {written.largest:.3g})",
        ]
    )


def _check_output(wanted: Wanted) -> None:
    path = wanted.output
    if path.is_dir() or path.suffix != ".onnx":
        raise ConfigError(
            "is not the name of an ONNX file",
            path=path,
            field="--output",
            remedy="give a name that ends in .onnx",
        )
    if path.exists() and not wanted.overwrite:
        raise ConfigError(
            "exists", path=path, field="--output", remedy="choose another, or add --overwrite"
        )
