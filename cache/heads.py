"""Heads on disk: the finished head with its K-means, and checkpoints of unfinished training.

Each file has a SHA-256, so that a truncated file or a flipped bit is no other head.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.store import tensors
from cache.store.artefact import read_manifest, sweep, write_bytes, write_manifest
from cache.store.errors import InputError

FORMAT = 6
FILES = ("head", "kmeans")
DIGEST = 32  # bytes of a SHA-256, at the start of a checkpoint
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
        kmeans: arrays and scalars by name: of each K-means, of the mean features of the head's own
            clusters, and of the context.
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


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write state dicts and plain values; a former checkpoint stays until the new one is whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_bytes(path, hashlib.sha256(content).digest() + content)


def load_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """Read a checkpoint to the CPU; None where there is none, or a damaged one, which is logged."""
    try:
        stored = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    digest, content = stored[:DIGEST], stored[DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        LOG.warning("the checkpoint %s is damaged: starting over without it", path)
        return None
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
