"""Weights on the Hugging Face Hub: safetensors, card, and a page for people; never a pickle."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lidarssl.checkpoints.card import Card
from lidarssl.checkpoints.files import Checkpoint, load, save
from lidarssl.checkpoints.model_card import model_card
from lidarssl.errors import ConfigError, DataError, require
from lidarssl.weights import WEIGHTS_FILE

CARD_FILE = Path(WEIGHTS_FILE).with_suffix(".json").name
PAGE_FILE = "README.md"
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def push(checkpoint: Checkpoint, card: Card, repository: str, private: bool = False) -> str:
    """Upload weights, card and model page as one commit; the repository is made when missing.

    Args:
        checkpoint: what is uploaded.
        card: takes the place of the checkpoint's own.
        repository: ``owner/name``.
        private: of a new repository: only its owner sees it.

    Returns:
        Address of the repository.

    Raises:
        ConfigError: no name of a repository, no huggingface_hub, not logged in, no connection, or
            the hub refuses.
    """
    check_repository(repository)
    api = _api()
    message = f"Weights of {card.recipe or card.architecture.class_path}"
    with tempfile.TemporaryDirectory(prefix="lidarssl-") as name:
        folder = Path(name)
        save(folder, checkpoint.state, card)
        (folder / PAGE_FILE).write_text(model_card(card, checkpoint.state, repository), "utf-8")
        with _explained(repository):
            address = str(api.create_repo(repository, private=private, exist_ok=True))
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return address


def pull(repository: str, output: Path, revision: str | None = None) -> Checkpoint:
    """Download weights and card, check both, and only then put them into ``output``.

    Args:
        repository: ``owner/name``.
        output: folder that receives ``model.safetensors`` and ``model.json``.
        revision: branch, tag or commit; None = the newest.

    Returns:
        The checkpoint, read from ``output``.

    Raises:
        ConfigError: no name of a repository, no huggingface_hub, no such repository, or no
            connection.
        DataError: the weights are damaged, or have no card of lidarssl.
    """
    check_repository(repository)
    api = _api()
    with tempfile.TemporaryDirectory(prefix="lidarssl-") as name:
        folder = Path(name)
        with _explained(repository):
            for file in (WEIGHTS_FILE, CARD_FILE):
                found = api.hf_hub_download(repository, file, revision=revision, local_dir=folder)
                if Path(found).resolve() != (folder / file).resolve():
                    shutil.copyfile(found, folder / file)
        checkpoint = _checked(folder, repository)
        path = save(output, checkpoint.state, checkpoint.card)
    return load(path)


def check_repository(repository: str) -> None:
    """Refuse what cannot be a repository, before anything is asked over the network.

    Raises:
        ConfigError: it is not of the form ``owner/name``.
    """
    if not _NAME.fullmatch(repository):
        raise _no_name(repository)


def _checked(folder: Path, repository: str) -> Checkpoint:
    """Weights and card of a download: the card inside must be the one beside them."""
    try:
        checkpoint = load(folder)
        beside = Card.from_json((folder / CARD_FILE).read_bytes())
    except DataError as error:
        raise type(error)(
            error.problem,
            path=repository,
            field=error.field,
            remedy=error.remedy or "ask its authors to push again",
        ) from error
    if beside != checkpoint.card:
        raise DataError(
            f"{CARD_FILE} is not the card inside the weights",
            path=repository,
            field=CARD_FILE,
            remedy="one of the two was changed by hand: ask its authors to push again",
        )
    return checkpoint


def _api() -> Any:
    return require("huggingface_hub", "hub").HfApi(library_name="lidarssl")


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Errors of the hub as errors a user can act on."""
    errors = require("huggingface_hub.errors", "hub")
    try:
        yield
    except errors.HFValidationError as error:
        raise _no_name(repository) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            "there is no such repository on the hub, or you may not see it",
            path=repository,
            remedy="check owner/name; for a private one log in with `hf auth login`",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _refused(repository, error) from error
    except errors.EntryNotFoundError as error:
        raise DataError(
            f"has no {WEIGHTS_FILE} with {CARD_FILE}, so it was not pushed by lidarssl",
            path=repository,
            remedy="download its weights yourself and read them with `lidarssl convert`",
        ) from error
    except _failures(errors.HfHubHTTPError) as error:
        raise _refused(repository, error) from error


def _failures(refusal: type[Exception]) -> tuple[type[Exception], ...]:
    """``OSError`` and the errors of the HTTP client below the hub, which changes with its version.

    The client's error of a failed connection need not be an ``OSError``, and the hub lets it
    through; a refusal derives from the client's errors.
    """
    bases = (base for base in refusal.__bases__ if issubclass(base, Exception))
    return (refusal, OSError, *(base for base in bases if base is not Exception))


def _no_name(repository: str) -> ConfigError:
    return ConfigError(
        f"'{repository}' is no name of a repository",
        field="repository",
        remedy="give owner/name, as in the address of its page",
    )


def _refused(repository: str, error: Exception) -> ConfigError:
    """The hub refuses (it has answered with a status), or it cannot be reached."""
    answered = getattr(error, "response", None) is not None
    no_token = type(error).__name__ == "LocalTokenNotFoundError"
    refused = answered or no_token
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return ConfigError(
        f"{'the hub says' if refused else 'the hub cannot be reached'}: {said}",
        path=repository,
        remedy="log in with `hf auth login`, with a token that may write there"
        if refused
        else "is there a connection to the hub? HF_ENDPOINT may name a mirror",
    )
