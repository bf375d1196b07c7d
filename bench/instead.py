"""Alternatives on the same patches: ncut-pytorch or deep spectral methods."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from bench.growth import cost
from bench.knn import drawn_rows, exact_neighbours, filled_index, search_all
from bench.opponents import import_ncut, ncut
from bench.rivals import dsm
from bench.rivals.dsm import Picture
from bench.timing import machine, show
from cache.features import Features
from pipeline.features.whitening import unit_rows
from pipeline.graph.search import choose_probes
from stages.graph import QUERIES
from stages.settings.params import load

PATCHES = "the patches alone"


class Choices(NamedTuple):
    """Choices; without ``drawn`` the patches are those of a level of the cache."""

    level: str
    drawn: str | None
    patches: int
    side: int
    k: int
    recall: float
    vectors: int


def graph(pictures: Sequence[Picture], asked: Choices) -> np.ndarray:
    """Neighbours of all patches, as `stages.graph` searches a data set: int64 ``(n, k)`` ids."""
    rows = joined(pictures)
    own = np.arange(len(rows))[:, None] + [0, 1]
    picked = np.random.default_rng(0).choice(len(rows), min(QUERIES, len(rows)), replace=False)
    truth = exact_neighbours(rows, own, picked, asked.k)
    with tempfile.TemporaryDirectory() as folder:
        index = filled_index(rows, Path(folder))
        probes, _ = choose_probes(index, rows[picked], own[picked], truth, asked.recall)
        return search_all(index, rows, own, asked.k, probes)


def global_vectors(pictures: Sequence[Picture], asked: Choices) -> np.ndarray:
    """Eigenvectors of all patches by ncut-pytorch, its own choices: float32 ``(n, vectors)``."""
    return ncut(joined(pictures), asked.vectors, 0, degree=None)[0]


def vectors_by_image(pictures: Sequence[Picture], asked: Choices) -> list[np.ndarray]:
    """Eigenvectors of deep spectral methods: float64 ``(patches, 15)`` of each image."""
    settings = [(pixel.k, pixel.weight) for pixel in load().graph.pixel]
    return [dsm.eigenvectors(dsm.affinity(one, settings), dsm.VECTORS)[1] for one in pictures]


WAYS: Mapping[str, Callable[[Sequence[Picture], Choices], Any]] = {
    PATCHES: lambda pictures, asked: None,
    "our graph": graph,
    "ncut-pytorch": global_vectors,
    "deep spectral methods": vectors_by_image,
}


@click.command()
@click.option("--level", default="context", show_default=True, help="Of data/features.zarr.")
@click.option("--drawn", help="N,C: random rows around random centres instead of the cache.")
@click.option("--patches", default=100_000, show_default=True, help="Of the cache, at most.")
@click.option("--side", default=30, show_default=True, help="Of a drawn image, in patches.")
@click.option("--k", default=32, show_default=True, help="Neighbours in our graph.")
@click.option("--recall", default=0.95, show_default=True, help="Of our search.")
@click.option("--vectors", default=64, show_default=True, help="Eigenvectors of ncut-pytorch.")
@click.option("--way", type=click.Choice(list(WAYS)), help="Take this way here, measure nothing.")
def main(way: str | None, **options: Any) -> None:
    """Go every way in a process of its own, on whole images of the same patches.

    Our graph is what training needs, and its search all that is done. ncut-pytorch makes graph and
    eigenvectors of all patches, deep spectral methods those of each image. Of times those of the
    first row, which imports and gets the patches, are taken off; peak memory is all.
    """
    asked = Choices(**options)
    if way:
        WAYS[way](pictures_of(asked), asked)
        return
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    rows = [measured(name, given) for name in WAYS]
    for row in rows[1:]:
        for kind in {"seconds", "processor seconds"} & row.keys():
            row[kind] -= rows[0][kind]
    show("instead", {**machine(), **options}, rows)


def measured(name: str, given: Sequence[str]) -> dict[str, Any]:
    """Measure one alternative, or say why it cannot be run."""
    if WAYS[name] is global_vectors:
        try:
            import_ncut()
        except click.ClickException as error:
            return {"way": name, "note": error.message}
    start = time.perf_counter()
    taken = cost(Path.cwd(), "-m", "bench.instead", *given, f"--way={name}")
    elapsed = time.perf_counter() - start
    seconds = {"seconds": elapsed, "processor seconds": taken.seconds}
    return {"way": name, **seconds, "MB": taken.megabytes}


def pictures_of(asked: Choices) -> list[Picture]:
    """The drawn images, or the first ones of the training split that have so many patches."""
    if asked.drawn:
        rows, side = drawn_rows(*map(int, asked.drawn.split(","))), asked.side
        tiles = rows[: len(rows) // side**2 * side**2].reshape(-1, side**2, rows.shape[1])
        colours = np.random.default_rng(1).random((*tiles.shape[:2], 3), np.float32)
        return [Picture(*one, (side, side)) for one in zip(tiles, colours, strict=True)]
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    ids = cache.tiles_of(load().train_split)
    ids = ids[np.cumsum(cache.sizes(ids)) <= asked.patches]
    grids = cache.tiles[ids][["grid_h", "grid_w"]].tolist()
    return [
        Picture(cache.tokens(asked.level, i).astype(np.float32), cache.rgb(i), grid)
        for i, grid in zip(ids.tolist(), grids, strict=True)
    ]


def joined(pictures: Sequence[Picture]) -> np.ndarray:
    """Unit rows of all patches, image after image: float32 ``(n, c)``.

    Raises:
        click.ClickException: there is no image.
    """
    if not pictures:
        raise click.ClickException(
            "the patches must fill one whole image, found none that they fill: raise --patches or "
            "the N of --drawn, or lower --side"
        )
    return unit_rows(np.concatenate([one.tokens for one in pictures]))


if __name__ == "__main__":
    main()
