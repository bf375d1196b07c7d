"""The training loop: one step per batch, Adam, half-cosine schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pipeline.head.head import Head
from pipeline.head.objective import (
    gumbel_softmax,
    neural_eigenfunction_loss,
    normalise_columns,
)


class Diverged(ArithmeticError):  # noqa: N818 - names what happened, as StopIteration does
    """Loss that is not finite; the parameters are those from before the step."""


class Batch(NamedTuple):
    """The patches of one group of images, tile after tile, and the kernel over them."""

    tokens: Tensor  # float32 (N, C), the levels side by side; float16 until it is on its device
    sizes: list[int]  # patches of each tile, N in all
    kappa: Tensor  # sparse CSR float32 (N, N), in the same order

    def to(self, device: torch.device) -> Self:
        """Copy the batch to a device, its tokens to float32: float16 travels in half the time."""
        # From pinned memory a copy runs beside the GPU's other work.
        tokens = self.tokens.pin_memory() if device.type == "cuda" else self.tokens
        tokens = tokens.to(device, non_blocking=True).float()
        return self._replace(tokens=tokens, kappa=self.kappa.to(device))

    def record(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that a stream uses the batch, which another one has made."""
        kappa = (self.kappa.crow_indices(), self.kappa.col_indices(), self.kappa.values())
        for tensor in (self.tokens, *kappa):
            tensor.record_stream(stream)


class Schedule(NamedTuple):
    """Learning rate and temperature, each half a cosine from its start to its end."""

    steps: int
    lr: float
    lr_end: float
    tau_start: float  # of the Gumbel-softmax
    tau_end: float

    def at(self, step: int) -> tuple[float, float]:
        """Give learning rate and temperature of a step, counted from 0."""
        way = (1 + math.cos(math.pi * step / self.steps)) / 2
        return (
            self.lr_end + (self.lr - self.lr_end) * way,
            self.tau_end + (self.tau_start - self.tau_end) * way,
        )


def optimiser(head: Head, lr: float) -> torch.optim.Optimizer:
    """Make the method's optimiser: Adam without weight decay."""
    return torch.optim.Adam(head.parameters(), lr=lr)


def train_epoch(
    head: Head,
    adam: torch.optim.Optimizer,
    batches: Iterable[Batch],
    beta: float,
    schedule: Schedule,
    first: int,
    generator: torch.Generator,
    bfloat16: bool = False,
) -> Iterator[dict[str, float]]:
    """Take one step for each batch.

    Args:
        beta: weight of the objective's penalty.
        first: number of the epoch's first step in the schedule.
        generator: source of the Gumbel noise.
        bfloat16: as of `train_step`.

    Yields:
        What `train_step` returns, and the step's ``tau`` and ``lr``.
    """
    for step, batch in enumerate(batches, first):
        lr, tau = schedule.at(step)
        for group in adam.param_groups:
            group["lr"] = lr
        values = train_step(
            head, adam, batch, beta=beta, tau=tau, generator=generator, bfloat16=bfloat16
        )
        yield {**values, "tau": tau, "lr": lr}


def train_step(
    head: Head,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    *,
    beta: float,
    tau: float,
    generator: torch.Generator,
    bfloat16: bool = False,
) -> dict[str, float]:
    """Take one step on the objective (Eq. 5-7).

    Args:
        beta: weight of the objective's penalty.
        tau: temperature of the Gumbel-softmax.
        generator: source of its noise.
        bfloat16: the head's products are of bfloat16, the objective and the weights of float32.

    Returns:
        ``loss``, ``trace`` and ``penalty`` of the step, and ``clusters``, the number of distinct
        argmax clusters in the batch.

    Raises:
        Diverged: the loss is not finite; no parameter was changed.
    """
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=bfloat16):
        _, logits = head(batch.tokens, batch.sizes)
    logits = logits.float()
    psi = normalise_columns(gumbel_softmax(logits, tau, generator))
    loss, trace, penalty = neural_eigenfunction_loss(psi, batch.kappa, beta)
    used = logits.new_zeros(logits.shape[1]).index_fill_(0, logits.argmax(dim=1), 1)
    optimiser.zero_grad()
    loss.backward()
    # One transfer, after all is queued: a GPU's queue runs dry at every value that is read.
    values = torch.stack([loss.detach(), trace, penalty, used.sum()]).tolist()
    if not math.isfinite(values[0]):
        raise Diverged(
            f"the loss must stay finite, found {values[0]} at temperature {tau:.4g}: the learning "
            "rate is too high, or the cached features hold NaN or infinity"
        )
    optimiser.step()
    return dict(zip(("loss", "trace", "penalty", "clusters"), values, strict=True))


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Let a GPU multiply float32 matrices in TF32 inside the block.

    TF32 keeps 10 bits of the mantissa, as many as the float16 of the cached tokens.
    """
    former = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = former
