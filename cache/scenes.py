"""Drawn scenes on disk: a labelled data set in folder layout, whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cache.artefact import fingerprint, publish, work_folder, write_json, write_text
from cache.errors import InputError

_MANIFEST = "scenes.json"


class Scene(NamedTuple):
    """One scene with its place in the data set."""

    split: str
    number: int
    image: np.ndarray  # uint8 (height, width, 3)
    labels: np.ndarray  # uint8 (height, width)


def write_scenes(
    out: str | Path,
    classes: Sequence[str],
    palette: np.ndarray,
    scenes: Iterable[Scene],
    origin: dict[str, int],
) -> None:
    """Write images/<split>/*.jpg, labels/<split>/*.png and classes.txt below ``out``.

    They are made in a folder beside ``out`` that takes its place when the last file is written. A
    data set that this function wrote earlier is replaced.

    Args:
        classes: names by label value.
        palette: uint8 ``(256, 3)``, the colours in which a viewer shows the labels.
        scenes: drawn one by one as they are written.
        origin: what the scenes were drawn from, for the manifest.

    Raises:
        InputError: ``out`` holds something else; it is left as it is.
    """
    out = Path(out)
    if out.exists() and not (out / _MANIFEST).is_file():
        raise InputError(
            f"{out} must be absent or a data set of drawn scenes (with {_MANIFEST}), found "
            "something else, which is not overwritten. Move it away or choose another --out."
        )
    with work_folder(out, fingerprint(origin)) as work:
        root = work / "scenes"
        if root.exists():
            shutil.rmtree(root)  # a killed run left it, of perhaps another version of the code
        for scene in scenes:
            _write(root, scene, palette)
        write_text(root / "classes.txt", "".join(f"{name}\n" for name in classes))
        write_json(root / _MANIFEST, origin)
        publish(root, out)


def _write(root: Path, scene: Scene, palette: np.ndarray) -> None:
    image = root / "images" / scene.split / f"{scene.number:03d}.jpg"
    label = root / "labels" / scene.split / f"{scene.number:03d}.png"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(image, quality=95, subsampling=0)
    indices = Image.fromarray(scene.labels)
    indices.putpalette(palette.tobytes())
    indices.save(label)
