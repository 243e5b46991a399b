"""Loading networks, and preprocessing against that of transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.frozen import IMAGENET_MEAN, IMAGENET_STD
from lidarssl.prepare.labellers.base import by_size
from lidarssl.prepare.labellers.pretrained import (
    Preprocessing,
    input_size,
    load_model,
    load_tokenizer,
    read_model_type,
    read_preprocessing,
    source_name,
)

pytest.importorskip("transformers", exc_type=ImportError)

side = st.integers(1, 3000)
DETECTOR = {"shortest_edge": 800, "longest_edge": 1333}


@settings(deadline=None)
@given(side, side)
def test_sizes_of_the_detector_are_those_of_transformers(height: int, width: int):
    from transformers.image_transforms import get_size_with_aspect_ratio

    theirs = get_size_with_aspect_ratio((height, width), 800, 1333)
    ours = input_size(height, width, DETECTOR)
    # They round the short side and then truncate the long one in float: up to a pixel less.
    if max(height, width) < 100 * min(height, width):
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1
    assert max(ours) <= 1333
    assert min(ours) <= 800


@settings(deadline=None)
@given(side, side)
def test_sizes_of_sam_are_those_of_transformers(height: int, width: int):
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    theirs = SamImageProcessorPil()._get_preprocess_shape((height, width), 1024)
    assert input_size(height, width, {"longest_edge": 1024}) == tuple(max(1, s) for s in theirs)


def test_sizes_of_a_nuscenes_image():
    assert input_size(900, 1600, DETECTOR) == (750, 1333)
    assert input_size(900, 1600, {"longest_edge": 1024}) == (576, 1024)
    assert input_size(900, 1600, {"height": 512, "width": 256}) == (512, 256)
    assert input_size(1600, 900, {"shortest_edge": 450}) == (800, 450)


@pytest.mark.parametrize("size", [(40, 70), (30, 50), (90, 111)])
def test_preprocessing_is_that_of_transformers(size: tuple[int, int]):
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    processor = GroundingDinoImageProcessorPil(
        size={"height": size[0], "width": size[1]}, do_pad=False
    )
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = Preprocessing()(torch.tensor(image).permute(2, 0, 1)[None] / 255, size)
    # They round the resized image to whole grey values, after each of two directions.
    whole = size == (40, 70)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if whole else 1.5 / 255 / 0.224)


def test_statistics_and_size_come_from_the_folder(tmp_path: Path):
    assert read_preprocessing(tmp_path, "model") == Preprocessing(IMAGENET_MEAN, IMAGENET_STD, None)
    found = {"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 2, 3], "resample": 3}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(found | {"size": {"height": 384, "width": 512}}))
    rule = {"height": 384, "width": 512}
    assert read_preprocessing(tmp_path, "model") == Preprocessing(
        (0.5, 0.4, 0.3), (1, 2, 3), rule, "bicubic"
    )
    file.write_text(json.dumps({"size": 800, "max_size": 1333, "do_normalize": False}))
    assert read_preprocessing(tmp_path, "model") == Preprocessing((0.0,) * 3, (1.0,) * 3, DETECTOR)
    file.write_text(json.dumps({"size": {"height": 8, "width": 8}, "do_resize": False}))
    assert read_preprocessing(tmp_path, "model").size is None


def test_a_damaged_preprocessor_config_is_no_missing_one(tmp_path: Path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read with transformers"):
        read_preprocessing(tmp_path, "model")


def test_images_of_one_size_come_together():
    images = [torch.zeros(3, *size) for size in ((4, 5), (5, 4), (4, 5))]
    assert list(by_size(images)) == [[0, 2], [1]]


def test_a_path_is_known_by_its_last_part(tmp_path: Path):
    (tmp_path / "sam").mkdir()
    assert source_name(tmp_path / "sam") == source_name(f"{tmp_path}/sam/") == "sam"
    assert source_name("facebook/sam-vit-base") == "facebook/sam-vit-base"


def test_weights_are_all_there_and_unchanged(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    from prepare.labellers.tiny_models import save_segformer

    folder = save_segformer(tmp_path, ["road", "car"])
    stored = load_file(folder / "model.safetensors")
    model = load_model("AutoModelForSemanticSegmentation", folder, "model")
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], value) for name, value in stored.items())
    del stored["decode_head.classifier.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"missing.*decode_head\.classifier\.weight"):
        load_model("AutoModelForSemanticSegmentation", folder, "model")


def test_pickles_are_not_read(tmp_path: Path):
    from prepare.labellers.tiny_models import save_segformer

    folder = save_segformer(tmp_path, ["road", "car"])
    model = load_model("AutoModelForSemanticSegmentation", folder, "model")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="with safetensors") as caught:
        load_model("AutoModelForSemanticSegmentation", folder, "model")
    assert caught.value.field == "model"


def test_what_cannot_be_read_says_so(tmp_path: Path):
    with pytest.raises(DataError, match="no such weights"):
        read_model_type(tmp_path / "absent", "detector")
    with pytest.raises(ConfigError, match="cannot be read with transformers"):
        read_model_type(tmp_path, "detector")
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ConfigError, match="is a file"):
        read_model_type(tmp_path / "one.safetensors", "detector")
    with pytest.raises(ConfigError, match="cannot be read with transformers"):
        load_tokenizer(tmp_path, "detector")


def test_without_transformers_pip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'lidarssl\[images\]'"):
        read_model_type(tmp_path, "detector")
