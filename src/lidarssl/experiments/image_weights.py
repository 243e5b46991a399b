"""Weights of an image encoder for a task that starts from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from lidarssl import checkpoints
from lidarssl.checkpoints.image_networks import (
    CLASS_PATH,
    ImageNetwork,
    read_image_network,
    settings_of,
)
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.record import weights_of
from lidarssl.images.base import ImageEncoder
from lidarssl.images.vit import ViT

# Constructor arguments of encoders that change neither the weights nor what they mean: for ViT,
# how positions are brought to another size than the trained one among them.
FREE_ENCODER_ARGUMENTS = ("weights", "frozen", "checkpointing", "positions")
# Where a task has its encoder.
_TASK_PREFIX = "encoder."
_REMEDY = (
    "choose a recipe whose encoder is that of the checkpoint (`lidarssl convert` describes it), "
    "or set its arguments with --task.encoder.NAME, as `lidarssl recipes RECIPE --keys` lists them"
)


def load_encoder(encoder: ImageEncoder, path: Path, wanted: checkpoints.Architecture) -> str:
    """Put pretrained weights into an image encoder.

    The position embeddings must be of the architecture's image size: they are resampled to the
    images of the task when it runs, not here.

    Args:
        encoder: of the task; it keeps its device, and stays frozen if it is.
        path: the run folder or ``student.safetensors`` of a pretraining whose student is an image
            encoder, the ``task.safetensors`` of an image segmentation, or, for a ``ViT``, a file
            of others that :func:`read_image_network` reads.
        wanted: class and arguments that the encoder was built with.

    Returns:
        The name of the method that made the weights, as far as the file tells.

    Raises:
        ConfigError: the checkpoint is of another architecture.
        DataError: not a checkpoint, or not all of the encoder is in it.
    """
    path = weights_of(path, "--checkpoint")
    # A folder of transformers is known by its own name: the file in it always has one name.
    name = path.resolve().parent.name if path.name == checkpoints.WEIGHTS_FILE else path.stem
    if isinstance(encoder, ViT):
        return _load_vit(encoder, path, wanted) or name
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"weights of others cannot be put into a {type(encoder).__name__} as a checkpoint",
            path=path,
            field="--checkpoint",
            remedy="give them as --task.encoder.weights, if this encoder takes weights",
        )
    loaded = checkpoints.load(path)
    _check_same(wanted, loaded.card.architecture, path)
    state = _of_task(loaded.state, encoder)
    try:
        checkpoints.load_into(encoder, state)
    except ConfigError as error:
        raise ConfigError(error.problem, path=path, field=error.field, remedy=_REMEDY) from error
    return loaded.card.recipe or name


def _load_vit(encoder: ViT, path: Path, wanted: checkpoints.Architecture) -> str:
    """The name of the method, empty where the file does not tell."""
    network = read_image_network(path, heads=encoder.architecture.heads)
    if network is None:
        raise DataError(
            "holds no vision transformer that is known here",
            path=path,
            field="--checkpoint",
            remedy="give a run folder of a pretraining whose student is an image encoder, or a "
            "file of timm, DINO, DINOv2, DINOv3 or transformers",
        )
    if network.card is not None:
        there = network.card.architecture
        _check_same(_resolved(wanted), _resolved(there), path)
    else:
        _check_shape(encoder, network)
    encoder.load_original(network.state, path)
    return network.card.recipe if network.card else ""


def _resolved(architecture: checkpoints.Architecture) -> checkpoints.Architecture:
    """Names and defaults as what they stand for, so that two ways to say the same are the same."""
    if architecture.class_path != CLASS_PATH:
        return architecture
    settings = settings_of(architecture.init_args).plain()
    return checkpoints.Architecture(architecture.class_path, settings)


def _check_shape(encoder: ViT, network: ImageNetwork) -> None:
    """Compare with weights of others, which tell no normalisation and no epsilon to rely on."""
    here, there = (
        checkpoints.Architecture(CLASS_PATH, asdict(shape))
        for shape in (encoder.architecture, network.shape)
    )
    # The positions of this family are of no size.
    sizeless = ("image_size",) if network.shape.family == "dinov3" else ()
    _check_same(here, there, network.path, ignore=("norm_eps", *sizeless))


def _check_same(
    wanted: checkpoints.Architecture,
    found: checkpoints.Architecture,
    path: Path,
    ignore: tuple[str, ...] = FREE_ENCODER_ARGUMENTS,
) -> None:
    try:
        wanted.check_same(found, ignore=ignore)
    except ConfigError as error:
        raise ConfigError(error.problem, path=path, field=error.field, remedy=_REMEDY) from error


def _of_task(state: Mapping[str, Tensor], encoder: ImageEncoder) -> Mapping[str, Tensor]:
    """The encoder's part of a task, where the weights are those of one."""
    inside = {
        key.removeprefix(_TASK_PREFIX): value
        for key, value in state.items()
        if key.startswith(_TASK_PREFIX)
    }
    return inside if encoder.state_dict().keys() <= inside.keys() else state
