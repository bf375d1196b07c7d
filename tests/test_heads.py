"""Heads and checkpoints on disk: exact round trips, and clear errors for damaged files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache import heads
from cache.store.artefact import write_manifest
from cache.store.errors import InputError

KMEANS: dict[str, dict[str, Any]] = {
    "kmeans": {
        "centroids": np.arange(6, dtype=np.float32).reshape(3, 2),
        "mean": np.zeros(2, np.float32),
        "projection": np.zeros((2, 0), np.float32),
        "spherical": True,
    }
}


def state() -> dict[str, Tensor]:
    shared = torch.randn(4, 4)
    return {"a.weight": shared.T, "b.weight": shared, "steps": torch.tensor(3), "none": shared[:0]}


def flip_byte(path: Path, position: int) -> None:
    """Flip one bit of a file; negative positions count from its end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_head_round_trip(tmp_path: Path) -> None:
    saved = state()
    heads.save_head(tmp_path / "head", saved, KMEANS, {"clusters": 3})
    found, kmeans, manifest = heads.load_head(tmp_path / "head")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert kmeans["kmeans"].pop("spherical") is True
    for field, values in kmeans["kmeans"].items():
        np.testing.assert_array_equal(values, KMEANS["kmeans"][field])
        assert values.dtype == np.float32
        assert values.shape == KMEANS["kmeans"][field].shape
    assert manifest["clusters"] == 3


def test_manifest_tells_other_weights_apart(tmp_path: Path) -> None:
    digests = []
    for number in (1.0, 1.0, 2.0):
        heads.save_head(tmp_path, {"w": torch.tensor([number])}, KMEANS, {})
        digests.append(heads.load_head(tmp_path)[2]["sha256"]["head"])
    assert digests[0] == digests[1] != digests[2]


def test_head_that_is_missing_or_incomplete(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    with pytest.raises(InputError, match=r"head is missing: run `eigenseg train`"):
        heads.load_head(folder)
    heads.save_head(folder, state(), KMEANS, {})
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"incomplete \(no manifest\): run `eigenseg train`"):
        heads.load_head(folder)
    write_manifest(folder / "manifest.json", {"format": 0})
    with pytest.raises(InputError, match=r"has format 0, this version reads 6: run"):
        heads.load_head(folder)
    (folder / "manifest.json").write_text('{"format"')
    with pytest.raises(InputError, match=r"manifest\.json is not valid JSON"):
        heads.load_head(folder)


def test_manifest_is_gone_while_a_head_is_replaced(tmp_path: Path) -> None:
    """A kill between the files must not leave the old manifest beside new weights."""
    heads.save_head(tmp_path, state(), KMEANS, {})
    with pytest.raises(TypeError):
        heads.save_head(tmp_path, state(), KMEANS, {"not JSON": object()})
    with pytest.raises(InputError, match="no manifest"):
        heads.load_head(tmp_path)


@pytest.mark.parametrize("name", heads.FILES)
@pytest.mark.parametrize("damage", ["flip", "flip header", "truncate", "remove", "swap"])
def test_damaged_head_names_the_file(tmp_path: Path, name: str, damage: str) -> None:
    heads.save_head(tmp_path / "other", {"w": torch.ones(2)}, {}, {})
    folder = tmp_path / "head"
    heads.save_head(folder, state(), KMEANS, {})
    path = folder / f"{name}.safetensors"
    if damage == "remove":
        path.unlink()
    elif damage == "swap":
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        flip_byte(path, -1 if damage == "flip" else 20)
    match = rf"{name}\.safetensors is missing or damaged .*: delete .*head and run `eigenseg train`"
    with pytest.raises(InputError, match=match):
        heads.load_head(folder)


def test_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        return module, torch.optim.Adam(module.parameters(), lr=0.01 * (seed + 1))

    def train(module: nn.Module, adam: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            adam.zero_grad()
            module(torch.randn(8, 6)).square().mean().backward()
            adam.step()

    module, adam = fresh(0)
    train(module, adam, 3)
    state = {"module": module.state_dict(), "adam": adam.state_dict(), "rows": [{"loss": 0.1}]}
    heads.save_checkpoint(tmp_path / "c", {**state, "rng": torch.get_rng_state()})
    train(module, adam, 4)

    resumed, other_adam = fresh(1)
    found = heads.load_checkpoint(tmp_path / "c")
    assert found is not None and found["rows"] == state["rows"]
    resumed.load_state_dict(found["module"])
    other_adam.load_state_dict(found["adam"])
    torch.set_rng_state(found["rng"])
    train(resumed, other_adam, 4)
    for name, value in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_damaged_checkpoint_is_reported_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint"
    assert heads.load_checkpoint(path) is None
    assert not caplog.records
    heads.save_checkpoint(path, {"head": state(), "epoch": 1})
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:-3] + b"abc", whole.replace(b"epoch", b"EPOCH"), b""):
        caplog.clear()
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert heads.load_checkpoint(path) is None
        assert f"the checkpoint {path} is damaged" in caplog.text
    assert not list(tmp_path.glob("*.partial"))
