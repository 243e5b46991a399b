"""Weights of one MinkUNet or SPVCNN under the names and layouts of other libraries.

A network is the same function under every naming, so a state dict goes from one to another bit
by bit, without a network being built:

- ``recognise(state) -> Naming``
- ``to_ours(state, source=None) -> dict`` (``source`` is recognised when not given)
- ``from_ours(state, target) -> dict``
- ``convert(state, target, source=None) -> dict``
- ``architecture(state) -> dict``: arguments of ``MinkUNet`` that these weights fit

Any depth and any number of blocks is understood. Trainers' prefixes are removed before, see
:func:`lidarssl.checkpoints.reference.strip_prefixes`. Heads:

- a linear head becomes the 1x1x1 convolution ``final``;
- the batch norm without parameters of a ``bn_linear`` head becomes ``final_norm``;
- OLIVINE's second head stays ``final_class_level``.

Sources of the layouts: MinkowskiEngine 0.5.4, torchsparse 1.4.0, spconv 2.3, and mmdetection3d.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lidarssl.checkpoints.minkunet_schemes import OURS, SCHEMES, Naming, Scheme, pairs, plan_of
from lidarssl.errors import ConfigError, DataError
from lidarssl.sparse.kernel import Convention
from lidarssl.sparse.layouts import cells_from_kernel, kernel_from_cells

__all__ = ["OURS", "Naming", "architecture", "convert", "from_ours", "recognise", "to_ours"]

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def recognise(state: Mapping[str, Tensor]) -> Naming:
    """The naming of a state dict.

    Raises:
        DataError: it has none of them.
    """
    for naming, scheme in SCHEMES.items():
        conv, norm = scheme.stem(0)
        if scheme.conv_key(conv) in state and scheme.norm_key(norm, "weight") in state:
            return naming
    raise DataError(
        "these are no weights of a MinkUNet or SPVCNN under a known naming; the first key is "
        f"'{next(iter(state), '')[:200]}'",
        remedy=f"known namings: {', '.join(Naming)}",
    )


def to_ours(state: Mapping[str, Tensor], source: Naming | None = None) -> dict[str, Tensor]:
    """A state dict under the names and in the layouts of this library.

    Args:
        state: of one network, in any naming.
        source: its naming; None = recognise it.

    Raises:
        DataError: no known naming, a key that the network does not have, or a kernel whose
            shape does not fit its library.
    """
    return _translate(state, recognise(state) if source is None else source, OURS)


def from_ours(state: Mapping[str, Tensor], target: Naming) -> dict[str, Tensor]:
    """Inverse of :func:`to_ours`.

    Raises:
        DataError: as :func:`to_ours`.
        ConfigError: the target has no place for a part of the network.
    """
    return _translate(state, OURS, target)


def convert(
    state: Mapping[str, Tensor], target: Naming, source: Naming | None = None
) -> dict[str, Tensor]:
    """From any naming to any other; see :func:`to_ours` and :func:`from_ours`."""
    return from_ours(to_ours(state, source), target)


def architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of ``MinkUNet`` that fit a state dict in our naming, the inputs left out.

    Raises:
        DataError: a convolution of the plan is missing.
    """
    plan = plan_of(state, SCHEMES[OURS])

    def channels(conv: str) -> int:
        if f"{conv}.kernel" not in state:
            raise DataError("a weight of the network is missing", field=f"{conv}.kernel")
        return state[f"{conv}.kernel"].shape[-1]

    levels = range(1, 2 * plan.depth + 1)
    widths = [channels(f"block{level}.0.conv1") for level in levels]
    return {
        "stem_channels": channels("conv0p1s1"),
        "encoder_channels": tuple(widths[: plan.depth]),
        "decoder_channels": tuple(widths[plan.depth :]),
        "blocks": plan.blocks,
        "kernel_size": _cube(state["conv0p1s1.kernel"], "conv0p1s1.kernel"),
        "stem_convolutions": plan.stem,
        "head_channels": channels("final") if "final.kernel" in state else None,
    }


_Move = tuple[str, Callable[[Tensor], Tensor]]  # new name, and change of layout


def _translate(state: Mapping[str, Tensor], source: Naming, target: Naming) -> dict[str, Tensor]:
    moves = _moves(state, source, target)
    translated = {}
    for key, value in state.items():
        if key not in moves:
            close = difflib.get_close_matches(key[:200], moves, n=1)
            raise DataError(
                f"a MinkUNet of naming '{source}' has no weight '{key[:200]}'",
                field=key[:200],
                remedy=(f"did you mean '{close[0]}'? " if close else "")
                + "remove trainers' prefixes and parts that are not of the network",
            )
        name, change = moves[key]
        translated[name] = change(value)
    return translated


def _moves(state: Mapping[str, Tensor], source: Naming, target: Naming) -> dict[str, _Move]:
    """Where each key of the network goes."""
    old, new = SCHEMES[source], SCHEMES[target]
    plan = plan_of(state, old)
    moves: dict[str, _Move] = {}
    for before, after in zip(pairs(plan, old), pairs(plan, new), strict=True):
        key = old.conv_key(before[0])
        moves[key] = (new.conv_key(after[0]), _kernel_change(key, old.layout, new.layout))
        moves |= _norm_moves(before[1], after[1], old, new)
    if plan.points and not {source, target} <= {OURS, Naming.TORCHSPARSE}:
        raise _no_place("the point branch of SPVCNN", target)
    for i in range(plan.points):
        name = f"point_transforms.{i}"
        moves |= {f"{name}.0.{key}": (f"{name}.0.{key}", _same) for key in ("weight", "bias")}
        moves |= _norm_moves(f"{name}.1", f"{name}.1", old, new)
    return moves | _head_moves(state, source, target)


def _norm_moves(before: str, after: str, old: Scheme, new: Scheme) -> dict[str, _Move]:
    return {
        old.norm_key(before, parameter): (new.norm_key(after, parameter), _same)
        for parameter in _NORM
    }


def _head_moves(state: Mapping[str, Tensor], source: Naming, target: Naming) -> dict[str, _Move]:
    old, new = SCHEMES[source], SCHEMES[target]
    before = _heads_of(state, source)
    after = _names_of_heads(set(before), target)
    moves: dict[str, _Move] = {}
    for part, name in before.items():
        if part == "final_norm":
            moves |= _norm_moves(name, after[part], old, new)
            continue
        key = f"{name}.{'weight' if old.linear else 'kernel'}"
        new_key = f"{after[part]}.{'weight' if new.linear else 'kernel'}"
        turned = old.linear != new.linear
        moves[key] = (new_key, _matrix_change(key) if turned else _same)
        bias = _same if not turned else _as_row if old.linear else _flat
        moves[f"{name}.bias"] = (f"{after[part]}.bias", bias)
    return moves


def _heads_of(state: Mapping[str, Tensor], naming: Naming) -> dict[str, str]:
    """The heads that are there: our name -> their name."""
    scheme = SCHEMES[naming]
    if naming is OURS:
        parts = {name for name in scheme.heads if f"{name}.kernel" in state}
        parts |= {"final_norm"} if "final_norm.bn.running_mean" in state else set()
        return {name: name for name in sorted(parts)}
    if naming is Naming.TORCHSPARSE and "classifier.0.running_mean" in state:
        return _names_of_heads({"final", "final_norm"}, naming)
    found = [name for name in scheme.heads if f"{name}.weight" in state]
    return {"final": found[0]} if found else {}


def _names_of_heads(parts: set[str], naming: Naming) -> dict[str, str]:
    """Their names of our heads."""
    if naming is OURS:
        return {part: part for part in parts}
    names = {"final": SCHEMES[naming].heads[0]}
    if "final_norm" in parts and naming is Naming.TORCHSPARSE:
        names = {"final": "classifier.1", "final_norm": "classifier.0"}
    for part in sorted(parts - names.keys()):
        raise _no_place(f"the head '{part}'", naming)
    return {part: names[part] for part in parts}


def _no_place(part: str, target: Naming) -> ConfigError:
    return ConfigError(
        f"networks of naming '{target}' have no place for {part}",
        field="target",
        remedy="leave it out, or choose another naming",
    )


def _kernel_change(
    key: str, old: Convention | None, new: Convention | None
) -> Callable[[Tensor], Tensor]:
    if old == new:
        return _same

    def change(kernel: Tensor) -> Tensor:
        if old is None:
            cells = _cells_from_spconv(kernel, key)
        else:
            cells = cells_from_kernel(kernel, _cube(kernel, key), old)
        turned = _spconv_from_cells(cells) if new is None else kernel_from_cells(cells, new, True)
        return turned.contiguous()

    return change


def _cube(kernel: Tensor, key: str) -> int:
    """Size of a cubic kernel (K, C_in, C_out), or (C_in, C_out) of size 1."""
    weights = 1 if kernel.dim() == 2 else kernel.shape[0] if kernel.dim() == 3 else 0
    size = round(weights ** (1 / 3))
    if size < 1 or size**3 != weights:
        raise DataError(f"a kernel of shape {tuple(kernel.shape)} is no cube", field=key)
    return size


def _cells_from_spconv(weight: Tensor, key: str) -> Tensor:
    """(C_out, k, k, k, C_in) in the common form (k, k, k, C_in, C_out).

    spconv 2 multiplies by the memory of a 1x1x1 weight as it lies, read as (C_in, C_out).
    """
    if weight.dim() != 5 or len(set(weight.shape[1:4])) != 1:
        raise DataError(
            f"a kernel of shape {tuple(weight.shape)} is not (C_out, k, k, k, C_in)",
            field=key,
            remedy="save it with the default layout of spconv 2.2 or newer",
        )
    if weight.shape[1] == 1:
        return weight.reshape(1, 1, 1, weight.shape[4], weight.shape[0])
    return weight.permute(1, 2, 3, 4, 0)


def _matrix_change(key: str) -> Callable[[Tensor], Tensor]:
    """A linear layer's weight as a 1x1x1 kernel, or back."""

    def change(weight: Tensor) -> Tensor:
        if weight.dim() != 2:
            raise DataError(f"a head of shape {tuple(weight.shape)} is not linear", field=key)
        return weight.t().contiguous()

    return change


def _spconv_from_cells(cells: Tensor) -> Tensor:
    if cells.shape[0] == 1:
        return cells.reshape(cells.shape[4], 1, 1, 1, cells.shape[3])
    return cells.permute(4, 0, 1, 2, 3)


def _same(value: Tensor) -> Tensor:
    return value


def _as_row(value: Tensor) -> Tensor:
    return value[None]


def _flat(value: Tensor) -> Tensor:
    return value.reshape(-1)
