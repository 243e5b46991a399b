"""Files of weights are read whatever wrote them, or refused with a remedy, and never run."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import pickletools
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from lidarssl.errors import DataError
from lidarssl.weights import read_content, read_safetensors, read_state
from weight_files import Bomb

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2), "steps": torch.tensor(7)}
FUZZING = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def is_state(read: dict[str, Tensor]) -> bool:
    return read.keys() == STATE.keys() and all(torch.equal(read[key], STATE[key]) for key in STATE)


def torch_bytes(content: object, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


@pytest.mark.parametrize(
    "entry", [None, "state_dict", "model_points", "model_point", "net", "model_state", "model"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(tmp_path: Path, entry: str | None, legacy: bool) -> None:
    content = STATE if entry is None else {"epoch": 3, entry: STATE, "config": {"lr": 0.5}}
    path = tmp_path / "weights.pt"
    path.write_bytes(torch_bytes(content, legacy))
    assert is_state(read_state(path))


def test_entries_of_the_caller_and_inside_one_another(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    other = {"weight": torch.zeros(1)}
    torch.save({"state_dict": other, "wrapper": {"teacher": STATE, "student": other}}, path)
    assert is_state(read_state(path, ("wrapper", "teacher")))
    assert read_state(path).keys() == other.keys()
    with pytest.raises(DataError, match=r"only state_dict, wrapper\n.*under one of teacher$"):
        read_state(path, ("teacher",))


@pytest.mark.parametrize("name", ["model.safetensors", "weights.ckpt"])
def test_safetensors_files_by_content(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name, {"origin": "here"})
    assert is_state(read_state(tmp_path / name))
    tensors, texts = read_safetensors(tmp_path / name)
    assert is_state(tensors)
    assert texts["origin"] == "here"


def test_folder_of_weights(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    assert is_state(read_state(tmp_path))


def test_content_keeps_settings(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"net": STATE, "config": {"size": (1, 2)}}, path)
    assert read_content(path)["config"] == {"size": (1, 2)}


def test_settings_of_easydict_and_paths_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NCLR and BEVContrast leave them beside their weights; neither module is imported."""
    module = types.ModuleType("easydict")

    class EasyDict(dict[str, Any]):
        """Keeps its items as attributes too, as the original."""

        def __init__(self, **items: Any) -> None:
            super().__init__(items)
            self.__dict__.update(items)

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    path = tmp_path / "model_50.pt"
    config = EasyDict(SIZES=EasyDict(VOXEL=0.1), SAVE_FOLDER=tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "easydict", module)
        torch.save({"state_dict": STATE, "config": config, "epoch": 50}, path)
    assert "easydict" not in sys.modules
    content = read_content(path)
    assert is_state(read_state(path))
    assert content["config"]["SIZES"] == {"VOXEL": 0.1}
    assert not isinstance(content["config"]["SAVE_FOLDER"], Path)


def test_curves_of_mmengine_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers of arrays, which also name methods of their class: none of it is looked up."""
    name = "mmengine.logging.history_buffer"
    modules = {part: types.ModuleType(part) for part in ("mmengine", "mmengine.logging", name)}

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history = np.arange(3.0)
            self.methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> float:
            raise AssertionError("called")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    HistoryBuffer.mean.__module__ = name
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    modules[name].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    path = tmp_path / "epoch_36.pth"
    with monkeypatch.context() as patch:
        for part, module in modules.items():
            patch.setitem(sys.modules, part, module)
        hub = {"log_scalars": {"train/loss": HistoryBuffer()}}
        torch.save({"meta": {"epoch": 36}, "state_dict": STATE, "message_hub": hub}, path)
    assert "mmengine" not in sys.modules
    assert is_state(read_state(path))
    buffer = read_content(path)["message_hub"]["log_scalars"]["train/loss"]
    assert not hasattr(buffer, "history")


@pytest.mark.parametrize("call", [False, True])
def test_a_name_that_a_file_asks_for_is_not_looked_up(tmp_path: Path, call: bool) -> None:
    path = tmp_path / "w.pt"
    stream = pickle_of_getattr(tmp_path / "made", call)
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"state_dict": STATE}))) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in entries.items():
            target.writestr(name, stream if name.endswith("data.pkl") else data)
    with pytest.raises(DataError):
        read_state(path)
    assert not (tmp_path / "made").exists()


def pickle_of_getattr(target: Path, call: bool) -> bytes:
    """``getattr("", "format")``, called with a path where ``call``; no class that is unknown."""
    text = str(target).encode()
    inner = b"cbuiltins\ngetattr\n(X\x00\x00\x00\x00X\x06\x00\x00\x00formattR"
    outer = b"(X" + len(text).to_bytes(4, "little") + text + b"tR" if call else b""
    return b"\x80\x02" + inner + outer + b"."


def test_tied_weights_are_plain(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    torch.save(
        {"a": whole, "b": whole, "c": whole[3:5], "d": whole.view(3, 4).T}, tmp_path / "w.pt"
    )
    assert torch.equal(read_state(tmp_path / "w.pt")["d"], whole.view(3, 4).T)


def repacked(path: Path, compression: int, copies: int = 1) -> None:
    """The archive of ``torch.save`` written again, its directory naming each entry repeatedly."""
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes({"w": torch.zeros(100_000)}))) as source,
        zipfile.ZipFile(path, "w", compression) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        for entry in target.infolist() * (copies - 1):
            target.filelist.append(entry)


def never_stored(path: Path) -> None:
    """The old format lists the tensors first, and then which of them follow: here none does."""
    stream = io.BytesIO(torch_bytes({"w": torch.zeros(1000)}, legacy=True))
    for _ in ("magic number", "version", "system", "tensors"):
        collections.deque(pickletools.genops(stream), maxlen=0)
    path.write_bytes(stream.getvalue()[: stream.tell()] + pickle.dumps([], 2))


def quantised(path: Path) -> None:
    torch.save({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.pth": (lambda path: None, "no such weights file"),
    "missing.safetensors": (lambda path: None, "no such weights file"),
    "folder.pth": (lambda path: path.mkdir(), "no such weights file"),
    "empty.pth": (lambda path: path.write_bytes(b""), "not a file of plain tensors"),
    "noise.pth": (lambda path: path.write_bytes(bytes(range(256)) * 20), "not a file of plain"),
    "truncated.pth": (lambda path: path.write_bytes(torch_bytes(STATE)[:900]), "damaged archive"),
    "truncated_legacy.pth": (
        lambda path: path.write_bytes(torch_bytes(STATE, True)[:-9]),
        "not a file of plain tensors",
    ),
    "compressed.pth": (lambda path: repacked(path, zipfile.ZIP_DEFLATED), "unpacks to"),
    "overlapping.pth": (lambda path: repacked(path, zipfile.ZIP_STORED, 5), "unpacks to"),
    "never_stored.pth": (never_stored, "tensors of 4000 bytes in a file of"),
    "plain.pkl": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a file of plain"),
    "module.pth": (lambda path: torch.save(nn.Linear(2, 2), path), "could run code"),
    "tensor.pth": (lambda path: torch.save(torch.ones(2), path), "holds a Tensor"),
    "list.pth": (lambda path: torch.save([torch.zeros(3)], path), "holds a list"),
    "nothing.pth": (lambda path: torch.save({}, path), "holds no tensors"),
    "settings.pth": (lambda path: torch.save({"epoch": 3}, path), "holds no tensors, only epoch"),
    "hollow.pth": (lambda path: torch.save({"state_dict": {}}, path), "holds no tensors"),
    "expanded.pth": (
        lambda path: torch.save({"w": torch.ones(1).expand(10**6)}, path),
        "'w' is not a plain dense tensor",
    ),
    "sparse.pth": (lambda path: torch.save({"w": torch.eye(3).to_sparse()}, path), "'w' is not a"),
    "meta.pth": (lambda path: torch.save({"w": torch.ones(3, device="meta")}, path), "'w' is not"),
    "quantised.pth": (quantised, "'w' is not a plain dense tensor"),
    "empty.safetensors": (lambda path: path.write_bytes(b""), "not a readable safetensors"),
    "truncated.safetensors": (
        lambda path: (save_file(STATE, path), path.write_bytes(path.read_bytes()[:-1])),
        "not a readable safetensors",
    ),
    "huge_header.safetensors": (
        lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"),
        "not a readable safetensors",
    ),
    "torch.safetensors": (lambda path: torch.save(STATE, path), "not a readable safetensors"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_are_errors_that_name_file_and_remedy(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write, problem = UNUSABLE[name]
    write(path)
    with pytest.raises(DataError, match=problem) as caught:
        read_state(path)
    named = path / "model.safetensors" if path.is_dir() else path
    assert caught.value.path == named
    assert caught.value.remedy


@pytest.mark.parametrize("wrapper", ["torch", "torch legacy", "pickle", "inside a state dict"])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, wrapper: str) -> None:
    target, path = tmp_path / "exploded", tmp_path / "bomb.pt"
    content: object = Bomb(target)
    if wrapper == "inside a state dict":
        content = {"state_dict": {"w": torch.ones(2)}, "config": content}
    if wrapper == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        path.write_bytes(torch_bytes(content, legacy=wrapper == "torch legacy"))
    with pytest.raises(DataError, match="nothing in it was run") as caught:
        read_state(path)
    assert caught.value.path == path
    assert "weights_only" not in str(caught.value)  # no advice to switch the safety off
    assert not target.exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    """So that the test above would notice an unsafe reader."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


@FUZZING
@given(data=st.binary(max_size=200), kind=st.sampled_from(["raw", "pickle", "zip", "safetensors"]))
def test_any_bytes_are_a_data_error(tmp_path: Path, data: bytes, kind: str) -> None:
    start = {
        "raw": b"",
        "pickle": b"\x80\x02",
        "zip": b"PK\x03\x04",
        "safetensors": (2).to_bytes(8, "little") + b"{}",
    }[kind]
    path = tmp_path / "any.bin"
    path.write_bytes(start + data)
    with pytest.raises(DataError):
        read_state(path)


@pytest.fixture(scope="module")
def valid_files() -> dict[str, bytes]:
    """One of each format."""
    from safetensors.torch import save

    return {"torch": torch_bytes(STATE), "legacy": torch_bytes(STATE, True), "new": save(STATE)}


@FUZZING
@given(
    kind=st.sampled_from(["torch", "legacy", "new"]),
    position=st.floats(0, 1, exclude_max=True),
    value=st.integers(0, 255),
)
def test_a_damaged_byte_is_read_or_refused(
    tmp_path: Path, valid_files: dict[str, bytes], kind: str, position: float, value: int
) -> None:
    content = bytearray(valid_files[kind])
    content[int(position * len(content))] = value
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert all(isinstance(tensor, Tensor) for tensor in read_state(path).values())


def test_an_archive_with_a_damaged_directory_is_refused(tmp_path: Path) -> None:
    """Python's own test for an archive raises on this one."""
    content = bytearray(torch_bytes(STATE))
    content[content.rindex(b"PK\x06\x07") + 4] ^= 1  # the disk that holds the directory
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged archive"):
        read_state(path)
