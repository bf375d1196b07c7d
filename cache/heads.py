"""Heads on disk: the finished head with its K-means, and checkpoints of unfinished training.

Tensors are stored as safetensors with a SHA-256 over names, shapes and values, so that a truncated
file or a flipped bit is an error and not another head.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.store import tensors
from cache.store.artefact import read_manifest, sweep, write_manifest
from cache.store.errors import InputError

FORMAT = 5
FILES = ("head", "kmeans")
LOG = logging.getLogger(__name__)


def save_head(
    folder: str | Path,
    state: Mapping[str, Tensor],
    kmeans: Mapping[str, Mapping[str, Any]],
    manifest: Mapping[str, Any],
) -> None:
    """Write head.safetensors, kmeans.safetensors and, last, manifest.json.

    Args:
        state: the head's ``state_dict``.
        kmeans: by name, the arrays and scalars of what was fitted beside the head: each K-means,
            the mean features of its own clusters, and what puts tokens into context.
        manifest: JSON-able; ``format`` and ``sha256`` (of either file's tensors) are added.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    sweep(folder, "*")  # a kill in here left it
    arrays = tensors.pack(
        {
            f"{name}.{field}": value
            for name, model in kmeans.items()
            for field, value in model.items()
        }
    )
    digests = {
        name: tensors.write(folder / f"{name}.safetensors", values, {})
        for name, values in zip(FILES, (state, arrays), strict=True)
    }
    write_manifest(folder / "manifest.json", {"format": FORMAT, **manifest, "sha256": digests})


def load_head(
    folder: str | Path,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]], dict[str, Any]]:
    """Read what `save_head` wrote: ``state``, ``kmeans`` and the manifest.

    Raises:
        InputError: the folder is missing, half-written, damaged, or of another format.
    """
    folder = Path(folder)
    way_out = "run `eigenseg train` (or `dvc repro train`)"
    if not folder.is_dir():
        raise InputError(f"the head {folder} is missing: {way_out} first.")
    if not (folder / "manifest.json").is_file():
        raise InputError(f"the head {folder} is incomplete (no manifest): {way_out} again.")
    manifest = read_manifest(folder / "manifest.json", f"delete {folder} and {way_out} again.")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"the head {folder} has format {manifest.get('format')}, this version reads {FORMAT}: "
            f"{way_out} again."
        )
    stored = {}
    for name in FILES:
        path = folder / f"{name}.safetensors"
        try:
            stored[name], _, digest = tensors.read(path)
            if digest != manifest["sha256"][name]:
                raise InputError("it belongs to another head than the manifest")
        except tensors.DAMAGE as error:
            raise InputError(
                f"{path} is missing or damaged ({error}): delete {folder} and {way_out} again."
            ) from error
    kmeans: dict[str, dict[str, Any]] = {}
    for key, value in tensors.unpack(stored["kmeans"]).items():
        name, field = key.split(".")
        kmeans.setdefault(name, {})[field] = value
    return stored["head"], kmeans, manifest


def save_checkpoint(path: str | Path, state: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors of any dtype and JSON-able facts; a former checkpoint stays until it is whole.

    The round trip is exact to the bit; random states of torch are tensors like others.
    """
    tensors.write(Path(path), state, meta)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a checkpoint; None where there is none, or only a damaged one, which is logged."""
    try:
        state, meta, _ = tensors.read(Path(path))
    except FileNotFoundError:
        return None
    except tensors.DAMAGE as error:
        LOG.warning("the checkpoint %s is damaged (%s): starting over without it", path, error)
        return None
    return state, meta


def flatten_module(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under the names that `restore_module` looks for."""
    return {f"module.{name}": value for name, value in module.state_dict().items()}


def restore_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the tensors of `flatten_module`, among others, into a module of the same shape."""
    module.load_state_dict(_below("module.", state))


def flatten_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State and hyper-parameters as tensors, under the names that `restore_optimiser` looks for."""
    state = optimiser.state_dict()
    values = {
        f"optimiser.{index}.{name}": value
        for index, entry in state["state"].items()
        for name, value in entry.items()
    }
    groups = json.dumps(state["param_groups"]).encode()
    return {**values, "optimiser.groups": torch.frombuffer(bytearray(groups), dtype=torch.uint8)}


def restore_optimiser(optimiser: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """Load the tensors of `flatten_optimiser`, among others, into an optimiser of the same kind."""
    values = _below("optimiser.", stored)
    groups = json.loads(values.pop("groups").numpy().tobytes())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in values.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
