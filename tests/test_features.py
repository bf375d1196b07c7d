"""Tokens of timm's families of ViT: prefix tokens, norms and keys are what the models say."""

from __future__ import annotations

import pytest
import timm
import torch

from cache.backbone import facts
from pipeline.features.vit import Backbone, block_numbers, check_keys, final_norm, tokens

FAMILIES = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_little_patch16_reg4_gap_256",
]


def open_family(name: str) -> Backbone:
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    return Backbone(model, **facts(model))


@pytest.mark.parametrize("name", FAMILIES)
def test_last_block_equals_the_model_without_its_prefix(name: str) -> None:
    torch.manual_seed(0)
    backbone = open_family(name)
    pixels = torch.rand(2, 3, 4 * backbone.patch, 5 * backbone.patch)
    last = backbone.depth - 1
    found = tokens(backbone, pixels, [0, last], [last], keys=True, autocast=None)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    prefix = backbone.model.num_prefix_tokens
    with torch.no_grad():
        whole = backbone.model.forward_features((pixels - mean) / std)
    if isinstance(backbone.model.norm, torch.nn.Identity):
        whole = final_norm(backbone.model)(whole)
    expected = whole[:, prefix:]
    assert found[f"block_{last:02d}"].shape == (2, 20, backbone.model.num_features)
    torch.testing.assert_close(found[f"block_{last:02d}"], expected, atol=1e-4, rtol=1e-4)
    assert found["keys"].shape == (2, 20, backbone.model.num_features)


def test_keys_are_refused_where_the_attention_hides_them() -> None:
    backbone = open_family("eva02_tiny_patch14_224")
    pixels = torch.rand(1, 3, 28, 28)
    with pytest.raises(ValueError, match=r"keys need a backbone"):
        tokens(backbone, pixels, [0], [], keys=True, autocast=None)
    assert set(tokens(backbone, pixels, [0], [], keys=False, autocast=None)) == {"block_00"}


def test_keys_need_a_joint_projection() -> None:
    backbone = open_family("vit_tiny_patch16_224")
    check_keys(backbone.model)
    backbone.model.blocks[-1].attn.qkv = None
    with pytest.raises(ValueError, match=r"keys need a backbone whose attention has one joint qkv"):
        check_keys(backbone.model)


def test_block_names() -> None:
    assert block_numbers(["first", "middle", "late", "last"], 12) == [0, 6, 8, 11]
    assert [block_numbers(["late"], depth) for depth in (1, 2, 6, 24)] == [[0], [0], [3], [17]]
    assert block_numbers([8, "last", 11], 12) == [8, 11]
    with pytest.raises(ValueError, match=r"must lie in 0..11 for this backbone, found \[12\]"):
        block_numbers([12], 12)
