"""Tensors in safetensors files with a SHA-256 over names, shapes, values and facts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache.store.artefact import write_bytes

DAMAGE = (OSError, ValueError, KeyError, SafetensorError)  # what reading a damaged file raises


def pack(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turn arrays and scalars into tensors."""
    return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Turn tensors back into the arrays and scalars of `pack`."""
    return {n: t.numpy() if t.ndim else t.item() for n, t in tensors.items()}


def write(path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> str:
    """Write tensors and facts by way of a temporary file; give their digest."""
    # Cloned because safetensors refuses tensors that share memory.
    stored = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    text = json.dumps(meta)
    digest = _digest(stored, text)
    # One key only: safetensors writes several in random order, and bytes must not vary.
    write_bytes(path, save(stored, {"facts": json.dumps({"meta": text, "sha256": digest})}))
    return digest


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Read tensors, facts and their digest; raise one of `DAMAGE` where they changed."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {})["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    digest = _digest(tensors, facts["meta"])
    if digest != facts["sha256"]:
        raise ValueError("its SHA-256 does not match")
    return tensors, json.loads(facts["meta"]), digest


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
