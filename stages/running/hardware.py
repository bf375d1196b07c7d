"""The device of a stage, chosen and told."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from pipeline.device import choose_device, describe_device
from stages import way_out

DRIVER = Path("/dev/nvidia0")  # is there where a GPU is, whatever its driver can do


def chosen_device(name: str) -> torch.device:
    """Choose the device of a stage (`choose_device`), and tell what computes there.

    Both libraries leave a GPU whose driver is too old for them without a word.
    """
    needed = f"the driver must know CUDA {torch.version.cuda} for torch, 12 for FAISS"
    with way_out(f"{needed}; or set compute.device to auto"):
        device = choose_device(name)
    words = describe_device(device)
    hint = f" (a GPU is there: {needed})" if "the CPU" in words and DRIVER.exists() else ""
    click.echo(f"computing with {words}{hint if name != 'cpu' else ''}", err=True)
    return device
