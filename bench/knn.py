"""The search over a data set: FAISS's inverted file against the exact search, time and recall."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import click
import faiss
import numpy as np

from bench.timing import machine, show
from cache.features import Features
from cache.search_index import open_index, write_index
from pipeline.features.whitening import unit_rows
from pipeline.graph.search import (
    SAMPLE_PER_CELL,
    ExactTop,
    cell_count,
    choose_probes,
    empty_index,
    search,
    to_gpu,
)
from pipeline.head.kmeans import ITERATIONS, centres
from stages.graph import BLOCK_PATCHES, QUERIES
from stages.settings.params import load


@click.command()
@click.option("--level", default="context", show_default=True, help="Of data/features.zarr.")
@click.option("--drawn", help="N,C: random rows around random centres instead of the cache.")
@click.option("--k", default=32, show_default=True, help="Neighbours.")
@click.option("--image", default=1, show_default=True, help="Rows of an image, left out; 1 = self.")
@click.option("--recall", "wanted", default=0.95, show_default=True)
@click.option("--clusters", type=int, help="Fit K-means with so many centres to all rows, too.")
def main(
    level: str, drawn: str | None, k: int, image: int, wanted: float, clusters: int | None
) -> None:
    """Build the index of all rows, choose how many cells to look into, search all rows.

    Seconds of each, the recall on the sample that set the probes and on others, what the exact
    search of all rows would take at the rate of the sample's, and the peak memory of all this.
    """
    rows = drawn_rows(*map(int, drawn.split(","))) if drawn else cached_rows(level)
    n = len(rows)
    own = np.arange(n)[:, None] // image * image + [0, image]
    picked = np.random.default_rng(0).choice(n, min(2 * QUERIES, n), replace=False)
    start = time.perf_counter()
    truth = exact_neighbours(rows, own, picked, k)
    seconds = {"exact search": (time.perf_counter() - start) * n / len(picked)}
    half = len(picked) // 2
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = filled_index(rows, Path(folder))
        seconds["index"] = time.perf_counter() - start
        sample = (rows[picked[:half]], own[picked[:half]], truth[:half])
        probes, measured = choose_probes(index, *sample, wanted)
        start = time.perf_counter()
        ids = search_all(index, rows, own, k, probes)
        seconds["search"] = time.perf_counter() - start
    held = [np.isin(t, ids[row]).mean() for row, t in zip(picked[half:], truth[half:], strict=True)]
    facts = {"rows": n, "channels": rows.shape[1], "k": k, "image": image, "cells": index.nlist}
    facts |= {"probes": probes, "recall on the sample": measured, "on others": float(np.mean(held))}
    facts["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if clusters:
        start = time.perf_counter()
        centres(rows, clusters, spherical=True, seed=0)
        seconds[f"K-means, {ITERATIONS} steps"] = time.perf_counter() - start
    show("knn", {**machine(), **facts}, [{"what": w, "seconds": s} for w, s in seconds.items()])


def exact_neighbours(rows: np.ndarray, own: np.ndarray, picked: np.ndarray, k: int) -> np.ndarray:
    """The true neighbours of the picked rows: int64 ``(picked, k)`` ids."""
    exact = ExactTop(rows[picked], own[picked], k)
    for first in range(0, len(rows), BLOCK_PATCHES):
        exact.add(first, rows[first : first + BLOCK_PATCHES])
    return exact.indices


def filled_index(rows: np.ndarray, folder: Path) -> faiss.IndexIVF:
    """The index of unit rows ``(n, c)``, in a file of the folder, opened."""
    n, cells = len(rows), cell_count(len(rows))
    sample = rows[np.random.default_rng(1).permutation(n)[: cells * SAMPLE_PER_CELL]]
    blocks = ((i, rows[i : i + BLOCK_PATCHES]) for i in range(0, n, BLOCK_PATCHES))
    write_index(folder, empty_index(sample, cells, 0), blocks)
    return open_index(folder)


def search_all(
    index: faiss.IndexIVF, rows: np.ndarray, own: np.ndarray, k: int, probes: int
) -> np.ndarray:
    """The neighbours of all rows, int64 ``(n, k)`` ids; arguments as `search` takes them."""
    on_device = to_gpu(index, probes)
    found = [
        search(on_device, rows[i : i + BLOCK_PATCHES], own[i : i + BLOCK_PATCHES], k, probes)[0]
        for i in range(0, len(rows), BLOCK_PATCHES)
    ]
    return np.concatenate(found)


def cached_rows(level: str) -> np.ndarray:
    """Unit rows of the training split."""
    cache = Features.open("data/features.zarr").beside("data/context.zarr")
    tiles = cache.tiles_of(load().train_split)
    return unit_rows(cache.batch([level], tiles).astype(np.float32))


def drawn_rows(n: int, channels: int) -> np.ndarray:
    """Unit rows around n / 100 random centres."""
    generator = np.random.default_rng(0)
    middles = generator.standard_normal((max(1, n // 100), channels), np.float32)
    rows = generator.standard_normal((n, channels), np.float32)
    for first in range(0, n, BLOCK_PATCHES):  # in place: a copy of all would be the peak
        block = rows[first : first + BLOCK_PATCHES]
        block += middles[generator.integers(len(middles), size=len(block))]
        block[:] = unit_rows(block)
    return rows


if __name__ == "__main__":
    main()
