"""A labelled data set of drawn photos and its params.yaml, to measure whole stages on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

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
        settings: further changes, ``dotted.key=value`` each (the value is YAML).
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            _draw(folder / "photos", f"{split}/{number:05d}", (height, width), generator)
    (folder / "photos/classes.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    tree["datasets"]["drawn"] = {"root": "photos", "train": "train", "eval": "val"}
    tree["backbones"]["demo"]["model"] = f"{FOLDER}{REPOSITORY / 'backbones/demo'}"
    for setting in ("dataset=drawn", *settings):
        change(tree, setting)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def change(tree: dict, setting: str) -> None:
    """Set one ``dotted.key=value`` of the parameters, as ``dvc exp run -S`` does."""
    key, _, value = setting.partition("=")
    *above, last = key.split(".")
    for name in above:
        tree = tree[name]
    tree[last] = yaml.safe_load(value)


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
