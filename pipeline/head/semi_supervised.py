"""A classifier of patches from a few labels: votes of known patches times a linear head.

A patch is looked at by its tokens and by the features that the trained head makes of them. Labels,
and a prior for all other patches, are first spread over the graph of the training split, as in Zhou
et al., "Learning with local and global consistency", NIPS 2003. Both parts of the classifier then
learn from labelled and other patches alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "semi_supervised"  # of the predictor
TEMPERATURE = 0.03  # of the softmax over a patch's cosines to known patches
LEAST = 0.01  # added to probabilities before their logarithm, so that neither part has a veto
VOTERS = 2048  # other patches that vote, at most, and labelled ones for the prior
LABELLED_VOTERS = 4096  # labelled ones that vote in the end
PRIOR = 0.3  # weight of the most certain prior beside a label, where both are spread
SHARE = 0.6  # of what a patch takes from its neighbours in each round of spreading
ROUNDS = 20
LENGTH = 10.0 * 2**0.5  # of the rows that the linear head sees
PENALTY = 0.05  # of its squared weights, for one labelled image
TOKENS = 20  # labelled images from which on its tokens weigh as much as its features
STEPS = 60  # of its solver, at most
MASS = 0.5  # power of the classes' mass by which scores are divided: rare classes gain
BLOCK = 4096  # patches that are scored at a time


class Rows(NamedTuple):
    """Known patches: rows of `joined`, ``(n, c + d)``, and weights of classes, ``(n, C)``."""

    rows: Tensor
    targets: Tensor

    def thinned(self, most: int) -> Rows:
        """Return at most so many of them, evenly spaced; their weights keep their sum."""
        if len(self.rows) <= most:
            return self
        places = torch.linspace(0, len(self.rows) - 1, most).round().long()
        return Rows(self.rows[places], self.targets[places] * (len(self.rows) / most))


class Classifier(NamedTuple):
    """Scores classes by the product of votes and linear head, divided by the classes' mass.

    Attributes:
        weight, bias: of the linear head, float32 ``(C, c + d)`` and ``(C,)``.
        rows, targets: of the patches that vote, as in `Rows`.
        log_mass: float32 ``(C,)``.
    """

    weight: Tensor
    bias: Tensor
    rows: Tensor
    targets: Tensor
    log_mass: Tensor

    def scores(self, rows: Tensor) -> Tensor:
        """Return the log-probabilities of rows of `joined`, up to a constant: ``(n, C)``."""
        linear = F.linear(LENGTH * rows, self.weight, self.bias)
        voted = votes(rows, Rows(self.rows, self.targets))
        both = torch.log(voted + LEAST) + torch.log(torch.softmax(linear, dim=1) + LEAST)
        return both / 2**0.5 - self.log_mass


def joined(tokens: Tensor, features: Tensor) -> Tensor:
    """Join tokens ``(n, c)`` and features ``(n, d)`` to rows whose cosine is the mean of both."""
    return torch.cat([F.normalize(tokens), F.normalize(features)], dim=1) / 2**0.5


def votes(rows: Tensor, voters: Rows) -> Tensor:
    """Let known patches vote with exp(cosine / `TEMPERATURE`): probabilities ``(n, C)``."""
    parts = [
        torch.softmax(block @ voters.rows.T / TEMPERATURE, dim=1) @ voters.targets
        for block in rows.split(BLOCK)
    ]
    return _shares(torch.cat(parts))


def prior(probabilities: Tensor) -> Tensor:
    """Weigh probabilities ``(n, C)`` by the square of the greatest: doubtful patches listen."""
    return PRIOR * probabilities.amax(dim=1, keepdim=True).square() * probabilities


def spread(graph: Tensor | None, seeds: Tensor) -> Tensor:
    """Spread labels and prior over a graph: probabilities ``(n, C)``, 0 where nothing arrives.

    Args:
        graph: sparse ``(n, n)``, symmetric, of a spectral radius of at most 1; None spreads
            nothing.
        seeds: float32 ``(n, C)``: one-hot labels, elsewhere the `prior`.
    """
    found = seeds
    if graph is not None:
        for _ in range(ROUNDS):
            found = SHARE * (graph @ found) + (1 - SHARE) * seeds
    return _shares(found)


def fit(labelled: Rows, others: Rows, width: int, images: int, share: float = 0.5) -> Classifier:
    """Fit the classifier to labelled and other patches.

    Args:
        labelled: with one-hot targets.
        others: with what was spread to them; they weigh by the square of the greatest probability.
        width: d, channels of the head's features.
        images: labelled ones. With more of them the penalty falls, and the tokens, which overfit
            where labels are few, count for more.
        share: of the labelled patches in all weights. Above a half, or where there are no others,
            they give the classes' mass: the few that are left are often the edges of objects.
    """
    certain = others.targets.amax(dim=1).square()
    kinds = (labelled.rows.new_ones(len(labelled.rows)), share), (certain, 1 - share)
    weights = torch.cat([_scaled(own, part) for own, part in kinds])
    rows = torch.cat([labelled.rows, others.rows])
    targets = weights[:, None] * torch.cat([labelled.targets, others.targets])
    scale = torch.full_like(rows[:1], LENGTH)
    scale[:, :-width] *= min(1, max(images, 1) / TOKENS) ** 0.5
    weight, bias = fit_linear(rows * scale, targets, PENALTY / max(images, 1))
    split = len(labelled.rows)
    near = Rows(rows[:split], targets[:split]).thinned(LABELLED_VOTERS)
    far = Rows(rows[split:], targets[split:]).thinned(VOTERS)
    voters = Rows(torch.cat([near.rows, far.rows]), torch.cat([near.targets, far.targets]))
    flat = Classifier(weight * scale / LENGTH, bias, *voters, torch.zeros_like(bias))
    most = labelled if share > 0.5 or not len(others.rows) else others
    sample = most.thinned(VOTERS).rows
    mass = torch.softmax(flat.scores(sample), dim=1).mean(dim=0)
    return flat._replace(log_mass=MASS * torch.log(mass))


def fit_linear(rows: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier by cross-entropy and ``penalty * |W|^2`` with L-BFGS.

    Args:
        rows: float32 ``(n, d)``.
        targets: float32 ``(n, C)``, what each row weighs in each class.

    Returns:
        Weights ``(C, d)`` and biases ``(C,)``.
    """
    shares, classes = targets / targets.sum(), targets.shape[1]
    weight = rows.new_zeros(classes, rows.shape[1]).requires_grad_()
    bias = rows.new_zeros(classes).requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        fit = (shares * F.log_softmax(F.linear(rows, weight, bias), dim=1)).sum()
        loss = penalty * weight.square().sum() - fit
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach(), bias.detach()


def _scaled(weights: Tensor, total: float) -> Tensor:
    return weights * (total / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny))


def _shares(rows: Tensor) -> Tensor:
    return rows / rows.sum(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
