"""NCLR: pretraining by finding the pose between a camera and a displaced scan.

Source: Zhang et al., "Self-supervised Learning of LiDAR 3D Point Clouds via 2D-3D Neural
Calibration", arXiv 2401.12452, and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import all_reduce_sum, gather_counts, gather_rows, rank
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, Matches, PointFeatures, StepOutput
from lidarssl.geometry.planar_search import fits
from lidarssl.geometry.pnp import epnp
from lidarssl.geometry.poses import pose_from_rotation
from lidarssl.images.base import ImageEncoder
from lidarssl.losses.contrastive import info_nce
from lidarssl.losses.pose import mean_cross_entropy, pose_sum
from lidarssl.methods.base import Method, check_image_size, zero_through
from lidarssl.methods.image_to_lidar import Negatives, own_rows
from lidarssl.methods.nclr_settings import CalibrationView, PoseTerm, TermWeights, TokenSampling
from lidarssl.methods.soft_matching import (
    Draws,
    Encoded,
    Fused,
    Fusion,
    ImageMatches,
    Keypoints,
    OverlapHead,
    StepDraws,
    Winner,
    choose_keypoints,
    first_points,
    matching_distance,
    pair_of,
    rays,
    soft_cells,
)
from lidarssl.metrics.registration import registration_errors
from lidarssl.transforms.base import Transform
from lidarssl.transforms.grid_matches import grid_intrinsics

_FITTED = 1024
"""Points of an image whose fit to every cell is told."""


class Nclr(Method):
    """Two contrasts, overlap on both sides, and a pose by differentiable EPnP.

    Args:
        backbone: the student.
        image_encoder: frozen.
        embedding: width of the shared space.
        temperature: of the contrasts.
        num_matches: pairs of either contrast in a step, times the frames of the global batch.
        view: see there.
        sampling: of tokens.
        pose: see there.
        weights: of the terms.
        attention: ``separate`` modules in the two directions, or ``shared`` as published.
        alignment: similarity of a point and a pixel: their ``cosine``, as the released code, or
            ``learned``, a symmetric bilinear form that starts as the cosine: our reconstruction
            of the paper's learnable transformation alignment, of which there is no code.
        head: ``linear`` adds a linear layer to the backbone; ``backbone`` takes its channels.
        image_norm: ``frozen`` statistics of the image encoder's batch norms, or ``batch``: those
            of each batch, while the running ones drift, as published.
        negatives: see ``ImageToLidar``.

    Raises:
        ConfigError: an image size that does not fit, or a backbone of another width than
            ``embedding`` with ``head`` = ``backbone``.
    """

    needs = Field.IMAGES
    title = "NCLR"

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        embedding: int = 64,
        temperature: float = 0.07,
        num_matches: int = 1024,
        view: CalibrationView | None = None,
        sampling: TokenSampling | None = None,
        pose: PoseTerm | None = None,
        weights: TermWeights | None = None,
        attention: Literal["separate", "shared"] = "separate",
        alignment: Literal["cosine", "learned"] = "cosine",
        head: Literal["linear", "backbone"] = "linear",
        image_norm: Literal["frozen", "batch"] = "frozen",
        negatives: Negatives = "global",
    ) -> None:
        super().__init__()
        self.backbone, self.image_encoder = backbone, image_encoder
        self.temperature, self.num_matches = temperature, num_matches
        self.view, self.sampling = view or CalibrationView(), sampling or TokenSampling()
        self.pose, self.weights = pose or PoseTerm(), weights or TermWeights()
        self.image_norm, self.negatives = image_norm, negatives
        check_image_size(self.view.image_size, image_encoder, "view")
        if any(length % self.view.stride for length in self.view.image_size):
            raise ConfigError(
                f"images of {self.view.image_size} are not made of cells of {self.view.stride}",
                field="method.view.image_size, method.view.stride",
                remedy="take a size that is a multiple of the stride",
            )
        if head == "backbone" and backbone.out_channels != embedding:
            raise ConfigError(
                f"the backbone has {backbone.out_channels} channels, the embedding {embedding}",
                field="method.head",
                remedy="take head: linear, or an embedding of the backbone's width",
            )
        self.point_head: nn.Module = (
            nn.Linear(backbone.out_channels, embedding) if head == "linear" else nn.Identity()
        )
        self.image_head = nn.Conv2d(image_encoder.out_channels, embedding, 1)
        self.fusion = Fusion(embedding, attention == "shared")
        self.point_overlap, self.cell_overlap = OverlapHead(embedding), OverlapHead(embedding)
        self.alignment: nn.Parameter | None = None
        if alignment == "learned":
            self.alignment = nn.Parameter(torch.eye(embedding))

    @property
    def student(self) -> Backbone:
        return self.backbone

    def transforms(self, training: bool) -> Sequence[Transform]:
        return self.view.transforms(training, self.backbone.fov)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.image_norm == "batch":
            for module in self.image_encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(mode)
        return self

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.images is not None
        images = gather_counts(len(batch.images), batch.images.device)
        draws = StepDraws(generator, sum(images[: rank()]), self.sampling.replacement)
        frames = sum(gather_counts(batch.points.batch_size, batch.images.device))
        return self.step(self.encode(batch), draws, self.num_matches * frames)

    def encode(self, batch: Batch) -> Encoded:
        """Features of both sides, and how they belong together."""
        assert batch.images is not None
        assert batch.frame_of_image is not None
        assert batch.matches is not None
        assert batch.intrinsics is not None
        assert batch.camera_from_lidar is not None
        tokens = self.backbone(batch.points)
        first = first_points(tokens)
        owning = first < len(batch.points.points)
        return Encoded(
            features=self.point_head(tokens.features),
            positions=self._positions(tokens, batch.points.points, first),
            tokens=[
                ((tokens.batch == frame) & owning).nonzero()[:, 0]
                for frame in range(batch.points.batch_size)
            ],
            maps=self._image_maps(batch.images),
            frame_of_image=batch.frame_of_image.tolist(),
            pairs=self._pairs(batch.matches, tokens.token_of_point, first),
            intrinsics=grid_intrinsics(batch.intrinsics, self.view.stride, self.view.pixel_centers),
            camera_from_lidar=batch.camera_from_lidar,
        )

    def _image_maps(self, images: Tensor) -> Tensor:
        size = [length // self.view.stride for length in images.shape[-2:]]
        return F.interpolate(
            self.image_head(self.image_encoder(images)), size, mode="bilinear",
            align_corners=not self.view.pixel_centers,
        )  # fmt: skip

    def _positions(self, tokens: PointFeatures, points: Tensor, first: Tensor) -> Tensor:
        if self.sampling.positions == "mean" or not len(points):
            return tokens.positions
        return points[first.clamp(max=len(points) - 1)]

    def _pairs(self, matches: Matches, token_of_point: Tensor, first: Tensor) -> Matches:
        """Matches of tokens instead of points."""
        token = token_of_point[matches.point]
        if self.sampling.pairs == "first_point":
            own = first[token] == matches.point
            matches, token = matches[own], token[own]
        return replace(matches, point=token)

    def step(self, scene: Encoded, draws: Draws, number: int) -> StepOutput:
        """All terms.

        Args:
            scene: of this process.
            draws: see there.
            number: pairs of either contrast over all processes.
        """
        weights = self.weights
        contrast = self._contrast(scene, draws, number)
        fused = self.fuse(scene, torch.unique(scene.pairs.image), draws)
        pair = pair_of(fused.token, fused.image, scene.pairs, self._winner)
        fused_contrast = self._contrast_fused(scene, fused, pair, draws, number)
        seen, overlap = self.point_overlap(fused.points), scene.image_overlap()[fused.images]
        cells = self.cell_overlap(fused.cells.flatten(0, 1))
        point_overlap, image_overlap = mean_cross_entropy(
            (seen, pair >= 0), (cells, overlap.flatten())
        )
        loss = weights.contrast * contrast + weights.fused * fused_contrast
        loss = loss + weights.point_overlap * point_overlap
        loss = loss + weights.image_overlap * image_overlap
        terms = {
            "contrast": contrast, "fused": fused_contrast,
            "point_overlap": point_overlap, "image_overlap": image_overlap,
        }  # fmt: skip
        teaches = weights.pose > 0 and self.progress >= self.pose.start
        with torch.set_grad_enabled(torch.is_grad_enabled() and teaches):
            keypoints = self.keypoints(scene, fused, seen.detach().sigmoid(), draws)
            pose, errors = self._pose(scene, fused, keypoints)
        if teaches:
            loss, terms["pose"] = loss + weights.pose * pose, pose
        loss = loss + zero_through(fused.points, fused.cells, *self.parameters())
        values = {name: value.detach() for name, value in terms.items()}
        return StepOutput(loss, values | errors | matching_distance(scene, keypoints, pair))

    @property
    def _winner(self) -> Winner:
        return "last" if self.sampling.pairs == "last" else "first"

    def _contrast(self, scene: Encoded, draws: Draws, number: int) -> Tensor:
        """InfoNCE of points against pixels before they look at each other."""
        share = self._share(len(scene.pairs), scene.features.device, draws, number)
        pairs = scene.pairs[share]
        pixels = scene.maps[pairs.image, :, pairs.row, pairs.col]
        return self._info_nce(scene.features[pairs.point], pixels)

    def _contrast_fused(
        self, scene: Encoded, fused: Fused, pair: Tensor, draws: Draws, number: int
    ) -> Tensor:
        """The same afterwards, of the drawn tokens that are in their image."""
        matched = (pair >= 0).nonzero()[:, 0]
        chosen = matched[self._share(len(matched), pair.device, draws, number)]
        pairs = scene.pairs[pair[chosen]]
        place = torch.searchsorted(fused.images, pairs.image)
        pixels = fused.cells[place, pairs.row * scene.maps.shape[-1] + pairs.col]
        return self._info_nce(fused.points[chosen], pixels)

    def _share(self, count: int, device: torch.device, draws: Draws, number: int) -> Tensor:
        """This process's rows of a draw over the rows of all."""
        counts = gather_counts(count, device)
        return own_rows(draws.pairs(sum(counts), number), counts, rank()).to(device)

    def _info_nce(self, points: Tensor, pixels: Tensor) -> Tensor:
        points, pixels = self._aligned(points), F.normalize(pixels, dim=1)
        if self.negatives == "global":
            points, pixels = gather_rows(points), gather_rows(pixels)
        return info_nce(points, pixels, self.temperature)

    def _aligned(self, points: Tensor) -> Tensor:
        """(N, C) rows of points whose product with the unit feature of a pixel is their score."""
        points = F.normalize(points, dim=1)
        if self.alignment is None:
            return points
        return points @ ((self.alignment + self.alignment.T) / 2)

    def fuse(self, scene: Encoded, images: Tensor, draws: Draws) -> Fused:
        """Draw tokens for some images, and let both sides look at each other.

        Args:
            scene: see there.
            images: (J,) int64, ascending.
            draws: of the tokens.
        """
        drawn = [images.new_zeros(0)]
        # Of no image, but part of the graph: every process goes through the same exchanges.
        points, cells = [scene.features[:0]], [scene.maps[:0].flatten(2).mT]
        for image in images.tolist():
            tokens = scene.tokens[scene.frame_of_image[image]]
            rows = draws.tokens(image, len(tokens), self.sampling.number)
            drawn.append(tokens[rows.to(tokens.device)])
            both = self.fusion(scene.features[drawn[-1]], scene.maps[image].flatten(1).T)
            points.append(both[0])
            cells.append(both[1][None])
        counts = torch.tensor([len(rows) for rows in drawn[1:]], dtype=torch.int64)
        image = images.repeat_interleave(counts.to(images.device))
        return Fused(images, torch.cat(drawn), image, torch.cat(points), torch.cat(cells))

    def keypoints(self, scene: Encoded, fused: Fused, overlap: Tensor, draws: Draws) -> Keypoints:
        """Points of high overlap of every image, and their soft matches.

        Args:
            scene, fused: see there.
            overlap: (S,) probability of each fused point.
            draws: of the points.
        """
        term, width = self.pose, scene.maps.shape[-1]
        rows, found, enough = [], [], []
        for place, (image, own) in enumerate(zip(fused.images.tolist(), fused.rows(), strict=True)):
            chosen, good = choose_keypoints(
                overlap[own], term.keypoints, term.thresholds, term.enough, image, draws
            )
            rows.append(own[chosen])
            found.append(self._soft_cells(fused, rows[-1], place, width)[0])
            enough.append(good)
        number = (len(rows), term.keypoints)
        row = torch.stack(rows) if rows else fused.token.new_zeros(number)
        cell = torch.stack(found) if found else fused.points.new_zeros(*number, 2)
        return Keypoints(
            row, scene.positions[fused.token[row]], cell,
            torch.tensor(enough, dtype=torch.bool, device=row.device),
        )  # fmt: skip

    def _soft_cells(
        self, fused: Fused, rows: Tensor, place: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """``soft_cells`` of some fused points and the image at a place of ``fused.images``."""
        with torch.autocast(rows.device.type, enabled=False):
            points, cells = fused.points[rows], fused.cells[place]
            if points.dtype in (torch.float16, torch.bfloat16):
                points, cells = points.float(), cells.float()
            cells = F.normalize(cells, dim=1)
            return soft_cells(self._aligned(points), cells, width, self.pose.temperature)

    def _pose(
        self, scene: Encoded, fused: Fused, keypoints: Keypoints
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the poses of all processes, and median errors of this one's."""
        at_depth_one = rays(keypoints.cell, scene.intrinsics[fused.images])
        found = epnp(keypoints.position, at_depth_one, signed=self.pose.signed)
        truth = scene.camera_from_lidar[fused.images].to(found.rotation.dtype)
        valid = keypoints.enough & found.valid
        sums = torch.stack(
            pose_sum(
                found.rotation, found.translation, truth[:, :3, :3], truth[:, :3, 3],
                valid, self.pose.translation,
            )
        )  # fmt: skip
        # A process without an image takes part in the exchange, and in its gradient.
        total, count = all_reduce_sum(sums + zero_through(fused.points, fused.cells))
        errors = {"poses": valid.float().sum()}
        if bool(valid.any()):
            # On the CPU: not every device has float64.
            estimate = pose_from_rotation(found.rotation.cpu(), found.translation.cpu()).detach()
            wrong = registration_errors(estimate, truth.cpu())[valid.cpu()]
            errors["rotation_error"] = wrong.rotation.median().float()
            errors["translation_error"] = wrong.translation.median().float()
        return total / count.detach().clamp(min=1), errors

    def _fits(self, scene: Encoded, fused: Fused, rows: Tensor, image: int) -> Tensor:
        """(R, h, w) fit of some fused points and the cells of an image, by both contrasts."""
        before = self._aligned(scene.features[fused.token[rows]])
        similarity = before @ F.normalize(scene.maps[image].flatten(1), dim=0)
        similarity += self._aligned(fused.points[rows]) @ F.normalize(fused.cells[image], dim=1).T
        return fits(similarity / self.temperature).unflatten(1, scene.maps.shape[2:])

    @torch.no_grad()
    def match(self, batch: Batch) -> list[ImageMatches]:
        """Overlap and soft matches of every image, in eval mode, whatever the mode of the method.

        Args:
            batch: through ``transforms``; its matches are not read. Of more tokens than
                ``sampling.number`` a fixed draw is matched.
        """
        training = self.training
        self.eval()
        scene = self.encode(batch)
        images = torch.arange(len(scene.maps), device=scene.maps.device)
        fused = self.fuse(scene, images, StepDraws(torch.Generator().manual_seed(0)))
        seen = self.point_overlap(fused.points).sigmoid()
        size = scene.maps.shape[-2:]
        overlap = self.cell_overlap(fused.cells.flatten(0, 1)).sigmoid().view(-1, *size)
        found = []
        for image, own in enumerate(fused.rows()):
            pixel, certainty = self._soft_cells(fused, own, image, size[1])
            found.append(
                ImageMatches(
                    scene.frame_of_image[image], scene.positions[fused.token[own]], seen[own],
                    pixel, certainty, self._fits(scene, fused, own[:_FITTED], image),
                    overlap[image], scene.intrinsics[image],
                )
            )  # fmt: skip
        self.train(training)
        return found
