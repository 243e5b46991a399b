"""Closed-set labels by real networks with random weights, and their decisions on numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.prepare.labellers.segmenter import (
    UniversalSegmenter,
    best_of_logits,
    semantic_scores,
    size_rule,
    values_of,
)

pytest.importorskip("transformers", exc_type=ImportError)

from prepare.labellers import tiny_models

NAMES = ["road", "sky", "car", "truck", "person"]
NETWORKS = {
    "mask2former": tiny_models.save_mask2former,
    "oneformer": tiny_models.save_oneformer,
    "segformer": tiny_models.save_segformer,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    return {name: save(root / name, NAMES) for name, save in NETWORKS.items()}


@pytest.fixture(params=sorted(NETWORKS), scope="module")
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def differing(first: Tensor, second: Tensor) -> float:
    """Share of pixels. Rounding can only change those where two classes are all but equal."""
    assert first.shape == second.shape
    return float((first != second).float().mean())


# The whole way.


def test_every_image_gets_labels_of_its_size(folder: Path):
    found = UniversalSegmenter(folder).label(images((40, 70), (50, 33), (40, 70)))
    assert [tuple(one.shape) for one in found] == [(40, 70), (50, 33), (40, 70)]
    values = torch.cat([one.flatten() for one in found]).unique()
    assert values.dtype == torch.int64
    assert 1 <= int(values[0]) <= int(values[-1]) <= 5
    assert folder.name == "oneformer" or len(values) > 2


@pytest.mark.parametrize("save", [tiny_models.save_maskformer, tiny_models.save_upernet])
def test_further_networks(save, tmp_path: Path):
    found = UniversalSegmenter(save(tmp_path, NAMES)).label(images((40, 70), (50, 33)))
    assert [tuple(one.shape) for one in found] == [(40, 70), (50, 33)]
    assert all(1 <= int(one.min()) <= int(one.max()) <= 5 for one in found)


def test_company_changes_no_label(folder: Path):
    segmenter, given = UniversalSegmenter(folder), images((40, 70), (50, 33), (40, 70))
    for alone, together in zip(given, segmenter.label(given), strict=True):
        assert differing(segmenter.label([alone])[0], together) < 2e-3


def test_a_score_below_the_threshold_stays_unpainted(folder: Path):
    given = images((40, 70))
    everything = UniversalSegmenter(folder)
    score, _ = everything.predict(given[0][None])[0]
    middle = float(score.median())
    some = UniversalSegmenter(folder, threshold=middle).label(given)[0]
    assert torch.equal(some == 0, score < middle)
    assert torch.equal(some[some > 0], everything.label(given)[0][some > 0])
    assert not UniversalSegmenter(folder, threshold=1e3).label(given)[0].any()


def test_classes_are_mapped_many_to_one(folder: Path):
    given = images((40, 70), (50, 33))
    own = torch.cat([one.flatten() for one in UniversalSegmenter(folder).label(given)])
    classes = {"truck": "vehicle", "road": "ground", "car": "vehicle"}
    segmenter = UniversalSegmenter(folder, classes)
    assert segmenter.classes == ("vehicle", "ground")
    mapped = torch.cat([one.flatten() for one in segmenter.label(given)])
    assert torch.equal(mapped, torch.tensor([0, 2, 0, 1, 1, 0])[own])


def test_the_network_sees_the_size_that_is_asked_for(folder: Path, monkeypatch):
    seen: list[tuple[int, ...]] = []
    segmenter = UniversalSegmenter(folder, size=40)
    forward = segmenter.network.forward

    def watched(pixel_values: Tensor, **more):
        seen.append(tuple(pixel_values.shape[-2:]))
        return forward(pixel_values, **more)

    monkeypatch.setattr(segmenter.network, "forward", watched)
    assert segmenter.label(images((60, 105)))[0].shape == (60, 105)
    padded = (40, 70) if folder.name == "segformer" else (64, 96)
    assert seen == [padded]


def test_the_size_of_the_folder_is_the_default(folders: dict[str, Path]):
    file = folders["segformer"] / "preprocessor_config.json"
    file.write_text(json.dumps({"size": {"height": 24, "width": 56}}))
    try:
        assert UniversalSegmenter(folders["segformer"]).rule == {"height": 24, "width": 56}
        small = UniversalSegmenter(folders["segformer"], size=(32, 32))
        assert small.rule == {"height": 32, "width": 32}
    finally:
        file.unlink()
    assert UniversalSegmenter(folders["segformer"]).rule is None


def test_the_description_knows_arguments_and_weights(folder: Path):
    first = UniversalSegmenter(folder).description()
    assert json.loads(json.dumps(first)) == first
    assert first["arguments"]["model"] == folder.name
    assert UniversalSegmenter(folder).description() == first
    mapped = UniversalSegmenter(folder, {"car": "car"}).description()
    assert mapped["weights"] == first["weights"]
    assert mapped["arguments"]["classes"] == {"car": "car"}


def test_it_never_trains(folder: Path):
    segmenter = UniversalSegmenter(folder)
    segmenter.train()
    assert not segmenter.network.training
    assert not any(parameter.requires_grad for parameter in segmenter.parameters())


# Against transformers, whose image processors the labeller does without.


def outputs(segmenter: UniversalSegmenter, image: Tensor):
    pixels = segmenter.preprocessing(image[None], tuple(image.shape[-2:]))
    with torch.no_grad():
        return segmenter.network(pixel_values=pixels, **segmenter.inputs)


def test_mask2former_labels_are_those_of_transformers(folders: dict[str, Path]):
    """At 384 px, the size that transformers brings all masks to."""
    from transformers.models.mask2former.image_processing_pil_mask2former import (
        Mask2FormerImageProcessorPil,
    )

    image = images((384, 384))[0]
    segmenter = UniversalSegmenter(folders["mask2former"])
    theirs = Mask2FormerImageProcessorPil().post_process_semantic_segmentation(
        outputs(segmenter, image), [(384, 384)]
    )[0]
    ours = segmenter.label([image])[0]
    assert len(theirs.unique()) > 2
    assert differing(ours, theirs + 1) < 1e-4


def test_oneformer_is_told_its_task_as_by_transformers(folders: dict[str, Path]):
    from transformers import AutoTokenizer, OneFormerProcessor

    processor = OneFormerProcessor.__new__(OneFormerProcessor)
    processor.tokenizer = AutoTokenizer.from_pretrained(folders["oneformer"])
    theirs = processor._preprocess_text(["the task is semantic"], max_length=8)
    assert torch.equal(UniversalSegmenter(folders["oneformer"]).inputs["task_inputs"], theirs)


def test_segformer_labels_are_those_of_transformers(folders: dict[str, Path]):
    from transformers.models.segformer.image_processing_pil_segformer import (
        SegformerImageProcessorPil,
    )

    image = images((40, 70))[0]
    segmenter = UniversalSegmenter(folders["segformer"])
    theirs = SegformerImageProcessorPil().post_process_semantic_segmentation(
        outputs(segmenter, image), [(40, 70)]
    )[0]
    assert len(theirs.unique()) > 2
    assert torch.equal(segmenter.label([image])[0], theirs + 1)


# The decisions.


def test_scores_of_queries_are_the_plain_sum():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(37, 4, generator=generator, dtype=torch.float64)
    masks = torch.randn(37, 16, 24, generator=generator, dtype=torch.float64)
    found = semantic_scores(classes, masks, (50, 70))
    expected = torch.zeros(3, 50, 70, dtype=torch.float64)
    for query in range(37):
        shares = classes[query].exp() / classes[query].exp().sum()
        mask = F.interpolate(masks[query][None, None], (64, 96), mode="bilinear")[0, 0, :50, :70]
        for index in range(3):
            expected[index] += shares[index] / (1 + (-mask).exp())
    torch.testing.assert_close(found, expected)


def test_scores_of_queries_are_those_of_transformers_at_one_size():
    from transformers.models.oneformer.image_processing_pil_oneformer import (
        OneFormerImageProcessorPil,
    )

    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(30, 6, generator=generator)
    masks = torch.randn(30, 32, 64, generator=generator)
    answer = SimpleNamespace(class_queries_logits=classes[None], masks_queries_logits=masks[None])
    theirs = OneFormerImageProcessorPil().post_process_semantic_segmentation(answer, [(32, 64)])[0]
    assert torch.equal(semantic_scores(classes, masks, (32, 64)).argmax(0), theirs)


def test_the_score_of_logits_is_a_probability():
    logits = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    score, best = best_of_logits(logits, 5, 6)
    torch.testing.assert_close(score, logits.softmax(0).max(0).values)
    assert torch.equal(best, logits.argmax(0))


def test_values_count_target_classes_from_1():
    assert values_of(["a", "b", "c"], {"c": "x", "a": "y"}).tolist() == [2, 0, 1]
    assert values_of(["a", "a"], {"a": "a"}).tolist() == [1, 1]
    with pytest.raises(ConfigError, match="did you mean 'road'"):
        values_of(NAMES, {"raod": "ground"})


def test_sizes():
    assert size_rule(512) == {"shortest_edge": 512}
    assert size_rule([512, 1024]) == {"height": 512, "width": 1024}
    for wrong in (0, [], [1, 2, 3], (5, -1)):
        with pytest.raises(ConfigError, match="no size"):
            size_rule(wrong)


# What is refused.


def test_another_kind_of_network_is_refused(tmp_path: Path):
    folder = tiny_models.save_sam(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read with transformers") as caught:
        UniversalSegmenter(folder)
    assert caught.value.field == "model"
