"""The one place that asks what the hardware is, and sets up the process for it."""

from __future__ import annotations

import ctypes

import faiss
import torch

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE = 16 << 20  # bytes


def choose_device(name: str) -> torch.device:
    """Choose the device for ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: ``cuda`` where torch or FAISS finds no GPU, as under a driver that is too old.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not (available and gpu_count()):
        lacking = [n for n, there in (("torch", available), ("FAISS", gpu_count())) if not there]
        raise ValueError(f"the device is cuda, but no GPU is found by {' and '.join(lacking)}")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def describe_device(device: torch.device) -> str:
    """Say what computes: "torch on NVIDIA H200, FAISS on 1 GPU", or "... on the CPU"."""
    gpu = device.type == "cuda"
    torch_on = torch.cuda.get_device_name(device) if gpu else "the CPU"
    faiss_on = f"{gpu_count()} GPU" if gpu and gpu_count() else "the CPU"
    return f"torch on {torch_on}, FAISS on {faiss_on}"


def hardware_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 products are native; emulated ones are many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    facts: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Tell whether products are of bfloat16 by ``auto``, ``float32`` or ``bfloat16``."""
    return precision == "bfloat16" or (precision == "auto" and hardware_bfloat16(device))


def gpu_count() -> int:
    """Count the GPUs that FAISS can use."""
    # knn_gpu without a GPU aborts the process instead of raising, so ask first.
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def return_large_arrays() -> None:
    """Return the memory of freed arrays of 16 MB and more to the system, under glibc.

    glibc begins with this limit but raises it to 32 MB when it sees such arrays. The batches of a
    training, which differ in size, then fragment its heap: 48 steps took 900 MB more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
