"""Weights go to a hub and come back: what is uploaded, and what is refused on the way back."""

from __future__ import annotations

import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.checkpoints import Architecture, Card, Checkpoint, hub, load, save
from lidarssl.checkpoints.model_card import model_card
from lidarssl.errors import ConfigError, DataError

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

SMALL: dict[str, Any] = {
    "voxel_size": 0.2,
    "stem_channels": 4,
    "encoder_channels": [6, 8],
    "decoder_channels": [8, 6],
    "blocks": [1, 1, 1, 1],
}
CARD = Card(
    Architecture("lidarssl.backbones.minkunet.MinkUNet", SMALL),
    recipe="also",
    data=("semantic_kitti/train", "semantic_poss/train"),
    metrics={"probe/miou": 0.1694, "finetune/miou": None},
    licence="CC-BY-NC-SA-4.0",
    step=1500,
)
NAME = "someone/also-minkunet"


class LocalHub:
    """What ``HfApi`` does, in a folder.

    Attributes:
        root: folder of the repositories.
        calls: what was asked, with which options.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refuses: Exception | None = None

    def __call__(self, **options: Any) -> LocalHub:
        assert options == {"library_name": "lidarssl"}
        return self

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self._answer("create_repo", options)
        (self.root / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])
        return f"https://hub.test/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> None:
        self._answer("upload_folder", options)
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
        self._answer("hf_hub_download", options)
        source = self.root / repo_id / filename
        if not (self.root / repo_id).is_dir():
            raise response_error("RepositoryNotFoundError", "404 Client Error\nRepository ...")
        if not source.is_file():
            raise response_error("RemoteEntryNotFoundError", "404 Client Error\nEntry ...")
        return shutil.copy(source, Path(options["local_dir"]) / filename)

    def _answer(self, call: str, options: dict[str, Any]) -> None:
        self.calls.append((call, options))
        if self.refuses is not None:
            raise self.refuses


def response_error(name: str, message: str) -> Exception:
    """An error as huggingface_hub makes it, with a response of the server."""
    kind = getattr(errors, name)
    error: Exception = kind.__new__(kind)
    error.args = (message,)
    error.response = type("Response", (), {"status_code": 403})()  # type: ignore[attr-defined]
    return error


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    made = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    torch.manual_seed(0)
    return load(save(tmp_path / "run", MinkUNet(**SMALL), CARD))


def pages(fake: LocalHub) -> Path:
    return fake.root / NAME


def test_what_is_uploaded(fake: LocalHub, checkpoint: Checkpoint) -> None:
    assert hub.push(checkpoint, CARD, NAME) == f"https://hub.test/{NAME}"
    assert sorted(file.name for file in pages(fake).iterdir()) == [
        "README.md", "model.json", "model.safetensors"
    ]  # fmt: skip
    uploaded = load(pages(fake))
    assert uploaded.card == CARD
    for name, value in checkpoint.state.items():
        assert torch.equal(uploaded.state[name], value), name
    assert Card.from_json((pages(fake) / "model.json").read_text()) == CARD
    assert [call for call, _ in fake.calls] == ["create_repo", "upload_folder"]
    assert fake.calls[0][1] == {"private": False, "exist_ok": True}
    assert fake.calls[1][1] == {"commit_message": "Weights of also"}


def test_the_page_tells_recipe_data_scores_and_licence(
    fake: LocalHub, checkpoint: Checkpoint
) -> None:
    hub.push(checkpoint, CARD, NAME, private=True)
    assert fake.calls[0][1]["private"] is True
    page = (pages(fake) / "README.md").read_text()
    _, header, body = page.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "cc-by-nc-sa-4.0"
    assert yaml.safe_load(header)["library_name"] == "lidarssl"
    for said in (
        "# MinkUNet, pretrained with also",
        "| data | semantic_kitti/train, semantic_poss/train |",
        "| probe/miou | 0.1694 |",
        "| finetune/miou | undefined |",
        "| licence | CC-BY-NC-SA-4.0 |",
        "| method | also |",
        "| steps | 1500 |",
        f"lidarssl pull {NAME}",
        f"{sum(p.numel() for p in MinkUNet(**SMALL).parameters()):,} parameters",
    ):
        assert said in body
    node = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert node["class_path"] == "MinkUNet"
    assert node["init_args"]["encoder_channels"] == [6, 8]


def test_a_page_of_an_empty_or_hostile_card() -> None:
    bare = model_card(Card(Architecture("a.B")), {}, NAME)
    header = yaml.safe_load(bare.split("---\n")[1])
    assert (header["license"], header["license_name"]) == ("other", "not stated")
    assert "| data | not stated |" in bare
    hostile = Card(
        Architecture("a.B`\n# title"), recipe="x\n---\nlicense: mit", licence="own | <script>"
    )
    page = model_card(hostile, {}, NAME)
    assert yaml.safe_load(page.split("---\n")[1])["license"] == "other"
    assert "\n# title" not in page
    assert "<script>" not in page.split("---\n", 2)[2]


def test_there_and_back(fake: LocalHub, checkpoint: Checkpoint, tmp_path: Path) -> None:
    hub.push(checkpoint, CARD, NAME)
    pulled = hub.pull(NAME, tmp_path / "weights", revision="v1")
    assert pulled.path == tmp_path / "weights" / "model.safetensors"
    assert pulled.card == CARD
    for name, value in checkpoint.state.items():
        assert torch.equal(pulled.state[name], value), name
    assert all(options["revision"] == "v1" for call, options in fake.calls[2:])
    assert sorted(file.name for file in (tmp_path / "weights").iterdir()) == [
        "model.json", "model.safetensors"
    ]  # fmt: skip


def no_card(folder: Path) -> None:
    (folder / "model.json").unlink()


def other_card(folder: Path) -> None:
    (folder / "model.json").write_text(replace(CARD, licence="MIT").to_json())


def broken_card(folder: Path) -> None:
    (folder / "model.json").write_text("{")


def foreign(folder: Path) -> None:
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")


def wrong_card_beside_foreign_weights(folder: Path) -> None:
    foreign(folder)
    (folder / "model.json").write_text('{"architecture": 3}')


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def a_pickle(folder: Path) -> None:
    torch.save({"w": torch.ones(2)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (no_card, "not pushed by lidarssl"),
        (other_card, "not the card inside"),
        (broken_card, "not valid JSON"),
        (wrong_card_beside_foreign_weights, "expected a dict"),
        (truncated, "not a readable safetensors"),
        (a_pickle, "not a readable safetensors"),
    ],
)
def test_what_is_not_sound_is_not_handed_over(
    fake: LocalHub, checkpoint: Checkpoint, tmp_path: Path, spoil: Any, problem: str
) -> None:
    hub.push(checkpoint, CARD, NAME)
    spoil(pages(fake))
    with pytest.raises(DataError, match=problem) as caught:
        hub.pull(NAME, tmp_path / "weights")
    assert caught.value.path == NAME
    assert caught.value.remedy
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (response_error("HfHubHTTPError", "403 Forbidden\nmore"), "hf auth login"),
        (response_error("GatedRepoError", "401 gated"), "hf auth login"),
        (errors.LocalTokenNotFoundError("no token"), "hf auth login"),
        (errors.HFValidationError("bad name"), "owner/name"),
        (errors.LocalEntryNotFoundError("offline"), "connection"),
        (ConnectionError("no route"), "connection"),
    ],
)
def test_refusals_of_the_hub_have_a_remedy(
    fake: LocalHub, checkpoint: Checkpoint, tmp_path: Path, error: Exception, remedy: str
) -> None:
    fake.refuses = error
    reached = "login" in remedy or "owner" in remedy
    for attempt in (
        lambda: hub.push(checkpoint, CARD, NAME),
        lambda: hub.pull(NAME, tmp_path / "weights"),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert remedy in (caught.value.remedy or "")
        assert ("cannot be reached" in caught.value.problem) != reached
        assert "more" not in str(caught.value)


def test_push_without_a_network(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the HTTP client of the hub itself, at a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        real = huggingface_hub.HfApi
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(
            huggingface_hub, "HfApi", lambda **options: real(endpoint=address, **options)
        )
        with pytest.raises(ConfigError, match="cannot be reached") as caught:
            hub.push(checkpoint, CARD, NAME)
    assert "connection" in (caught.value.remedy or "")
    assert caught.value.path == NAME


@pytest.mark.parametrize(
    "name", ["", "also", "/also", "someone/", "a/b/c", "some one/also", "-a/b", "a/.b", "a/b\n"]
)
def test_what_is_no_name_asks_nothing(
    fake: LocalHub, checkpoint: Checkpoint, tmp_path: Path, name: str
) -> None:
    for attempt in (
        lambda: hub.push(checkpoint, CARD, name),
        lambda: hub.pull(name, tmp_path / "weights"),
    ):
        with pytest.raises(ConfigError, match="no name of a repository") as caught:
            attempt()
        assert "owner/name" in (caught.value.remedy or "")
    assert fake.calls == []


def test_a_repository_that_is_not_there(fake: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such repository"):
        hub.pull(NAME, tmp_path / "weights")


def test_without_the_package(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="huggingface_hub") as caught:
        hub.push(checkpoint, CARD, NAME)
    assert "pip install 'lidarssl[hub]'" in (caught.value.remedy or "")
