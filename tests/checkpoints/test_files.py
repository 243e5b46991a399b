from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lidarssl.checkpoints import Architecture, Card, load, read_state, save
from lidarssl.errors import ConfigError, DataError

CARD = Card(Architecture("torch.nn.modules.container.Sequential"), recipe="test")


class Bomb:
    """A pickle of this writes a file when it is loaded by an unsafe reader."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def make_module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("name", ["run", "v1.0", "sub/run", "weights.safetensors"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    module = make_module()
    path = save(tmp_path / name, module, CARD)
    checkpoint = load(tmp_path / name)
    assert path.suffix == ".safetensors"
    assert checkpoint.card == CARD
    assert checkpoint.path == path
    assert checkpoint.state.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(checkpoint.state[key], value)
        assert checkpoint.state[key].dtype == value.dtype
    assert read_state(path).keys() == module.state_dict().keys()
    assert Card.from_json(path.with_suffix(".json").read_text()) == CARD


def test_saves_tied_strided_and_training_tensors(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3).T.requires_grad_()
    save(tmp_path, {"a": weight, "b": weight, "half": weight[:1].bfloat16()}, CARD)
    state = load(tmp_path).state
    assert torch.equal(state["a"], weight)
    assert torch.equal(state["b"], weight)
    assert state["half"].dtype is torch.bfloat16


def test_the_card_travels_inside_the_weights(tmp_path: Path) -> None:
    save(tmp_path, make_module(), CARD)
    (tmp_path / "model.json").unlink()
    assert load(tmp_path).card == CARD


def test_a_card_beside_foreign_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(DataError, match="no card"):
        load(path)
    path.with_suffix(".json").write_text(CARD.to_json())
    assert load(path).card == CARD
    path.with_suffix(".json").write_text('{"architecture": 3}')
    with pytest.raises(DataError, match=r"foreign\.json"):
        load(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, make_module(0), CARD)
    before = path.read_bytes()

    def full_disk(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, make_module(1), CARD)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_refuses_to_save_what_is_not_a_tensor(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'epoch' is a int"):
        save(tmp_path, {"epoch": 3}, CARD)  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 4, 8, 9, 40, -1])
def test_truncated_weights(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path, make_module(), CARD)
    path.write_bytes(path.read_bytes()[:keep])
    for read in (load, read_state):
        with pytest.raises(DataError) as caught:
            read(path)
        assert caught.value.path == path
        assert caught.value.remedy


def test_missing_file(tmp_path: Path) -> None:
    for read in (load, read_state):
        with pytest.raises(DataError, match=r"check the path|missing"):
            read(tmp_path / "nothing.pt")


@pytest.mark.parametrize("entry", [None, "state_dict", "model_points", "net", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_torch_files(tmp_path: Path, entry: str | None, legacy: bool) -> None:
    state = make_module().state_dict()
    content = state if entry is None else {"epoch": 3, entry: state, "config": {"lr": 0.5}}
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = read_state(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_reads_safetensors_by_content(tmp_path: Path) -> None:
    path = save(tmp_path, make_module(), CARD)
    renamed = path.rename(tmp_path / "weights.ckpt")
    assert set(read_state(renamed)) == set(make_module().state_dict())


@pytest.mark.parametrize("wrapper", ["torch", "torch legacy", "pickle", "inside a state dict"])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, wrapper: str) -> None:
    target, path = tmp_path / "exploded", tmp_path / "bomb.pt"
    content: object = Bomb(target)
    if wrapper == "inside a state dict":
        content = {"state_dict": {"w": torch.ones(2)}, "config": content}
    if wrapper == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=wrapper != "torch legacy")
    with pytest.raises(DataError, match="nothing in it was run") as caught:
        read_state(path)
    assert caught.value.path == path
    assert not target.exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    """So that the test above would notice an unsafe reader."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


def test_refuses_whole_modules(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(make_module(), path)
    with pytest.raises(DataError, match="not a file of plain tensors"):
        read_state(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "holds a Tensor"),
        ([1, 2], "holds a list"),
        ({"epoch": 3}, "holds no tensors, only epoch"),
        ({}, "holds no tensors"),
        ({"w": torch.ones(1).expand(10**6)}, "'w' is not a plain dense tensor"),
        ({"w": torch.eye(3).to_sparse()}, "'w' is not a plain dense tensor"),
        ({"w": torch.ones(3, device="meta")}, "'w' is not a plain dense tensor"),
    ],
)
def test_refuses_anything_but_plain_tensors(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(DataError, match=message):
        read_state(path)


def test_refuses_archives_that_inflate(tmp_path: Path) -> None:
    path, stored = tmp_path / "inflates.pt", io.BytesIO()
    torch.save({"w": torch.zeros(100_000)}, stored)
    with (
        zipfile.ZipFile(stored) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(DataError, match="unpacks to"):
        read_state(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_byte_is_read_or_refused(tmp_path: Path, position: float, value: int) -> None:
    stored = io.BytesIO()
    torch.save({"w": torch.ones(3)}, stored)
    content = bytearray(stored.getvalue())
    content[int(position * len(content))] = value
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    try:
        state = read_state(path)
    except DataError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
