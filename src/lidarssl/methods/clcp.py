"""CLCP: an image encoder learns from the scans that belong to its images, image by image.

The product is the image encoder. Source: code and thesis "CLCP" (TU Berlin, 2024), which carries
CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021) over to pairs of an image and a scan.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl import checkpoints
from lidarssl.backbones.base import Backbone
from lidarssl.checkpoints.convert import state_for
from lidarssl.checkpoints.networks import read_network
from lidarssl.distributed import gather_rows
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, FrameId, Pairs, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.losses.paired_contrast import paired_contrast
from lidarssl.methods.base import Method, check_image_size
from lidarssl.methods.pooling import AttentionPool, mean_of_frames
from lidarssl.transforms.base import Transform
from lidarssl.transforms.image_jitter import ImageJitter
from lidarssl.transforms.one_camera import FaceCamera, KeepMatched, OneCamera
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.square_crop import Place, SquareCrop

Negatives = Literal["global", "local"]
LARGEST_SCALE = 100.0
"""Of the logits, as CLIP clamps it."""


@dataclass
class PairView:
    """The image and the points that a step sees of a frame: one camera, one square of it.

    Args:
        side: pixels of the square; images with a shorter side give the largest one.
        image_size: (height, width) that the square is brought to.
        held_out: where the square of held-out frames lies; ``random`` as the published code.
        facing: ``camera`` turns the scan about its z axis so that the camera looks along +x;
            ``lidar`` leaves it. The same where the lidar frame is that of the camera (A2D2).
        min_points: that a square must hold.
        min_depth: m, nearest point that counts.
        antialias: smooth before reducing; false as the published code.
        jitter: change colours, blur and noise of training images; None = leave them.
    """

    side: int = 896
    image_size: tuple[int, int] = (224, 224)
    held_out: Place = "center"
    facing: Literal["camera", "lidar"] = "camera"
    min_points: int = 1
    min_depth: float = 0.1
    antialias: bool = True
    jitter: ImageJitter | None = None

    def transforms(self, training: bool) -> list[Transform]:
        place: Place = "random" if training else self.held_out
        steps: list[Transform] = [
            MatchPixels(self.min_depth),
            OneCamera(),
            *([FaceCamera()] if self.facing == "camera" else []),
            SquareCrop(self.side, self.image_size, place, self.min_points, self.antialias),
            KeepMatched(forget=True),
        ]
        return [*steps, self.jitter] if training and self.jitter is not None else steps


@dataclass
class LidarBranch:
    """What becomes of the lidar encoder.

    Args:
        weights: a checkpoint it starts from, of any layout that `lidarssl convert` reads; None =
            random weights.
        frozen: it does not train; its projection does.
        mode: ``eval`` keeps its batch norms at their running statistics even while it trains, as
            the published runs did; a frozen one always does.
        projection: to the shared space, of every token: ``linear``, or ``mlp`` with one hidden
            layer of twice the width, dropout 0.1 and a layer norm.
        pooling: of the projected tokens: ``mean``, or ``attention`` with one learned query.
    """

    weights: str | Path | None = None
    frozen: bool = False
    mode: Literal["train", "eval"] = "train"
    projection: Literal["linear", "mlp"] = "linear"
    pooling: Literal["mean", "attention"] = "mean"


class Clcp(Method):
    """Contrastive camera-lidar pretraining.

    Args:
        backbone: of the scans.
        image_encoder: the student.
        embedding: width of the shared space.
        temperature: at the start; it is learned.
        temperature_form: the logits are the cosines divided by exp(t), with t learned. ``clip``: t
            is log(temperature) at the start, and the factor of the cosines at most 100.
            ``published``: t is ``temperature`` itself, so that 0.07 starts as 1.07, and nothing
            is clamped.
        image_pooling: ``encoder``: the encoder's own vector of an image, of a vision transformer
            its class token; ``mean`` over the cells of its map.
        lidar: see there.
        view: see there.
        negatives: ``global`` contrasts with the rows of every process, so that the number of
            processes changes nothing; ``local`` as the published code.
        same_sequence: ``negative``, or ``ignored``: frames of one drive, which may show the same
            place, are no negatives of each other.

    Raises:
        ConfigError: a frozen image encoder.
    """

    needs = Field.IMAGES
    title = "CLCP"
    student_argument = "image_encoder"

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        embedding: int = 384,
        temperature: float = 0.07,
        temperature_form: Literal["clip", "published"] = "clip",
        image_pooling: Literal["encoder", "mean"] = "encoder",
        lidar: LidarBranch | None = None,
        view: PairView | None = None,
        negatives: Negatives = "global",
        same_sequence: Literal["negative", "ignored"] = "negative",
    ) -> None:
        super().__init__()
        if image_encoder.frozen:
            raise ConfigError(
                "the image encoder is the student and must train",
                field="method.image_encoder.frozen",
                remedy="set it to false",
            )
        self.backbone, self.image_encoder = backbone, image_encoder
        self.lidar, self.view = lidar or LidarBranch(), view or PairView()
        check_image_size(self.view.image_size, image_encoder, "view")
        self.image_head: nn.Module = nn.Linear(image_encoder.out_channels, embedding)
        self.lidar_head = _projection(self.lidar.projection, backbone.out_channels, embedding)
        self.lidar_pool = AttentionPool(embedding) if self.lidar.pooling == "attention" else None
        self.temperature_form, self.negatives = temperature_form, negatives
        self.image_pooling = image_pooling
        self.same_sequence = same_sequence
        start = temperature if temperature_form == "published" else math.log(temperature)
        self.log_temperature = nn.Parameter(torch.tensor(start))
        if self.lidar.weights is not None:
            network = read_network(Path(self.lidar.weights))
            checkpoints.load_into(backbone, state_for(network, backbone))
        if self.lidar.frozen:
            backbone.requires_grad_(False)
        self.train(self.training)

    @property
    def student(self) -> ImageEncoder:
        return self.image_encoder

    @property
    def lidar_encoder(self) -> Backbone:
        return self.backbone

    def train(self, mode: bool = True) -> Clcp:
        super().train(mode)
        if self.lidar.frozen or self.lidar.mode == "eval":
            self.backbone.eval()
        return self

    def transforms(self, training: bool) -> Sequence[Transform]:
        return self.view.transforms(training)

    def scale(self) -> Tensor:
        """Factor of the cosines: 1 / temperature."""
        return (-self.log_temperature).exp()

    def embed_images(self, batch: Batch) -> Tensor:
        """Unit vector of every image, (B, embedding)."""
        assert batch.images is not None
        if self.image_pooling == "encoder":
            features = self.image_encoder.pooled(batch.images)
        else:
            features = self.image_encoder(batch.images).mean(dim=(2, 3))
        return F.normalize(self.image_head(features), dim=1)

    def embed_scans(self, batch: Batch) -> Tensor:
        """Unit vector of every scan, (B, embedding); zeros of one without points."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.lidar.frozen):
            tokens = self.backbone(batch.points)
        rows = self.lidar_head(tokens.features)
        pool = self.lidar_pool or mean_of_frames
        return F.normalize(pool(rows, tokens.batch, batch.points.batch_size), dim=1)

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        if self.training and self.temperature_form == "clip":
            with torch.no_grad():
                self.log_temperature.clamp_(min=-math.log(LARGEST_SCALE))
        image, lidar, scale = self.embed_images(batch), self.embed_scans(batch), self.scale()
        images, scans = self._gather(image), self._gather(lidar)
        ignored = self._ignored(batch.ids, image.device)
        loss = paired_contrast(images, scans, scale, ignored)
        with torch.no_grad():
            own = torch.arange(len(images), device=images.device)
            cosines = images @ scans.T
            terms = {
                "image_finds_scan": (cosines.argmax(1) == own).float().mean(),
                "scan_finds_image": (cosines.argmax(0) == own).float().mean(),
                "temperature": 1 / scale.detach(),
                "negatives": _negatives(cosines, ignored),
            }
        return StepOutput(loss, terms, Pairs(image.detach(), lidar.detach()))

    def _gather(self, rows: Tensor) -> Tensor:
        return gather_rows(rows) if self.negatives == "global" else rows

    def _ignored(self, ids: Sequence[FrameId], device: torch.device) -> Tensor | None:
        """(B, B) whether two rows are of one drive."""
        if self.same_sequence == "negative":
            return None
        drives = torch.tensor([_number_of_drive(one) for one in ids], device=device)
        drives = self._gather(drives)
        return drives[:, None] == drives


def _negatives(cosines: Tensor, ignored: Tensor | None) -> Tensor:
    """Mean number of negatives of a row; with none there is nothing to learn."""
    none = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return (~(none if ignored is None else ignored)).sum(1).float().mean()


def _projection(kind: str, channels: int, embedding: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(channels, embedding)
    return nn.Sequential(
        nn.Linear(channels, 2 * channels),
        nn.GELU(),
        nn.Linear(2 * channels, embedding),
        nn.Dropout(0.1),
        nn.LayerNorm(embedding),
    )


def _number_of_drive(frame: FrameId) -> int:
    """The same on every process, unlike ``hash``."""
    digest = hashlib.sha256(f"{frame.dataset}/{frame.sequence}".encode()).digest()
    return int.from_bytes(digest[:7], "little")
