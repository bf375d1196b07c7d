"""A labelled data set of drawn photos and its params.yaml, to measure whole stages on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from cache.backbone import FOLDER

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = 6


def make_project(
    folder: Path, train: int, val: int, height: int, width: int, settings: Sequence[str] = ()
) -> None:
    """Draw the photos and their labels, and write params.yaml: the shipped one with changes.

    Args:
        train, val: photos of each split.
        height, width: of the photos, in pixels.
        settings: further changes, as `change_params` takes them.
    """
    generator = np.random.default_rng(0)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            _draw(photos, f"{split}/{number:05d}", (height, width), generator)
    (photos / "classes.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    ours = (
        "datasets.drawn={root: photos, train: train, eval: val}",
        "dataset=drawn",
        f"backbones.demo.model='{FOLDER}{REPOSITORY / 'demo/backbone'}'",
    )
    change_params(REPOSITORY / "params.yaml", folder / "params.yaml", (*ours, *settings))


def change_params(source: Path, target: Path, settings: Sequence[str]) -> None:
    """Copy a params.yaml with changes, ``dotted.key=value`` each, as `dvc exp run -S` takes them.

    The values are YAML; target may be the source.
    """
    tree = yaml.safe_load(source.read_text())
    for setting in settings:
        key, _, value = setting.partition("=")
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node[name]
        node[last] = yaml.safe_load(value)
    target.write_text(yaml.safe_dump(tree, sort_keys=False))


def random_backbone(folder: Path, model: str) -> Path:
    """Write a checkpoint of a timm ViT with random weights."""
    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    save_file(timm.create_model(model, pretrained=False, num_classes=0).state_dict(), path)
    return path


def _draw(root: Path, name: str, size: tuple[int, int], generator: np.random.Generator) -> None:
    """Smooth colours with noise; the label of a pixel is the band of its brightness."""
    height, width = size
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + generator.normal(0, 8, (height, width, 1))
    bands = np.asarray(smooth).mean(axis=2).astype(int) * CLASSES // 256
    for kind, ending, values in (("images", "jpg", noisy), ("labels", "png", bands)):
        path = root / kind / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
