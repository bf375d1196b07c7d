"""The one place that asks what the hardware is."""

from __future__ import annotations

import torch


def choose_device(name: str) -> torch.device:
    """The device for ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: ``cuda`` on a machine where torch finds no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError(
            "compute.device (of `predict`: --device) is cuda, but torch finds no GPU here: set it "
            "to auto"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def hardware_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are native; emulated they are many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    facts: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))
