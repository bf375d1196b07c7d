"""What computes: chosen, told, and refused where half of it is missing; with a faked GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cache.store.errors import InputError
from pipeline import device
from stages.running import hardware
from tests.conftest import Project


def fake(monkeypatch: pytest.MonkeyPatch, torch_finds: bool, faiss_finds: int) -> None:
    """Let both libraries find GPUs or none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_finds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU of NVIDIA")
    monkeypatch.setattr(device, "gpu_count", lambda: faiss_finds)


@pytest.mark.parametrize(
    ("torch_finds", "faiss_finds", "lacking"),
    [(False, 0, "torch and FAISS"), (False, 1, "torch"), (True, 0, "FAISS")],
)
def test_cuda_means_torch_and_faiss(
    monkeypatch: pytest.MonkeyPatch, torch_finds: bool, faiss_finds: int, lacking: str
) -> None:
    fake(monkeypatch, torch_finds, faiss_finds)
    with pytest.raises(InputError, match=f"no GPU is found by {lacking}: the driver must know"):
        hardware.chosen_device("cuda")
    found = hardware.chosen_device("auto").type
    assert found == ("cuda" if torch_finds else "cpu")


def test_the_device_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "DRIVER", tmp_path)  # there is a GPU
    said = []
    for torch_finds, faiss_finds in ((True, 2), (True, 0), (False, 0)):
        fake(monkeypatch, torch_finds, faiss_finds)
        hardware.chosen_device("auto")
        said.append(capsys.readouterr().err)
    assert said[0] == "computing with torch on a GPU of NVIDIA, FAISS on 2 GPU\n"
    assert "torch on a GPU of NVIDIA, FAISS on the CPU (a GPU is there: the driver" in said[1]
    assert "torch on the CPU, FAISS on the CPU (a GPU is there" in said[2]
    hardware.chosen_device("cpu")
    assert capsys.readouterr().err == "computing with torch on the CPU, FAISS on the CPU\n"


def test_every_computing_stage_tells_its_device(project: Project) -> None:
    project.ok("prepare")
    for stage in ("extract", "context", "graph", "train", "segment"):
        assert "computing with torch on" in project.run(stage).output, stage
