"""Tokens of a frozen vision transformer, and the down-sampled colours beside them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NO_KEYS = (
    "keys need a backbone whose attention has one joint qkv projection, but this one has none"
)


class Backbone(NamedTuple):
    """A frozen ViT with its patch size (px), blocks, and mean and std per RGB channel."""

    model: nn.Module
    patch: int
    depth: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Levels(NamedTuple):
    """The tokens to take from a backbone, for the cache and for new images alike.

    Attributes:
        blocks: block numbers from 0.
        normed: of these, the ones that pass the model's final LayerNorm.
        keys: also the keys of the last block's attention.
        bfloat16: matrix products in bfloat16, else in float32.
    """

    blocks: tuple[int, ...]
    normed: tuple[int, ...]
    keys: bool
    bfloat16: bool

    @classmethod
    def of(cls, names: Iterable[str], normed: Iterable[int], bfloat16: bool) -> Self:
        """Choose by the names of levels: block numbers as text and ``keys``.

        Other names (first, middle, late, last) are second names of blocks.
        """
        names = list(names)
        blocks = tuple(int(name) for name in names if name.isdigit())
        return cls(blocks, tuple(normed), "keys" in names, bfloat16)


def named_blocks(depth: int) -> dict[str, int]:
    """Number, from 0, the blocks that have a name."""
    return {
        "first": 0,
        "middle": depth // 2,
        "late": max(3 * depth // 4 - 1, 0),
        "last": depth - 1,
    }


def block_numbers(blocks: Sequence[int | str], depth: int) -> list[int]:
    """Turn names of blocks (first, middle, late, last) or numbers into sorted numbers from 0.

    Raises:
        ValueError: a number is not a block of this model.
    """
    names = named_blocks(depth)
    numbers = {names[block] if isinstance(block, str) else block for block in blocks}
    beyond = sorted(number for number in numbers if number >= depth)
    if beyond:
        raise ValueError(f"blocks must lie in 0..{depth - 1} for this backbone, found {beyond}")
    return sorted(numbers)


def normalise_pixels(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean from pixels ``(B, 3, H, W)`` in [0, 1] and divide by std, per channel."""
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def downsample(pixels: Tensor, patch: int) -> Tensor:
    """Down-sample bilinearly to the patch grid, for the pixel graph (Eq. 3).

    Args:
        pixels: ``(B, 3, H, W)`` in [0, 1].

    Returns:
        ``(B, H/patch * W/patch, 3)`` in [0, 1], rows of the grid one after the other.
    """
    height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    small = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    return small.flatten(2).transpose(1, 2)


def final_norm(model: nn.Module) -> nn.Module:
    """Find the LayerNorm after the last block (models that average their tokens rename it)."""
    norm = model.norm
    return model.fc_norm if isinstance(norm, nn.Identity) else norm  # type: ignore[return-value]


@torch.inference_mode()
def tokens(
    backbone: Backbone,
    pixels: Tensor,
    blocks: Sequence[int],
    normed: Sequence[int],
    *,
    keys: bool,
    autocast: torch.dtype | None,
) -> dict[str, Tensor]:
    """Compute patch tokens of chosen blocks, without prefix tokens (class, registers).

    Args:
        pixels: ``(B, 3, H, W)`` in [0, 1], H and W multiples of the patch size.
        blocks: block numbers from 0.
        normed: of these, the ones that pass the model's final LayerNorm.
        keys: also give the keys of the last block's attention, as ``keys``.
        autocast: dtype of the matrix products, None for float32.

    Returns:
        ``{"block_<n>": (B, patches, C)}`` in float32.
    """
    model = backbone.model
    inputs = normalise_pixels(pixels, backbone.mean, backbone.std)
    caught: list[Tensor] = []
    joint = _projection(model) if keys else nn.Identity()
    thread = threading.get_ident()

    def catch(module: nn.Module, given: tuple, result: Tensor) -> None:
        if threading.get_ident() == thread:  # other threads may be using the same model
            caught.append(result)

    hook = joint.register_forward_hook(catch)
    try:
        with torch.autocast(pixels.device.type, autocast, enabled=autocast is not None):
            levels = model.forward_intermediates(  # type: ignore[operator]
                inputs,
                indices=list(blocks),
                intermediates_only=True,
                output_fmt="NLC",
                stop_early=not keys,
            )
            norm = final_norm(model)
            levels = [norm(x) if n in normed else x for n, x in zip(blocks, levels, strict=True)]
    finally:
        hook.remove()
    cached = {f"block_{n:02d}": x.float() for n, x in zip(blocks, levels, strict=True)}
    if keys and not caught:  # some attentions use the projection's weight without calling it
        raise ValueError(_NO_KEYS)
    if keys:
        cached["keys"] = _keys(model, caught[-1]).float()
    return cached


def half_tokens(backbone: Backbone, pixels: Tensor, levels: Levels) -> dict[str, np.ndarray]:
    """Compute tokens as the feature cache holds them, on the device of the pixels.

    Args:
        pixels: ``(B, 3, H, W)`` in [0, 1], H and W multiples of the patch size.

    Returns:
        ``{"block_<n>" or "keys": float16 (B, patches, C)}``; too large values become infinite.
    """
    cached = tokens(
        backbone._replace(model=backbone.model.to(pixels.device)),
        pixels,
        levels.blocks,
        levels.normed,
        keys=levels.keys,
        autocast=torch.bfloat16 if levels.bfloat16 else None,
    )
    return {name: values.half().cpu().numpy() for name, values in cached.items()}


def check_keys(model: nn.Module) -> None:
    """Raise ValueError where the last block's attention has no joint qkv projection."""
    _projection(model)


def _projection(model: nn.Module) -> nn.Module:
    attention = getattr(model.blocks[-1], "attn", None)  # type: ignore[index]
    joint = getattr(attention, "qkv", None)
    if not isinstance(joint, nn.Module):
        raise ValueError(_NO_KEYS)
    return joint


def _keys(model: nn.Module, qkv: Tensor) -> Tensor:
    """Take keys ``(B, patches, C)`` from the last block's joint projection ``(B, N, 3C)``."""
    attention = model.blocks[-1].attn  # type: ignore[index,union-attr]
    batch, length, _ = qkv.shape
    keys = qkv.view(batch, length, 3, attention.num_heads, -1)[:, :, 1]
    keys = getattr(attention, "k_norm", nn.Identity())(keys.transpose(1, 2)).transpose(1, 2)
    prefix: int = model.num_prefix_tokens  # type: ignore[assignment]
    return keys.flatten(2)[:, prefix:]
