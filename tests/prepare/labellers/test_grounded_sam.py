"""Open-vocabulary labels by real networks with random weights, and their decisions on numbers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.prepare.labellers.grounded_sam import (
    GroundedSam,
    painted,
    painting_order,
    select_boxes,
)
from lidarssl.prepare.labellers.segment_anything import BoxMasks

pytest.importorskip("transformers", exc_type=ImportError)

from prepare.labellers import tiny_models

SEGMENTERS = {
    "sam": tiny_models.save_sam,
    "sam_hq": partial(tiny_models.save_sam, hq=True),
    "sam2": tiny_models.save_sam2,
}
SMALL = {"short_side": 64, "long_side": 128, "chunk": 7}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    made = {"detector": tiny_models.save_grounding_dino(root / "detector")}
    return made | {name: save(root / name) for name, save in SEGMENTERS.items()}


@pytest.fixture(params=sorted(SEGMENTERS), scope="module")
def labeller(request: pytest.FixtureRequest, folders: dict[str, Path]) -> GroundedSam:
    return GroundedSam(folders["detector"], folders[request.param], **SMALL)


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


# The whole way.


def test_every_image_gets_labels_of_its_size(labeller: GroundedSam):
    found = labeller.label(images((40, 64), (50, 33), (40, 64)))
    assert [tuple(one.shape) for one in found] == [(40, 64), (50, 33), (40, 64)]
    values = torch.cat([one.flatten() for one in found])
    assert values.dtype == torch.int64
    assert values.unique().numel() > 3
    assert 0 <= int(values.min()) <= int(values.max()) <= 13


def test_company_changes_no_label(labeller: GroundedSam):
    given = images((40, 64), (50, 33), (40, 64))
    for alone, together in zip(given, labeller.label(given), strict=True):
        assert torch.equal(labeller.label([alone])[0], together)


def test_bytes_are_what_floats_are(labeller: GroundedSam):
    image = (images((40, 64))[0] * 255).round().to(torch.uint8)
    assert torch.equal(*labeller.label([image, image.float() / 255]))


@pytest.mark.parametrize("which", ["box_threshold", "text_threshold"])
def test_nothing_is_more_probable_than_1(folders: dict[str, Path], which: str):
    labeller = GroundedSam(folders["detector"], folders["sam"], **SMALL, **{which: 1.0})
    assert not labeller.label(images((40, 64)))[0].any()


def test_a_mask_needs_its_threshold(folders: dict[str, Path]):
    labeller = GroundedSam(folders["detector"], folders["sam"], **SMALL, mask_threshold=1e9)
    assert not labeller.label(images((40, 64)))[0].any()


def test_another_detector(folders: dict[str, Path], tmp_path: Path):
    detector = tiny_models.save_grounding_dino(tmp_path, name="MMGroundingDino")
    labels = GroundedSam(detector, folders["sam"], **SMALL, box_threshold=0.0, text_threshold=0.0)
    assert labels.label(images((40, 64)))[0].unique().numel() > 3


def test_the_image_part_of_a_video_model(folders: dict[str, Path], tmp_path: Path):
    """The folders of SAM 2 on the hub name the video model, for the same weights."""
    shutil.copytree(folders["sam2"], tmp_path / "sam2")
    file = tmp_path / "sam2" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "sam2_video"}))
    image, boxes = images((40, 64))[0], torch.tensor([[3.0, 5, 30, 25]])
    of_image, of_video = (
        next(iter(BoxMasks(folder)(image, boxes)))
        for folder in (folders["sam2"], tmp_path / "sam2")
    )
    assert torch.equal(of_image, of_video)


def test_fewer_boxes_at_once_change_nothing(folders: dict[str, Path]):
    given = images((40, 64))
    one, all_ = (
        GroundedSam(folders["detector"], folders["sam"], **SMALL | {"chunk": n}).label(given)[0]
        for n in (1, 1000)
    )
    # Numbers of rows change the order of sums: a logit at 0 may fall on either side.
    assert float((one != all_).float().mean()) < 1e-3


def test_it_never_trains(labeller: GroundedSam):
    labeller.train()
    assert not labeller.detector.training
    assert not any(parameter.requires_grad for parameter in labeller.parameters())


def test_the_description_knows_arguments_and_weights(folders: dict[str, Path], tmp_path: Path):
    make = partial(GroundedSam, segmenter=folders["sam"], prompts=["car", "bus"])
    first = make(folders["detector"]).description()
    assert json.loads(json.dumps(first)) == first
    assert first["class"] == "GroundedSam"
    assert first["arguments"]["detector"] == "detector"
    assert first["arguments"]["prompts"] == {"car": ["car"], "bus": ["bus"]}
    assert make(folders["detector"]).description() == first
    assert make(folders["detector"], nms=None).description() != first
    other = tiny_models.save_grounding_dino(tmp_path / "detector", seed=1)
    assert make(other).description()["arguments"] == first["arguments"]
    assert make(other).description()["weights"] != first["weights"]


# Against the processors of transformers, which the labeller does without.


def test_boxes_are_those_of_transformers(folders: dict[str, Path]):
    """Without suppression. Just below a box's score its words hold its class, just above none."""
    from transformers import AutoTokenizer, GroundingDinoProcessor
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    image = (images((64, 100))[0] * 255).round().to(torch.uint8)
    labeller = GroundedSam(folders["detector"], folders["sam"], **SMALL, nms=None)
    tokenizer = AutoTokenizer.from_pretrained(folders["detector"])
    processor = GroundingDinoProcessor.__new__(GroundingDinoProcessor)
    # As words, not as one text: word pieces that do not belong together are hard to read there.
    processor.batch_decode = lambda words: [
        set(tokenizer.convert_ids_to_tokens([int(word) for word in some])) for some in words
    ]
    phrases = [name.replace("_", " ") for name in labeller.classes]
    text = tokenizer(processor._preprocess_input_text(phrases), return_tensors="pt")
    pixels = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    with torch.no_grad():
        ours = labeller.detect(image[None] / 255)[0]
        output = labeller.detector(**pixels(image.numpy(), return_tensors="pt"), **text)

    def theirs(text_threshold: float) -> dict:
        return processor.post_process_grounded_object_detection(
            output, text["input_ids"], 0.25, text_threshold, [(64, 100)]
        )[0]

    assert len(ours.boxes) > 5
    torch.testing.assert_close(ours.boxes, theirs(0.25)["boxes"], rtol=0, atol=1e-3)
    for box, (score, label) in enumerate(zip(ours.scores.tolist(), ours.labels, strict=True)):
        below, above = (theirs(score + shift)["text_labels"][box] for shift in (-1e-4, 1e-4))
        assert below & set(tokenizer.tokenize(phrases[label - 1]))
        assert above <= {"."}


def test_masks_of_sam_are_those_of_transformers(folders: dict[str, Path]):
    """The image's long side is that of the network, so nothing is rounded to 8 bit."""
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    image = (images((40, 64))[0] * 255).round().to(torch.uint8)
    boxes = torch.tensor([[3.0, 5, 30, 35], [10, 2, 60, 38], [0, 0, 8, 8]])
    masks = GroundedSam(folders["detector"], folders["sam"], **SMALL).masks
    square = {"height": 64, "width": 64}
    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size=square)
    with torch.no_grad():
        given = processor(image.numpy(), return_tensors="pt")
        output = masks.model(given["pixel_values"], input_boxes=boxes[None], multimask_output=False)
        theirs = processor.post_process_masks(
            output.pred_masks,
            given["original_sizes"],
            given["reshaped_input_sizes"],
            pad_size=square,
        )[0][:, 0]
        ours = torch.cat(list(masks(image / 255, boxes)))
    assert 0 < float(theirs.float().mean()) < 1
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("which", ["sam", "sam_hq", "sam2"])
def test_boxes_reach_sam_in_the_frame_of_its_input(folders: dict[str, Path], which: str):
    """An image twice as large with boxes twice as large has the masks of the image itself."""
    masks = GroundedSam(folders["detector"], folders[which], **SMALL).masks
    image = images((64, 64))[0]
    boxes = torch.tensor([[3.0, 5, 30, 35], [10, 2, 60, 38]])
    large = torch.nn.functional.interpolate(image[None], (128, 128), mode="nearest")[0]
    with torch.no_grad():
        same = masks.model(
            masks.preprocessing(image[None], (64, 64)),
            input_boxes=boxes[None],
            multimask_output=False,
        ).pred_masks[0]
        expected = torch.nn.functional.interpolate(same, (64, 64), mode="bilinear")[:, 0] > 0
        assert torch.equal(torch.cat(list(masks(image, boxes))), expected)
        found = torch.cat(list(masks(large, boxes * 2)))[:, ::2, ::2]
    # The antialiased way back mixes neighbours a little.
    assert float((found != expected).float().mean()) < 0.1


def test_sam2_stretches_an_image_to_a_square(folders: dict[str, Path]):
    masks = GroundedSam(folders["detector"], folders["sam2"], **SMALL).masks
    image, boxes = images((32, 64))[0], torch.tensor([[3.0, 5, 30, 25]])
    pixels = torch.nn.functional.interpolate(image[None], (64, 64), mode="bilinear")
    with torch.no_grad():
        output = masks.model(
            masks.preprocessing(pixels, (64, 64)),
            input_boxes=boxes[None] * torch.tensor([1.0, 2, 1, 2]),
            multimask_output=False,
        )
        logits = torch.nn.functional.interpolate(output.pred_masks[0], (32, 64), mode="bilinear")
        assert torch.equal(torch.cat(list(masks(image, boxes))), logits[:, 0] > 0)


# The decisions.

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 10]])
TOKENS = torch.tensor([0, 1, 0, 2, 2, 0])  # [CLS] car . traffic cone [SEP]
PROBABILITIES = torch.tensor(
    [
        [0.0, 0.6, 0.0, 0.1, 0.2, 0.0, 0.0, 0.0],
        [0.0, 0.7, 0.0, 0.1, 0.2, 0.0, 0.0, 0.0],
        [0.0, 0.1, 0.0, 0.2, 0.5, 0.0, 0.0, 0.0],
        [0.9, 0.0, 0.9, 0.0, 0.3, 0.9, 0.0, 0.0],
    ]
)


def select(box: float = 0.25, text: float = 0.25, nms: float | None = None):
    return select_boxes(PROBABILITIES, BOXES, TOKENS, box, text, nms)


def test_a_box_is_of_the_class_of_its_best_token():
    found = select()
    assert found.labels.tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.7, 0.5, 0.3]))
    assert torch.equal(found.boxes, BOXES)


def test_both_thresholds_have_to_be_passed():
    assert select(box=0.65).labels.tolist() == [1, 2]  # the last by a token that names nothing
    assert select(text=0.55).labels.tolist() == [1, 1]
    assert select(text=0.7).labels.tolist() == []  # equal is not above
    assert select(box=0.95).boxes.shape == (0, 4)


def test_repeats_go_only_within_a_class_and_the_order_stays():
    found = select(nms=0.7)
    assert found.scores.tolist() == pytest.approx([0.7, 0.5, 0.3])
    assert found.labels.tolist() == [1, 2, 2]
    assert len(select(nms=0.95).labels) == 4


def test_no_box_is_no_problem():
    found = select_boxes(PROBABILITIES[:0], BOXES[:0], TOKENS, 0.2, 0.2, 0.7)
    assert found.boxes.shape == (0, 4)
    assert painted([], found.labels, 2, 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_who_is_painted_last_wins():
    scores = torch.tensor([0.9, 0.2, 0.5])
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]], [[1, 0, 1, 0]]]).bool()
    values = torch.tensor([7, 8, 9])

    def paint(how: str) -> list[int]:
        order = painting_order(scores, how)
        return painted(masks[order].split(2), values[order], 1, 4)[0].tolist()

    assert paint("by_score") == [7, 7, 9, 0]
    assert paint("by_box_order") == [9, 8, 9, 0]


# What is refused.


def test_the_wrong_kind_of_network_is_refused(folders: dict[str, Path]):
    with pytest.raises(ConfigError, match="of type 'sam'") as caught:
        GroundedSam(folders["sam"], folders["sam"])
    assert caught.value.field == "detector"
    with pytest.raises(ConfigError, match="of type 'grounding-dino'") as caught:
        GroundedSam(folders["detector"], folders["detector"])
    assert caught.value.field == "segmenter"


def test_options_that_make_no_sense_are_refused(folders: dict[str, Path]):
    make = partial(GroundedSam, folders["detector"], folders["sam"])
    with pytest.raises(ConfigError, match="neither"):
        make(paint="best")
    with pytest.raises(ConfigError, match="short side"):
        make(short_side=900, long_side=800)
    with pytest.raises(ConfigError, match="tokens, the detector reads 64"):
        make(prompts=[f"car{'x' * n}" for n in range(1, 40)])
    with pytest.raises(ConfigError, match="no class"):
        make(prompts=[])
    with pytest.raises(ConfigError, match="more than once"):
        make(prompts=["car", "car"])
