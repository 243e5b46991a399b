"""Real networks of transformers with random weights, small enough for a test, as folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

# Ids at which the detector expects its separators.
_SEPARATORS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
_WORDS = [
    "barrier", "bicycle", "bus", "car", "motor", "##cycle", "ped", "##estrian", "traffic", "cone",
    "truck", "road", "side", "##walk", "terrain", "vegetation", "building", "man",
    "the", "task", "is", "semantic",
]  # fmt: skip


def save_tokenizer(folder: Path) -> Any:
    """A BERT tokenizer of a few words, some of which are made of two tokens."""
    vocabulary = [_SEPARATORS.get(index, f"[unused{index}]") for index in range(1030)] + _WORDS
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "vocab.txt"
    file.write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(file))
    tokenizer.save_pretrained(folder)
    return tokenizer


def swin(stages: Sequence[str], **more: Any) -> Any:
    return transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
        window_size=4, out_features=list(stages), **more,
    )  # fmt: skip


def save_grounding_dino(folder: Path, seed: int = 0, name: str = "GroundingDino") -> Path:
    """Box heads are drawn widely, so that boxes differ in place and size."""
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder)
    config = getattr(transformers, f"{name}Config")(
        backbone_config=swin(["stage2", "stage3", "stage4"]),
        text_config=transformers.BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32,
        ),
        d_model=32, num_queries=20, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        num_feature_levels=4, encoder_n_points=2, decoder_n_points=2, max_text_len=64,
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    with torch.no_grad():
        for head in (*model.bbox_embed, *model.model.decoder.bbox_embed):
            torch.nn.init.normal_(head.layers[-1].weight, std=0.5)
            torch.nn.init.normal_(head.layers[-1].bias, std=0.5)
    model.save_pretrained(folder)
    return folder


def _prompt_encoder(config: Any) -> Any:
    return config(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)


def _mask_decoder(config: Any, **more: Any) -> Any:
    return config(
        hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2,
        iou_head_hidden_dim=16, iou_head_depth=2, **more,
    )  # fmt: skip


def save_sam(folder: Path, hq: bool = False, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    name = "SamHQ" if hq else "Sam"
    config = getattr(transformers, f"{name}Config")(
        vision_config=getattr(transformers, f"{name}VisionConfig")(
            hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2,
            image_size=64, patch_size=8, window_size=4, global_attn_indexes=[1], mlp_dim=32,
            num_pos_feats=8,
        ),
        prompt_encoder_config=_prompt_encoder(getattr(transformers, f"{name}PromptEncoderConfig")),
        mask_decoder_config=_mask_decoder(
            getattr(transformers, f"{name}MaskDecoderConfig"), **({"vit_dim": 16} if hq else {})
        ),
    )  # fmt: skip
    _save_lively(getattr(transformers, f"{name}Model")(config), folder)
    return folder


def save_sam2(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    config = transformers.Sam2Config(
        vision_config=transformers.Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
        prompt_encoder_config=transformers.Sam2PromptEncoderConfig(
            hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2,
            iou_head_hidden_dim=16, iou_head_depth=2,
        ),
    )  # fmt: skip
    _save_lively(transformers.Sam2Model(config), folder)
    return folder


def _save_lively(model: Any, folder: Path) -> None:
    """Random weights as drawn for training give constant masks; larger ones do not."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name:
                weight.normal_(std=weight[0].numel() ** -0.5 * 1.5)
    model.save_pretrained(folder)


def save_mask2former(folder: Path, names: Sequence[str], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32,
        num_queries=20, id2label=dict(enumerate(names)),
    )  # fmt: skip
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.normal_(std=2.0)
        for parameter in model.model.transformer_module.decoder.mask_predictor.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


def save_oneformer(folder: Path, names: Sequence[str], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder)
    config = transformers.OneFormerConfig(
        backbone_config=swin(["stage1", "stage2", "stage3", "stage4"]),
        conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=20,
        query_dec_layers=1, task_seq_len=8, text_encoder_width=32, text_encoder_num_layers=1,
        text_encoder_vocab_size=len(tokenizer), text_encoder_context_length=8,
        text_encoder_n_ctx=4, id2label=dict(enumerate(names)),
    )  # fmt: skip
    transformers.OneFormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


def save_maskformer(folder: Path, names: Sequence[str], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    decoder = transformers.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=10,
    )  # fmt: skip
    config = transformers.MaskFormerConfig(
        backbone_config=swin(["stage1", "stage2", "stage3", "stage4"]), decoder_config=decoder,
        fpn_feature_size=32, mask_feature_size=32, id2label=dict(enumerate(names)),
    )  # fmt: skip
    transformers.MaskFormerForInstanceSegmentation(config).save_pretrained(folder)
    return folder


def save_upernet(folder: Path, names: Sequence[str], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = transformers.UperNetConfig(
        backbone_config=swin(["stage1", "stage2", "stage3", "stage4"]), hidden_size=16,
        auxiliary_in_channels=32, auxiliary_channels=8, id2label=dict(enumerate(names)),
    )  # fmt: skip
    transformers.UperNetForSemanticSegmentation(config).save_pretrained(folder)
    return folder


def save_segformer(folder: Path, names: Sequence[str], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, mlp_ratios=[2, 2, 2, 2], id2label=dict(enumerate(names)),
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.weight.normal_(std=2.0)
    model.save_pretrained(folder)
    return folder
