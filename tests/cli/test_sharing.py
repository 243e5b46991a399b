"""`lidarssl push` and `pull` as a user types them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import Command, Outcome, Tiny


def refuses(done: Outcome, *said: str) -> None:
    assert done.code == 2, done.out
    assert done.err.count("error: ") == 1
    assert "remedy: " in done.err
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the Hugging Face Hub."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    root = tmp_path / "hub"

    class Api:
        def __init__(self, **options: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> str:
            (root / repo_id).mkdir(parents=True, exist_ok=True)
            return f"https://hub.test/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> None:
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

        def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
            return shutil.copy(root / repo_id / filename, options["local_dir"])

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return root


def test_push_then_pull_then_probe(
    command: Command, tiny: Tiny, pretrained: Path, hub: Path, tmp_path: Path
) -> None:
    refuses(command("push", pretrained, "someone/slidr"), "states no licence", "--licence")
    assert not hub.exists()
    done = command("push", pretrained, "someone/slidr", "--licence", "cc-by-4.0")
    assert done.code == 0, done.err
    assert done.out.startswith("https://hub.test/someone/slidr\n")
    assert "license: cc-by-4.0" in (hub / "someone/slidr/README.md").read_text()
    weights = tmp_path / "weights"
    done = command("pull", "someone/slidr", "--output", weights)
    assert done.code == 0, done.err
    assert "licence     cc-by-4.0" in done.out
    refuses(command("pull", "someone/slidr", "--output", weights), "exists", "--overwrite")
    assert command("pull", "someone/slidr", "--output", weights, "--overwrite").code == 0
    done = command(*tiny.probe(tmp_path / "run"), "--checkpoint", weights, "--no-baseline")
    assert done.code == 0, done.err


def test_a_repository_has_an_owner(
    command: Command, pretrained: Path, hub: Path, tmp_path: Path
) -> None:
    refuses(command("push", pretrained, "slidr", "--licence", "MIT"), "'slidr'", "owner/name")
    refuses(command("pull", "slidr", "--output", tmp_path / "weights"), "'slidr'", "owner/name")
    assert not hub.exists()


def test_push_needs_weights_of_ours(command: Command, hub: Path, tmp_path: Path) -> None:
    also = tmp_path / "also.ckpt"
    torch.save({"stem.0.kernel": torch.ones(27, 1, 8)}, also)
    refuses(command("push", also, "someone/also", "--licence", "MIT"), "also.ckpt")
    assert not hub.exists()
    refuses(command("pull", "someone/also", "--output", also), "also.ckpt: is a file")
