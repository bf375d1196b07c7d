"""The one place that asks what the hardware is, and sets up the process for it."""

from __future__ import annotations

import ctypes

import faiss
import torch

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE = 16 << 20  # bytes


def choose_device(name: str) -> torch.device:
    """The device for ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: ``cuda`` on a machine where torch finds no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("the device is cuda, but torch finds no GPU here")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def hardware_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are native; emulated they are many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    facts: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def gpu_count() -> int:
    """How many GPUs FAISS can use."""
    # knn_gpu without a GPU aborts the process instead of raising, so ask first.
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def return_large_arrays() -> None:
    """Have the memory of arrays of 16 MB and more go back to the system when they are freed.

    glibc begins so, but raises the limit to 32 MB when it sees such arrays. The smaller ones of a
    training, whose batches are never quite of one size, then tear its heap to pieces: 48 steps took
    900 MB that way. Where there is no glibc, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
