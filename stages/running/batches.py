"""The batches of training: tokens and kernels of groups of tiles, stored or drawn anew."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cache.features import Features
from cache.graphs import Graphs
from pipeline.device import choose_device
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import (
    block_diagonal,
    feature_graph,
    inside,
    kernel,
    kernel_on_device,
    pixel_edges,
    to_torch,
)
from pipeline.graph.knn import nearest, neighbour_count
from pipeline.graph.partition import cut
from pipeline.head.training import Batch
from stages.running.ahead import ahead

KEPT = 2 << 30  # bytes of pixel graphs that are kept, about
READERS = 8  # threads that load batches for a GPU
Edges = tuple[np.ndarray, np.ndarray]  # of a pixel graph in CSR form


@dataclass(frozen=True)
class Source:
    """A cache and a graph file that batches are made of, on the CPU.

    Its kinds plan the places of an epoch's batches by the seed, and load the batch of a place.

    Attributes:
        levels: of the head's input.
        alpha: weight of the pixel graph (Eq. 4).
        gpu: search neighbours and build kernels on the GPU where there is one.
        pixels: the pixel graphs of tiles that were made, up to `KEPT` bytes: views come again.
    """

    cache: Features
    graphs: Graphs
    levels: Sequence[int | str]
    alpha: float
    seed: int
    gpu: bool
    pixels: dict[int, Edges] = field(default_factory=dict)

    def join(
        self, tiles: np.ndarray, indices: np.ndarray, cosines: np.ndarray, pixels: Sequence[Edges]
    ) -> Batch:
        """Join neighbours and pixel graphs of some tiles to their kernel; read their tokens."""
        near, device = block_diagonal(pixels), choose_device("auto" if self.gpu else "cpu")
        if device.type == "cpu":
            graph = feature_graph(indices, cosines)
            kappa = to_torch(kernel(graph, near, self.alpha), device)
        else:
            kappa = kernel_on_device(indices, cosines, near, self.alpha, device)
        tokens = torch.from_numpy(self.cache.batch(self.levels, tiles))
        return Batch(tokens, self.cache.sizes(tiles), kappa)


class StoredGroups(Source):
    """Takes the groups of one round in each epoch, round after round, in an order drawn anew."""

    def plan(self, epoch: int) -> Iterable[tuple[int, int]]:
        """Give the epoch's round and, one after the other, the numbers of its groups."""
        rounds, groups = self.graphs.manifest["rounds"], self.graphs.manifest["groups"]
        order = np.random.default_rng([self.seed, epoch]).permutation(groups)
        return ((epoch % rounds, int(group)) for group in order)

    def load(self, place: Any) -> Batch:
        """Read a group, given by round and number."""
        tiles, (indices, cosines), firsts = self.graphs.group(*place)
        if firsts is not None:
            sizes = self.cache.sizes(tiles)
            indices = inside(indices, list(zip(firsts.tolist(), sizes, strict=True)))
        pixels = [self.graphs.pixel_graph(int(tile)) for tile in tiles]
        return self.join(tiles, indices, cosines, pixels)


class DrawnTiles(Source):
    """Cuts the tiles of one view into new batches in each epoch, and makes their graphs."""

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Draw the tiles of every batch without replacement, batches as equal as can be."""
        view = self.cache.views[epoch % len(self.cache.views)]
        tiles = self.cache.tiles_of(self.graphs.manifest["split"], [view])
        drawn = np.random.default_rng([self.seed, epoch]).permutation(tiles)
        return cut(drawn, self.cache.sizes(drawn), self.graphs.manifest["groups"])

    def load(self, place: Any) -> Batch:
        """Make the batch of tiles, given by ids, with the graphs that the manifest describes."""
        tiles, choices = place, self.graphs.manifest
        rows = unit_rows(self.cache.batch([choices["level"]], tiles).astype(np.float32))
        indices, cosines = nearest(rows, neighbour_count(choices["k"], len(rows)), gpu=self.gpu)
        return self.join(tiles, indices, cosines, [self.pixel_graph(int(tile)) for tile in tiles])

    def pixel_graph(self, tile: int) -> Edges:
        """Make the pixel graph of a tile, or give the one that an earlier epoch made."""
        if tile in self.pixels:
            return self.pixels[tile]
        settings = [(pixel["k"], pixel["weight"]) for pixel in self.graphs.manifest["pixel"]]
        height, width = (int(self.cache.tiles[tile][side]) for side in ("grid_h", "grid_w"))
        edges = pixel_edges(self.cache.rgb(tile), height, width, settings)
        if len(self.pixels) * sum(part.nbytes for part in edges) < KEPT:
            self.pixels[tile] = edges
        return edges


Batches = StoredGroups | DrawnTiles


def open_source(
    cache: Features, graphs: Graphs, levels: Sequence[int | str], alpha: float, seed: int, gpu: bool
) -> Batches:
    """Choose the source of batches by the scope of the graph file; arguments as of `Source`."""
    kind = DrawnTiles if graphs.manifest["scope"] == "batch" else StoredGroups
    return kind(cache, graphs, levels, alpha, seed, gpu)


def load_batches(
    source: Batches, epochs: range, device: torch.device, waited: list[float]
) -> Generator[Batch, None, None]:
    """Load every step's batch of these epochs onto its device, ahead of the steps.

    The seconds that the caller waits for batches are added to ``waited[0]``.
    """

    copying = torch.cuda.Stream(device) if device.type == "cuda" else None

    def load(place: Any) -> Batch:
        # Batches are made and copied beside the steps. Without a GPU the context does nothing.
        with torch.cuda.stream(copying):
            batch = source.load(place).to(device)
        if copying is not None:
            copying.synchronize()
        return batch

    places = (place for epoch in epochs for place in source.plan(epoch))
    # A step takes all cores of a CPU; a GPU leaves them idle, and waits for more than one of them.
    others = (os.cpu_count() or 1) - 1
    threads = 1 if device.type == "cpu" else max(1, min(READERS, others))
    with closing(ahead(load, places, threads=threads, waiting=threads + 1)) as loaded:
        while True:
            start = time.perf_counter()
            item = next(loaded, None)
            waited[0] += time.perf_counter() - start
            if item is None:
                return
            if copying is not None:  # its memory is not free before the step is done with it
                item[1].record(torch.cuda.current_stream(device))
            yield item[1]
