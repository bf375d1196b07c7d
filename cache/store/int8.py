"""Float16 tokens in half the bytes: int8 with one scale per channel of each chunk, symmetric."""

from __future__ import annotations

import numpy as np
import torch

_TOP = 127


def encode(values: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantise; the error is at most half a scale.

    Args:
        values: float16 ``(slots, C)``, NaN where no tile lies, whole chunks.
        chunk: slots that share their scales.

    Returns:
        int8 ``(slots, C)``, 0 where no tile lies, and float32 scales ``(slots / chunk, C)``: the
        greatest magnitude / 127, NaN where the whole chunk is empty.
    """
    encoded = [_encode(part) for part in torch.from_numpy(values).split(chunk)]
    quantised, scales = zip(*encoded, strict=True)
    return torch.cat(quantised).numpy(), torch.stack(scales).numpy()


def _encode(chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = chunk.float()
    empty = values.isnan()
    values.masked_fill_(empty, 0.0)
    scale = values.abs().amax(dim=0) / _TOP
    quantised = values.div_(torch.where(scale > 0, scale, 1.0)).round_().to(torch.int8)
    return quantised, scale.masked_fill_(empty.all(), torch.nan)


def decode(quantised: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Decode one chunk's int8 ``(slots, C)`` with scales ``(1, C)`` to float16.

    torch converts to float16 ten times as fast as NumPy.
    """
    return (torch.from_numpy(quantised) * torch.from_numpy(scale)).half().numpy()
