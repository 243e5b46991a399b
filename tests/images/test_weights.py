"""Files and hub ids that cannot be used must say so, and must never run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.resnet import ResNet
from lidarssl.images.weights import (
    check_shapes,
    find_network,
    is_pretrained_source,
    read_state_dict,
)


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


def compressed_archive(path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"weight": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for entry in source.infolist():
            out.writestr(entry.filename, source.read(entry))


def truncated(path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


UNUSABLE: dict[str, Callable[[Path], Any]] = {
    "empty.pth": lambda path: path.write_bytes(b""),
    "noise.pth": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "truncated.pth": truncated,
    "compressed.pth": compressed_archive,
    "list.pth": lambda path: torch.save([torch.zeros(3)], path),
    "module.pth": lambda path: torch.save(torch.nn.Linear(2, 2), path),
    "no_tensors.pth": lambda path: torch.save({"epoch": 3, "state_dict": {}}, path),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "huge_header.safetensors": lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"),
    "torch.safetensors": lambda path: torch.save({"weight": torch.zeros(4)}, path),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_are_errors_that_name_file_and_remedy(name: str, tmp_path: Path) -> None:
    UNUSABLE[name](tmp_path / name)
    with pytest.raises(DataError, match="remedy") as caught:
        read_state_dict(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "run"
    content = {"conv1.weight": torch.zeros(3), "extra": Attack(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match="nothing in it was run") as caught:
        ResNet(depth=18, weights=path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no advice to switch the safety off
    assert not mark.exists()


def test_a_malicious_folder_is_refused_and_not_run(tmp_path: Path) -> None:
    import transformers

    mark = tmp_path / "run"
    transformers.ResNetConfig().save_pretrained(tmp_path)
    torch.save({"embedder": Attack(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        ResNet(depth=18, weights=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    where=st.integers(0, 2**16),
    value=st.integers(0, 255),
    suffix=st.sampled_from([".pth", ".safetensors"]),
)
def test_one_wrong_byte_is_read_or_refused_but_never_raises_anything_else(
    where: int, value: int, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"weight": torch.arange(5.0), "bias": torch.zeros(2)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[where % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        assert all(isinstance(tensor, torch.Tensor) for tensor in read_state_dict(path).values())


@pytest.mark.parametrize("container", ["state_dict", "model", "network", "teacher", "model_images"])
def test_tensors_are_found_inside_a_checkpoint(container: str, tmp_path: Path) -> None:
    torch.save({"epoch": 5, container: {"a": torch.ones(2)}}, tmp_path / "c.pth")
    assert list(read_state_dict(tmp_path / "c.pth")) == ["a"]


def test_files_older_than_the_zip_format_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "o.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / "o.pth")["a"], torch.ones(2))


def test_pickle_of_plain_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError):
        read_state_dict(tmp_path / "plain.pkl")


def test_network_is_found_below_its_prefix_and_without_its_heads() -> None:
    one = torch.ones(1)
    state = {
        "module.encoder_q.conv1.weight": one,
        "module.encoder_q.fc.0.weight": one,
        "module.encoder_k.conv1.weight": one,
        "module.queue": one,
    }
    found = find_network(state, "conv1.weight", ("fc.",))
    assert found is not None
    assert list(found) == ["conv1.weight"]
    assert find_network(state, "patch_embed.proj.weight", ()) is None


def test_every_kind_of_mismatch_is_named() -> None:
    state = {"a": torch.zeros(2), "b": torch.zeros(3), "old": torch.zeros(1)}
    expected = {"a": (2,), "b": (4,), "c": (1,), "bn.num_batches_tracked": ()}
    with pytest.raises(DataError) as caught:
        check_shapes(state, expected, "file.pth")
    message = str(caught.value)
    assert "1 missing: c" in message
    assert "1 unknown: old" in message
    assert "b (3,) instead of (4,)" in message
    assert "num_batches_tracked" not in message


def test_files_folders_and_hub_ids_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    assert not is_pretrained_source(tmp_path / "w.pth")
    assert is_pretrained_source(tmp_path)
    assert is_pretrained_source("facebook/dinov2-small")
    for missing in ("weights/moco.pth.tar", "moco_v2", tmp_path / "none", "../a/b"):
        with pytest.raises(DataError, match="no such weights"):
            is_pretrained_source(missing)


def test_a_hub_that_cannot_be_reached_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("we could not connect")

    monkeypatch.setattr(transformers.ResNetModel, "from_pretrained", unreachable)
    with pytest.raises(ConfigError, match=r"owner/name.*could not connect") as caught:
        ResNet(depth=18, weights="owner/name")
    assert "remedy" in str(caught.value)
