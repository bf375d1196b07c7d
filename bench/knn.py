"""The search over a data set: FAISS's inverted file against the exact search, time and recall."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import faiss
import numpy as np

from bench.timing import machine, show
from cache.features import Features
from cache.indices import open_index, write_index
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
from stages.graph import BLOCK_PATCHES, QUERIES
from stages.params import load


@click.command()
@click.option("--level", default="context", show_default=True, help="Of data/features.zarr.")
@click.option("--drawn", help="N,C: random rows around random centres instead of the cache.")
@click.option("--k", default=32, show_default=True, help="Neighbours.")
@click.option("--image", default=1, show_default=True, help="Rows of an image, left out; 1 = self.")
@click.option("--recall", "wanted", default=0.95, show_default=True)
def main(level: str, drawn: str | None, k: int, image: int, wanted: float) -> None:
    """Build the index of all rows, choose how many cells to look into, search all rows.

    Seconds of each, the recall on the sample that set the probes and on others, and what the exact
    search of all rows would take at the rate of the sample's.
    """
    rows = drawn_rows(*map(int, drawn.split(","))) if drawn else cached_rows(level)
    n = len(rows)
    own = np.arange(n)[:, None] // image * image + [0, image]
    generator = np.random.default_rng(0)
    picked = generator.choice(n, min(2 * QUERIES, n), replace=False)
    exact = ExactTop(rows[picked], own[picked], k)
    seconds = {"exact search": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        index = filled_index(rows, Path(folder))
        seconds["index"] = time.perf_counter() - start
        start = time.perf_counter()
        for first in range(0, n, BLOCK_PATCHES):
            exact.add(first, rows[first : first + BLOCK_PATCHES])
        seconds["exact search"] = (time.perf_counter() - start) * n / len(picked)
        half = len(picked) // 2
        setting = (rows[picked[:half]], own[picked[:half]], exact.indices[:half])
        probes, measured = choose_probes(index, *setting, wanted)
        start = time.perf_counter()
        ids = search_all(index, rows, own, k, probes)
        seconds["search"] = time.perf_counter() - start
    held = [
        np.isin(truth, ids[row]).mean()
        for row, truth in zip(picked[half:], exact.indices[half:], strict=True)
    ]
    facts = {"rows": n, "channels": rows.shape[1], "k": k, "image": image, "cells": index.nlist}
    facts |= {"probes": probes, "recall on the sample": measured, "on others": float(np.mean(held))}
    show("knn", {**machine(), **facts}, [{"what": w, "seconds": s} for w, s in seconds.items()])


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
    on_device = to_gpu(index)
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
    centres = generator.standard_normal((max(1, n // 100), channels), np.float32)
    rows = centres[generator.integers(len(centres), size=n)]
    return unit_rows(rows + generator.standard_normal(rows.shape, np.float32))


if __name__ == "__main__":
    main()
