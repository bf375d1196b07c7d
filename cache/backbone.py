"""Loading of a timm vision transformer, from the hub or from a checkpoint file."""

from __future__ import annotations

import difflib
import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from cache.store.errors import InputError

_TRIED = (64, 96)  # px: rows and columns of the image that a model is tried on
_LOADED = ("blocks.", "patch_embed.")  # weights that a checkpoint must have
FOLDER = "local-dir:"  # timm's prefix of a model in a folder
CARRIED = "backbone"  # folder below a head, in which a small backbone travels
MOST_BYTES = 64 << 20  # of weights that travel
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


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
    import timm  # seconds, which the stages that see no photo save

    _check_name(model)
    if weights is not None and not Path(weights).is_file():
        raise InputError(
            f"the weight file {weights} does not exist: put it there, correct "
            "`backbones.<name>.weights` in params.yaml, or set it to null to use the model hub."
        )
    overlay = {"file": weights} if weights else None
    try:
        with _missing_keys() as missing:
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
    if any(f" {name}" in keys.replace("(", " ") for name in _LOADED for keys in missing):
        raise InputError(
            f"the checkpoint {weights or model} must hold the weights of {model} under timm's "
            f"names, found others: they would be random. {missing[0][:200]} ... Save what lies "
            "below `teacher`, `backbone.` or the like as a file of its own."
        )
    if not all(hasattr(created, name) for name in ("blocks", "patch_embed", "num_prefix_tokens")):
        raise InputError(
            f"{model} is no vision transformer: choose one of timm.list_models('vit*')."
        )
    _check_grid(created.eval().requires_grad_(False), model)
    return created


@contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """Collect what timm logs of weights that a checkpoint lacks: it leaves them random."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Missing keys"):
                said.append(record.getMessage())

    logger, listener = logging.getLogger("timm.models._builder"), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.removeHandler(listener)


@torch.inference_mode()
def _check_grid(created: nn.Module, model: str) -> None:
    """Raise InputError unless the model gives a token of every patch, at a size of no training."""
    patch = facts(created)["patch"]
    rows, columns = (-(-side // patch) for side in _TRIED)
    pixels = torch.zeros(1, 3, rows * patch, columns * patch)
    try:
        (level,) = created.forward_intermediates(  # type: ignore[operator]
            pixels, indices=[0], intermediates_only=True, output_fmt="NLC"
        )
        found, reason = tuple(level.shape[:-1]), ""
    except Exception as error:  # each model has its own
        found, reason = (), f" ({str(error).strip().splitlines()[0]})" if str(error) else ""
    if found != (1, rows * columns):
        text = f"{found[-1]} tokens" if found else f"none{reason}"
        raise InputError(
            f"{model} must give one token of each patch of {patch} px, {rows * columns} for "
            f"{columns * patch} x {rows * patch} px, found {text}. Supported are ViTs that cut "
            "images into square patches themselves (ViT, DeiT, DINO, DINOv2, DINOv3, CLIP, SigLIP, "
            "EVA), not those behind a convolutional stem (`vit_*_r26`, `_r50`): choose another "
            "`backbones.<name>.model`."
        )


def _check_name(model: str) -> None:
    import timm

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
    """Return ``patch`` (px), ``depth``, and ``mean`` and ``std`` of each channel."""
    from timm.data import resolve_model_data_config

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


def carry(model: str, weights: str | None, head: Path) -> None:
    """Copy a small local backbone into the folder of a head, so that it travels with the head.

    Args:
        model, weights: as of `load_backbone`. Weights of the model hub, and those above
            `MOST_BYTES`, are left where they are: the manifest names them by their digest.
        head: folder to copy into, below ``backbone``.
    """
    folder = Path(model.removeprefix(FOLDER))
    if weights is not None:
        files = {f"weights{Path(weights).suffix}": Path(weights)}
    elif model.startswith(FOLDER):
        files = {name: folder / name for name in ("config.json", *_WEIGHTS)}
    else:
        return
    present = {name: file for name, file in files.items() if file.is_file()}
    if sum(file.stat().st_size for file in present.values()) <= MOST_BYTES:
        for name, file in present.items():
            (head / CARRIED).mkdir(exist_ok=True)
            shutil.copyfile(file, head / CARRIED / name)


def carried(head: Path, model: str, weights: str | None) -> tuple[str, str | None]:
    """Return model and weights as of `load_backbone`, from the head's folder if they are there."""
    folder = head / CARRIED
    if (folder / "config.json").is_file():
        return f"{FOLDER}{folder}", None
    return model, next((str(file) for file in folder.glob("weights.*")), weights)
