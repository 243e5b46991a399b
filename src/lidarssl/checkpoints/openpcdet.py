"""Weights for OpenPCDet's detectors, checked against their networks before they are written.

OpenPCDet loads by name and shape and leaves everything else random without a word. The tables
here are its ``backbone_3d`` and ``backbone_2d`` of SECOND and PV-RCNN, which are the same
networks; a file that differs in one key is not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from lidarssl.checkpoints.spconv_layouts import SpconvLayout, convert_layout
from lidarssl.errors import ConfigError
from lidarssl.wording import counted

Shapes = dict[str, tuple[int, ...]]
TRUNK, PLANE = "backbone_3d.", "backbone_2d."
DETECTORS = "SECOND and PV-RCNN"
_COUNTER = "num_batches_tracked"
_STAGES = {1: 16, 2: 32, 3: 64, 4: 64}
_RESIDUAL_STAGES = {1: 16, 2: 32, 3: 64, 4: 128}
_HEIGHTS = 2  # what is left of 40 voxels of height; they become channels
_LAYERS, _FILTERS, _UPSAMPLED = 5, (128, 256), (256, 256)


def trunk_shapes(inputs: int = 4, residual: bool = False) -> Shapes:
    """``backbone_3d`` with batch-norm counters, prefix included.

    Args:
        inputs: features of a voxel.
        residual: ``VoxelResBackBone8x`` instead of ``VoxelBackBone8x``.
    """
    stages = _RESIDUAL_STAGES if residual else _STAGES
    shapes = dict(_unit("conv_input", (3, 3, 3), inputs, stages[1]))
    before = stages[1]
    for stage, width in stages.items():
        first = 0
        if stage > 1:
            shapes |= _unit(f"conv{stage}.0", (3, 3, 3), before, width)
            first = 1
        count = 2 if stage > 1 or residual else 1
        for index in range(first, first + count):
            name = f"conv{stage}.{index}"
            unit = _block(name, width) if residual else _unit(name, (3, 3, 3), width, width)
            shapes |= unit
        before = width
    shapes |= _unit("conv_out", (3, 1, 1), before, 128)
    return {TRUNK + name: shape for name, shape in shapes.items()}


def plane_shapes() -> Shapes:
    """``backbone_2d`` with batch-norm counters, prefix included."""
    shapes: Shapes = {}
    before = 128 * _HEIGHTS
    for block, (width, up) in enumerate(zip(_FILTERS, _UPSAMPLED, strict=True)):
        # Padding, convolution, norm and ReLU; then convolution, norm and ReLU, over and over.
        for layer in range(1 + _LAYERS):
            shapes[f"blocks.{block}.{3 * layer + 1}.weight"] = (width, before, 3, 3)
            shapes |= _norm(f"blocks.{block}.{3 * layer + 2}", width)
            before = width
        size = block + 1
        shapes[f"deblocks.{block}.0.weight"] = (width, up, size, size)
        shapes |= _norm(f"deblocks.{block}.1", up)
    return {PLANE + name: shape for name, shape in shapes.items()}


def detector_file(
    state: Mapping[str, Tensor], layout: SpconvLayout = SpconvLayout.KRSC
) -> dict[str, dict[str, Tensor]]:
    """The content of a file that OpenPCDet's detectors load completely.

    Args:
        state: ``backbone_3d.*`` and, unless only the trunk is there, ``backbone_2d.*``; sparse
            weights in ``KRSC``.
        layout: of the sparse weights in the file: ``RSCK`` for an OpenPCDet on spconv 1.x.

    Raises:
        ConfigError: names every key that is not as SECOND and PV-RCNN have it.
    """
    check_detector(state)
    return {"model_state": convert_layout(state, SpconvLayout.KRSC, layout)}


def check_detector(state: Mapping[str, Tensor]) -> None:
    """Raise unless keys and shapes are those of OpenPCDet's SECOND and PV-RCNN.

    Raises:
        ConfigError: names the keys that differ.
    """
    first = state.get(f"{TRUNK}conv_input.0.weight")
    inputs = first.shape[-1] if first is not None and first.dim() == 5 else 4
    expected = trunk_shapes(inputs, residual=f"{TRUNK}conv1.0.conv1.weight" in state)
    if any(name.startswith(PLANE) for name in state):
        expected |= plane_shapes()
    problems = list(_differences(state, expected))
    if problems:
        shown = "; ".join(problems[:6]) + ("; ..." if len(problems) > 6 else "")
        raise ConfigError(
            f"{counted(len(problems), 'key')} not as OpenPCDet's {DETECTORS} have them: {shown}",
            field="--to openpcdet",
            remedy="OpenPCDet would leave these parts random: convert a VoxelNet or SECOND with "
            "the widths of the published networks",
        )


def _differences(state: Mapping[str, Tensor], expected: Shapes) -> Iterator[str]:
    for name, shape in expected.items():
        if name not in state:
            if not name.endswith(_COUNTER):
                yield f"'{name}' is missing"
        elif tuple(state[name].shape) != shape:
            yield f"'{name}' is {tuple(state[name].shape)}, not {shape}"
    for name in state:
        if name not in expected:
            yield f"'{name[:80]}' is unknown there"


def _unit(name: str, kernel: tuple[int, int, int], before: int, after: int) -> Shapes:
    """Sparse convolution, norm, ReLU."""
    return {f"{name}.0.weight": (after, *kernel, before)} | _norm(f"{name}.1", after)


def _block(name: str, width: int) -> Shapes:
    """Two sparse convolutions with bias and norm, around which the input is added."""
    shapes: Shapes = {}
    for number in (1, 2):
        shapes[f"{name}.conv{number}.weight"] = (width, 3, 3, 3, width)
        shapes[f"{name}.conv{number}.bias"] = (width,)
        shapes |= _norm(f"{name}.bn{number}", width)
    return shapes


def _norm(name: str, width: int) -> Shapes:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{vector}": (width,) for vector in vectors} | {f"{name}.{_COUNTER}": ()}
