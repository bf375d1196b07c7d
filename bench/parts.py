"""The parts of a training step, each timed on its real input, against the floor of its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.timing import Timing, side_by_side
from pipeline.head.head import Block, Head
from pipeline.head.objective import (
    default_beta,
    gumbel_softmax,
    neural_eigenfunction_loss,
    normalise_columns,
)
from pipeline.head.training import Batch, optimiser, train_step

TAU = 0.7
COPIED = 1 << 28  # bytes of the array whose copying gives the memory's rate


class Work(NamedTuple):
    """Something to time, and the least that it can take: products, and bytes in and out."""

    run: Callable[[], Any]
    flops: float
    bytes: float


class Part(NamedTuple):
    """A part of a step; ``inside`` another one, it does not count towards the sum."""

    name: str
    forward: Work
    backward: Work | None = None
    inside: bool = False


class Rates(NamedTuple):
    """What the machine gives: float32 products and copied bytes in a second."""

    flops: float
    bytes: float

    def floor(self, work: Work | None) -> float:
        """Seconds that the work takes at least."""
        return max(work.flops / self.flops, work.bytes / self.bytes) if work else 0.0


def measure_parts(head: Head, batch: Batch, *, scale: float, repeats: int) -> list[dict[str, Any]]:
    """Time the parts of a training step, forward and backward, beside the whole step.

    head, batch : on the same device; the head stays as it is.
    Returns one row for each part, for their sum and for the whole step: seconds, GFLOP of its
    products (linear solves are not counted), its floor in seconds, and the median over the floor.
    """
    device = batch.tokens.device
    parts = [*head_parts(head, batch), *_objective_parts(head, batch, scale), *_adam(head)]
    cases: dict[str, Callable[[], Any]] = {}
    for part in parts:
        cases[f"{part.name} forward"] = part.forward.run
        if part.backward:
            cases[f"{part.name} backward"] = part.backward.run
    side = 2048 if device.type == "cpu" else 8192
    a, source = torch.rand(side, side, device=device), torch.rand(COPIED // 4, device=device)
    target = torch.empty_like(source)
    cases["product"] = lambda: a @ a
    cases["copy"] = lambda: target.copy_(source)
    cases["step"] = _whole(head, batch, scale)
    seconds = side_by_side(cases, repeats)
    rates = Rates(2 * side**3 / min(seconds["product"]), 2 * COPIED / min(seconds["copy"]))
    rows = [_row(part, seconds, rates) for part in parts]
    return [*rows, *_totals(parts, rows, seconds["step"], rates)]


def _row(part: Part, seconds: dict[str, list[float]], rates: Rates) -> dict[str, Any]:
    forward = Timing.of(seconds[f"{part.name} forward"])
    row: dict[str, Any] = {"part": part.name, "forward s": forward}
    taken, flops = forward.median, part.forward.flops
    if part.backward:
        row["backward s"] = Timing.of(seconds[f"{part.name} backward"])
        taken, flops = taken + row["backward s"].median, flops + part.backward.flops
    floor = rates.floor(part.forward) + rates.floor(part.backward)
    return {**row, "s": taken, "GFLOP": flops / 1e9, "floor s": floor, "x floor": taken / floor}


def _totals(
    parts: list[Part], rows: list[dict[str, Any]], step: list[float], rates: Rates
) -> Iterator[dict[str, Any]]:
    counted = [row for part, row in zip(parts, rows, strict=True) if not part.inside]
    sums = {name: sum(row[name] for row in counted) for name in ("s", "GFLOP", "floor s")}
    yield {"part": "sum", **sums, "x floor": sums["s"] / sums["floor s"]}
    whole = Timing.of(step)
    yield {
        "part": "whole step",
        "forward s": whole,
        **{**sums, "s": whole.median},
        "x floor": whole.median / sums["floor s"],
        "GFLOP/s of a product": rates.flops / 1e9,
        "GB/s of a copy": rates.bytes / 1e9,
    }


def head_parts(head: Head, batch: Batch) -> Iterator[Part]:
    """The head's parts; the paper's head has no first one, for it does nothing there."""
    embedding = nn.ModuleList([head.level_norms, head.projection])
    if list(embedding.parameters()):
        yield _part("level norms, projection", head.embed, batch.tokens, embedding)
    x = head.embed(batch.tokens).detach()
    for number, block in enumerate(head.blocks, 1):
        assert isinstance(block, Block)
        attend = partial(block.attention, sizes=batch.sizes)
        attention = nn.ModuleList([block.norm_attention, block.qkv, block.out])
        yield _part(f"attention {number}", attend, x.requires_grad_(), attention)
        x = attend(x).detach()
        mlp = nn.Sequential(block.norm_mlp, block.mlp)
        yield _part(f"MLP {number}", mlp, x.requires_grad_(), mlp)
        x = (x + mlp(x)).detach()
    last = nn.Sequential(head.norm, head.last)
    yield _part("last layer", last, x.requires_grad_(), last)


def _objective_parts(head: Head, batch: Batch, scale: float) -> Iterator[Part]:
    noise = torch.Generator(batch.tokens.device).manual_seed(0)
    logits = head(batch.tokens, batch.sizes)[1].detach().requires_grad_()
    draw = partial(gumbel_softmax, tau=TAU, generator=noise)
    yield _part("Gumbel-softmax", draw, logits)
    soft = draw(logits).detach().requires_grad_()
    scaled = partial(normalise_columns, scale=scale)
    yield _part("normalise", scaled, soft)
    psi = scaled(soft).detach().requires_grad_()
    clusters, edges = psi.shape[1], batch.kappa.values().numel()
    sparse = Work(
        lambda: batch.kappa @ psi.detach(), 2 * edges * clusters, 8 * edges + 2 * _bytes(psi)
    )
    # FlopCounterMode takes a sparse matrix for a dense one, so these are counted by hand.
    dense = 2 * psi.numel() * clusters
    beta = default_beta(clusters)
    loss = neural_eigenfunction_loss(psi, batch.kappa, beta)[0]
    forward = Work(
        lambda: neural_eigenfunction_loss(psi, batch.kappa, beta),
        sparse.flops + dense,
        sparse.bytes + 2 * _bytes(psi),
    )
    backward = Work(
        lambda: torch.autograd.grad(loss, psi, retain_graph=True), dense, 2 * _bytes(psi)
    )
    yield Part("objective (Eq. 5-7)", forward, backward)
    yield Part("of it, kappa Psi", sparse, inside=True)


def _adam(head: Head) -> Iterator[Part]:
    twin = deepcopy(head)
    adam = optimiser(twin, 1e-3)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # Reads weight, gradient and both moments; writes all but the gradient.
    size = 7 * sum(_bytes(parameter) for parameter in twin.parameters())
    yield Part("Adam", Work(adam.step, 0, size))


def _whole(head: Head, batch: Batch, scale: float) -> Callable[[], Any]:
    twin = deepcopy(head)
    adam = optimiser(twin, 1e-3)
    noise = torch.Generator(batch.tokens.device).manual_seed(0)
    beta = default_beta(twin.last.weight.shape[0])
    settings = {"tau": TAU, "beta": beta, "scale": scale}
    return lambda: train_step(twin, adam, batch, **settings, generator=noise)


def _part(
    name: str, function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module | None = None
) -> Part:
    """A part with its gradient, by the module's parameters and by the input where it needs one."""
    result = function(x)
    wanted = [*(module.parameters() if module else []), *([x] if x.requires_grad else [])]
    gradient = torch.rand_like(result)

    def forward() -> Tensor:
        return function(x)

    def backward() -> Any:
        return torch.autograd.grad(result, wanted, gradient, retain_graph=True)

    moved = _bytes(x) + _bytes(result)
    back = _bytes(x) * (2 if x.requires_grad else 1) + _bytes(result)
    return Part(
        name,
        Work(forward, _flops(forward), moved),
        Work(backward, _flops(backward), back),
    )


def _flops(function: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
