"""The mask transformer against its formulas in float64, its start, and foreign weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.mask_transformer import (
    LinearPixelHead,
    MaskTransformer,
    MaskTransformerShape,
    from_mmseg,
    load_mmseg,
    unit_rows,
)

SMALL = MaskTransformerShape(layers=3, heads=2, width=8, mlp_ratio=3, drop_path=0.3)


def small(seed: int = 0, **changes: Any) -> MaskTransformer:
    """Far from its start, so that every part of it matters."""
    head = MaskTransformer(5, 4, MaskTransformerShape(**{**vars(SMALL), **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head.eval()


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def by_the_formulas(state: dict[str, Tensor], features: Tensor, heads: int) -> Tensor:
    """One image (C, h, w) at a time and one attention head at a time, in float64."""
    s = {key: value.double() for key, value in state.items()}
    classes = s["cls_emb"].shape[1]

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s.get(f"{name}.bias", torch.zeros(()))

    cells = [features[:, i, j] for i in range(features.shape[1]) for j in range(features.shape[2])]
    x = torch.cat([dense("dec_proj", torch.stack(cells).double()), s["cls_emb"][0]])
    for at in sorted({key.rsplit(".ln1", 1)[0] for key in s if ".ln1" in key}):
        y = norm(x, s[f"{at}.ln1.weight"], s[f"{at}.ln1.bias"])
        joint = y @ s[f"{at}.attn.in_proj_weight"].T + s[f"{at}.attn.in_proj_bias"]
        q, k, v = joint.chunk(3, 1)
        of_head = q.shape[1] // heads
        mixed = []
        for number in range(heads):
            part = slice(number * of_head, (number + 1) * of_head)
            scores = torch.exp(q[:, part] @ k[:, part].T / math.sqrt(of_head))
            mixed.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        x = x + dense(f"{at}.attn.out_proj", torch.cat(mixed, 1))
        y = norm(x, s[f"{at}.ln2.weight"], s[f"{at}.ln2.bias"])
        x = x + dense(f"{at}.ffn.2", gelu(dense(f"{at}.ffn.0", y)))
    x = norm(x, s["decoder_norm.weight"], s["decoder_norm.bias"])
    patches = dense("patch_proj", x[:-classes])
    tokens = dense("classes_proj", x[-classes:])
    lengths = patches.norm(dim=1)[:, None] * tokens.norm(dim=1)
    masks = norm(patches @ tokens.T / lengths, s["mask_norm.weight"], s["mask_norm.bias"])
    return masks.T.reshape(classes, *features.shape[1:])


@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (4, 2)])
@pytest.mark.parametrize("changes", [{}, {"layers": 1, "width": None, "heads": 5}])
def test_equals_the_formulas(grid: tuple[int, int], changes: dict[str, Any]) -> None:
    head = small(**changes).double()
    features = torch.randn((2, 5, *grid), dtype=torch.float64)
    expected = [
        by_the_formulas(head.state_dict(), one, changes.get("heads", 2)) for one in features
    ]
    torch.testing.assert_close(head(features), torch.stack(expected), rtol=1e-9, atol=1e-9)
    with torch.inference_mode():  # where torch has another way to the same attention
        torch.testing.assert_close(head(features), torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_published_number_of_parameters() -> None:
    count = sum(p.numel() for p in MaskTransformer(384, 19).parameters())
    assert count == 3_999_782


def test_start() -> None:
    """0.02 everywhere, but the joint projection of the attention has the spread of Xavier."""
    torch.manual_seed(0)
    head = MaskTransformer(384, 19)
    for name, value in head.state_dict().items():
        if name.endswith("in_proj_weight"):
            limit = math.sqrt(6 / (384 + 3 * 384))
            assert float(value.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02), name
            assert float(value.abs().max()) <= limit
        elif name.endswith(("ln1.weight", "ln2.weight", "norm.weight")):
            assert (value == 1).all(), name
        elif name.endswith("bias"):
            assert (value == 0).all(), name
        else:
            assert float(value.std()) == pytest.approx(0.02, rel=0.05), name
            assert abs(float(value.mean())) < 0.001, name
    assert [layer.drop_path for layer in head.layers] == pytest.approx([0, 0.1])


def test_unit_rows() -> None:
    rows = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    expected = rows.detach() / rows.detach().square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(unit_rows(rows), expected)
    assert torch.autograd.gradcheck(unit_rows, rows)
    zero = torch.zeros(1, 4, requires_grad=True)
    unit = unit_rows(zero)
    unit.sum().backward()
    assert (unit == 0).all()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_every_parameter_has_a_gradient() -> None:
    head = small().train()
    head(torch.randn(2, 5, 3, 3)).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_left_out_branches_leave_the_mean() -> None:
    """Whole samples lose a branch, drawn by torch's generator, and only in training."""
    head = small(layers=2, drop_path=0.4)
    layer = head.layers[1]
    tokens = torch.randn(1, 5, 8).expand(4000, -1, -1)
    with torch.no_grad():
        whole = layer(tokens)
        assert torch.equal(whole[0], whole[-1])
        layer.train()
        torch.manual_seed(1)
        found = layer(tokens)
        torch.manual_seed(1)
        assert torch.equal(found, layer(tokens))
    unchanged = (found == tokens).flatten(1).all(1)
    assert float(unchanged.float().mean()) == pytest.approx(0.4**2, abs=0.02)
    branch = torch.ones(4000, 2, 3)
    kept = layer._kept(branch)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert torch.equal(kept.amin((1, 2)), kept.amax((1, 2)))
    assert float(kept.mean()) == pytest.approx(1, abs=0.05)


def as_published(head: MaskTransformer, prefix: str) -> dict[str, Tensor]:
    published = {
        key.replace(".attn.", ".attn.attn.")
        .replace(".ffn.0.", ".ffn.layers.0.0.")
        .replace(".ffn.2.", ".ffn.layers.1."): value
        for key, value in head.state_dict().items()
    }
    published |= {"conv_seg.weight": torch.zeros(4, 8, 1, 1), "conv_seg.bias": torch.zeros(4)}
    return {prefix + key: value for key, value in published.items()}


@pytest.mark.parametrize("prefix", ["", "decode_head."])
def test_reads_weights_of_mmsegmentation(prefix: str) -> None:
    theirs, features = small(seed=1), torch.randn(1, 5, 2, 2)
    state = as_published(theirs, prefix)
    if prefix:
        state["backbone.timm_model.norm.weight"] = torch.ones(5)
    ours = small(seed=2)
    load_mmseg(ours, state, "segmenter.pth")
    assert torch.equal(ours(features), theirs(features))


def test_weights_that_do_not_fit_are_refused() -> None:
    state = as_published(small(), "decode_head.")
    with pytest.raises(DataError, match=r"segmenter\.pth") as caught:
        from_mmseg({"backbone.norm.weight": torch.ones(5)}, "segmenter.pth")
    assert caught.value.field == "decode_head.cls_emb"
    del state["decode_head.patch_proj.weight"]
    with pytest.raises(DataError, match=r"missing: patch_proj\.weight"):
        load_mmseg(small(), state, "segmenter.pth")
    with pytest.raises(DataError, match="of another shape"):
        load_mmseg(small(width=4), as_published(small(), ""), "segmenter.pth")


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not divide") as caught:
        MaskTransformer(64, 3)
    assert caught.value.field == "mask_transformer.heads"
    assert "8" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="tells classes apart"):
        MaskTransformer(12, 1)


def test_linear_head_is_the_same_on_every_cell() -> None:
    head, features = LinearPixelHead(5, 3), torch.randn(2, 5, 3, 4)
    found = head(features)
    assert found.shape == (2, 3, 3, 4)
    for row in range(3):
        for column in range(4):
            expected = features[:, :, row, column] @ head.linear.weight.T + head.linear.bias
            torch.testing.assert_close(found[:, :, row, column], expected)
