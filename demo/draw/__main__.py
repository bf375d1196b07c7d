"""Draw the data set that lies in demo/scenes: python -m demo.draw --out FOLDER."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import starmap
from pathlib import Path

import click
import numpy as np
from PIL import Image

from demo.draw import CLASSES, numbered_scene
from pipeline.drawing.colours import palette
from stages.running.progress import track

SPLITS = ("train", "val")


@click.command()
@click.option("--out", required=True, type=click.Path(exists=False), help="Folder to write.")
@click.option("--train", default=96, show_default=True, help="Images of split train.")
@click.option("--val", default=32, show_default=True, help="Images of split val.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other scenes.")
@click.option("--workers", default=2, show_default=True, help="Processes that draw.")
def main(out: str, train: int, val: int, seed: int, workers: int) -> None:
    """Draw streets and landscapes of 320 x 240 px with exact labels, in folder layout.

    An image depends on the seed, its split and its number alone.
    """
    root = Path(out)
    if root.exists():
        raise click.ClickException(f"{out} must not exist yet: move it away or choose another.")
    counts = dict(zip(SPLITS, (train, val), strict=True))
    places = [(split, number) for split in SPLITS for number in range(counts[split])]
    keys = [(seed, SPLITS.index(split), number) for split, number in places]
    drawn = track(draw(keys, workers), "drawing scenes", len(places))
    for (split, number), (image, labels) in zip(places, drawn, strict=True):
        write(root, f"{split}/{number:03d}", image, labels)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


def draw(keys: list[tuple[int, int, int]], workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image and labels of each (seed, split, number), in order, drawn by so many processes."""
    if workers == 1:
        yield from starmap(numbered_scene, keys)
        return
    # The bar runs in a thread: to fork a process with threads can hang, so they start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(numbered_scene, *zip(*keys, strict=True))


def write(root: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Write images/<name>.jpg and labels/<name>.png, an index PNG in the report's colours."""
    photo, indices = root / "images" / f"{name}.jpg", root / "labels" / f"{name}.png"
    for path in (photo, indices):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(photo, quality=95, subsampling=0)
    picture = Image.fromarray(labels)
    picture.putpalette(palette(256).tobytes())
    picture.save(indices)


if __name__ == "__main__":
    main()
