from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.graph.kernel import feature_graph, normalise, to_torch
from pipeline.graph.knn import nearest
from pipeline.head.head import Head, initialise
from pipeline.head.objective import SCALE, gumbel_softmax, neural_eigenfunction_loss
from pipeline.head.training import Batch, Diverged, optimiser, tensor_cores, train_step

BLOBS = 4


def blob_batch() -> tuple[Batch, np.ndarray]:
    """Two tiles of unequal size whose patches belong to four well separated blobs."""
    rng = np.random.default_rng(0)
    truth = rng.integers(BLOBS, size=120)
    centres = np.eye(BLOBS, 16)
    tokens = (centres[truth] + 0.05 * rng.normal(size=(120, 16))).astype(np.float32)
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    kappa = to_torch(normalise(feature_graph(*nearest(unit, 15))), "cpu")
    return Batch(torch.from_numpy(tokens), [70, 50], kappa), truth


def made_head(seed: int = 0, orthogonal: bool = True) -> Head:
    head = Head([16], BLOBS, None, 1, 8, 32, level_norm=True, orthogonal=orthogonal)
    initialise(head, torch.Generator().manual_seed(seed))
    return head


def run(
    steps: int, seed: int = 0, bfloat16: bool = False, orthogonal: bool = True
) -> tuple[Head, list[dict[str, float]]]:
    head = made_head(seed, orthogonal)
    adam = optimiser(head, 1e-2)
    batch, _ = blob_batch()
    noise = torch.Generator().manual_seed(seed)
    settings = {"beta": 8.0, "tau": 0.5, "generator": noise, "bfloat16": bfloat16}
    return head, [train_step(head, adam, batch, **settings) for _ in range(steps)]


def test_training_finds_the_blobs() -> None:
    head, history = run(60)
    batch, truth = blob_batch()
    clusters = head(batch.tokens, batch.sizes)[1].argmax(dim=1).numpy()
    members = [set(clusters[truth == blob].tolist()) for blob in range(BLOBS)]
    assert all(len(found) == 1 for found in members)
    assert len(set.union(*members)) == BLOBS
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["clusters"] == BLOBS


@pytest.mark.parametrize("orthogonal", [False, True])
def test_in_bfloat16_the_curve_is_that_of_float32(orthogonal: bool) -> None:
    (exact, expected), (rounded, found) = (
        run(60, bfloat16=bfloat16, orthogonal=orthogonal) for bfloat16 in (False, True)
    )
    curves = [np.array([row["loss"] for row in rows]) for rows in (expected, found)]
    assert not np.array_equal(*curves)  # the products were rounded
    assert np.abs(curves[0] - curves[1]).max() < 0.05 * np.ptp(curves[0])
    assert all(p.dtype == torch.float32 for p in rounded.parameters())
    batch, _ = blob_batch()
    ids = [head(batch.tokens, batch.sizes)[1].argmax(dim=1) for head in (exact, rounded)]
    assert (ids[0] == ids[1]).float().mean() > 0.95


def test_the_reported_loss_is_made_of_its_parts() -> None:
    _, (values,) = run(1)
    assert set(values) == {"loss", "trace", "penalty", "clusters"}
    assert all(isinstance(value, float) for value in values.values())
    assert values["loss"] == pytest.approx(-(values["trace"] - 8 * values["penalty"]) / BLOBS)


def test_two_steps_are_two_steps_by_hand() -> None:
    head, history = run(2)
    twin = made_head()
    adam = torch.optim.Adam(twin.parameters(), lr=1e-2)
    batch, _ = blob_batch()
    noise = torch.Generator().manual_seed(0)
    for values in history:
        logits = twin(batch.tokens, batch.sizes)[1]
        soft = gumbel_softmax(logits, 0.5, noise)
        psi = SCALE**0.5 * soft / soft.norm(dim=0).clamp_min(1)
        loss, _, _ = neural_eigenfunction_loss(psi, batch.kappa, 8.0)
        parameters = list(twin.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        adam.step()
        assert values["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert values["clusters"] == len(set(logits.argmax(dim=1).tolist()))
    for found, expected in zip(head.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_training_is_deterministic() -> None:
    torch.manual_seed(1)
    first, history = run(3)
    torch.manual_seed(2)
    second, repeated = run(3)
    assert history == repeated
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert run(3, seed=1)[1] != history


def test_adam_has_no_weight_decay() -> None:
    adam = optimiser(made_head(), 1e-3)
    assert isinstance(adam, torch.optim.Adam)
    assert [(group["lr"], group["weight_decay"]) for group in adam.param_groups] == [(1e-3, 0)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_leaves_the_parameters_untouched(value: float) -> None:
    head = made_head()
    adam = optimiser(head, 1e-2)
    batch, _ = blob_batch()
    noise = torch.Generator().manual_seed(0)
    settings = {"beta": 0.08, "tau": 0.725}
    train_step(head, adam, batch, **settings, generator=noise)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    broken = batch.tokens.clone()
    broken[3, 5] = value
    text = "found nan at temperature 0.725: the learning rate is too high"
    with pytest.raises(Diverged, match=text) as error:
        train_step(head, adam, batch._replace(tokens=broken), **settings, generator=noise)
    assert isinstance(error.value, ArithmeticError)
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert adam.state_dict()["state"][0]["step"] == 1


def test_tokens_travel_in_float16_and_arrive_in_float32() -> None:
    batch, _ = blob_batch()
    moved = batch._replace(tokens=batch.tokens.half()).to(torch.device("cpu"))
    assert moved.tokens.dtype == torch.float32
    assert torch.equal(moved.tokens, batch.tokens.half().float())
    assert torch.equal(moved.kappa.values(), batch.kappa.values())
    assert moved.sizes == batch.sizes


def test_tensor_cores_are_a_matter_of_the_block() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    with pytest.raises(KeyError), tensor_cores():
        assert matmul.allow_tf32
        raise KeyError
    assert matmul.allow_tf32 == before
