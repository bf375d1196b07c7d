"""Tokens in context: whitened levels, averaged over similar patches nearby in the same tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from pipeline.features.whitening import unit_rows, whitening

QUERIES = 1024  # patches that look around at a time: memory follows this times a tile's patches


class Context(NamedTuple):
    """A fitted map from a patch's tokens of L levels to one vector, without labels.

    Attributes:
        means, projections: float32 ``(L, C)`` and ``(L, C, d)``, whiten each level's unit rows.
        weights: float32 ``(L,)``, of the levels in the joined vector.
        temperature: of the softmax over cosines between patches.
        reach: standard deviation, in patches, of the Gaussian that weighs their distance.
    """

    means: np.ndarray
    projections: np.ndarray
    weights: np.ndarray
    temperature: float
    reach: float

    @property
    def channels(self) -> int:
        """Count the channels of the joined vector."""
        levels, _, components = self.projections.shape
        return levels * components


def fit(
    points: Sequence[np.ndarray],
    components: int,
    weights: Sequence[float],
    temperature: float,
    reach: float,
) -> Context:
    """Fit the whitening of each level to a sample of its tokens.

    Args:
        points: of each level, float32 ``(n, C)``.
        components: principal components to keep, all where there are no more channels.
        weights: of each level, not all 0.

    Raises:
        ValueError: a value that is not finite.
    """
    if not all(np.isfinite(level).all() for level in points):
        raise ValueError(
            "the context needs finite tokens, found NaN or infinity: delete the feature cache and "
            "extract again"
        )
    kept = min(components, points[0].shape[1])
    fitted = [whitening(unit_rows(level), kept) for level in points]
    means, projections = (np.stack(parts) for parts in zip(*fitted, strict=True))
    return Context(means, projections, np.array(weights, np.float32), temperature, reach)


def apply(
    context: Context,
    tokens: Sequence[np.ndarray],
    grid_h: int,
    grid_w: int,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Put the patches of one tile into context.

    Args:
        tokens: of each level, float16 or float32 ``(grid_h * grid_w, C)``, row after row.
        device: that averages.

    Returns:
        float16 ``(grid_h * grid_w, L d)``, rows of length 1: the joined whitened levels, averaged
        by `average`.

    Raises:
        ValueError: the tokens do not fit the levels or the grid.
    """
    levels, channels, _ = context.projections.shape
    shapes = [level.shape for level in tokens]
    if shapes != [(grid_h * grid_w, channels)] * levels:
        raise ValueError(
            f"the context was fitted to {levels} levels of {channels} channels and looks at a "
            f"{grid_h} x {grid_w} grid, found tokens of {shapes}"
        )
    joined = np.concatenate([
        weight * unit_rows((unit_rows(level.astype(np.float32)) - mean) @ projection)
        for level, mean, projection, weight in zip(
            tokens, context.means, context.projections, context.weights, strict=True
        )
    ], axis=1)  # fmt: skip
    rows = torch.from_numpy(unit_rows(joined)).to(device)
    averaged = average(rows, grid_h, grid_w, context.temperature, context.reach)
    return unit_rows(averaged.cpu().numpy()).astype(np.float16)


def average(
    rows: torch.Tensor, grid_h: int, grid_w: int, temperature: float, reach: float
) -> torch.Tensor:
    """Average every patch over similar patches nearby in its tile.

    The weight of patch v for patch u is proportional to
    ``exp(cos(u, v) / temperature - |place_u - place_v|^2 / (2 reach^2))``: non-local means, or
    attention without parameters.

    Args:
        rows: float32 ``(grid_h * grid_w, d)`` of length 1, row after row of the grid.
        reach: in patches.

    Returns:
        float32, of the same shape.
    """
    at_a_time = max(1, QUERIES // grid_w)  # rows of the grid
    y, x = (_penalties(side, reach).to(rows.device) for side in (grid_h, grid_w))
    values = rows[None, None]  # one tile, one head: torch's fast kernel takes four dimensions
    averaged = []
    for queries, near in zip(values.split(at_a_time * grid_w, 2), y.split(at_a_time), strict=True):
        places = (near[:, None, :, None] + x[None, :, None, :]).reshape(-1, len(rows))
        averaged.append(
            scaled_dot_product_attention(
                queries, values, values, attn_mask=places[None, None], scale=1 / temperature
            )
        )
    return torch.cat(averaged, 2)[0, 0]


def _penalties(side: int, reach: float) -> torch.Tensor:
    """Give the logarithm of the Gaussian of distances along a side of a grid ``(side, side)``."""
    places = torch.arange(side, dtype=torch.float32) / (reach * 2**0.5)
    return -((places[:, None] - places) ** 2)
