"""Read weights files of any origin; whatever a file holds, nothing in it is ever run."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.errors import DataError

WEIGHTS_FILE = "model.safetensors"
# Where trainers put the state dict in their checkpoints, most specific name first.
CONTAINERS = ("model_points", "model_point", "state_dict", "net", "model_state", "model")
_MAX_HEADER_BYTES = 100_000_000
_ZIP_START = b"PK\x03\x04"
# A score that somebody averaged with numpy, beside the weights.
_NUMPY_NUMBERS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
# Curves of losses that mmengine keeps beside the weights (mmdetection3d, mmsegmentation).
_CURVES = (
    "mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr", "numpy.ndarray",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
)  # fmt: skip
# Settings of a trainer, beside the weights, and where it wrote (NCLR, BEVContrast).
_TABLES = ("easydict.EasyDict",)
_PATHS = ("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath")


def weights_file(path: str | Path) -> Path:
    """``path`` itself, or the ``model.safetensors`` inside when it is a folder."""
    path = Path(path)
    return path / WEIGHTS_FILE if path.is_dir() else path


def read_state(path: str | Path, containers: Sequence[str] = CONTAINERS) -> dict[str, Tensor]:
    """The tensors of any weights file, under the names they have there.

    Args:
        path: a safetensors file, a file of ``torch.save``, or a folder with ``model.safetensors``.
        containers: as for :func:`state_of`.

    Raises:
        DataError: missing, damaged, or anything but plain tensors in plain containers.
    """
    path = weights_file(path)
    return state_of(read_content(path), path, containers)


def read_content(path: Path) -> Mapping[str, Any]:
    """Everything plain that a weights file holds: tensors, and in torch files settings too.

    Raises:
        DataError: as :func:`read_state`.
    """
    start = _read_start(path)
    if path.suffix == ".safetensors" or _starts_safetensors(start):
        return read_safetensors(path)[0]
    if start.startswith(_ZIP_START):
        _refuse_inflation(path)
    return _read_torch(path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the texts in the header of the file.

    Raises:
        DataError: missing, truncated, or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    _read_start(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"not a readable safetensors file ({reason(error)})",
            path=path,
            remedy="the file is truncated or damaged: copy or download it again",
        ) from error


def state_of(
    content: Mapping[str, Any], path: Path, containers: Sequence[str] = CONTAINERS
) -> dict[str, Tensor]:
    """The state dict inside the content of a checkpoint.

    Args:
        content: of :func:`read_content`.
        path: the file it was read from.
        containers: entries that may hold the state dict, in the order in which they are looked
            for, also inside one another; without any of them it is at the top.

    Raises:
        DataError: there is none, or one of its tensors is not plain.
    """
    state = content
    for name in containers:
        if isinstance(state.get(name), Mapping):
            state = state[name]
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(
            f"holds no tensors, only {', '.join(str(name)[:40] for name in list(content)[:8])}",
            path=path,
            remedy=f"weights must be at the top or under one of {', '.join(containers)}",
        )
    for name, tensor in tensors.items():
        _check_plain(name, tensor, path)
    _check_stored(tensors, path)
    return tensors


def reason(error: BaseException) -> str:
    """What a reader complained of, in a line, without its advice to switch the safety off."""
    text = str(error).strip()
    if "Weights only load failed" in text:
        culprit = re.search(r"GLOBAL (\S+)|class (\S+)", text)
        found = (culprit[1] or culprit[2])[:100] if culprit else "python objects"
        return f"it is damaged or needs {found}, which could run code"
    return text.splitlines()[0][:300] if text else type(error).__name__


def _read_start(path: Path) -> bytes:
    if not path.is_file():
        raise DataError("no such weights file", path=path, remedy="check the path")
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise DataError(
            f"cannot read the weights ({error.strerror})", path=path, remedy="check the path"
        ) from error


def _starts_safetensors(start: bytes) -> bool:
    """8 bytes of header length, then a JSON object."""
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= _MAX_HEADER_BYTES


class _Unread:
    """Takes the place of what is no tensor: none of the names above is looked up or called."""

    def __init__(self, *values: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _read_torch(path: Path) -> Mapping[str, Any]:
    stand_ins: list[Any] = [(_Unread, name) for name in (*_NUMPY_NUMBERS, *_CURVES, *_PATHS)]
    stand_ins += [(OrderedDict, name) for name in _TABLES]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes make the reader raise anything
        raise DataError(
            f"not a file of plain tensors ({reason(error)})",
            path=path,
            remedy="nothing in it was run; if you trust its origin, save its state dict as "
            "safetensors where it was made, otherwise download it again",
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(
            f"holds a {type(content).__name__}, not a state dict",
            path=path,
            remedy="save module.state_dict(), not the module",
        )
    return content


def _refuse_inflation(path: Path) -> None:
    """``torch.save`` stores without compression; an archive that inflates is hostile."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception as error:  # as above, for the directory of the archive
        raise DataError(
            f"damaged archive ({reason(error)})", path=path, remedy="download it again"
        ) from error
    if not stored or inflated > size:
        raise DataError(
            f"an archive of {size} bytes that unpacks to {inflated}, which torch.save never writes",
            path=path,
            remedy="download it again from its authors",
        )


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse tensors that are not what they take in memory: sparse, quantised, meta, expanded."""
    plain = (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
    if not plain:
        raise DataError(
            f"'{name[:80]}' is not a plain dense tensor",
            path=path,
            field=name[:80],
            remedy="save tensor.contiguous() of dense CPU tensors",
        )


def _check_stored(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse memory that no bytes of the file fill, which the old torch format can ask for."""
    storages = (tensor.untyped_storage() for tensor in tensors.values())
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    size = path.stat().st_size
    if claimed > size:
        raise DataError(
            f"tensors of {claimed} bytes in a file of {size}",
            path=path,
            remedy="download it again from its authors",
        )
