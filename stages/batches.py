"""The batches of training: tokens and kernels of groups of tiles, stored or drawn anew."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch

from cache.features import Features
from cache.graphs import Graphs
from cache.store.ahead import ahead
from pipeline.features.whitening import unit_rows
from pipeline.graph.kernel import (
    block_diagonal,
    feature_graph,
    inside,
    kernel,
    pixel_edges,
    to_torch,
)
from pipeline.graph.knn import nearest, neighbour_count
from pipeline.graph.partition import cut
from pipeline.head.training import Batch
from stages.params import Params

READERS = 8  # threads that load batches for a GPU


def load_batches(
    params: Params,
    cache: Features,
    graphs: Graphs,
    epoch: int,
    device: torch.device,
    waited: list[float],
) -> Generator[Batch, None, None]:
    """Every step's batch on its device, from the start of an epoch on.

    What an epoch takes follows from the seed and the epoch: the groups of one round in some order,
    or all tiles, cut into batches anew. The seconds that the caller waits for batches are added to
    ``waited[0]``.
    """
    draws = graphs.manifest["scope"] == "batch"
    plan: Callable = draw_tiles if draws else order_groups
    made: Callable = make_batch if draws else load_batch

    def load(place: tuple[int, int] | np.ndarray) -> Batch:
        return made(params, cache, graphs, place).to(device)

    epochs = range(epoch, params.train.epochs)
    places = (place for number in epochs for place in plan(params, cache, graphs, number))
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
            yield item[1]


def order_groups(
    params: Params, cache: Features, graphs: Graphs, epoch: int
) -> Iterator[tuple[int, int]]:
    """The round of an epoch and the numbers of its groups, in the order of the epoch."""
    rounds, groups = graphs.manifest["rounds"], graphs.manifest["groups"]
    for group in np.random.default_rng([params.seed, epoch]).permutation(groups):
        yield epoch % rounds, int(group)


def draw_tiles(params: Params, cache: Features, graphs: Graphs, epoch: int) -> list[np.ndarray]:
    """The tiles of every batch of an epoch, without replacement, batches as equal as can be.

    An epoch takes one view of each image.
    """
    view = cache.views[epoch % len(cache.views)]
    tiles = cache.tiles_of(graphs.manifest["split"], [view])
    drawn = np.random.default_rng([params.seed, epoch]).permutation(tiles)
    return cut(drawn, cache.sizes(drawn), graphs.manifest["groups"])


def load_batch(params: Params, cache: Features, graphs: Graphs, place: tuple[int, int]) -> Batch:
    """Tokens and kernel (Eq. 4) of one group, given by round and number, on the CPU."""
    tiles, (indices, cosines), firsts = graphs.group(*place)
    if firsts is not None:
        indices = inside(indices, list(zip(firsts.tolist(), cache.sizes(tiles), strict=True)))
    pixels = [graphs.pixel_graph(int(tile)) for tile in tiles]
    return _joined(params, cache, tiles, indices, cosines, pixels)


def make_batch(params: Params, cache: Features, graphs: Graphs, tiles: np.ndarray) -> Batch:
    """Tokens and kernel of some tiles without stored graphs, on the CPU.

    Their neighbours are searched here, on a GPU where there is one, as the manifest of the graph
    file says.
    """
    choices = graphs.manifest
    rows = unit_rows(cache.batch([choices["level"]], tiles).astype(np.float32))
    k = neighbour_count(choices["k"], len(rows))
    indices, cosines = nearest(rows, k, gpu=params.compute.device != "cpu")
    settings = [(pixel["k"], pixel["weight"]) for pixel in choices["pixel"]]
    grids = zip(tiles, *(cache.tiles[side][tiles] for side in ("grid_h", "grid_w")), strict=True)
    pixels = [pixel_edges(cache.rgb(tile), h, w, settings) for tile, h, w in grids]
    return _joined(params, cache, tiles, indices, cosines, pixels)


def _joined(
    params: Params,
    cache: Features,
    tiles: np.ndarray,
    indices: np.ndarray,
    cosines: np.ndarray,
    pixels: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Batch:
    graph = feature_graph(indices, cosines)
    kappa = kernel(graph, block_diagonal(pixels), params.graph.alpha)
    tokens = torch.from_numpy(cache.batch(params.head.levels, tiles))
    return Batch(tokens, cache.sizes(tiles), to_torch(kappa, "cpu"))
