"""The mean field of a fully connected CRF, its kernels filtered on permutohedral lattices.

The model is Kraehenbuehl and Koltun's (2011), the lattice that of Adams, Baek and Davis (2010). All
is gathers and products of sparse matrices in torch, so that it runs on any device and all cores.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class Filter(NamedTuple):
    """A Gaussian of unit deviation over n points, normalised symmetrically.

    Attributes:
        factors: sparse matrices from the points ``(n,)`` to the lattice, along each of its axes,
            and back; or their product.
        norm: float32 ``(n, 1)``.
    """

    factors: Sequence[Tensor]
    norm: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Filter float32 ``(n, k)``."""
        return self.norm * _product(self.factors, self.norm * values)


def gaussian(features: Tensor, fuse: bool = False) -> Filter:
    """Build the filter over points, whose features float32 ``(n, d)`` have unit deviation.

    Args:
        fuse: multiply the factors once, which pays where each point has few neighbours.
    """
    keys, weights = _simplices(features)
    n, corners = weights.shape
    keys = keys - keys.amin(dim=(0, 1)) + corners  # neighbours stay above 0
    sides = (keys.amax(dim=(0, 1)) + corners + 1).tolist()
    strides = torch.tensor([1, *sides[:-1]], device=keys.device).cumprod(0)
    points, place = torch.unique((keys * strides).sum(dim=2).ravel(), return_inverse=True)
    order = place.argsort(stable=True)
    splat = _csr(torch.bincount(place), order // corners, weights.ravel()[order], n)
    # A step along an axis is -1 in every coordinate but its own, where it is d; the last
    # coordinate is not part of the key.
    steps = [*(corners * strides - strides.sum()).tolist(), -int(strides.sum())]
    each = torch.full((n,), corners, device=keys.device)
    spread = 1 + 2.0 ** (1 - corners)  # what the blurs add up to
    slices = _csr(each, place, weights.ravel() / spread, len(points))
    factors = [splat, *(_blur(points, abs(step)) for step in steps), slices]
    if fuse:
        factors = [reduce(torch.matmul, factors[::-1])]
    norm = (_product(factors, weights.new_ones(n, 1)) + 1e-20).rsqrt()
    return Filter(factors, norm)


def _product(factors: Sequence[Tensor], values: Tensor) -> Tensor:
    return reduce(lambda found, factor: factor @ found, factors, values)


def mean_field(
    energies: Tensor, kernels: Sequence[tuple[float, Filter]], iterations: int
) -> Tensor:
    """Iterate from energies float32 ``(n, K)``: probabilities of the clusters at n points.

    Args:
        kernels: weight and filter of each: a weight is what two points of one cluster gain.
    """
    field = torch.softmax(-energies, dim=1)
    for _ in range(iterations):
        gains = -energies
        for weight, kernel in kernels:
            gains.add_(kernel(field), alpha=weight)
        field = torch.softmax(gains, dim=1)
    return field


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Find the simplex of the lattice around each point.

    Returns:
        Coordinates of its corners, int64 ``(n, d + 1, d)``, and the point's barycentric weights,
        float32 ``(n, d + 1)``.
    """
    n, d = features.shape
    axes = torch.arange(1, d + 1, device=features.device)
    # Blurs along the axes widen the Gaussian; this scale makes its deviation 1.
    scaled = features * ((d + 1) * (2 / 3) ** 0.5 / (axes * (axes + 1)) ** 0.5).float()
    above = scaled.flip(1).cumsum(1).flip(1)  # of this coordinate and the following ones
    zero = above.new_zeros(n, 1)
    elevated = torch.cat([above, zero], 1) - torch.cat([zero, axes * scaled], 1)
    steps = elevated / (d + 1)
    up, down = steps.ceil() * (d + 1), steps.floor() * (d + 1)
    nearest = torch.where(up - elevated < elevated - down, up, down)
    rank = (nearest - elevated).argsort(dim=1, stable=True).argsort(dim=1)
    rank = rank + (nearest.sum(dim=1, keepdim=True) / (d + 1)).round().long()
    wrapped = (d + 1) * ((rank < 0).long() - (rank > d).long())
    rank, nearest = rank + wrapped, nearest + wrapped
    # Sorted by rank, the weights are the differences of what is left, in lattice steps.
    left = (elevated - nearest) / (d + 1)
    falling = torch.empty_like(left).scatter_(1, rank, left)
    weights = torch.cat([1 + falling[:, -1:] - falling[:, :1], falling[:, :-1] - falling[:, 1:]], 1)
    weights = torch.cat([weights[:, :1], weights[:, 1:].flip(1)], 1)
    corner = torch.arange(d + 1, device=features.device)[None, :, None]
    own = rank[:, None, :d]
    keys = nearest[:, None, :d].long() + corner - (d + 1) * (own > d - corner)
    return keys, weights


def _blur(points: Tensor, step: int) -> Tensor:
    """Blur lattice points, by sorted codes ``(m,)``, with the two neighbours a step away."""
    own = torch.arange(len(points), device=points.device)
    places = [
        torch.searchsorted(points, points + by).clamp(max=len(points) - 1) for by in (-step, step)
    ]
    columns = torch.stack([places[0], own, places[1]], dim=1)
    there = points[columns] - points[:, None] == torch.tensor(
        [-step, 0, step], device=points.device
    )
    halves = torch.tensor([0.5, 1.0, 0.5], device=points.device).expand(len(points), 3)
    return _csr(there.sum(dim=1), columns[there], halves[there], len(points))


def _csr(counts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    """Make a sparse matrix whose rows have so many entries."""
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(
            ends.int(), columns.int(), values, size=(len(counts), width), check_invariants=False
        )
