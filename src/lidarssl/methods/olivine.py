"""OLIVINE: contrast of points and pixels, guided by weak class labels of the images.

Source: Zhang and Hou, "Fine-grained Image-to-LiDAR Contrastive Distillation with Visual
Foundation Models", NeurIPS 2024, and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import gather_counts, gather_rows, rank
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Matches, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.images.decoders import UpsampledHead
from lidarssl.losses.balanced_sampling import (
    Rounding,
    balanced_weights,
    range_bins,
    weighted_choice,
)
from lidarssl.losses.contrastive import supervised_info_nce
from lidarssl.losses.von_mises_fisher import Bessel, ClassPrototypes
from lidarssl.methods.base import PreparedFiles, zero_through
from lidarssl.methods.image_to_lidar import (
    ImageToLidar,
    Negatives,
    PairAugmentation,
    own_rows,
)
from lidarssl.transforms.base import Transform
from lidarssl.transforms.weak_labels import WeakLabels


@dataclass
class BalancedSampling:
    """How the matches of the semantic contrast are drawn.

    Args:
        by_range: rarer the denser matches lie at their distance from the sensor.
        by_class: rarer the more matches have their class.
        bin_size: m, resolution of the distance.
        rounding: of the distance to bins; ``floor`` of 0.1 m is the cell of the published MinkUNet,
            ``round`` of 1 m is what the published VoxelNet has.
    """

    by_range: bool = True
    by_class: bool = True
    bin_size: float = 0.1
    rounding: Rounding = "floor"

    def draw(
        self, points: Tensor, labels: Tensor, number: int, generator: torch.Generator
    ) -> Tensor:
        """This process's share of ``number`` rows drawn without replacement from all processes.

        Args:
            points: (M, 3) m, of each match.
            labels: (M,) int64.
            number: rows of the whole draw.
            generator: the same on every process.

        Returns:
            (K,) int64 rows.
        """
        bins = gather_rows(range_bins(points, self.bin_size, self.rounding)).cpu()
        weights = balanced_weights(bins, gather_rows(labels).cpu(), self.by_range, self.by_class)
        drawn = weighted_choice(weights, number, generator)
        return own_rows(drawn, gather_counts(len(labels), labels.device), rank()).to(labels.device)


@dataclass
class Distributions:
    """The von Mises-Fisher distribution of every class.

    Args:
        decay: weight of a step in the running mean of a class.
        warmup: steps that only estimate the means; the term begins after them.
        frozen: the means stay as they are after the warm-up.
        bias_correction: divide a mean by the weight that features have in it; it starts from 0.
            The published runs do not, which keeps every concentration low.
        shares: weight the classes by their share of the matches, as the first release did, instead
            of all alike.
        classes: only the first ones of the list have a distribution; None = all. The published
            VoxelNet run had 14 of its 17.
        bessel: in the logged likelihood, see ``lidarssl.losses.von_mises_fisher``; no gradient
            depends on it. The published logs have ``order_zero``.
    """

    decay: float = 1e-4
    warmup: int = 10_001
    frozen: bool = True
    bias_correction: bool = True
    shares: bool = False
    classes: int | None = None
    bessel: Bessel = "exact"

    def __post_init__(self) -> None:
        if self.frozen and self.warmup < 1:
            raise ConfigError(
                "means that no step estimates",
                field="method.distributions.warmup",
                remedy="give 1 step or more, or frozen: false",
            )


@dataclass
class TermWeights:
    """Weights of the three terms; a term of weight 0 is not computed.

    Args:
        points: contrast of single matches.
        semantic: contrast of classes.
        distribution: likelihood under the distribution of the class.
    """

    points: float = 0.5
    semantic: float = 0.5
    distribution: float = 1.0

    def __post_init__(self) -> None:
        if not (self.points or self.semantic or self.distribution):
            raise ConfigError(
                "no term has a weight: nothing would train",
                field="method.weights",
                remedy="give one of them a number above 0",
            )


class Olivine(ImageToLidar):
    """Contrast of matches, contrast of classes, and likelihood under class distributions.

    Args:
        weak_labels: the folder that ``lidarssl prepare weak-labels`` wrote.
        num_matches: matches of either contrast in a step, drawn over the whole global batch.
        sampling: of the matches of the semantic contrast.
        distributions: of the classes.
        weights: of the three terms.
        heads: ``linear`` adds two linear heads to the backbone; ``backbone`` takes the two halves
            of its channels as they are, of a VoxelNet with ``head_channels`` = ``embedding``,
            ``heads`` = 2 and ``normalize``, as the published one.
        backbone, image_encoder, embedding, temperature, augmentation, negatives: as the base.

    Raises:
        ConfigError: a backbone that has no two heads of the embedding's width, or distributions
            of more classes than the labels have.
    """

    title = "OLIVINE"

    steps: Tensor

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        weak_labels: WeakLabels,
        embedding: int = 64,
        temperature: float = 0.07,
        num_matches: int = 4096,
        sampling: BalancedSampling | None = None,
        distributions: Distributions | None = None,
        weights: TermWeights | None = None,
        heads: Literal["linear", "backbone"] = "linear",
        augmentation: PairAugmentation | None = None,
        negatives: Negatives = "global",
    ) -> None:
        super().__init__(backbone, image_encoder, embedding, temperature, augmentation, negatives)
        self.weak_labels, self.num_matches = weak_labels, num_matches
        self.sampling = sampling or BalancedSampling()
        self.distributions = distributions or Distributions()
        self.weights = weights or TermWeights()
        self.semantic_head: nn.Module = nn.Linear(backbone.out_channels, embedding)
        self.two_heads_inside = heads == "backbone"
        if self.two_heads_inside:
            _check_two_heads(backbone, embedding)
            self.point_head, self.semantic_head = nn.Identity(), nn.Identity()
        self.image_head = UpsampledHead(
            image_encoder.out_channels, embedding, image_encoder.stride, heads=2
        )
        known = len(weak_labels.classes)
        classes = self.distributions.classes or known
        if classes > known:
            raise ConfigError(
                f"distributions for {classes} of {known} classes",
                field="method.distributions.classes",
                remedy=f"give a number up to {known}, or null for all",
            )
        self.prototypes = ClassPrototypes(
            classes, embedding, self.distributions.decay, self.distributions.bias_correction
        )
        # A buffer, so that a resumed run knows where its warm-up stands.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def transforms(self, training: bool) -> Sequence[Transform]:
        return self.augmentation.transforms(training, on_images=[self.weak_labels])

    @property
    def prepared(self) -> Sequence[PreparedFiles]:
        return [PreparedFiles(self.weak_labels.folder, ".png", "lidarssl prepare weak-labels")]

    def embed(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of every token at the level of points and of classes, (T, embedding)."""
        if self.two_heads_inside:
            point, semantic = features.chunk(2, dim=1)
            return point, semantic
        point, semantic = self.point_head(features), self.semantic_head(features)
        return F.normalize(point, dim=1), F.normalize(semantic, dim=1)

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Without training, in eval mode, the loss is that of the two contrasts."""
        assert batch.matches is not None
        tokens, images = self.backbone(batch.points), self.encode_images(batch)
        points, semantic = self.embed(tokens.features)
        matches, token = batch.matches, tokens.token_of_point[batch.matches.point]
        loss, terms = zero_through(points, semantic, *self.image_head.parameters()), {}
        if self.weights.points:
            term, _ = self.contrast_matches(
                points, token, images, matches, self.num_matches, generator
            )
            loss, terms["points"] = loss + self.weights.points * term, term.detach()
        known = _labels(matches) > 0
        matches, token = matches[known], token[known]
        if self.weights.semantic:
            where = batch.points.points[matches.point]
            term = self._contrast_classes(semantic, token, images, matches, where, generator)
            loss, terms["semantic"] = loss + self.weights.semantic * term, term.detach()
        if self.weights.distribution and self.training:
            term = self._fit_distributions(semantic[token], matches)
            loss, terms["distribution"] = loss + self.weights.distribution * term, term.detach()
        terms["labelled"] = known.float().mean().nan_to_num()
        return StepOutput(loss, terms)

    def _contrast_classes(
        self, semantic: Tensor, token: Tensor, images: Tensor, matches: Matches, where: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """Supervised InfoNCE by weak labels on matches drawn for balance."""
        labels = _labels(matches)
        chosen = self.sampling.draw(where, labels, self.num_matches, generator)
        pairs = matches[chosen]
        pixels = self.image_head.sample(images, pairs.image, pairs.row, pairs.col, head=1)
        return supervised_info_nce(
            self.gather(semantic[token[chosen]]),
            self.gather(pixels),
            self.gather(labels[chosen]),
            self.temperature,
        )

    def _fit_distributions(self, features: Tensor, matches: Matches) -> Tensor:
        """Moves the means during the warm-up, 0 until it is over; then the likelihood term."""
        labels = _labels(matches) - 1
        among = labels < len(self.prototypes.mean)
        features, labels = features[among], labels[among]
        warming = int(self.steps) < self.distributions.warmup
        self.steps += 1
        if warming or not self.distributions.frozen:
            self.prototypes.update(features.detach(), labels)
        if warming:
            return 0.0 * features.sum()
        return self.prototypes.loss(
            features, labels, self.distributions.shares, self.distributions.bessel
        )


def _labels(matches: Matches) -> Tensor:
    assert matches.label is not None
    return matches.label


def _check_two_heads(backbone: Backbone, embedding: int) -> None:
    if backbone.out_channels != 2 * embedding:
        raise ConfigError(
            f"the backbone has {backbone.out_channels} channels, not two heads of {embedding}",
            field="method.heads",
            remedy="give a VoxelNet head_channels: "
            f"{embedding}, heads: 2 and normalize: true, or take heads: linear",
        )
