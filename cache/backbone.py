"""Loading of a timm vision transformer, from the hub or from a checkpoint file."""

from __future__ import annotations

import difflib
import hashlib
from functools import lru_cache
from pathlib import Path

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from cache.store.errors import InputError

FOLDER = "local-dir:"  # timm's prefix of a model in a folder


@lru_cache(maxsize=1)
def load_backbone(model: str, weights: str | None) -> nn.Module:
    """Create a frozen timm ViT in evaluation mode; kept for the next call in this process.

    Args:
        model: timm name, with or without the tag of its weights, or ``local-dir:FOLDER`` with a
            config.json and the weights, as timm saves models.
        weights: checkpoint file (safetensors or torch), or None for the model hub or the folder.

    Raises:
        InputError: unknown name, no ViT, missing or unfitting file, hub out of reach.
    """
    _check_name(model)
    if weights is not None and not Path(weights).is_file():
        raise InputError(
            f"the weight file {weights} does not exist: put it there, correct "
            "`backbones.<name>.weights` in params.yaml, or set it to null to use the model hub."
        )
    overlay = {"file": weights} if weights else None
    try:
        created = timm.create_model(
            model, pretrained=True, num_classes=0, dynamic_img_size=True,
            pretrained_cfg_overlay=overlay,
        )  # fmt: skip
    except TypeError as error:
        raise InputError(
            f"{model} takes no images of varying size ({error}): choose a ViT of timm "
            "(timm.list_models('vit*')) as `backbones.<name>.model`."
        ) from error
    except Exception as error:  # timm, torch, safetensors and the hub each raise types of their own
        raise InputError(_why(model, weights, error)) from error
    if not all(hasattr(created, name) for name in ("blocks", "patch_embed", "num_prefix_tokens")):
        raise InputError(
            f"{model} is no vision transformer: choose one of timm.list_models('vit*')."
        )
    return created.eval().requires_grad_(False)


def _check_name(model: str) -> None:
    if model.startswith(FOLDER):
        config = Path(model.removeprefix(FOLDER)) / "config.json"
        if not config.is_file():
            raise InputError(
                f"{model} needs {config}, which does not exist (paths start from the folder in "
                "which the command runs): correct `backbones.<name>.model` in params.yaml."
            )
        return
    architecture = model.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise InputError(
            f"backbones.<name>.model: timm {timm.__version__} has no model {model!r}; "
            f"near it: {', '.join(near) or 'none'} (timm.list_models('vit*') lists all)."
        )


def _why(model: str, weights: str | None, error: Exception) -> str:
    first = str(error).strip().splitlines()[:4]
    if model.startswith(FOLDER) and not weights:
        return (
            f"{model} cannot be loaded: its config.json or weights are damaged or do not fit "
            f"together ({' '.join(first)}). Restore the folder."
        )
    if weights:
        return (
            f"the checkpoint {weights} does not fit {model} or is damaged: {' '.join(first)} "
            "Correct `backbones.<name>.model` or `backbones.<name>.weights`."
        )
    return (
        f"the weights of {model} could not be fetched from the model hub ({type(error).__name__}: "
        f"{' '.join(first)}). Download them elsewhere and name the file in "
        "`backbones.<name>.weights`."
    )


def facts(model: nn.Module) -> dict:
    """Describe a model: ``patch`` (px), ``depth``, ``mean`` and ``std`` per channel."""
    data = resolve_model_data_config(model)
    patch = model.patch_embed.patch_size  # type: ignore[union-attr]
    return {
        "patch": int(patch[0]) if isinstance(patch, tuple) else int(patch),  # type: ignore[arg-type]
        "depth": len(model.blocks),  # type: ignore[arg-type]
        "mean": tuple(data["mean"]),
        "std": tuple(data["std"]),
    }


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
